"""CIFAR-10 and CIFAR-100: 60,000 colour images of 32 x 32 pixels, 10 or 100 classes.

Krizhevsky, "Learning multiple layers of features from tiny images", 2009.  The files are those of
the "python version"; torchvision's classes name them.  They are pickles, which may run anything
when read: here one that holds more than arrays, numbers and text is refused.  Only the files of a
split are looked at, and no checksum is asked for.
"""

import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torchvision.datasets

from segdeconv.data.arrays import ArrayTransform, ImageArrays, choose, find_folder
from segdeconv.data.classes import ClassNames

_HARMLESS = {
    *(("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")),
    *(("numpy._core.numeric", "_frombuffer"), ("numpy.core.numeric", "_frombuffer")),
    *(("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")),
}


class _PlainData(pickle.Unpickler):
    """Reads arrays, numbers and text."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"it wants to call {module}.{name}")
        return super().find_class(module, name)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = _PlainData(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle fails in many ways
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"{path} cannot be read as a batch of CIFAR ({reason}); unpack the archive again"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no batch of CIFAR; unpack the archive again")
    return content


class CIFAR10(ImageArrays):
    """CIFAR-10.

    Args:
        root: Folder with `cifar-10-batches-py`, or that folder.
        split: "train", "test"; "fit", batches 1 to 4, and "holdout", batch 5.
        transform: See `ImageArrays`.

    Raises:
        ValueError: No such split, files that are missing or damaged.
    """

    MEAN = (0.4914, 0.4822, 0.4465)
    STD = (0.2023, 0.1994, 0.2010)  # as in the recipe of the paper
    READER: ClassVar[Any] = torchvision.datasets.CIFAR10
    KEY = "labels"
    NAME = "CIFAR-10"

    def __init__(
        self, root: str, split: str = "train", transform: ArrayTransform | None = None
    ) -> None:
        files, part = choose(self.splits(), split, self.NAME)
        inner = self.READER.base_folder
        folder = find_folder(root, [inner], [*files, self.READER.meta["filename"]], self.NAME)
        batches = [_read(folder / file) for file in files]
        names = _read(folder / self.READER.meta["filename"])
        try:
            pixels = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
            labels = np.concatenate([batch[self.KEY] for batch in batches])
            label_set = ClassNames(self.NAME, tuple(names[self.READER.meta["key"]]))
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(
                f"{folder} does not hold {self.NAME} ({error}); unpack the archive again"
            ) from error
        chosen = part(len(pixels))
        super().__init__(
            torch.from_numpy(pixels[chosen]),
            torch.from_numpy(labels[chosen]).long(),
            label_set,
            transform,
            str(folder),
        )

    @classmethod
    def splits(cls) -> dict[str, tuple[list[str], Any]]:
        """Files of each split, and the part of their images, as a function of their number."""
        train, test = ([file for file, _ in files] for files in cls._files())
        return {
            "train": (train, _all),
            "test": (test, _all),
            "fit": (train[:-1], _all),
            "holdout": (train[-1:], _all),
        }

    @classmethod
    def _files(cls) -> tuple[Any, Any]:
        return cls.READER.train_list, cls.READER.test_list


class CIFAR100(CIFAR10):
    """CIFAR-100, its 100 fine classes.

    Args:
        root: Folder with `cifar-100-python`, or that folder.
        split: "train", "test"; "fit", the first four fifths of the training images in the order of
            the file, which is random, and "holdout", the last fifth.
        transform: See `ImageArrays`.

    Raises:
        ValueError: No such split, files that are missing or damaged.
    """

    MEAN = (0.5071, 0.4865, 0.4409)
    STD = (0.2009, 0.1984, 0.2023)
    READER = torchvision.datasets.CIFAR100
    KEY = "fine_labels"
    NAME = "CIFAR-100"

    @classmethod
    def splits(cls) -> dict[str, tuple[list[str], Any]]:
        """Files of each split, and the part of their images, as a function of their number."""
        train, _ = super().splits()["train"]
        return super().splits() | {
            "fit": (train, lambda count: slice(0, count * 4 // 5)),
            "holdout": (train, lambda count: slice(count * 4 // 5, count)),
        }


def _all(count: int) -> slice:
    return slice(count)
