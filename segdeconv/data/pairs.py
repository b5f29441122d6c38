"""Images with label maps: what the data sets on disk share.

A sample is a dictionary of ``image``, ``mask`` and ``name``.  Without a transform the first two are
arrays as they lie on disk, (H, W, 3) uint8 in red green blue and (H, W) uint8 in train ids; with
one they are what it makes of them, usually float32 (3, H, W) and int64 (H, W) tensors.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from segdeconv.data.labels import LabelSet
from segdeconv.data.readers import ImageArray, LabelArray, read_image, read_labels, to_train_ids

Transform = Callable[..., dict[str, Any]]

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True)
class Unpaired:
    """Files that keep a folder of images and a folder of label maps from being pairs.

    Args:
        kind: One of `segdeconv.data.check.KINDS`.
        files: The files, or names of a list.
        message: A sentence with the first of them and what to do.
    """

    kind: str
    files: tuple[str, ...]
    message: str


class PairedImages(Dataset[dict[str, Any]]):
    """Images and their label maps, read when they are asked for.

    Args:
        label_set: Classes and ids of the label maps.
        names: Name of each sample.
        image_paths: Image of each sample.
        label_paths: Label map of each sample; None where there is none, and the mask is then
            `LabelSet.ignore_index` throughout.
        transform: Called with the keywords ``image`` and ``mask``; returns the dictionary that
            becomes the sample.
    """

    def __init__(
        self,
        label_set: LabelSet,
        names: Sequence[str],
        image_paths: Sequence[Path],
        label_paths: Sequence[Path | None],
        transform: Transform | None = None,
    ) -> None:
        self.label_set = label_set
        self.names = list(names)
        self.image_paths = list(image_paths)
        self.label_paths = list(label_paths)
        self.transform = transform

    @property
    def ignore_index(self) -> int:
        """Train id of the pixels that are not scored."""
        return self.label_set.ignore_index

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, mask = self.load(index)
        sample: dict[str, Any] = {"image": image, "mask": mask}
        if self.transform is not None:
            sample = self.transform(image=image, mask=mask)
        return {**sample, "name": self.names[index]}

    def load(self, index: int) -> tuple[ImageArray, LabelArray]:
        """Image (H, W, 3) and train ids (H, W) of a sample, before the transform.

        Raises:
            ValueError: A file cannot be read, the two sizes differ, or the label map holds an id
                that the label set does not know.
        """
        image_path, label_path = self.image_paths[index], self.label_paths[index]
        image = read_image(image_path)
        if label_path is None:
            return image, np.full(image.shape[:2], self.ignore_index, np.uint8)
        mask = self.read_mask(label_path)
        if mask.shape != image.shape[:2]:
            raise ValueError(describe_sizes(image_path, image, label_path, mask))
        return image, mask

    def has_labels(self, count: int) -> bool:
        """Whether any label map of the first ``count`` samples has a pixel of a class.

        Those of splits that are kept for a server are missing, or hold nothing but ignored pixels.
        """
        paths = [path for path in self.label_paths[:count] if path is not None]
        return any((self.read_mask(path) != self.ignore_index).any() for path in paths)

    def read_mask(self, path: Path) -> LabelArray:
        """Train ids (H, W) of one label file."""
        label_set, hint = self.meaning_of(path)
        return to_train_ids(read_labels(path), label_set, path, hint)

    def meaning_of(self, path: Path) -> tuple[LabelSet, str]:
        """What the ids of a label file mean, and what to do about one that means nothing."""
        return self.label_set, "check the file"


def describe_sizes(image_path: Path, image: ImageArray, label_path: Path, mask: LabelArray) -> str:
    """A sentence on an image and a label map of different sizes."""
    (rows, columns), (mask_rows, mask_columns) = image.shape[:2], mask.shape
    return (
        f"{image_path} is {columns}x{rows} pixels, but its label map {label_path} is "
        f"{mask_columns}x{mask_rows}; make them the same size"
    )


def refuse(found: Unpaired, unpaired: list[Unpaired] | None) -> None:
    """Note what is found in ``unpaired``; without such a list it is an error.

    Raises:
        ValueError: If there is no list.
    """
    if unpaired is None:
        raise ValueError(found.message)
    unpaired.append(found)


def match_by_stem(
    images: Path,
    masks: Path,
    names: Path | None = None,
    *,
    mask_suffix: str = "",
    labelled: bool,
    unpaired: list[Unpaired] | None = None,
) -> tuple[list[str], list[Path], list[Path | None]]:
    """Pair the images of one folder with the label maps of another, by name without the ending.

    Args:
        images: Folder of images, sub-folders included.
        masks: Folder of label maps, with the same sub-folders.
        names: File with one name per line that chooses among the images; None takes all.
        mask_suffix: What a label map's name has behind the image's, such as "_mask".
        labelled: Each image needs a label map.
        unpaired: Gets what has no counterpart, in place of an error; the rest is paired.

    Returns:
        Names (sorted, or in the order of the file), images and label maps.

    Raises:
        ValueError: A folder is missing or empty, or something has no counterpart.
    """
    found = _by_stem(images, "images", unpaired)
    maps = _by_stem(masks, "label maps", unpaired) if labelled or masks.is_dir() else {}
    chosen = sorted(found) if names is None else _read_names(names)
    if absent := [name for name in chosen if name not in found]:
        sentence = (
            f"{len(absent)} of {len(chosen)} names in {names} have no image in {images} "
            f"(first: {absent[0]})"
        )
        refuse(Unpaired("name-without-image", tuple(absent), sentence), unpaired)
    there = [name for name in chosen if name in found]
    bare = [name for name in there if name + mask_suffix not in maps]
    if bare and labelled:
        sentence = (
            f"no label map for {len(bare)} of {len(chosen)} images (first: {found[bare[0]]}, "
            f"nothing named {bare[0]}{mask_suffix}.png in {masks}); names must match without the "
            f"ending"
        )
        files = tuple(str(found[name]) for name in bare)
        refuse(Unpaired("image-without-mask", files, sentence), unpaired)
    if names is None and (spare := sorted(set(maps) - {name + mask_suffix for name in found})):
        sentence = (
            f"{len(spare)} label maps in {masks} have no image and are left out "
            f"(first: {maps[spare[0]].name})"
        )
        if unpaired is None:
            warnings.warn(sentence, stacklevel=3)
        else:
            files = tuple(str(maps[name]) for name in spare)
            unpaired.append(Unpaired("mask-without-image", files, sentence))
    labels = [maps.get(name + mask_suffix) for name in there]
    return there, [found[name] for name in there], labels


def ends_in(path: Path, endings: Sequence[str]) -> bool:
    """Whether this is a file with one of the endings, in small letters or capitals."""
    # Archives made on macOS carry a "._name.png" beside each file, which is no picture.
    return path.suffix.lower() in endings and not path.name.startswith(".") and path.is_file()


def stem_in(folder: Path, path: Path) -> str:
    """The path of a file in ``folder``, without its ending: "aachen/0001"."""
    return path.relative_to(folder).with_suffix("").as_posix()


def _by_stem(folder: Path, what: str, unpaired: list[Unpaired] | None) -> dict[str, Path]:
    """The pictures below a folder, by their path in it without the ending."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; expected {what} there")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise ValueError(f"{folder} may not be read by this user; change its permissions")
    paths: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if not ends_in(path, IMAGE_ENDINGS):
            continue
        stem = stem_in(folder, path)
        if stem in paths:
            sentence = (
                f"{folder} holds both {paths[stem].name} and {path.name}; names must differ "
                f"without the ending"
            )
            refuse(Unpaired("same-name", (str(paths[stem]), str(path)), sentence), unpaired)
        paths.setdefault(stem, path)
    if not paths:
        raise ValueError(
            f"no {what} in {folder}; expected files ending in {', '.join(IMAGE_ENDINGS)}"
        )
    return paths


def _read_names(path: Path) -> list[str]:
    """The first word of each line, without folders' leading "./" and without an ending."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the list of names {path}: {error}") from error
    names = [line.strip().removeprefix("./") for line in lines if line.strip()]
    names = [
        str(Path(name).with_suffix("")) if name.lower().endswith(IMAGE_ENDINGS) else name
        for name in names
    ]
    if not names:
        raise ValueError(f"{path} is empty; expected one name per line")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path} lists {twice} more than once")
    return names
