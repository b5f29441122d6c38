"""The random draws of one scene, all from one generator."""

from collections.abc import Sequence
from colorsys import hsv_to_rgb
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Floats = NDArray[np.float64]
Colour = tuple[float, float, float]
"""Red, green, blue, 0 to 255; may leave that range until the picture is finished."""


class Dice:
    """Named draws from a generator; `numpy`'s own `choice` costs ten times as much per call.

    Args:
        *entropy: Non-negative integers that decide every draw.
    """

    def __init__(self, *entropy: int) -> None:
        self.generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
        self.unit = self.generator.random

    def between(self, low: float, high: float) -> float:
        """Draw a number, uniform in [low, high)."""
        return low + (high - low) * self.unit()

    def chance(self, probability: float) -> bool:
        """Draw True with this probability."""
        return self.unit() < probability

    def count(self, low: int, high: int) -> int:
        """Draw a whole number from low to high, both included."""
        return low + int((high + 1 - low) * self.unit())

    def pick(self, items: Sequence[T]) -> T:
        """Draw one of the items."""
        return items[int(len(items) * self.unit())]

    def weighted(self, **weights: float) -> str:
        """Draw one of the names in proportion to its weight."""
        left = self.unit() * sum(weights.values())
        for name, weight in weights.items():
            left -= weight
            if left < 0:
                return name
        return name

    def many(self, low: float, high: float, *shape: int) -> Floats:
        """Draw an array, uniform in [low, high)."""
        return low + (high - low) * self.generator.random(shape)

    def grey(self, low: float, high: float, tint: float = 8.0) -> Colour:
        """Draw a grey of that brightness, each channel off by up to ``tint``."""
        base, unit = self.between(low, high) - tint, self.unit
        return (base + 2 * tint * unit(), base + 2 * tint * unit(), base + 2 * tint * unit())

    def colour(
        self,
        hue: tuple[float, float] = (0.0, 1.0),
        saturation: tuple[float, float] = (0.0, 1.0),
        value: tuple[float, float] = (40.0, 230.0),
    ) -> Colour:
        """Draw a colour from ranges of hue (0 to 1, red to red), saturation (0 to 1) and value."""
        value_of_pixel = self.between(*value)
        red, green, blue = hsv_to_rgb(self.between(*hue) % 1.0, self.between(*saturation), 1.0)
        return (red * value_of_pixel, green * value_of_pixel, blue * value_of_pixel)

    def vary(self, colour: Colour, amount: float) -> Colour:
        """Draw a colour near this one: brightness off by that share, each channel by half."""
        factor, unit = 1 + self.between(-amount, amount), self.unit
        red, green, blue = (c * factor * (1 + amount * (unit() - 0.5)) for c in colour)
        return (red, green, blue)


def scaled(colour: Colour, factor: float) -> Colour:
    """Colour made brighter or darker."""
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


def blend(first: Colour, second: Colour, share: float) -> Colour:
    """Colour between two: 0 gives the first, 1 the second."""
    red, green, blue = (a + share * (b - a) for a, b in zip(first, second, strict=True))
    return (red, green, blue)
