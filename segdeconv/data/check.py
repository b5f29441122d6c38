"""A quick look at a data set before hours are spent on it."""

import copy
from typing import Any

import numpy as np


def quick_check(dataset: Any, num_samples: int = 16) -> list[str]:
    """Read some samples, spread over the data set, as they are before the transform.

    Args:
        dataset: A data set of this package, or one like them: ``len``, samples of ``image``,
            ``mask`` and ``name``, ``label_set``, ``transform``.
        num_samples: How many samples are read.

    Returns:
        One sentence per problem; nothing if there is none.
    """
    if len(dataset) == 0:
        return ["the data set has no samples"]
    dataset = copy.copy(dataset)
    dataset.transform = None
    chosen = np.unique(np.linspace(0, len(dataset) - 1, num_samples).round().astype(int)).tolist()
    problems, counts = [], np.zeros(256, np.int64)
    for index in chosen:
        try:
            sample = dataset[index]
        except ValueError as error:
            problems.append(str(error))
            continue
        problems += _problems_of(sample, dataset.label_set)
        counts += np.bincount(np.asarray(sample["mask"], np.uint8).ravel(), minlength=256)
    if not problems and not counts[: dataset.label_set.num_classes].any():
        problems.append(
            f"none of the {len(chosen)} label maps that were read has a pixel of a class of "
            f"{dataset.label_set.name}; every pixel is ignored"
        )
    return problems


def _problems_of(sample: dict[str, Any], label_set: Any) -> list[str]:
    """What is wrong with one untransformed sample."""
    image, mask, name = sample["image"], sample["mask"], sample["name"]
    problems = []
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        problems.append(
            f"the image of {name} is {image.dtype} {image.shape}, expected uint8 (height, width, 3)"
        )
    if mask.shape != image.shape[:2]:
        problems.append(
            f"the mask of {name} has the shape {mask.shape}, its image {image.shape[:2]}"
        )
    values = np.unique(mask)
    strange = values[(values >= label_set.num_classes) & (values != label_set.ignore_index)]
    if strange.size:
        problems.append(
            f"the mask of {name} holds the class {strange[0]}, but {label_set.name} has "
            f"{label_set.num_classes} classes (0 to {label_set.num_classes - 1}) and "
            f"{label_set.ignore_index} for ignored pixels"
        )
    return problems
