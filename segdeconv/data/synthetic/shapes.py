"""Flat shapes in metres, (K, 2) as (x, y): the parts of signs, people and cycles."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from segdeconv.data.synthetic.canvas import Canvas, Label
from segdeconv.data.synthetic.dice import Colour, Floats, scaled
from segdeconv.data.synthetic.textures import Material

Point = tuple[float, float]


@lru_cache(maxsize=64)
def unit_polygon(corners: int, turn: float = 0.0) -> Floats:
    """A regular polygon (corners, 2) of radius 1; at ``turn`` 0 (radians) a corner is right."""
    angles = turn + np.linspace(0, 2 * math.pi, corners, endpoint=False)
    outline = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    outline.flags.writeable = False
    return outline


def polygon(centre: Point, radius: float, corners: int, turn: float = 0.0) -> Floats:
    """A regular polygon (corners, 2) around a centre."""
    return unit_polygon(corners, turn) * radius + centre


def disc(centre: Point, radius: float) -> Floats:
    """A circle as a polygon (12, 2)."""
    return polygon(centre, radius, 12)


def ring(centre: Point, outer: float, inner: float) -> Floats:
    """A ring (26, 2): once around outside, and back inside."""
    circle = unit_polygon(12)
    closed = np.concatenate([circle, circle[:1]])
    return np.concatenate([outer * closed, inner * closed[::-1]]) + centre


def rectangle(left: float, right: float, low: float, high: float) -> Floats:
    """A rectangle (4, 2)."""
    return np.array([(left, low), (right, low), (right, high), (left, high)], float)


def limb(start: Point, end: Point, width: float, taper: float = 1.0) -> Floats:
    """A bar (4, 2) between two points, ``width`` at the start and taper times it at the end."""
    along = (end[0] - start[0], end[1] - start[1])
    half = 0.5 * width / max(1e-6, math.hypot(*along))
    across = (-along[1] * half, along[0] * half)
    return np.array(
        [
            (start[0] + across[0], start[1] + across[1]),
            (start[0] - across[0], start[1] - across[1]),
            (end[0] - taper * across[0], end[1] - taper * across[1]),
            (end[0] + taper * across[0], end[1] + taper * across[1]),
        ]
    )


@dataclass(frozen=True)
class Part:
    """One polygon of a flat figure, in metres beside and above the figure's foot."""

    label: Label
    colour: Colour
    outline: Floats
    see_through: bool = False
    """Only the label is written, see `Canvas.relabel`."""


def draw_figure(
    canvas: Canvas,
    parts: Sequence[Part],
    x: float,
    z: float,
    squeeze: float = 1.0,
    material: Material = Material.CLOTH,
) -> None:
    """Draw a flat figure that faces the camera, its parts in order.

    Args:
        canvas: Where to draw.
        parts: What to draw.
        x: Where its foot stands, metres to the right.
        z: Its distance in metres.
        squeeze: Factor on its width: a figure seen in profile turns away from the camera.
        material: Of all parts.
    """
    outlines = np.concatenate([part.outline for part in parts])
    points = np.empty((len(outlines), 3))
    points[:, 0] = x + squeeze * outlines[:, 0]
    points[:, 1] = outlines[:, 1]
    points[:, 2] = z
    pixels = canvas.camera.project(points)
    lit = canvas.light.on(0, 0, -1)
    start = 0
    for part in parts:
        stop = start + len(part.outline)
        if part.see_through:
            canvas.relabel(part.label, points[start:stop])
        else:
            number = canvas.upright(part.label, scaled(part.colour, lit), z, material)
            canvas.fill_pixels(number, pixels[start:stop])
        start = stop


def shade_figure(canvas: Canvas, x: float, z: float, width: float, height: float) -> None:
    """Put the shadow of something upright on the ground, from its foot away from the sun."""
    across, along = canvas.light.reach(height)
    half = width / 2
    canvas.shade(
        np.array(
            [
                (x - half, 0, z),
                (x + half, 0, z),
                (x + half + across, 0, z + along),
                (x - half + across, 0, z + along),
            ]
        ),
        0.8,
    )
