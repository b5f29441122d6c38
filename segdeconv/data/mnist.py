"""MNIST and Fashion-MNIST: 70,000 grey images of 28 x 28 pixels, 10 classes.

LeCun, Cortes and Burges, "The MNIST database of handwritten digits"; Xiao, Rasul and Vollgraf,
"Fashion-MNIST", 2017, arXiv:1708.07747.  Read by torchvision's functions.
"""

from typing import Any, ClassVar

import torch
import torchvision.datasets
from torchvision.datasets.mnist import read_image_file, read_label_file

from segdeconv.data.arrays import ArrayTransform, ImageArrays, choose, find_folder, held_out
from segdeconv.data.classes import ClassNames


class MNIST(ImageArrays):
    """MNIST.

    Args:
        root: Folder with `MNIST/raw`, or with the files `train-images-idx3-ubyte`, ….
        split: "train", "test"; "holdout", images of "train" drawn at random, and "fit", the others.
        transform: See `ImageArrays`.
        holdout: Number of images in "holdout".
        holdout_seed: Seed that they are drawn with.

    Raises:
        ValueError: No such split, files that are missing or damaged.
    """

    MEAN = (0.1307,)
    STD = (0.3081,)
    READER: ClassVar[Any] = torchvision.datasets.MNIST
    NAME = "MNIST"

    def __init__(
        self,
        root: str,
        split: str = "train",
        transform: ArrayTransform | None = None,
        holdout: int = 10_000,
        holdout_seed: int = 0,
    ) -> None:
        stem = choose(
            {"train": "train", "test": "t10k", "fit": "train", "holdout": "train"}, split, self.NAME
        )
        files = [f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"]
        inner = [f"{self.READER.__name__}/raw", "raw"]
        folder = find_folder(root, inner, files, self.NAME)
        try:
            images, labels = (
                read(str(folder / file))
                for read, file in zip((read_image_file, read_label_file), files, strict=True)
            )
        except (AssertionError, ValueError, RuntimeError, TypeError, KeyError, IndexError) as error:
            raise ValueError(
                f"{folder} holds damaged files of {self.NAME}, {files[0]} or {files[1]}; "
                "unpack them again"
            ) from error
        if split in ("fit", "holdout"):
            parts = held_out(len(images), holdout, holdout_seed)
            chosen = parts[split == "holdout"]
            images, labels = images[chosen], labels[chosen]
        names = ClassNames(self.NAME, tuple(self.READER.classes))
        super().__init__(images[:, None], labels.to(torch.int64), names, transform, str(folder))


class FashionMNIST(MNIST):
    """Fashion-MNIST.

    Args:
        root: Folder with `FashionMNIST/raw`, or with the files `train-images-idx3-ubyte`, ….
        split: "train", "test"; "holdout", images of "train" drawn at random, and "fit", the others.
        transform: See `ImageArrays`.
        holdout: Number of images in "holdout".
        holdout_seed: Seed that they are drawn with.

    Raises:
        ValueError: No such split, files that are missing or damaged.
    """

    MEAN = (0.2860,)
    STD = (0.3530,)
    READER = torchvision.datasets.FashionMNIST
    NAME = "Fashion-MNIST"
