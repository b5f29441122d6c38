"""Rows of houses: facades with windows in perspective, gables, roofs, shops."""

from dataclasses import dataclass

import numpy as np

from segdeconv.data.synthetic.canvas import Canvas, Label, lift, upright_quad, wall_quad
from segdeconv.data.synthetic.dice import Colour, Dice, Floats, blend, scaled
from segdeconv.data.synthetic.street import Side, Street
from segdeconv.data.synthetic.textures import Material

DETAIL = 75.0
"""Facades further away than this, in metres, have no windows: they would be a pixel or two."""


@dataclass(frozen=True)
class House:
    """One house of a row.

    Args:
        near: Its near end in metres.
        far: Its far end.
        x: Where its facade stands, signed.
        height: Up to the eaves, in metres.
        exposed: Whether its near end can be seen: a gap or a crossing lies before it.
    """

    near: float
    far: float
    x: float
    height: float
    exposed: bool


def plan_lots(dice: Dice, side: Side, street: Street, start: float) -> list[tuple[float, float]]:
    """Divide a side into lots (near, far), leaving out the crossing; some lots are gaps."""
    lots, z = [], start
    while z < street.end:
        length = dice.between(6, 22)
        if street.crossing and z < street.crossing[1] and z + length > street.crossing[0]:
            if street.crossing[0] - z > 4:
                lots.append((z, street.crossing[0] - 1.5))
            z = street.crossing[1] + 1.5
            continue
        if not dice.chance(0.12):
            lots.append((z, z + length))
        z += length
    return lots


def draw_houses(
    canvas: Canvas, dice: Dice, side: Side, street: Street, lots: list[tuple[float, float]]
) -> None:
    """Draw the houses of one side on their lots, far to near."""
    storeys = dice.between(1, 7)
    houses = []
    for number, (near, far) in enumerate(lots):
        exposed = number == 0 or near - lots[number - 1][1] > 0.5
        height = 3.4 + 3.0 * max(0.0, storeys + dice.between(-1.5, 1.5))
        setback = side.front + dice.between(0, 0.8)
        houses.append(House(near, far, side.sign * setback, height, exposed))
    for house in reversed(houses):
        draw_house(canvas, dice, house)
    for house in houses:
        _shade_ground(canvas, house)


def _shade_ground(canvas: Canvas, house: House) -> None:
    """The shadow that a house throws towards the road, if the sun stands behind it."""
    x, z = canvas.light.reach(house.height)
    if x * house.x < 0:
        corners = [
            (house.x, 0, house.near),
            (house.x, 0, house.far),
            (house.x + x, 0, house.far + z),
            (house.x + x, 0, house.near + z),
        ]
        canvas.shade(np.array(corners, float), 0.8)


def facade_colour(dice: Dice) -> Colour:
    """Plaster, stone, brick or concrete, in any colour that houses have."""
    style = dice.weighted(grey=0.35, warm=0.35, brick=0.15, any=0.15)
    if style == "grey":
        return dice.grey(70, 225, tint=10)
    if style == "warm":
        return dice.colour(hue=(0.04, 0.16), saturation=(0.08, 0.5), value=(130, 235))
    if style == "brick":
        return dice.colour(hue=(-0.02, 0.06), saturation=(0.3, 0.6), value=(80, 170))
    return dice.colour(saturation=(0.05, 0.45), value=(90, 220))


def draw_house(canvas: Canvas, dice: Dice, house: House) -> None:
    """Draw one house: roof, facade along the street, gable facing the camera, windows."""
    colour = facade_colour(dice)
    material = Material.MASONRY if dice.chance(0.45) else Material.PLASTER
    sign = 1 if house.x > 0 else -1
    facing, gable = canvas.light.on(-sign, 0, 0), canvas.light.on(0, 0, -1)
    depth = sign * dice.between(7, 14)
    if dice.chance(0.6):
        _draw_roof(canvas, dice, house, depth, scaled(colour, gable), material)
    wall = canvas.wall(Label.BUILDING, scaled(colour, facing), house.x, material)
    canvas.fill(wall, wall_quad(house.x, house.near, house.far, 0, house.height))
    end = canvas.upright(Label.BUILDING, scaled(colour, gable), house.near, material)
    canvas.fill(end, upright_quad(house.x, house.x + depth, 0, house.height, house.near))
    if house.near > DETAIL:
        return
    _draw_bands(canvas, dice, house, scaled(colour, facing))
    windows = Windows.draw(dice)
    along = _facade_grid(windows, house.near, min(house.far, DETAIL + 10), house.height)
    _draw_windows(canvas, dice, windows, along[..., ::-1], house.x, axis=0, lit=facing)
    _draw_ground_floor(canvas, dice, house, facing)
    if house.exposed and dice.chance(0.7):
        first, last = sorted((house.x, house.x + depth))
        grid = _facade_grid(windows, first, last, house.height)
        _draw_windows(canvas, dice, windows, grid, house.near, axis=2, lit=gable)


def _draw_roof(
    canvas: Canvas, dice: Dice, house: House, depth: float, gable: Colour, material: Material
) -> None:
    """A pitched roof whose ridge runs along the street."""
    x, height = house.x, house.height
    ridge_x, ridge = x + depth / 2, height + dice.between(1.5, 4)
    tiles = dice.colour(hue=(-0.02, 0.1), saturation=(0.05, 0.6), value=(60, 150))
    slope = canvas.wall(Label.BUILDING, scaled(tiles, canvas.light.on(0, 1, 0)), x, material)
    front = canvas.upright(Label.BUILDING, gable, house.near, material)
    near, far = house.near, house.far
    canvas.fill(
        slope,
        np.array(
            [(x, height, near), (x, height, far), (ridge_x, ridge, far), (ridge_x, ridge, near)]
        ),
    )
    canvas.fill(
        front, np.array([(x, height, near), (x + depth, height, near), (ridge_x, ridge, near)])
    )


def _draw_bands(canvas: Canvas, dice: Dice, house: House, colour: Colour) -> None:
    """A plinth, and a cornice under the eaves."""
    for low, high, factor in ((0.0, dice.between(0.3, 1.0), 0.8), (-0.35, 0.0, 1.2)):
        if dice.chance(0.6):
            base = house.height if low < 0 else 0.0
            number = canvas.wall(Label.BUILDING, scaled(colour, factor), house.x, Material.PLASTER)
            canvas.fill(number, wall_quad(house.x, house.near, house.far, base + low, base + high))


@dataclass(frozen=True)
class Windows:
    """Shape of a facade's windows, in metres, and colours of glass and frame."""

    width: float
    height: float
    spacing: float
    storey: float
    sill: float
    frame: Colour | None
    glass: tuple[Colour, ...]

    @classmethod
    def draw(cls, dice: Dice) -> "Windows":
        """Draw a style: single windows, ribbons, or a curtain wall of glass."""
        style = dice.weighted(single=0.7, ribbon=0.2, curtain=0.1)
        spacing = dice.between(1.8, 3.6)
        share = {"single": dice.between(0.3, 0.55), "ribbon": 0.93, "curtain": 0.9}[style]
        storey = dice.between(2.8, 3.6)
        tall = {"single": dice.between(0.4, 0.6), "ribbon": 0.45, "curtain": 0.85}[style]
        return cls(
            width=share * spacing,
            height=tall * storey,
            spacing=spacing,
            storey=storey,
            sill=(1 - tall) / 2 * storey,
            frame=dice.grey(60, 245) if style == "single" and dice.chance(0.7) else None,
            glass=(dice.grey(20, 70), dice.grey(60, 130, tint=20), dice.grey(110, 220, tint=25)),
        )


def _facade_grid(windows: Windows, first: float, last: float, height: float) -> Floats:
    """Window rectangles (M, 4, 2) as (along, y) on a facade from ``first`` to ``last``."""
    columns = int((last - first - 0.8) / windows.spacing)
    storeys = int((height - 0.6) / windows.storey)
    if columns < 1 or storeys < 1:
        return np.empty((0, 4, 2))
    margin = (last - first - columns * windows.spacing) / 2 + (windows.spacing - windows.width) / 2
    along = first + margin + windows.spacing * np.arange(columns, dtype=float)
    up = windows.sill + windows.storey * np.arange(storeys, dtype=float)
    return boxes(along, up, windows.width, windows.height)


def boxes(along: Floats, up: Floats, width: float, height: float) -> Floats:
    """Rectangles (M, 4, 2) at every pair of a start along and a start up."""
    corners = np.empty((len(up), len(along), 4, 2))
    corners[..., 0] = along[None, :, None] + np.array([0, width, width, 0])
    corners[..., 1] = up[:, None, None] + np.array([0, 0, height, height])
    return corners.reshape(-1, 4, 2)


def _draw_windows(
    canvas: Canvas, dice: Dice, windows: Windows, grid: Floats, at: float, axis: int, lit: float
) -> None:
    """Fill window rectangles (M, 4, 2) on the plane where coordinate ``axis`` equals ``at``."""
    points = lift(grid, axis, at)
    if windows.frame:
        centre = points.mean(axis=1, keepdims=True)
        frame = _on_plane(canvas, scaled(windows.frame, lit), at, axis)
        canvas.fill(frame, centre + 1.18 * (points - centre))
    kind = dice.generator.integers(0, len(windows.glass), len(points))
    for number, glass in enumerate(windows.glass):
        canvas.fill(_on_plane(canvas, glass, at, axis), points[kind == number])


def _on_plane(canvas: Canvas, colour: Colour, at: float, axis: int) -> int:
    if axis == 0:
        return canvas.wall(Label.BUILDING, colour, at, Material.PLAIN)
    return canvas.upright(Label.BUILDING, colour, at, Material.PLAIN)


def _draw_ground_floor(canvas: Canvas, dice: Dice, house: House, lit: float) -> None:
    """Shops with a sign and an awning, or a door."""
    length, x = house.far - house.near, house.x
    if dice.chance(0.4):
        band = canvas.wall(Label.BUILDING, scaled(facade_colour(dice), lit), x, Material.PLAIN)
        canvas.fill(band, wall_quad(x, house.near, house.far, 0, 3.3))
        glass = canvas.wall(Label.BUILDING, dice.grey(25, 110, tint=20), x, Material.PLASTER)
        panes = max(1, int(length / dice.between(2, 4)))
        starts = house.near + 0.3 + length / panes * np.arange(panes, dtype=float)
        shop = boxes(starts, np.array([0.4]), 0.85 * length / panes, 2.1)
        canvas.fill(glass, lift(shop[..., ::-1], 0, x))
        sign = canvas.wall(Label.BUILDING, scaled(dice.colour(), lit), x, Material.PLAIN)
        start = house.near + dice.between(0, 0.5) * length
        canvas.fill(sign, wall_quad(x, start, start + 0.5 * length, 2.6, 3.2))
        return
    door = canvas.wall(Label.BUILDING, scaled(dice.colour(value=(30, 160)), lit), x, Material.PLAIN)
    start = house.near + dice.between(0.1, 0.8) * length
    canvas.fill(door, wall_quad(x, start, start + 1.1, 0, 2.2))


def draw_street_end(canvas: Canvas, dice: Dice, street: Street) -> None:
    """A house across the end of the street, with windows if it stands near enough."""
    z, height = street.end + dice.between(2, 25), dice.between(6, 22)
    colour = blend(facade_colour(dice), (128, 128, 128), 0.2)
    lit = canvas.light.on(0, 0, -1)
    number = canvas.upright(Label.BUILDING, scaled(colour, lit), z, Material.PLASTER)
    left, right = -dice.between(10, 60), dice.between(10, 60)
    canvas.fill(number, upright_quad(left, right, 0, height, z))
    windows = Windows.draw(dice)
    grid = _facade_grid(windows, max(left, -25), min(right, 25), height)
    _draw_windows(canvas, dice, windows, grid, z, axis=2, lit=lit)
