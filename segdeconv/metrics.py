"""Scores of segmentation that mean the same as the official Cityscapes figures, and of classifiers.

Everything is a function of ONE confusion matrix over the whole set, counted by `count_confusions`.
A mean of per-image or per-batch scores is another quantity: the mean of ratios is not the ratio of
sums.

Definitions are those of cityscapesScripts' `evalPixelLevelSemanticLabeling`: pixels whose truth is
ignored never count; a class that is in neither truth nor prediction has no score (NaN) and is left
out of the mean; a class that is only predicted scores 0. The script counts all 34 label ids, this
the evaluated classes; a network that predicts only these gets the same numbers from both.

Shapes: C classes, rows are truth, columns are prediction.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

MOST_PIXELS = 2**24  # that OpenCV counts at once: its counts become float32
SHORT_RUN = 8  # pixels; where runs are shorter on average, pixels are counted one by one


def count_confusions(
    predicted: Tensor, truth: Tensor, num_classes: int, ignore_index: int
) -> Tensor:
    """How often each class was taken for each other.

    The counts of torchmetrics' ``multiclass_confusion_matrix``, on CPU in about 4 instead of 44 ms
    for 1024 x 2048 pixels; on CUDA whole numbers are added up, so a count repeats bit for bit.

    Args:
        predicted: Classes, integers of any shape, 0 to 255.
        truth: Classes or ``ignore_index``, of the same shape.
        num_classes: Number C of classes, 255 at most.
        ignore_index: Truth that does not count, 0 to 255.

    Returns:
        (C, C) int64, rows are truth, where ``predicted`` is.

    Raises:
        ValueError: If there is another class than 0 to C - 1.
    """
    count = _count_on_gpu if predicted.is_cuda else _count_on_cpu
    counts, labelled = count(predicted, truth, num_classes, ignore_index)
    if ignore_index < num_classes:
        counts[ignore_index] = 0
    counted = int(counts.sum())
    if labelled != counted:
        raise ValueError(
            f"{labelled - counted} of {labelled} pixels have a class that is not 0 to "
            f"{num_classes - 1}, in the truth or predicted; the network and its labels must have "
            "the same classes"
        )
    return counts.to(predicted.device)


def _count_on_cpu(
    predicted: Tensor, truth: Tensor, num_classes: int, ignore_index: int
) -> tuple[Tensor, int]:
    """Counts and number of labelled pixels.

    Runs of equal pixels where these are long, as in predictions that are worth something:
    a histogram waits for its last addition to a bin before the next, so it is slow just there.
    """
    maps = [each.to("cpu", torch.uint8).flatten().numpy() for each in (truth, predicted)]
    changes = np.logical_or(*(each[1:] != each[:-1] for each in maps))
    many = np.count_nonzero(changes) * SHORT_RUN >= changes.size
    count = _count_pixels(maps, num_classes) if many else _count_runs(maps, changes)
    counts = torch.from_numpy(count[:num_classes, :num_classes].astype(np.int64))
    return counts, int(np.count_nonzero(maps[0] != ignore_index))


def _count_pixels(maps: Sequence[NDArray[np.uint8]], num_classes: int) -> NDArray[np.float64]:
    """Pixels of each pair of values, (C, C)."""
    counts = np.zeros((num_classes, num_classes))
    for start in range(0, maps[0].size, MOST_PIXELS):
        pieces = [each[None, start : start + MOST_PIXELS] for each in maps]
        counts += cv2.calcHist(pieces, [0, 1], None, [num_classes] * 2, [0, num_classes] * 2)
    return counts


def _count_runs(
    maps: Sequence[NDArray[np.uint8]], changes: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Pixels of each pair of values, (256, 256); ``changes`` says behind which pixels runs end."""
    ends = np.append(np.flatnonzero(changes), maps[0].size - 1)
    codes = 256 * maps[0][ends].astype(np.int64) + maps[1][ends]
    lengths = np.diff(ends, prepend=-1)
    counts: NDArray[Any] = np.bincount(codes, lengths, minlength=2**16)  # float64: exact to 2^53
    return counts.reshape(256, 256)


def _count_on_gpu(
    predicted: Tensor, truth: Tensor, num_classes: int, ignore_index: int
) -> tuple[Tensor, int]:
    side = num_classes + 1  # one more row and column for all that is no class
    codes = truth.long().clamp(max=num_classes) * side + predicted.long().clamp(max=num_classes)
    counts = torch.bincount(codes.flatten(), minlength=side * side).view(side, side)
    labelled = int((truth != ignore_index).sum())
    return counts[:num_classes, :num_classes].clone(), labelled


class ConfusionMatrix(MulticlassConfusionMatrix):
    """torchmetrics' metric, summed over processes as it is, counted by `count_confusions`.

    Args:
        num_classes: Number of classes.
        ignore_index: Truth that does not count.
    """

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        super().__init__(num_classes, ignore_index=ignore_index, validate_args=False)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count predicted and true classes, of one shape."""
        assert self.ignore_index is not None
        self.confmat += count_confusions(preds, target, self.num_classes, self.ignore_index)


class Scores(Protocol):
    """What a validation yields, whatever the task.

    Attributes:
        FIGURES: Attribute -> its name for readers.  All are recorded; the first is the main figure,
            by which the best weights are chosen.
        SHOWN: Those that a line of progress shows, the main figure first.
        CLASS_FIGURE: Key of the scores of each class in `to_dict`, and the name of their columns.
    """

    FIGURES: ClassVar[Mapping[str, str]]
    SHOWN: ClassVar[Sequence[str]]
    CLASS_FIGURE: ClassVar[tuple[str, str]]

    def to_dict(self, class_names: Sequence[str]) -> dict[str, object]:
        """Everything as JSON types."""

    def table(self, class_names: Sequence[str]) -> str:
        """A text table in percent."""


def main_figure(scores: Scores) -> str:
    """Name of the attribute by which the best weights are chosen."""
    return next(iter(scores.FIGURES))


@dataclass(frozen=True, eq=False)
class SegmentationScores:
    """The scores of one evaluation; ratios lie in 0 to 1, NaN where nothing was there to score.

    Attributes:
        class_iou: Intersection over union per class, (C,) float64.
        class_accuracy: Share of each class's true pixels that were found, (C,) float64.
        miou: Mean of `class_iou` over the classes that have one.
        mean_accuracy: Mean of `class_accuracy` over the classes that have one.
        pixel_accuracy: Share of all labelled pixels that are right.
        category_iou: Per category, confusions within it counting as right; {} without categories.
        mean_category_iou: Mean of `category_iou` over the categories that have one.
        confusion: The counts behind all this, (C, C) int64.
    """

    FIGURES: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"miou": "mIoU", "mean_accuracy": "mean accuracy", "pixel_accuracy": "pixel accuracy"}
    )
    SHOWN: ClassVar[Sequence[str]] = ("miou", "pixel_accuracy")
    CLASS_FIGURE: ClassVar[tuple[str, str]] = ("class_iou", "iou")

    class_iou: Tensor
    class_accuracy: Tensor
    miou: float
    mean_accuracy: float
    pixel_accuracy: float
    category_iou: dict[str, float]
    mean_category_iou: float
    confusion: Tensor

    def to_dict(self, class_names: Sequence[str]) -> dict[str, object]:
        """Everything as JSON types: NaN becomes None, per-class scores are keyed by name."""
        self._check(class_names)
        return {
            "miou": json_number(self.miou),
            "mean_accuracy": json_number(self.mean_accuracy),
            "pixel_accuracy": json_number(self.pixel_accuracy),
            "mean_category_iou": json_number(self.mean_category_iou),
            "class_iou": json_numbers(class_names, self.class_iou.tolist()),
            "class_accuracy": json_numbers(class_names, self.class_accuracy.tolist()),
            "category_iou": json_numbers(self.category_iou, self.category_iou.values()),
            "confusion": self.confusion.tolist(),
        }

    def table(self, class_names: Sequence[str]) -> str:
        """A text table in percent: each class with its share of the labelled pixels, the means."""
        self._check(class_names)
        share = self.confusion.sum(1).double() / max(1, int(self.confusion.sum()))
        rows = list(zip(class_names, self.class_iou, self.class_accuracy, share, strict=True))
        width = max(len(name) for name in (*class_names, *self.category_iou, "mean category IoU"))
        rule = "-" * (width + 30)
        lines = [f"{'class':<{width}}  {'IoU':>8}  {'accuracy':>8}  {'pixels':>8}", rule]
        lines += [
            f"{name:<{width}}  {percent(iou)}  {percent(accuracy)}  {percent(pixels)}"
            for name, iou, accuracy, pixels in rows
        ]
        lines += [rule, f"{'mean':<{width}}  {percent(self.miou)}  {percent(self.mean_accuracy)}"]
        lines += [f"{'all pixels':<{width}}  {'':>8}  {percent(self.pixel_accuracy)}"]
        if self.category_iou:
            lines += ["", f"{'category':<{width}}  {'IoU':>8}", rule]
            lines += [f"{name:<{width}}  {percent(iou)}" for name, iou in self.category_iou.items()]
            lines += [rule, f"{'mean category IoU':<{width}}  {percent(self.mean_category_iou)}"]
        return "\n".join(lines)

    def _check(self, class_names: Sequence[str]) -> None:
        if len(class_names) != len(self.class_iou):
            raise ValueError(
                f"{len(class_names)} class names for scores of {len(self.class_iou)} classes; "
                "pass the names of the label set that was evaluated"
            )


def scores_from_confusion(
    confusion: Tensor, categories: Sequence[str] | None = None
) -> SegmentationScores:
    """All scores of one confusion matrix.

    Args:
        confusion: Pixel counts without ignored pixels, (C, C) integers, rows are truth.
        categories: Category name of each class, C of them; None for a label set without categories.

    Raises:
        ValueError: If the matrix is not square or not of integers, or lacks a class's category.
    """
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError(f"confusion of shape {tuple(confusion.shape)}: expected (C, C)")
    if confusion.is_floating_point():
        raise ValueError(
            f"confusion of {confusion.dtype}: expected integers; "
            "float32 loses units above 1.7e7 pixels"
        )
    confusion = confusion.detach().to("cpu", torch.int64)
    class_iou = _iou(confusion)
    class_accuracy = confusion.diagonal().double() / confusion.sum(1)
    category_iou = {} if categories is None else _category_iou(confusion, categories)
    return SegmentationScores(
        class_iou=class_iou,
        class_accuracy=class_accuracy,
        miou=float(class_iou.nanmean()),
        mean_accuracy=float(class_accuracy.nanmean()),
        pixel_accuracy=float(confusion.diagonal().sum().double() / confusion.sum()),
        category_iou=category_iou,
        mean_category_iou=float(
            torch.tensor([*category_iou.values()], dtype=torch.float64).nanmean()
        ),
        confusion=confusion,
    )


def _iou(confusion: Tensor) -> Tensor:
    """Intersection over union of each row and column, 0/0 giving NaN."""
    hit = confusion.diagonal()
    return hit.double() / (confusion.sum(0) + confusion.sum(1) - hit)


def _category_iou(confusion: Tensor, categories: Sequence[str]) -> dict[str, float]:
    """IoU after merging the classes of each category, categories in order of first appearance."""
    if len(categories) != len(confusion):
        raise ValueError(
            f"{len(categories)} categories for {len(confusion)} classes: expected one per class"
        )
    names = list(dict.fromkeys(categories))
    member = torch.tensor([[name == category for category in categories] for name in names]).long()
    return dict(zip(names, _iou(member @ confusion @ member.T).tolist(), strict=True))


def percent(ratio: float | Tensor) -> str:
    """A share in percent, as wide as a column of the tables here; a dash for NaN."""
    value = float(ratio)
    return f"{'-':>8}" if math.isnan(value) else f"{100 * value:8.2f}"


@dataclass(frozen=True, eq=False)
class ClassificationScores:
    """The scores of one evaluation of a classifier; ratios lie in 0 to 1, NaN without images.

    Attributes:
        class_accuracy: Share of each class's images that were recognised, (C,) float64.
        top1: Share of all images that were recognised.
        top5: Share of all images whose class is among the five likeliest.
        mean_accuracy: Mean of `class_accuracy` over the classes that have images.
        confusion: The counts behind all this but `top5`, (C, C) int64, rows are truth.
    """

    FIGURES: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"top1": "top-1", "top5": "top-5", "mean_accuracy": "mean accuracy"}
    )
    SHOWN: ClassVar[Sequence[str]] = ("top1", "top5")
    CLASS_FIGURE: ClassVar[tuple[str, str]] = ("class_accuracy", "accuracy")

    class_accuracy: Tensor
    top1: float
    top5: float
    mean_accuracy: float
    confusion: Tensor

    def to_dict(self, class_names: Sequence[str]) -> dict[str, object]:
        """Everything as JSON types: NaN becomes None, per-class scores are keyed by name."""
        few = len(class_names) <= 100  # ImageNet's would be a million numbers
        return {
            **{name: json_number(getattr(self, name)) for name in self.FIGURES},
            "class_accuracy": json_numbers(class_names, self.class_accuracy.tolist()),
            "confusion": self.confusion.tolist() if few else None,
        }

    def table(self, class_names: Sequence[str]) -> str:
        """A text table in percent: each class with its number of images, then all of them."""
        width = max(len(name) for name in (*class_names, "mean of classes"))
        rule = "-" * (width + 20)
        counts = self.confusion.sum(1).tolist()
        lines = [f"{'class':<{width}}  {'accuracy':>8}  {'images':>8}", rule]
        lines += [
            f"{name:<{width}}  {percent(accuracy)}  {count:>8}"
            for name, accuracy, count in zip(class_names, self.class_accuracy, counts, strict=True)
        ]
        lines += [rule, f"{'mean of classes':<{width}}  {percent(self.mean_accuracy)}"]
        lines += [f"{'top-1':<{width}}  {percent(self.top1)}  {sum(counts):>8}"]
        lines += [f"{'top-5':<{width}}  {percent(self.top5)}"]
        return "\n".join(lines)


def classification_scores(confusion: Tensor, top5: float) -> ClassificationScores:
    """All scores of one confusion matrix of images.

    Args:
        confusion: Counts of images, (C, C) integers, rows are truth.
        top5: Share of the images whose class is among the five likeliest.
    """
    confusion = confusion.detach().to("cpu", torch.int64)
    hits, images = confusion.diagonal().double(), confusion.sum(1)
    class_accuracy = hits / images
    return ClassificationScores(
        class_accuracy=class_accuracy,
        top1=float(hits.sum() / images.sum()),
        top5=top5,
        mean_accuracy=float(class_accuracy.nanmean()),
        confusion=confusion,
    )


def json_number(value: float) -> float | None:
    """A number as JSON has it, where there is no NaN."""
    return None if math.isnan(value) else value


def json_numbers(names: Iterable[str], values: Iterable[float]) -> dict[str, float | None]:
    """Named numbers as JSON has them."""
    return {name: json_number(value) for name, value in zip(names, values, strict=True)}
