"""Drawn street scenes as a data set with the Cityscapes classes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from segdeconv.data.labels import CITYSCAPES
from segdeconv.data.pairs import Transform
from segdeconv.data.synthetic.scene import SPLITS, draw_scene

LENGTHS = {"train": 2000, "val": 200, "test": 200}
"""Scenes in a split when nothing else is asked for."""

SMALLEST = 32
"""Least height and width of a picture in pixels."""


class SyntheticStreets(Dataset[dict[str, Any]]):
    """Procedurally drawn street scenes with the 19 Cityscapes classes.

    A scene is a function of seed, split and index alone: the same in every process and epoch.

    Args:
        split: "train", "val" or "test"; no scene is in two of them.
        length: Number of scenes, or a mapping from split to number; default: `LENGTHS`.
        seed: Seed of the set, 0 or more.
        size: Height and width of the pictures in pixels.  The same seed in another size of the
            same shape shows the same streets at another resolution.
        transform: Called with the keywords ``image`` (H, W, 3) uint8 and ``mask`` (H, W) uint8;
            returns the dictionary that becomes the sample.

    Raises:
        ValueError: An argument is out of its range.
    """

    label_set = CITYSCAPES

    def __init__(
        self,
        split: str = "train",
        length: int | Mapping[str, int] | None = None,
        seed: int = 0,
        size: Sequence[int] = (256, 512),
        transform: Transform | None = None,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split={split!r}: synthetic streets have {', '.join(SPLITS)}")
        if seed < 0:
            raise ValueError(f"seed={seed}: expected 0 or more")
        self.split = split
        self.seed = seed
        self.size = check_size(size)
        self.transform = transform
        count = _check_length(length, split)
        self.names = [f"streets_{seed:06d}_{index:06d}" for index in range(count)]

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

    def load(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Image (H, W, 3) and train ids (H, W) of a scene, before the transform."""
        image, ids = draw_scene(self.seed, self._position(index), self.size, self.split)
        return image, self.label_set.id_to_train[ids]

    def _position(self, index: int) -> int:
        """The index from the front; an index beyond the end is an ``IndexError``, as in a list."""
        return range(len(self))[index]


def check_size(size: Sequence[int]) -> tuple[int, int]:
    """Height and width as a pair; a ``ValueError`` if they make no picture."""
    whole = all(isinstance(side, int) and side >= SMALLEST for side in size)
    if len(size) != 2 or not whole:
        given = "x".join(map(str, size))
        raise ValueError(f"size={given}: expected height and width, each {SMALLEST} pixels or more")
    return size[0], size[1]


def _check_length(length: int | Mapping[str, int] | None, split: str) -> int:
    lengths = LENGTHS if length is None else length
    if isinstance(lengths, Mapping) and split not in lengths:
        raise ValueError(
            f"length names {', '.join(lengths) or 'no split'}, but not {split!r}; add its number"
        )
    count = lengths[split] if isinstance(lengths, Mapping) else lengths
    if count < 1:
        raise ValueError(f"length={count} of split {split!r}: expected 1 scene or more")
    return count
