"""The picture while it is drawn: a map of surface numbers, and a table with a row per surface.

Drawing writes one number per pixel; colour, label, texture and distance of all pixels are looked up
once at the end.  So an object costs one `cv2.fillPoly` per polygon, image and labels agree to the
pixel, and textures, haze and shadows are computed for the whole picture at once.
"""

from collections.abc import Iterable
from enum import IntEnum

import cv2
import numpy as np
from numpy.typing import NDArray

from segdeconv.data.synthetic.camera import SHIFT, Camera
from segdeconv.data.synthetic.dice import Colour, Floats
from segdeconv.data.synthetic.light import Light
from segdeconv.data.synthetic.textures import Material


class Label(IntEnum):
    """The Cityscapes label ids that scenes hold."""

    UNLABELED = 0
    EGO_VEHICLE = 1
    RECTIFICATION_BORDER = 2
    OUT_OF_ROI = 3
    STATIC = 4
    DYNAMIC = 5
    ROAD = 7
    SIDEWALK = 8
    PARKING = 9
    RAIL_TRACK = 10
    BUILDING = 11
    WALL = 12
    FENCE = 13
    GUARD_RAIL = 14
    BRIDGE = 15
    POLE = 17
    TRAFFIC_LIGHT = 19
    TRAFFIC_SIGN = 20
    VEGETATION = 21
    TERRAIN = 22
    SKY = 23
    PERSON = 24
    RIDER = 25
    CAR = 26
    TRUCK = 27
    BUS = 28
    TRAILER = 30
    TRAIN = 31
    MOTORCYCLE = 32
    BICYCLE = 33


Row = tuple[float, ...]
"""Label, material, red, green, blue, and the distance as (constant, wall's |x|, is ground)."""

SKY = 0
"""Number of the surface that is there before anything is drawn."""


class Canvas:
    """A picture under construction.

    Args:
        camera: Projects world points (..., 3) in metres.
        light: Shades faces.
    """

    def __init__(self, camera: Camera, light: Light) -> None:
        self.camera = camera
        self.light = light
        self.numbers = np.full(camera.size, SKY, np.uint16)
        self.shadows = np.zeros(camera.size, np.uint8)
        self.rows: list[Row] = [(Label.SKY, Material.SKY, 0, 0, 0, 0, 0, 0)]
        self._starts: list[int] = []

    def begin_object(self) -> None:
        """All surfaces from here to the next call are those of one object."""
        self._starts.append(len(self.rows))

    def upright(self, label: Label, colour: Colour, z: float, material: Material) -> int:
        """Add a surface that stands at distance ``z``; return its number."""
        self.rows.append((label, material, *colour, z, 0, 0))
        return len(self.rows) - 1

    def uprights(self, label: Label, colours: Floats, z: float, material: Material) -> range:
        """Add a surface at distance ``z`` for each colour (N, 3); return their numbers."""
        start = len(self.rows)
        self.rows.extend((label, material, *colour, z, 0, 0) for colour in colours.tolist())
        return range(start, len(self.rows))

    def wall(self, label: Label, colour: Colour, x: float, material: Material) -> int:
        """Add a surface along the street, at this ``x``; return its number."""
        self.rows.append((label, material, *colour, 0, abs(x), 0))
        return len(self.rows) - 1

    def ground(self, label: Label, colour: Colour, material: Material) -> int:
        """Add a surface that lies on the ground; return its number."""
        self.rows.append((label, material, *colour, 0, 0, 1))
        return len(self.rows) - 1

    def fill(self, number: int, points: Floats) -> None:
        """Fill one polygon (K, 3), or several that do not overlap (M, K, 3), in world metres."""
        self.fill_pixels(number, self.camera.project(points))

    def fill_pixels(self, number: int, pixels: NDArray[np.int32]) -> None:
        """Fill polygons that are projected already: (K, 2) or (M, K, 2), fixed point."""
        polygons = [pixels] if pixels.ndim == 2 else list(pixels)
        cv2.fillPoly(self.numbers, polygons, number, cv2.LINE_8, SHIFT)

    def relabel(self, label: Label, points: Floats) -> None:
        """Give what shows inside polygons another label and keep how it looks.

        For things one sees through, which Cityscapes labels as if one could not: fences, wheels.
        """
        pixels = self.camera.project(points)
        polygons = [pixels] if pixels.ndim == 2 else list(pixels)
        corner, window = self._window(pixels)
        view = self.numbers[window]
        if view.size == 0:
            return
        mask = np.zeros(view.shape, np.uint8)
        cv2.fillPoly(mask, [p - corner for p in polygons], 1, cv2.LINE_8, SHIFT)
        inside = mask != 0
        seen = np.unique(view[inside])
        renumber = np.zeros(len(self.rows), np.uint16)
        renumber[seen] = np.arange(len(seen)) + len(self.rows)
        view[inside] = renumber[view[inside]]
        self.rows.extend((label, *self.rows[number][1:]) for number in seen)

    def _window(self, pixels: NDArray[np.int32]) -> tuple[NDArray[np.int32], tuple[slice, slice]]:
        """The part of the picture that holds these pixels: fixed-point corner, and slices."""
        height, width = self.camera.size
        flat = pixels.reshape(-1, 2)
        left, top = np.clip((flat.min(axis=0) >> SHIFT) - 1, 0, (width, height)).tolist()
        right, bottom = np.clip((flat.max(axis=0) >> SHIFT) + 2, 0, (width, height)).tolist()
        corner = np.array([left, top], np.int32) << SHIFT
        return corner, (slice(top, bottom), slice(left, right))

    def shade(self, points: Floats, depth: float = 1.0) -> None:
        """Put shadow on the ground within a polygon (K, 3); ``depth`` 1 is the full shadow."""
        cv2.fillPoly(
            self.shadows, [self.camera.project(points)], round(255 * depth), cv2.LINE_8, SHIFT
        )

    def shade_hull(self, points: Floats) -> None:
        """Put shadow on the ground within the convex hull of points (K, 3)."""
        hull = cv2.convexHull(self.camera.project(points))
        cv2.fillPoly(self.shadows, [hull], 255, cv2.LINE_8, SHIFT)

    def labels(self) -> NDArray[np.uint8]:
        """The label ids (H, W) of what has been drawn."""
        return self._label_of_surfaces().take(self.numbers)

    def instances(self, told_apart: Iterable[int]) -> NDArray[np.uint16]:
        """The instance ids (H, W) of what has been drawn.

        Args:
            told_apart: Labels whose pixels get 1000 times the label and the object's number,
                counted from 0 for each label; all others keep their label.
        """
        labels, seen = self._label_of_surfaces(), np.unique(self.numbers)
        objects = np.searchsorted(self._starts, np.arange(len(labels)), side="right")
        table = labels.astype(np.uint16)
        for label in told_apart:
            surfaces = seen[labels[seen] == label]
            _, number = np.unique(objects[surfaces], return_inverse=True)
            table[surfaces] = 1000 * label + number
        return table.take(self.numbers)

    def _label_of_surfaces(self) -> NDArray[np.uint8]:
        return np.array([row[0] for row in self.rows], np.uint8)


def lift(flat: Floats, axis: int, at: float) -> Floats:
    """Points (..., 2) in space (..., 3): coordinate ``axis`` is ``at``, the others in order."""
    points = np.empty((*flat.shape[:-1], 3))
    first, second = ((1, 2), (0, 2), (0, 1))[axis]
    points[..., first] = flat[..., 0]
    points[..., second] = flat[..., 1]
    points[..., axis] = at
    return points


def quad(near: float, far: float, left: float, right: float, y: float = 0.0) -> Floats:
    """A rectangle (4, 3) lying on the ground."""
    return np.array([(left, y, near), (right, y, near), (right, y, far), (left, y, far)], float)


def upright_quad(left: float, right: float, low: float, high: float, z: float) -> Floats:
    """A rectangle (4, 3) facing the camera at distance ``z``."""
    return np.array([(left, low, z), (right, low, z), (right, high, z), (left, high, z)], float)


def wall_quad(x: float, near: float, far: float, low: float, high: float) -> Floats:
    """A rectangle (4, 3) on the wall at ``x``."""
    return np.array([(x, low, near), (x, low, far), (x, high, far), (x, high, near)], float)
