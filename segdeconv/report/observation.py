"""What an evaluation shows of each image and of all pixels, besides the scores of the whole set.

Everything is counted as it comes by: torchmetrics' calibration error would keep the confidence of
every pixel, 4 GB for the 500 images of Cityscapes, and tells the error without its curve.

Shapes: N images, H and W height and width, B bins.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from segdeconv.metrics import count_confusions, scores_from_confusion

BINS = 15  # as in Guo et al., "On Calibration of Modern Neural Networks", ICML 2017


@dataclass
class Calibration:
    """Pixels by the confidence of their prediction, in bins of equal width.

    Attributes:
        sums: (3, B) float64: number of pixels, sum of their confidences, number of right ones.
    """

    sums: Tensor = field(default_factory=lambda: torch.zeros(3, BINS, dtype=torch.float64))

    def update(self, confidence: Tensor, right: Tensor, labelled: Tensor | None = None) -> None:
        """Count pixels.

        Args:
            confidence: Probability of the predicted class, 0 to 1, of any shape.
            right: Whether it is the true one, of the same shape.
            labelled: Whether a pixel counts, of the same shape; None: all do.
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
        """Expected calibration error: mean gap of confidence and accuracy over all pixels."""
        count, confidence, right = self.sums
        return float((confidence - right).abs().sum() / count.sum())

    def curve(self) -> list[tuple[float, float, float]]:
        """(mean confidence, accuracy, share of all pixels) of each bin that holds some."""
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
        if not (dist.is_available() and dist.is_initialized()):
            return
        parts: list[tuple[dict[str, float], Tensor]] = [({}, Tensor())] * dist.get_world_size()
        dist.all_gather_object(parts, (self.images, self.calibration.sums))
        self.images = {name: score for images, _ in parts for name, score in images.items()}
        self.calibration = Calibration(torch.stack([sums for _, sums in parts]).sum(0))
