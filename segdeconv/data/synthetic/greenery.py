"""Trees, bushes and hedges: clumps of leaves, bright above and dark below."""

import math

import numpy as np

from segdeconv.data.synthetic.canvas import Canvas, Label, lift, upright_quad
from segdeconv.data.synthetic.dice import Colour, Dice, Floats, blend, scaled
from segdeconv.data.synthetic.shapes import unit_polygon
from segdeconv.data.synthetic.textures import Material

OUTLINE = 16
"""Corners of a clump of leaves."""


def draw_leaf_colour(dice: Dice) -> Colour:
    """The scene's foliage: mostly green, sometimes autumn, dark evergreen or dusty."""
    season = dice.weighted(summer=0.7, autumn=0.15, dark=0.15)
    if season == "autumn":
        return dice.colour(hue=(0.03, 0.15), saturation=(0.3, 0.7), value=(90, 180))
    if season == "dark":
        return dice.colour(hue=(0.2, 0.45), saturation=(0.1, 0.4), value=(35, 80))
    return dice.colour(hue=(0.17, 0.38), saturation=(0.25, 0.7), value=(70, 160))


def clumps(dice: Dice, centres: Floats, radius: Floats) -> Floats:
    """Ragged discs (N, OUTLINE, 2) around centres (N, 2) with those radii (N,)."""
    rim = radius[:, None] * dice.many(0.72, 1.15, len(centres), OUTLINE)
    return centres[:, None] + rim[..., None] * unit_polygon(OUTLINE)


def draw_clumps(
    canvas: Canvas, dice: Dice, leaves: Colour, outlines: Floats, x: float, z: float
) -> None:
    """Draw discs (N, K, 2) at distance ``z``, brighter the higher they are and towards the sun."""
    centres = outlines.mean(axis=1)
    height = (centres - centres.min(axis=0)) / (np.ptp(centres, axis=0) + 0.1)
    tilt = math.copysign(0.15, float(canvas.light.sun[0]))
    lit = 0.65 + 0.4 * height[:, 1] + tilt * (height[:, 0] - 0.5)
    colours = np.array(leaves) * lit[:, None] * dice.many(0.9, 1.1, len(lit), 3)
    material = Material.LEAVES if z < 30 else Material.FOLIAGE_FAR
    points = lift(outlines, 2, z)
    points[..., 0] += x
    numbers = canvas.uprights(Label.VEGETATION, colours, z, material)
    for number, outline in zip(numbers, canvas.camera.project(points), strict=True):
        canvas.fill_pixels(number, outline)


def draw_tree(canvas: Canvas, dice: Dice, leaves: Colour, x: float, z: float) -> None:
    """Draw a tree: trunk, then a crown of clumps; round, tall or conical."""
    height, shape = dice.between(3.5, 13), dice.weighted(round=0.6, tall=0.2, cone=0.2)
    trunk = height * dice.between(0.2, 0.45) if shape != "cone" else 0.1 * height
    wide = {"round": 0.36, "tall": 0.18, "cone": 0.22}[shape] * height * dice.between(0.7, 1.2)
    bark = dice.colour(hue=(0.03, 0.12), saturation=(0.1, 0.4), value=(40, 110))
    stem = canvas.upright(Label.VEGETATION, bark, z, Material.STONE)
    half = 0.02 * height
    canvas.fill(stem, upright_quad(x - half, x + half, 0, trunk + 0.25 * (height - trunk), z))
    count = dice.count(8, 13)
    up = np.sort(dice.generator.random(count))
    taper = 1 - up if shape == "cone" else np.sqrt(np.maximum(0, 1 - (2 * up - 1) ** 2))
    across = dice.many(-1, 1, count) * taper * wide * 0.7
    middle = trunk + (height - trunk) * (0.12 + 0.76 * up)
    radius = wide * dice.many(0.35, 0.6, count) * (0.5 + 0.5 * taper)
    outlines = clumps(dice, np.stack([across, middle], axis=-1), radius)
    draw_clumps(canvas, dice, dice.vary(leaves, 0.25), outlines, x, z)
    _shade_ground(canvas, x, z, 0.5 * (height + trunk), wide)


def _shade_ground(canvas: Canvas, x: float, z: float, height: float, radius: float) -> None:
    """The crown's shadow, an ellipse beside the tree."""
    across, along = canvas.light.reach(height)
    ellipse = unit_polygon(16) * (radius, 1.3 * radius) + (x + across, z + along)
    canvas.shade(lift(ellipse, 1, 0.0), 0.7)


def draw_bush(canvas: Canvas, dice: Dice, leaves: Colour, x: float, z: float) -> None:
    """Draw a bush, wider than high."""
    height = dice.between(0.6, 1.8)
    count = dice.count(4, 7)
    centres = np.stack([dice.many(-0.8, 0.8, count), dice.many(0.2, 0.7, count)], axis=-1) * height
    outlines = clumps(dice, centres, height * dice.many(0.3, 0.45, count))
    outlines[..., 1] = np.maximum(outlines[..., 1], 0)
    draw_clumps(canvas, dice, dice.vary(leaves, 0.3), outlines, x, z)


def draw_thicket(
    canvas: Canvas, dice: Dice, leaves: Colour, x: tuple[float, float], z: float
) -> None:
    """Draw a mass of leaves from ``x`` to ``x`` at distance ``z``: the edge of a wood."""
    height = dice.between(3, 12)
    count = max(4, min(24, int((x[1] - x[0]) / (0.35 * height))))
    across = np.linspace(*x, count) + dice.many(-0.5, 0.5, count)
    centres = np.stack([across, dice.many(0.2, 0.75, count) * height], axis=-1)
    colour = dice.vary(leaves, 0.15)
    base = canvas.upright(Label.VEGETATION, scaled(colour, 0.6), z, Material.FOLIAGE_FAR)
    canvas.fill(base, upright_quad(x[0], x[1], 0, 0.45 * height, z))
    draw_clumps(
        canvas, dice, colour, clumps(dice, centres, height * dice.many(0.25, 0.4, count)), 0, z
    )


def draw_skyline(canvas: Canvas, dice: Dice, leaves: Colour) -> None:
    """Draw what closes the view far away: hills and woods, or roofs."""
    z = dice.between(220, 500)
    wood = dice.chance(0.6)
    count = 60
    heights = dice.between(2, 14) * dice.many(0.4, 1.3, count)
    if wood:
        heights = np.convolve(np.pad(heights, 2, mode="edge"), np.full(5, 0.2), mode="valid")
    across = np.linspace(-0.8, 0.8, count) * z
    if not wood:
        across, heights = np.repeat(across, 2)[1:], np.repeat(heights, 2)[:-1]
    top = np.stack([across, heights, np.full(len(across), z)], axis=-1)
    foot = np.array([(0.8 * z, -3, z), (-0.8 * z, -3, z)])
    colour = dice.vary(leaves, 0.2) if wood else blend(dice.grey(90, 180), leaves, 0.15)
    label = Label.VEGETATION if wood else Label.BUILDING
    number = canvas.upright(label, scaled(colour, 0.8), z, Material.FOLIAGE_FAR)
    canvas.fill(number, np.concatenate([top, foot]))
