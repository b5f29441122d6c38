"""Small images of one size: a whole data set as one tensor, augmented a batch at a time.

A loop over single images of 32 x 32 pixels spends its time on calls, and starves a small network;
here a batch is cropped, mirrored and normalised by a few calls of torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from segdeconv.data.classes import ClassNames
from segdeconv.registry import suggest


@dataclass(frozen=True)
class ArrayTransform:
    """Crop, mirror and normalise a batch of images.

    Args:
        mean: Mean of each channel, of values in 0 to 1.
        std: Standard deviation of each channel.
        padding: Black pixels around an image, out of which a piece of its size is cut at random.
        flip: Probability of a horizontal flip.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int = 0
    flip: float = 0.0

    def __call__(self, images: Tensor, seed: int | None) -> Tensor:
        """Images (N, C, H, W) uint8 as float32; without a seed normalised alone."""
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            images = self._mirror(self._crop(images, generator), generator)
        mean, std = (255 * torch.tensor(each).view(-1, 1, 1) for each in (self.mean, self.std))
        return images.float().sub_(mean).div_(std)

    def _crop(self, images: Tensor, generator: torch.Generator) -> Tensor:
        if not self.padding:
            return images
        height, width = images.shape[2:]
        padded = F.pad(images, 4 * (self.padding,))
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (N, C, tops, lefts, H, W)
        corners = torch.randint(2 * self.padding + 1, (2, len(images)), generator=generator)
        return windows[torch.arange(len(images)), :, corners[0], corners[1]]

    def _mirror(self, images: Tensor, generator: torch.Generator) -> Tensor:
        chosen = torch.rand(len(images), generator=generator) < self.flip
        return torch.where(chosen[:, None, None, None], images.flip(3), images)


class ImageArrays(Dataset[dict[str, Any]]):
    """Images with labels, in memory; asked for whole batches.

    ``samples[indices, seed]`` is {"image": what the transform makes of the images, "label": (N,)
    int64, "name": their places in the set}.  A sub-class sets the attributes of the class.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        label_set: Names of the classes.
        transform: Batch of images and seed (None in evaluation) -> batch of float images; None:
            the images as they are.
        source: Where the labels were read, for messages.
    """

    MEAN: ClassVar[tuple[float, ...]]
    """Mean of each channel over the training images, of values in 0 to 1."""
    STD: ClassVar[tuple[float, ...]]
    """Standard deviation of each channel."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        label_set: ClassNames,
        transform: ArrayTransform | None,
        source: str,
    ) -> None:
        if len(images) != len(labels):
            raise ValueError(f"{source} holds {len(images)} images and {len(labels)} labels")
        label_set.check(labels, source)
        self.images, self.labels = images, labels
        self.label_set, self.transform = label_set, transform

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.images.shape[1]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[Sequence[int], int | None]) -> dict[str, Any]:
        indices, seed = torch.as_tensor(key[0]), key[1]
        images = self.images[indices]
        if self.transform is not None:
            images = self.transform(images, seed)
        names = [f"image {index}" for index in indices.tolist()]
        return {"image": images, "label": self.labels[indices], "name": names}


def held_out(length: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of a set in two parts drawn at random: the rest, and ``count`` that are held out.

    The same for ever: they depend on the three numbers alone.

    Raises:
        ValueError: If nothing would be left of one of the parts.
    """
    if not 0 < count < length:
        raise ValueError(f"holdout={count}: expected 1 to {length - 1}, of {length} images")
    order = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
    return order[count:].sort().values, order[:count].sort().values


def choose(table: Mapping[str, Any], split: str, name: str) -> Any:
    """Row ``split`` of a data set's table of splits.

    Raises:
        ValueError: If there is none.
    """
    if split not in table:
        rest = suggest(split, table, f"it has {', '.join(table)}")
        raise ValueError(f"{name} has no split {split!r}; {rest}")
    return table[split]


def find_folder(root: str | Path, inner: Sequence[str], files: Sequence[str], name: str) -> Path:
    """The folder with ``files``: ``root``, or one of the folders ``inner`` of it.

    Raises:
        ValueError: If none has all of them.
    """
    root = Path(root)
    folders = [*(root / each for each in inner), root]
    for folder in folders:
        if all((folder / file).is_file() for file in files):
            return folder
    best = max(folders, key=lambda folder: sum((folder / file).is_file() for file in files))
    missing = [file for file in files if not (best / file).is_file()]
    packed = f", unpacked from {missing[0]}.gz" if (best / f"{missing[0]}.gz").is_file() else ""
    raise ValueError(
        f"{name} needs {', '.join(missing)} in {best}{packed}; nothing is downloaded: see "
        "docs/data.md, or give its folder as --data.root FOLDER"
    )
