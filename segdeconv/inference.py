"""Prediction with any model that maps an image batch to logits.

Logits are resized, never labels: what comes out is compared with the label at its original size.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from segdeconv.data.labels import LabelSet
from segdeconv.metrics import SegmentationScores, scores_from_confusion

Model = Callable[[Tensor], Tensor]


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (N, C, h, w) at ``size`` = (H, W), bilinear; unchanged where the size is right."""
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def predict(model: Model, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Most likely class of each pixel, from one forward of the whole images.

    Args:
        model: Maps images (N, 3, H, W) to logits (N, C, H, W).
        images: Normalised images, (N, 3, H, W).
        size: Height and width of the answer; None for that of the images.

    Returns:
        Classes 0 to C - 1, (N, height, width) int64 on the images' device.
    """
    with torch.no_grad():
        return resize_logits(model(images), size or images.shape[-2:]).argmax(1)  # type: ignore[arg-type]


def evaluate(
    model: Model,
    batches: Iterable[Mapping[str, Any]],
    label_set: LabelSet,
    device: torch.device | str = "cpu",
    save_to: Path | None = None,
) -> SegmentationScores:
    """Scores of a model over a whole set, labels at their own size.

    Args:
        model: Maps images (N, 3, H, W) to logits (N, C, H, W), in evaluation mode.
        batches: Dictionaries of "image" (N, 3, H, W), "mask" (N, h, w) of train ids, and "name".
        label_set: Its classes, categories and `ignore_index`.
        device: Where the model is.
        save_to: Folder for one PNG of label ids per image, named after it; None writes none.
    """
    confusion = MulticlassConfusionMatrix(
        label_set.num_classes, ignore_index=label_set.ignore_index, validate_args=False
    ).to(device)
    for batch in batches:
        mask = batch["mask"].to(device)
        predicted = predict(model, batch["image"].to(device), tuple(mask.shape[-2:]))
        confusion.update(predicted, mask)
        if save_to is not None:
            for name, labels in zip(batch["name"], predicted, strict=True):
                save_label_ids(save_to / f"{name}.png", labels, label_set)
    return scores_from_confusion(confusion.compute(), label_set.categories)


def save_label_ids(path: Path, prediction: Tensor, label_set: LabelSet) -> None:
    """Write one prediction as an 8-bit grey PNG of label ids (not train ids).

    This is the file that cityscapesScripts and the Cityscapes server read.

    Args:
        path: File to write; its folder is made.
        prediction: Train ids, (H, W) integers.
        label_set: Where the label id of each train id stands.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(label_set.train_to_id[prediction.cpu().numpy()]).save(path)
