"""What is wrong with one sample, and a quick look at some of them before hours are spent.

`segdeconv.data.doctor` looks at all samples in the same way, and says what that means for the set.
"""

import copy
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from segdeconv.data.labels import Colour, LabelSet
from segdeconv.data.pairs import PairedImages, describe_sizes
from segdeconv.data.readers import (
    ImageArray,
    LabelArray,
    UnreadableError,
    describe_unknown_id,
    read_image,
    read_labels_and_palette,
)

SHORT_RUN = 8  # pixels; where runs are shorter on average, ids are counted one by one
T = TypeVar("T")
Counts = NDArray[np.int64]


class Kind(NamedTuple):
    """A kind of finding: whether training can work with it, and what is found."""

    is_error: bool
    title: str


KINDS = {
    "split": Kind(True, "a split that cannot be opened"),
    "image-without-mask": Kind(True, "images without a label map"),
    "name-without-image": Kind(True, "names in the list without an image"),
    "same-name": Kind(True, "files whose names differ in the ending only"),
    "unreadable-image": Kind(True, "images that cannot be read"),
    "unreadable-mask": Kind(True, "label maps that cannot be read"),
    "image-format": Kind(True, "images that are no 8 bit colour or grey images"),
    "mask-format": Kind(True, "label maps that hold colours, or other things than ids"),
    "size": Kind(True, "images and label maps of different sizes"),
    "unknown-id": Kind(True, "label maps with values that mean nothing"),
    "no-labels": Kind(True, "no pixel of any class"),
    "duplicate-between-splits": Kind(True, "images that are in more than one split"),
    "mask-without-image": Kind(False, "label maps without an image"),
    "duplicate-in-split": Kind(False, "images that are in a split more than once"),
    "black-and-white-mask": Kind(False, "label maps that hold nothing but 0 and 255"),
    "one-value-mask": Kind(False, "label maps that hold a single value"),
    "palettes": Kind(False, "palettes that give one id several colours"),
    "blank-image": Kind(False, "images of a single colour"),
    "mostly-ignored": Kind(False, "more than half of the pixels are ignored"),
    "absent-class": Kind(False, "classes without a pixel"),
}


class Problem(NamedTuple):
    """Something found in one sample: its kind in `KINDS`, the file, and a sentence about it."""

    kind: str
    file: str
    sentence: str


@dataclass
class Examined:
    """What one sample is like, before the transform; small enough to send between processes.

    Args:
        file: The image's file, or the sample's name where there are no files.
        problems: What is wrong with it.
        size: Width and height; None if the image could not be read, as with the next three.
        mean: Mean of each channel, of values in 0 to 255, (3,).
        std: Standard deviation of each channel, (3,).
        fingerprint: Equal for images of equal pixels, and, but for chance, for no others.
        counts: Pixels of each train id, (256,); None without a readable label map.
        colours: Colour of each id that is there, if the label file has a palette.
    """

    file: str
    problems: list[Problem] = field(default_factory=list)
    size: tuple[int, int] | None = None
    mean: NDArray[np.float64] | None = None
    std: NDArray[np.float64] | None = None
    fingerprint: tuple[Any, ...] | None = None
    counts: Counts | None = None
    colours: dict[int, Colour] = field(default_factory=dict)


def quick_check(dataset: Any, num_samples: int = 16) -> list[str]:
    """Look at some samples, spread over the data set, for what training cannot work with.

    Args:
        dataset: A data set of this package, or one like them: ``len``, samples of ``image``,
            ``mask`` and ``name``, ``label_set``, ``transform``.
        num_samples: How many samples are read.

    Returns:
        One sentence per problem; nothing if there is none.
    """
    if len(dataset) == 0:
        return ["the data set has no samples"]
    dataset = untransformed(dataset)
    looks = [examine(dataset, index) for index in spread_over(len(dataset), num_samples)]
    found = [problem for look in looks for problem in look.problems]
    problems = [problem.sentence for problem in found if KINDS[problem.kind].is_error]
    labelled = sum(class_pixels(look, dataset.label_set) for look in looks)
    if not problems and not labelled:
        problems.append(
            f"none of the {len(looks)} label maps that were read has a pixel of a class of "
            f"{dataset.label_set.name}; every pixel is ignored"
        )
    return problems


def untransformed(dataset: Any) -> Any:
    """The data set with its samples as they are before the transform."""
    dataset = copy.copy(dataset)
    dataset.transform = None
    return dataset


def spread_over(length: int, count: int) -> list[int]:
    """``count`` indices (all, if there are no more), the first and the last among them."""
    places = np.linspace(0, length - 1, min(count, length))
    return [int(place) for place in places.round()]


def class_pixels(look: Examined, label_set: LabelSet) -> int:
    """Pixels that belong to a class."""
    return 0 if look.counts is None else int(look.counts[: label_set.num_classes].sum())


def examine(dataset: Any, index: int) -> Examined:
    """Look at one sample of an `untransformed` data set; nothing in it makes this raise."""
    if isinstance(dataset, PairedImages):
        return _examine_files(dataset, index)
    return _examine_sample(dataset, index)


def _examine_files(dataset: PairedImages, index: int) -> Examined:
    image_path, label_path = dataset.image_paths[index], dataset.label_paths[index]
    look = Examined(str(image_path))
    image = _attempt(read_image, image_path, "image", look.problems)
    if image is not None:
        _look_at_image(look, image)
    if label_path is None:
        return look
    labels = _attempt(read_labels_and_palette, label_path, "mask", look.problems)
    if labels is None:
        return look
    ids, palette = labels
    counts = count_ids(ids)
    label_set, hint = dataset.meaning_of(label_path)
    known = np.where(label_set.is_unknown, 0, counts)
    # a sum of whole numbers below 2^53: exact in the float64 that bincount makes of weights
    look.counts = np.bincount(label_set.id_to_train, known, minlength=256).astype(np.int64)
    look.problems += _suspicions(counts, label_path)
    if (known != counts).any():
        sentence = describe_unknown_id(counts, label_set, label_path, hint)
        look.problems.append(Problem("unknown-id", str(label_path), sentence))
    if image is not None and ids.shape != image.shape[:2]:
        sentence = describe_sizes(image_path, image, label_path, ids)
        look.problems.append(Problem("size", str(image_path), sentence))
    if palette is not None:
        used = [int(value) for value in np.flatnonzero(counts[: len(palette)])]
        look.colours = {value: tuple(palette[value].tolist()) for value in used}
    return look


def _examine_sample(dataset: Any, index: int) -> Examined:
    """The same for samples that are drawn, or come from elsewhere; their masks hold train ids."""
    try:
        sample = dataset[index]
    except Exception as error:  # whatever the data set is
        sentence = str(error) if isinstance(error, ValueError) else f"sample {index}: {error!r}"
        return Examined(f"sample {index}", [Problem("unreadable-image", str(index), sentence)])
    image, mask, name = sample["image"], sample["mask"], sample["name"]
    look, label_set = Examined(name), dataset.label_set
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        sentence = (
            f"the image of {name} is {image.dtype} {image.shape}, expected uint8 (height, width, 3)"
        )
        look.problems.append(Problem("image-format", name, sentence))
    else:
        _look_at_image(look, image)
    if mask.shape != image.shape[:2]:
        sentence = f"the mask of {name} has the shape {mask.shape}, its image {image.shape[:2]}"
        look.problems.append(Problem("size", name, sentence))
    look.counts = count_ids(np.asarray(mask, np.uint8))
    values = np.flatnonzero(look.counts)
    strange = values[(values >= label_set.num_classes) & (values != label_set.ignore_index)]
    if strange.size:
        sentence = (
            f"the mask of {name} holds the class {strange[0]}, but {label_set.name} has "
            f"{label_set.num_classes} classes (0 to {label_set.num_classes - 1}) and "
            f"{label_set.ignore_index} for ignored pixels"
        )
        look.problems.append(Problem("unknown-id", name, sentence))
    return look


def _attempt(read: Callable[[Path], T], path: Path, what: str, problems: list[Problem]) -> T | None:
    """What ``read`` makes of a file; None, and a problem, if it cannot."""
    try:
        return read(path)
    except UnreadableError as error:
        problems.append(Problem(f"unreadable-{what}", str(path), str(error)))
    except ValueError as error:
        problems.append(Problem(f"{what}-format", str(path), str(error)))
    except Exception as error:  # decoders raise of every kind on damaged files, and memory may end
        problems.append(Problem(f"unreadable-{what}", str(path), f"cannot read {path}: {error!r}"))
    return None


def _look_at_image(look: Examined, image: ImageArray) -> None:
    mean, std = cv2.meanStdDev(image)
    look.size = image.shape[1], image.shape[0]
    look.mean, look.std = mean.ravel(), std.ravel()
    # A checksum of 32 bits alone would meet another by chance among 100 000 images; together with
    # six moments it does not, and it costs a third of SHA-1.
    look.fingerprint = (
        *look.size,
        zlib.crc32(np.ascontiguousarray(image).data),
        mean.tobytes(),
        std.tobytes(),
    )
    if not std.any():
        colour = ", ".join(f"{value:.0f}" for value in look.mean)
        sentence = f"{look.file} has the colour ({colour}) throughout"
        look.problems.append(Problem("blank-image", look.file, sentence))


def _suspicions(counts: Counts, path: Path) -> list[Problem]:
    values = np.flatnonzero(counts).tolist()
    if values == [0, 255]:
        sentence = f"{path} holds 0 and 255 only, as a black and white picture does; ids are meant"
        return [Problem("black-and-white-mask", str(path), sentence)]
    if len(values) == 1:
        sentence = f"{path} holds the value {values[0]} throughout"
        return [Problem("one-value-mask", str(path), sentence)]
    return []


def count_ids(ids: LabelArray) -> Counts:
    """Pixels of each value, (256,): by runs of equal ones where these are long, as they mostly are.

    A map of 1024 x 2048 pixels then takes 0.9 ms; calcHist, which waits for its last addition to a
    value before the next, takes 4.7, and a quarter of bincount's time where values change.
    """
    flat = ids.ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]), flat.size - 1)
    if SHORT_RUN * ends.size <= flat.size:
        # sums of whole numbers below 2^53: exact in float64
        lengths = np.diff(ends, prepend=-1)
        return np.bincount(flat[ends], lengths, minlength=256).astype(np.int64)
    counts = np.zeros(256, np.int64)
    # calcHist counts in float32: exact to 2^24
    for strip in np.array_split(ids, -(-ids.size // 2**24) or 1):
        counts += cv2.calcHist([strip], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    return counts
