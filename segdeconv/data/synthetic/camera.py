"""A pinhole camera above a flat street: metres to pixels, and textured planes to pixels.

World axes in metres: x to the right, y up, z ahead; the origin lies on the road under the camera.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from segdeconv.data.synthetic.dice import Dice, Floats

NEAR = 1.5
"""Nothing is drawn closer than this, in metres; nearer points are moved to it."""

SHIFT = 4
"""Fractional bits of the pixel coordinates handed to OpenCV."""


@dataclass(frozen=True)
class Camera:
    """Where the camera stands and looks.

    Args:
        size: Height and width of the picture in pixels.
        focal: Focal length in pixels.
        height: Height above the road in metres.
        vanishing: Pixel (x, y) where the street ends.
        roll: Turn about the view axis in radians.
    """

    size: tuple[int, int]
    focal: float
    height: float
    vanishing: tuple[float, float]
    roll: float

    @cached_property
    def matrix(self) -> Floats:
        """The 3 x 3 map from (x, metres below the camera, z) to homogeneous pixels."""
        cos, sin = math.cos(self.roll), math.sin(self.roll)
        turn = self.focal * np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 0]])
        turn[:, 2] = (*self.vanishing, 1)
        return turn

    def project(self, points: Floats) -> NDArray[np.int32]:
        """Pixels of world points (..., 3) as OpenCV's fixed-point coordinates (..., 2)."""
        turn, below, origin = self._affine
        pixels = points[..., :2] @ turn
        pixels += below
        pixels *= (1 << SHIFT) / np.maximum(points[..., 2:], NEAR)
        pixels += origin
        return np.rint(pixels, out=pixels).astype(np.int32)

    @cached_property
    def _affine(self) -> tuple[Floats, Floats, Floats]:
        """Turn (2, 2) of (x, y), offset before and after the division by z, as row vectors."""
        right, down = self.matrix[:2, 0], self.matrix[:2, 1]
        # Half a pixel: OpenCV counts from pixel centres; so a scene stays put in another size.
        origin = (np.array(self.vanishing) - 0.5) * (1 << SHIFT)
        return np.stack([right, -down]), self.height * down, origin

    def ground_map(self, texels_per_metre: float) -> Floats:
        """Homography from a texture lying on the road, (x, z) in texels, to pixels."""
        plane = np.array([[1, 0, 0], [0, 0, self.height], [0, 1, 0]])
        return self._textured(plane, texels_per_metre)

    def wall_map(self, x: float, texels_per_metre: float) -> Floats:
        """Homography from a texture on the wall at this x, (z, y) in texels, to pixels."""
        plane = np.array([[0, 0, x], [0, -1, self.height], [1, 0, 0]])
        return self._textured(plane, texels_per_metre)

    def _textured(self, plane: Floats, texels_per_metre: float) -> Floats:
        scale = np.diag([1 / texels_per_metre, 1 / texels_per_metre, 1])
        product: Floats = self.matrix @ plane @ scale
        return product

    def edge(self, x: float) -> float:
        """Distance z at which something at this x enters the picture, in metres."""
        width, centre = self.size[1], self.vanishing[0]
        half = width - centre if x > 0 else centre
        return max(NEAR, abs(x) * self.focal / half)


def draw_camera(dice: Dice, size: tuple[int, int]) -> Camera:
    """Draw a camera as on the roof edge of a car, with a field of view near 50 degrees."""
    height, width = size
    return Camera(
        size=size,
        focal=width * dice.between(0.95, 1.25),
        height=dice.between(1.15, 1.75),
        vanishing=(width * dice.between(0.38, 0.62), height * dice.between(0.34, 0.50)),
        roll=dice.between(-0.015, 0.015),
    )
