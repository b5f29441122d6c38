"""Cars, trucks, buses and trains: drawn by size and colour, put on a street, shaded.

Faces that look away are left out, the others follow far to near; what lies on a face (glass, lamps)
comes right after it.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segdeconv.data.synthetic.bodies import bodies
from segdeconv.data.synthetic.canvas import Canvas, Label
from segdeconv.data.synthetic.dice import Colour, Dice, Floats, blend, scaled
from segdeconv.data.synthetic.solids import Solid
from segdeconv.data.synthetic.textures import Material


@dataclass(frozen=True)
class Kind:
    """A kind of vehicle: label, bodies to choose from, and ranges in metres of its size."""

    label: Label
    bodies: tuple[str, ...]
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
    """Draw a vehicle's body, size and colours from a row of `KINDS`; it is not on a canvas yet."""
    kind = KINDS[name]
    body = dice.pick(kind.bodies)
    width, height, length = (dice.between(*span) for span in (kind.width, kind.height, kind.length))
    if body == "double decker":
        height += 1.2
    return Vehicle(kind.label, bodies()[body], (width, height, length), _paint(dice))


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
