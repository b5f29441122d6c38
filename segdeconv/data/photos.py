"""What is done to photographs of any size: torchvision's transforms, drawn from a given seed."""

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

from segdeconv.registry import Registry

AUTO_AUGMENT = Registry[Any](
    "auto-augmentation",
    rand=v2.RandAugment,
    trivial=v2.TrivialAugmentWide,
    augmix=v2.AugMix,
)
"""Torchvision's policies, by name."""


class PhotoTransform:
    """Transforms of torchvision, which draw from torch's global generator, drawn from a seed.

    Args:
        transforms: What is done to a tensor (3, H, W) uint8.
    """

    def __init__(self, transforms: Sequence[Any]) -> None:
        self.transforms = v2.Compose(list(transforms))
        self._seed = 0

    def set_random_seed(self, seed: int) -> None:
        """Seed of the next call."""
        self._seed = seed

    def __call__(self, image: NDArray[Any]) -> Tensor:
        """An image (H, W, 3) uint8 as float32 (3, h, w); the global generator stays as it was."""
        tensor = torch.from_numpy(image).permute(2, 0, 1)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._seed)  # that of the CPU, not those of GPUs
            return self.transforms(tensor)  # type: ignore[no-any-return]


def _normalise(mean: Sequence[float], std: Sequence[float]) -> list[Any]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]


def train_photos(
    size: int,
    scale: tuple[float, float],
    flip: float,
    auto_augment: str | None,
    mean: Sequence[float],
    std: Sequence[float],
) -> PhotoTransform:
    """A random piece of the image, resized; mirrored, with other colours.

    Args:
        size: Height and width that come out.
        scale: Range of the piece's share of the image.
        flip: Probability of a horizontal flip.
        auto_augment: Row of `AUTO_AUGMENT`, or None.
        mean: Mean of each channel, of values in 0 to 1.
        std: Standard deviation of each channel.
    """
    policy = [AUTO_AUGMENT[auto_augment]()] if auto_augment else []
    return PhotoTransform(
        [
            v2.RandomResizedCrop(size, scale, antialias=True),
            v2.RandomHorizontalFlip(flip),
            *policy,
            *_normalise(mean, std),
        ]
    )


def eval_photos(
    size: int, resize: int, mean: Sequence[float], std: Sequence[float]
) -> PhotoTransform:
    """The middle of the image, after its shorter side was resized."""
    return PhotoTransform(
        [v2.Resize(resize, antialias=True), v2.CenterCrop(size), *_normalise(mean, std)]
    )
