"""What an evaluation shows of single images and of all confidences, besides the whole set's scores.

Everything is counted as it comes by: torchmetrics' calibration error would keep the confidence of
every pixel, 4 GB for the 500 images of Cityscapes, and tells the error without its curve.

Shapes: N images, C classes or channels, H and W height and width, B bins.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from segdeconv.data.readers import ImageArray
from segdeconv.metrics import count_confusions, scores_from_confusion

T = TypeVar("T")
BINS = 15  # as in Guo et al., "On Calibration of Modern Neural Networks", ICML 2017


@dataclass
class Calibration:
    """Pixels, or images of a classifier, by the confidence of their prediction, in equal bins.

    Attributes:
        sums: (3, B) float64: their number, sum of their confidences, number of right ones.
    """

    sums: Tensor = field(default_factory=lambda: torch.zeros(3, BINS, dtype=torch.float64))

    def update(self, confidence: Tensor, right: Tensor, labelled: Tensor | None = None) -> None:
        """Count pixels or images.

        Args:
            confidence: Probability of the predicted class, 0 to 1, of any shape.
            right: Whether it is the true one, of the same shape.
            labelled: Whether each counts, of the same shape; None: all do.
        """
        # bytes are counted three times as fast as whole numbers of eight
        bins = (confidence * BINS).to(torch.uint8).clamp_(0, BINS - 1)
        if labelled is not None:
            bins = torch.where(labelled, bins, BINS)  # one more, which is left out
        bins, right = bins.flatten(), right.flatten()
        counts = torch.bincount(2 * bins + right, minlength=2 * BINS)[: 2 * BINS].view(BINS, 2)
        sums = torch.bincount(bins, confidence.flatten().double(), minlength=BINS)[:BINS]
        self.sums += torch.stack([counts.sum(1).double(), sums, counts[:, 1].double()]).cpu()

    @property
    def error(self) -> float:
        """Expected calibration error: mean gap of confidence and accuracy over all of them."""
        count, confidence, right = self.sums
        return float((confidence - right).abs().sum() / count.sum())

    def curve(self) -> list[tuple[float, float, float]]:
        """(mean confidence, accuracy, share of all) of each bin that holds some."""
        shares = self.sums[0] / self.sums[0].sum()
        return [
            (float(confidence / count), float(right / count), float(share))
            for (count, confidence, right), share in zip(self.sums.T, shares, strict=True)
            if count
        ]


class Observer:
    """Counts while a segmentation network is evaluated.

    Args:
        num_classes: Number C of classes.
        ignore_index: Train id of pixels that do not count.

    Attributes:
        images: Name -> mean IoU over the classes that occur in its labels or in its prediction.
        calibration: Of all labelled pixels.
    """

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.images: dict[str, float] = {}
        self.calibration = Calibration()

    def __call__(
        self, names: Sequence[str], classes: Tensor, confidence: Tensor, masks: Tensor
    ) -> None:
        """Count some images.

        Args:
            names: N names.
            classes: Predicted classes, (N, H, W).
            confidence: Their probabilities, (N, H, W).
            masks: True classes, (N, H, W).
        """
        if classes.device.type == "mps":  # which has no float64
            classes, confidence, masks = classes.cpu(), confidence.cpu(), masks.cpu()
        self.calibration.update(confidence, classes == masks, masks != self.ignore_index)
        for name, predicted, mask in zip(names, classes, masks, strict=True):
            counts = count_confusions(predicted, mask, self.num_classes, self.ignore_index)
            score = scores_from_confusion(counts).miou
            if not math.isnan(score):  # of an image without labels there is nothing to say
                self.images[name] = score

    def gather(self) -> None:
        """Take in what the other processes saw, if there are some."""
        images, sums = zip(*of_all_processes((self.images, self.calibration.sums)), strict=True)
        self.images = {name: score for part in images for name, score in part.items()}
        self.calibration = Calibration(torch.stack(sums).sum(0))


@dataclass(frozen=True)
class Classified:
    """One image that a classifier was shown.

    Attributes:
        name: Of the image.
        truth: Name of its class.
        predicted: Name of the likeliest class.
        confidence: Probability of that, 0 to 1.
        picture: What the network was shown, (H, W, 3) uint8.
    """

    name: str
    truth: str
    predicted: str
    confidence: float
    picture: ImageArray = field(compare=False)


class ClassificationObserver:
    """Counts while a classifier is evaluated, and keeps what it was surest of.

    Args:
        class_names: Of the C classes.
        mean: Mean that was taken from each channel, of values in 0 to 1.
        std: Deviation that each channel was divided by.
        count: How many wrong and how many right images are kept.

    Attributes:
        calibration: Of all images.
        wrong: Those that were not recognised, the surest mistake first.
        right: Those that were recognised, the surest first.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        count: int = 12,
    ) -> None:
        self.class_names, self.count = class_names, count
        self.mean, self.std = (torch.tensor(each).view(-1, 1, 1) for each in (mean, std))
        self.calibration = Calibration()
        self.wrong: list[Classified] = []
        self.right: list[Classified] = []

    def __call__(
        self, names: Sequence[str], images: Tensor, logits: Tensor, labels: Tensor
    ) -> None:
        """Count some images.

        Args:
            names: N names.
            images: Normalised images, (N, C, H, W).
            logits: Of each class, (N, C).
            labels: True classes, (N,).
        """
        confidence, predicted = logits.float().cpu().softmax(1).max(1)
        labels = labels.cpu()
        right = predicted == labels
        self.calibration.update(confidence, right)

        def shown(index: int) -> Classified:
            truth, found = (self.class_names[int(each[index])] for each in (labels, predicted))
            picture = self._picture(images[index])
            return Classified(names[index], truth, found, float(confidence[index]), picture)

        order = confidence.argsort(descending=True, stable=True)
        for kept, chosen in ((self.wrong, ~right), (self.right, right)):
            surest = order[chosen[order]][: self.count].tolist()
            kept[:] = self._surest([*kept, *map(shown, surest)])

    def _picture(self, image: Tensor) -> ImageArray:
        """A normalised image (C, H, W) as it was; a grey one in three equal channels."""
        pixels = (image.float().cpu() * self.std + self.mean).mul(255).round().clamp(0, 255)
        return np.ascontiguousarray(pixels.to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0))

    def _surest(self, images: Iterable[Classified]) -> list[Classified]:
        return sorted(images, key=lambda each: -each.confidence)[: self.count]

    def gather(self) -> None:
        """Take in what the other processes saw, if there are some."""
        own = (self.wrong, self.right, self.calibration.sums)
        wrong, right, sums = zip(*of_all_processes(own), strict=True)
        self.wrong, self.right = (self._surest(chain(*each)) for each in (wrong, right))
        self.calibration = Calibration(torch.stack(sums).sum(0))


def of_all_processes(own: T) -> list[T]:
    """What each process has, in their order; where there is one, its own alone."""
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    parts = [own] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    return parts
