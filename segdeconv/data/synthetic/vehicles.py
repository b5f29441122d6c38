"""Cars, trucks, buses and trains: solids made of a side view, with glass, doors, wheels, lamps.

A solid lives in a unit box (x across -0.5 to 0.5, y up 0 to 1, z along -0.5 to 0.5, front at 0.5)
and is stretched to metres when it is drawn.  Faces that look away are left out, the others follow
far to near; what lies on a face (glass, lamps) comes right after it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from segdeconv.data.synthetic.canvas import Canvas, Label
from segdeconv.data.synthetic.dice import Colour, Dice, Floats, blend, scaled
from segdeconv.data.synthetic.shapes import disc
from segdeconv.data.synthetic.textures import Material


@dataclass(frozen=True)
class Solid:
    """Faces of a solid in its unit box.

    Args:
        points: Corners of all faces, one face after another, (V, 3).
        stops: Where each face's corners end in ``points``.
        normals: Outward normal of each face (F, 3), not of unit length.
        centres: Middle of each face (F, 3).
        parents: For each face the number of the face it lies on, or its own (F,).
        parts: What each face is: "body", "glass", "tyre", …
    """

    points: Floats
    stops: tuple[int, ...]
    normals: Floats
    centres: Floats
    parents: NDArray[np.intp]
    parts: tuple[str, ...]


Outline = Sequence[tuple[float, float]]
"""Corners (z, y) of a side view, z from 0 (rear) to 1 (front): up the rear, along the top, down."""


class Builder:
    """Collects the faces of a `Solid`.

    Args:
        waist: Height above which the sides lean in, 0 to 1.
        roof: Width of the roof as a share of the width below the waist.
    """

    def __init__(self, waist: float = 1.0, roof: float = 1.0) -> None:
        self.waist = waist
        self.roof = roof
        self.faces: list[Floats] = []
        self.parts: list[str] = []
        self.normals: list[Floats] = []
        self.parents: list[int] = []

    def half(self, y: float) -> float:
        """Half of the width at height ``y``."""
        lean = max(0.0, y - self.waist) / max(1e-6, 1 - self.waist)
        return 0.5 * (1 - (1 - self.roof) * lean)

    def extrude(self, outline: Outline, parts: Sequence[str], sides: str = "body") -> None:
        """Add the solid with this side view; ``parts`` names the face behind each edge."""
        for sign in (-1, 1):
            self._add(sides, self._side(outline, sign), (sign, 0, 0), parent=None)
        edges = zip(outline, [*outline[1:], outline[0]], parts, strict=True)
        for (z0, y0), (z1, y1), part in edges:
            a, b = self.half(y0), self.half(y1)
            corners = [(-a, y0, z0), (a, y0, z0), (b, y1, z1), (-b, y1, z1)]
            # The outline runs clockwise with the front to the right: outside is left of each edge.
            self._add(part, corners, (0, z1 - z0, y0 - y1), parent=None)

    def on_sides(self, part: str, outline: Outline) -> None:
        """Add something flat, given as (z, y), on both sides."""
        for sign in (-1, 1):
            self._lay(part, self._side(outline, sign), (sign, 0, 0))

    def on_end(self, part: str, z: float, box: tuple[float, float, float, float]) -> None:
        """Add a rectangle (left, right, low, high) on the upright face nearest to ``z``."""
        left, right, low, high = box
        corners = [(left, low, z), (right, low, z), (right, high, z), (left, high, z)]
        self._lay(part, corners, (0, 0, 1 if z > 0.5 else -1))

    def _side(self, outline: Outline, sign: int) -> list[tuple[float, float, float]]:
        return [(sign * self.half(y), y, z) for z, y in outline]

    def _lay(
        self, part: str, corners: Sequence[tuple[float, float, float]], normal: Sequence[float]
    ) -> None:
        """Add a face on the solid's face that looks the same way and lies closest."""
        centre = np.mean(corners, axis=0) - (0, 0, 0.5)

        def misfit(number: int) -> float:
            face, facing = self.faces[number], self.normals[number]
            facing = facing / np.linalg.norm(facing)
            away = abs(float(facing @ (centre - face.mean(axis=0))))
            return away + 2 * (1 - float(facing @ normal))

        owners = [n for n in range(len(self.faces)) if self.parents[n] == n]
        self._add(part, corners, normal, parent=min(owners, key=misfit))

    def _add(
        self,
        part: str,
        corners: Sequence[tuple[float, float, float]],
        normal: Sequence[float],
        parent: int | None,
    ) -> None:
        self.parents.append(len(self.faces) if parent is None else parent)
        self.faces.append(np.array(corners) - (0, 0, 0.5))
        self.parts.append(part)
        self.normals.append(np.array(normal, float))

    def build(self) -> Solid:
        """Finish the solid."""
        return Solid(
            points=np.concatenate(self.faces),
            stops=tuple(np.cumsum([len(face) for face in self.faces]).tolist()),
            normals=np.stack(self.normals),
            centres=np.stack([face.mean(axis=0) for face in self.faces]),
            parents=np.array(self.parents),
            parts=tuple(self.parts),
        )


def upright_box(rear: float, front: float, low: float, high: float) -> Outline:
    """A rectangle as a side view."""
    return ((rear, low), (rear, high), (front, high), (front, low))


def wheel(builder: Builder, z: float, radius_z: float, radius_y: float) -> None:
    """Add a wheel on both sides, its middle at ``z``; radii as shares of length and height."""
    for part, size in (("tyre", 1.0), ("hub", 0.55)):
        outline = disc((0, 0), size) * (radius_z, radius_y) + (z, radius_y)
        builder.on_sides(part, [(float(a), float(b)) for a, b in outline])


# Side views of cars, (z, y) in shares of length and height; the part of the face behind each edge;
# the side window.
CARS: dict[str, tuple[Outline, tuple[str, ...], Outline]] = {
    "saloon": (
        (
            (0, 0.2),
            (0, 0.52),
            (0.02, 0.64),
            (0.15, 0.67),
            (0.29, 0.96),
            (0.38, 1),
            (0.55, 1),
            (0.72, 0.66),
            (0.96, 0.55),
            (1, 0.45),
            (1, 0.2),
        ),
        ("body", "body", "body", "glass", "body", "body", "glass", "body", "body", "body", "under"),
        ((0.2, 0.66), (0.31, 0.93), (0.55, 0.94), (0.68, 0.66)),
    ),
    "hatchback": (
        (
            (0, 0.2),
            (0, 0.6),
            (0.03, 0.66),
            (0.1, 0.95),
            (0.18, 1),
            (0.52, 1),
            (0.72, 0.66),
            (0.96, 0.54),
            (1, 0.44),
            (1, 0.2),
        ),
        ("body", "body", "glass", "body", "body", "glass", "body", "body", "body", "under"),
        ((0.1, 0.66), (0.16, 0.92), (0.52, 0.94), (0.68, 0.66)),
    ),
    "suv": (
        (
            (0, 0.22),
            (0, 0.58),
            (0.02, 0.64),
            (0.07, 0.95),
            (0.13, 1),
            (0.58, 1),
            (0.72, 0.68),
            (0.97, 0.62),
            (1, 0.5),
            (1, 0.22),
        ),
        ("body", "body", "glass", "body", "body", "glass", "body", "body", "body", "under"),
        ((0.07, 0.65), (0.11, 0.92), (0.57, 0.93), (0.69, 0.67)),
    ),
    "van": (
        (
            (0, 0.16),
            (0, 0.55),
            (0.01, 0.6),
            (0.02, 0.94),
            (0.05, 1),
            (0.72, 1),
            (0.86, 0.58),
            (0.98, 0.45),
            (1, 0.38),
            (1, 0.16),
        ),
        ("body", "body", "glass", "body", "body", "glass", "body", "body", "body", "under"),
        ((0.05, 0.6), (0.06, 0.88), (0.71, 0.89), (0.82, 0.6)),
    ),
}


def _car(kind: str) -> Solid:
    outline, parts, window = CARS[kind]
    builder = Builder(waist=0.62, roof=0.78)
    builder.extrude(outline, parts)
    builder.on_sides("glass", window)
    first, last = window[0][0], window[3][0]
    for post in (0.55 * first + 0.45 * last, 0.05 * first + 0.95 * last):
        builder.on_sides("body", upright_box(post, post + 0.015, 0.64, 0.95))
    for axle in (0.19, 0.81):
        wheel(builder, axle, 0.075, 0.22)
    _tyres(builder, 0.21)
    for sign in (-1, 1):
        inner, outer = sorted((sign * 0.28, sign * 0.46))
        builder.on_end("tail", 0.0, (inner, outer, 0.44, 0.56))
        builder.on_end("lamp", 1.0, (inner, outer, 0.36, 0.46))
    builder.on_end("plate", 0.0, (-0.14, 0.14, 0.32, 0.4))
    builder.on_end("plate", 1.0, (-0.14, 0.14, 0.24, 0.31))
    builder.on_end("under", 1.0, (-0.25, 0.25, 0.34, 0.44))
    return builder.build()


def _panes(
    builder: Builder, part: str, span: tuple[float, float], heights: tuple[float, float], count: int
) -> None:
    """Add a row of side windows."""
    step = (span[1] - span[0]) / count
    for number in range(count):
        z = span[0] + number * step
        builder.on_sides(part, upright_box(z, z + 0.88 * step, *heights))


def _bus(decks: int) -> Solid:
    builder = Builder()
    builder.extrude(
        ((0, 0.1), (0, 0.97), (0.02, 1), (0.98, 1), (1, 0.95), (1, 0.1)),
        ("body", "body", "body", "body", "body", "under"),
    )
    rows = ((0.42, 0.8),) if decks == 1 else ((0.24, 0.46), (0.62, 0.86))
    for low, high in rows:
        _panes(builder, "glass", (0.03, 0.97), (low, high), 7)
        builder.on_end("glass", 1.0, (-0.44, 0.44, low - 0.05, high))
        builder.on_end("glass", 0.0, (-0.38, 0.38, low + 0.08, high))
    foot = rows[0][0]
    builder.on_sides("stripe", upright_box(0, 1, foot - 0.14, foot - 0.06))
    for z in (0.86, 0.45):
        builder.on_sides("door", upright_box(z, z + 0.09, 0.12, rows[0][1]))
    for end in (0.0, 1.0):
        builder.on_end("sign", end, (-0.35, 0.35, 0.87, 0.95))
    for axle in (0.2, 0.78):
        wheel(builder, axle, 0.042, 0.16 if decks == 1 else 0.12)
    _tyres(builder, 0.11)
    _lamps(builder, 0.18, 0.26)
    return builder.build()


def _tyres(builder: Builder, high: float) -> None:
    """Add the tyres that show under both ends."""
    for sign in (-1, 1):
        inner, outer = sorted((sign * 0.26, sign * 0.46))
        builder.on_end("tyre", 0.0, (inner, outer, 0.0, high))
        builder.on_end("tyre", 1.0, (inner, outer, 0.0, high))


def _lamps(builder: Builder, low: float, high: float) -> None:
    """Add lamps at both ends, and a plate behind."""
    for sign in (-1, 1):
        inner, outer = sorted((sign * 0.34, sign * 0.47))
        builder.on_end("tail", 0.0, (inner, outer, low, high))
        builder.on_end("lamp", 1.0, (inner, outer, low, high))
    builder.on_end("plate", 0.0, (-0.1, 0.1, low, low + 0.05))


def _truck(open_top: bool) -> Solid:
    builder = Builder()
    top = 0.66 if open_top else 1.0
    builder.extrude(upright_box(0, 0.97, 0.12, 0.3), ("under",) * 4, sides="under")
    load = upright_box(0, 0.74, 0.3, top)
    builder.extrude(load, ("cargo", "cargo", "cargo", "under"), sides="cargo")
    builder.extrude(
        ((0.77, 0.14), (0.77, 0.78), (0.8, 0.84), (0.94, 0.84), (1, 0.55), (1, 0.14)),
        ("body", "body", "body", "glass", "body", "under"),
    )
    builder.on_sides("glass", ((0.84, 0.52), (0.84, 0.76), (0.94, 0.76), (0.98, 0.52)))
    builder.on_end("glass", 1.0, (-0.44, 0.44, 0.5, 0.76))
    builder.on_end("under", 1.0, (-0.35, 0.35, 0.26, 0.44))
    for seam in (0.0, 0.12) if open_top else (0.0,):
        builder.on_end("seam", 0.0, (seam - 0.01, seam + 0.01, 0.32, top - 0.02))
    for rib in np.linspace(0.08, 0.66, 5).tolist():
        builder.on_sides("seam", upright_box(rib, rib + 0.006, 0.32, top - 0.03))
    for axle in (0.1, 0.24, 0.86):
        wheel(builder, axle, 0.062, 0.14)
    _tyres(builder, 0.13)
    _lamps(builder, 0.17, 0.25)
    return builder.build()


def _train() -> Solid:
    builder = Builder(waist=0.8, roof=0.86)
    builder.extrude(
        (
            (0.02, 0.04),
            (0, 0.3),
            (0.03, 0.92),
            (0.05, 1),
            (0.95, 1),
            (0.97, 0.92),
            (1, 0.3),
            (0.98, 0.04),
        ),
        ("body", "glass", "body", "body", "body", "glass", "body", "under"),
    )
    for first, last in ((0.04, 0.33), (0.36, 0.65), (0.68, 0.97)):
        builder.on_sides("glass", upright_box(first, last, 0.42, 0.74))
        for z in (first + 0.05, last - 0.09):
            builder.on_sides("door", upright_box(z, z + 0.04, 0.1, 0.78))
    for joint in (0.335, 0.655):
        builder.on_sides("seam", upright_box(joint, joint + 0.02, 0.05, 0.97))
    builder.on_sides("stripe", upright_box(0.01, 0.99, 0.2, 0.32))
    for end in (0.0, 1.0):
        builder.on_end("sign", end, (-0.25, 0.25, 0.84, 0.94))
        builder.on_end("stripe", end, (-0.48, 0.48, 0.22, 0.34))
    _lamps(builder, 0.14, 0.2)
    return builder.build()


@dataclass(frozen=True)
class Kind:
    """A kind of vehicle: label, solids to choose from, and ranges in metres of its size."""

    label: Label
    solids: tuple[str, ...]
    width: tuple[float, float]
    height: tuple[float, float]
    length: tuple[float, float]


KINDS = {
    "car": Kind(
        Label.CAR, ("saloon", "hatchback", "hatchback", "suv"), (1.7, 1.95), (1.4, 1.75), (3.7, 4.9)
    ),
    "van": Kind(Label.CAR, ("van",), (1.8, 2.05), (1.8, 2.4), (4.4, 5.6)),
    "truck": Kind(Label.TRUCK, ("truck", "truck", "tipper"), (2.2, 2.55), (2.8, 3.9), (6.5, 11)),
    "bus": Kind(
        Label.BUS, ("bus", "bus", "bus", "double decker"), (2.45, 2.6), (2.9, 3.3), (10, 13)
    ),
    "train": Kind(Label.TRAIN, ("train",), (2.3, 2.65), (3.2, 3.8), (20, 36)),
    "trailer": Kind(Label.TRAILER, ("trailer",), (1.6, 2.2), (1.2, 2.5), (2.5, 5)),
}


def _trailer() -> Solid:
    builder = Builder()
    builder.extrude(
        ((0, 0.2), (0, 0.95), (0.05, 1), (0.95, 1), (1, 0.95), (1, 0.2)),
        ("body", "body", "body", "body", "body", "under"),
    )
    wheel(builder, 0.45, 0.1, 0.17)
    _lamps(builder, 0.24, 0.34)
    return builder.build()


@lru_cache(maxsize=1)
def solids() -> dict[str, Solid]:
    """All solids by name."""
    built = {kind: _car(kind) for kind in CARS}
    return built | {
        "bus": _bus(1),
        "double decker": _bus(2),
        "truck": _truck(open_top=False),
        "tipper": _truck(open_top=True),
        "train": _train(),
        "trailer": _trailer(),
    }


@dataclass(frozen=True)
class Vehicle:
    """A vehicle with its size in metres and its colours by part."""

    label: Label
    solid: Solid
    size: tuple[float, float, float]
    colours: dict[str, Colour]

    @property
    def length(self) -> float:
        """Length in metres."""
        return self.size[2]


def draw_vehicle(dice: Dice, name: str) -> Vehicle:
    """Draw a vehicle's solid, size and colours from a row of `KINDS`; it is not on a canvas yet."""
    kind = KINDS[name]
    solid = dice.pick(kind.solids)
    width, height, length = (dice.between(*span) for span in (kind.width, kind.height, kind.length))
    if solid == "double decker":
        height += 1.2
    return Vehicle(kind.label, solids()[solid], (width, height, length), _paint(dice))


def _paint(dice: Dice) -> dict[str, Colour]:
    glass = dice.grey(25, 75, tint=10)
    if dice.chance(0.3):
        glass = blend(glass, (170, 190, 205), dice.between(0.2, 0.7))
    body = dice.grey(15, 235, tint=6) if dice.chance(0.55) else dice.colour(value=(50, 230))
    return {
        "body": body,
        "glass": glass,
        "door": blend(body, glass, dice.between(0.3, 1.0)),
        "cargo": dice.grey(50, 240) if dice.chance(0.5) else dice.colour(value=(60, 230)),
        "stripe": body if dice.chance(0.4) else dice.colour(value=(50, 230)),
        "sign": dice.pick(((20, 20, 20), (240, 170, 40))),
        "seam": dice.grey(30, 90),
        "tyre": dice.grey(18, 40, tint=3),
        "hub": dice.grey(60, 190, tint=3),
        "under": dice.grey(15, 40, tint=3),
        "tail": (235, 40, 30) if dice.chance(0.5) else (120, 20, 20),
        "lamp": (255, 250, 230) if dice.chance(0.4) else (190, 195, 200),
        "plate": (235, 235, 225),
    }


def place_vehicle(canvas: Canvas, vehicle: Vehicle, x: float, z: float, heading: float) -> None:
    """Put a vehicle's middle at (x, z); ``heading`` 0 drives away from the camera, in radians."""
    solid, size = vehicle.solid, np.array(vehicle.size)
    turn = _turn(heading)
    at = np.array([x, 0.0, z])
    centres = (solid.centres * size) @ turn + at
    normals = (solid.normals / size) @ turn
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    sight = centres - (0.0, canvas.camera.height, 0.0)
    seen = (sight * normals).sum(axis=1) < 0
    lit = canvas.light.on_faces(normals)
    pixels = canvas.camera.project((solid.points * size) @ turn + at)
    _shade_below(canvas, size, turn, at)
    for number in _far_to_near(solid, np.linalg.norm(sight, axis=1), seen[solid.parents]):
        start = solid.stops[number - 1] if number else 0
        colour = scaled(vehicle.colours[solid.parts[number]], float(lit[number]))
        surface = canvas.upright(vehicle.label, colour, z, Material.METAL)
        canvas.fill_pixels(surface, pixels[start : solid.stops[number]])


def _turn(heading: float) -> Floats:
    """Rotation about the vertical for row vectors (x, y, z)."""
    cos, sin = math.cos(heading), math.sin(heading)
    return np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])


def _far_to_near(solid: Solid, distance: Floats, seen: NDArray[np.bool_]) -> list[int]:
    """Numbers of the visible faces in drawing order; a face on another comes right after it."""
    order = np.lexsort((np.arange(len(distance)), -distance[solid.parents]))
    numbers: list[int] = order[seen[order]].tolist()
    return numbers


def _shade_below(canvas: Canvas, size: Floats, turn: Floats, at: Floats) -> None:
    """The vehicle's shadow on the ground: under it, and away from the sun."""
    corners = np.array([(-0.52, 0, -0.51), (0.52, 0, -0.51), (0.52, 0, 0.51), (-0.52, 0, 0.51)])
    foot = (corners * size) @ turn + at
    across, along = canvas.light.reach(float(size[1]))
    shifted = foot + np.array([across, 0.0, along])
    canvas.shade_hull(np.concatenate([foot, shifted]))
    canvas.shade(foot)
