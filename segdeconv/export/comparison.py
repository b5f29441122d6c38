"""What was written, compared with the network that it came from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segdeconv.models import ClassificationModel, SegmentationModel
from segdeconv.models.classification import LARGE, SMALL

TOLERANCE = 1e-4  # of the largest output; most networks stay below 1e-5
ROUNDING = 10  # times the eager network's own difference from float64, where that is more

AnyModel = SegmentationModel | ClassificationModel


@dataclass(frozen=True)
class Check:
    """What was found of a file that was written.

    Attributes:
        file: Its name.
        difference: Largest difference of its outputs from the eager network's.
        largest: Largest absolute output of the eager network.
        note: What it takes and gives, in words.
    """

    file: str
    difference: float
    largest: float
    note: str = ""

    def __str__(self) -> str:
        text = f"{self.file}: differs by {self.difference:.1e} at most, of {self.largest:.1e}"
        return f"{text}; {self.note}" if self.note else text


def compare(
    file: str, found: list[Tensor], expected: list[Tensor], rounding: list[float], note: str
) -> Check:
    """The largest difference of any tensor.

    Args:
        file: Where ``found`` comes from.
        found: Outputs of the file.
        expected: Outputs of the eager network.
        rounding: Their differences from those in float64.
        note: For the result.

    Raises:
        ValueError: It is more than rounding.
    """
    worst = Check(file, 0.0, 0.0, note)
    for one, other, rounded in zip(found, expected, rounding, strict=True):
        assert one.shape == other.shape, f"{one.shape} is not {other.shape}"
        check = Check(file, difference(one, other), float(other.abs().max()), note)
        if not check.difference <= max(TOLERANCE * check.largest, ROUNDING * rounded):
            raise ValueError(
                f"{file} would differ from the network by {check.difference:.1e}, of at most "
                f"{check.largest:.1e}, which is more than rounding; nothing was written"
            )
        if check.difference >= worst.difference:
            worst = check
    return worst


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference between two tensors of one shape."""
    return float((one - other).abs().max())


def probe(model: AnyModel) -> Tensor:
    """Two random images (2, C, H, W) of a size that the network takes."""
    height, width = _sizes(model)[0]
    return _random(2, model.config["in_channels"], height, width)


def probes(
    model: AnyModel, size: tuple[int, int] | None, free_batch: bool, least: int
) -> list[Tensor]:
    """Random images of several numbers and sizes, no multiples of anything among them.

    Args:
        model: What is to take them.
        size: The only height and width; None: several.
        free_batch: Whether the number may be another than 1.
        least: Height and width of the smallest.
    """
    sizes = [size] if size else _sizes(model)[1:]
    sizes = [(max(height, least), max(width, least)) for height, width in sizes]
    counts = (2, 1, 3) if free_batch else (1,)
    longest = max(len(sizes), len(counts))
    pairs = [(counts[n % len(counts)], sizes[n % len(sizes)]) for n in range(longest)]
    return [_random(count, model.config["in_channels"], *chosen) for count, chosen in pairs]


def _sizes(model: AnyModel) -> list[tuple[int, int]]:
    """Heights and widths that a network takes: a usual one, an odd one, a multiple, a small one."""
    if isinstance(model, ClassificationModel):
        side = SMALL if model.config["small_input"] else LARGE
        return [(side, side), (side + 1, side + 15), (side, side), (2 * side, side)]
    unit, side = model.min_size, max(64, model.min_size)
    return [(side, 2 * side), (3 * unit + 1, 2 * unit + 7), (128, 256), (unit // 2 + 1, 128)]


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def tensors(features: Any) -> list[Tensor]:
    """Feature maps of an encoder, however the library packs them."""
    if isinstance(features, Tensor):
        return [features]
    maps = features.values() if isinstance(features, Mapping) else features
    return [each for each in maps if each.numel()]  # smp fills up with maps without channels
