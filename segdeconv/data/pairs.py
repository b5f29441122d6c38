"""Images with label maps: what the data sets on disk share.

A sample is a dictionary of ``image``, ``mask`` and ``name``.  Without a transform the first two are
arrays as they lie on disk, (H, W, 3) uint8 in red green blue and (H, W) uint8 in train ids; with
one they are what it makes of them, usually float32 (3, H, W) and int64 (H, W) tensors.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from segdeconv.data.labels import LabelSet
from segdeconv.data.readers import ImageArray, LabelArray, read_image, read_labels, to_train_ids

Transform = Callable[..., dict[str, Any]]

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")


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
            (rows, columns), (mask_rows, mask_columns) = image.shape[:2], mask.shape
            raise ValueError(
                f"{image_path} is {columns}x{rows} pixels, but its label map {label_path} is "
                f"{mask_columns}x{mask_rows}; make them the same size"
            )
        return image, mask

    def read_mask(self, path: Path) -> LabelArray:
        """Train ids (H, W) of one label file."""
        return to_train_ids(read_labels(path), self.label_set, path, "check the file")


def match_by_stem(
    images: Path, masks: Path, names: Path | None = None, *, mask_suffix: str = "", labelled: bool
) -> tuple[list[str], list[Path], list[Path | None]]:
    """Pair the images of one folder with the label maps of another, by name without the ending.

    Args:
        images: Folder of images, sub-folders included.
        masks: Folder of label maps, with the same sub-folders.
        names: File with one name per line that chooses among the images; None takes all.
        mask_suffix: What a label map's name has behind the image's, such as "_mask".
        labelled: Each image needs a label map.

    Returns:
        Names (sorted, or in the order of the file), images and label maps.

    Raises:
        ValueError: A folder is missing or empty, or something has no counterpart.
    """
    found = _by_stem(images, "images")
    maps = _by_stem(masks, "label maps") if labelled or masks.is_dir() else {}
    chosen = sorted(found) if names is None else _read_names(names)
    absent = [name for name in chosen if name not in found]
    if absent:
        raise ValueError(
            f"{len(absent)} of {len(chosen)} names in {names} have no image in {images} "
            f"(first: {absent[0]})"
        )
    bare = [name for name in chosen if name + mask_suffix not in maps]
    if bare and labelled:
        raise ValueError(
            f"no label map for {len(bare)} of {len(chosen)} images (first: {found[bare[0]]}, "
            f"nothing named {bare[0]}{mask_suffix}.png in {masks}); names must match without the "
            f"ending"
        )
    if names is None and (spare := sorted(set(maps) - {name + mask_suffix for name in found})):
        warnings.warn(
            f"{len(spare)} label maps in {masks} have no image and are left out "
            f"(first: {maps[spare[0]].name})",
            stacklevel=3,
        )
    labels = [maps.get(name + mask_suffix) for name in chosen]
    return chosen, [found[name] for name in chosen], labels


def ends_in(path: Path, endings: Sequence[str]) -> bool:
    """Whether this is a file with one of the endings, in small letters or capitals."""
    # Archives made on macOS carry a "._name.png" beside each file, which is no picture.
    return path.suffix.lower() in endings and not path.name.startswith(".") and path.is_file()


def stem_in(folder: Path, path: Path) -> str:
    """The path of a file in ``folder``, without its ending: "aachen/0001"."""
    return path.relative_to(folder).with_suffix("").as_posix()


def _by_stem(folder: Path, what: str) -> dict[str, Path]:
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
            raise ValueError(
                f"{folder} holds both {paths[stem].name} and {path.name}; names must differ "
                f"without the ending"
            )
        paths[stem] = path
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
