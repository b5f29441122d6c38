"""What lines a street: walls, fences, poles, lamps, traffic lights, signs, bins."""

import math

import numpy as np

from segdeconv.data.synthetic.buildings import boxes
from segdeconv.data.synthetic.camera import NEAR
from segdeconv.data.synthetic.canvas import Canvas, Label, lift, quad, upright_quad, wall_quad
from segdeconv.data.synthetic.dice import Colour, Dice, blend, scaled
from segdeconv.data.synthetic.greenery import clumps, draw_clumps
from segdeconv.data.synthetic.shapes import (
    Part,
    disc,
    draw_figure,
    limb,
    polygon,
    rectangle,
    shade_figure,
)
from segdeconv.data.synthetic.street import Side, Street
from segdeconv.data.synthetic.textures import Material

SEGMENT = 7.0
"""Barriers are drawn in pieces of this many metres."""


def draw_barrier(canvas: Canvas, dice: Dice, side: Side, street: Street, leaves: Colour) -> None:
    """Draw the wall, fence, hedge or guard rail of one side, far to near."""
    if side.barrier == "none":
        return
    x = side.sign * (side.footway + 0.1)
    start = max(NEAR, 0.6 * canvas.camera.edge(x))
    ends = np.arange(start, dice.between(30, 110), SEGMENT)[::-1]
    segments = [(z, z + SEGMENT) for z in ends.tolist() if not _in_crossing(street, z)]
    if side.barrier == "wall":
        _draw_wall(canvas, dice, x, segments)
    elif side.barrier == "fence":
        _draw_fence(canvas, dice, x, segments)
    elif side.barrier == "hedge":
        _draw_hedge(canvas, dice, leaves, x, segments)
    else:
        _draw_guard_rail(canvas, dice, x, segments)


def _in_crossing(street: Street, z: float) -> bool:
    crossing = street.crossing
    return crossing is not None and z + SEGMENT > crossing[0] - 1 and z < crossing[1] + 1


Segments = list[tuple[float, float]]


def _draw_wall(canvas: Canvas, dice: Dice, x: float, segments: Segments) -> None:
    """Stone, brick or concrete with a coping; no windows."""
    height, sign = dice.between(0.7, 2.8), math.copysign(1, x)
    colour = (
        dice.grey(80, 200, tint=14)
        if dice.chance(0.6)
        else dice.colour(hue=(-0.02, 0.14), saturation=(0.15, 0.55), value=(80, 190))
    )
    material = Material.MASONRY if dice.chance(0.6) else Material.STONE
    lit = scaled(colour, canvas.light.on(-sign, 0, 0))
    face, coping = (
        canvas.wall(Label.WALL, scaled(lit, factor), x, material) for factor in (1, 1.2)
    )
    end = scaled(colour, canvas.light.on(0, 0, -1))
    for near, far in segments:
        canvas.fill(
            canvas.upright(Label.WALL, end, near, material),
            upright_quad(x, x + 0.35 * sign, 0, height, near),
        )
        canvas.fill(face, wall_quad(x, near, far, 0, height))
        canvas.fill(coping, wall_quad(x, near, far, height - 0.12, height))


def _draw_fence(canvas: Canvas, dice: Dice, x: float, segments: Segments) -> None:
    """Boards, pickets, bars or mesh; all but boards let the background through."""
    style = dice.weighted(boards=0.3, pickets=0.4, mesh=0.3)
    height = dice.between(0.9, 2.2)
    colour = (
        dice.grey(30, 235)
        if dice.chance(0.5)
        else dice.colour(hue=(0.04, 0.4), saturation=(0.1, 0.5), value=(50, 190))
    )
    colour = scaled(colour, canvas.light.on(-math.copysign(1, x), 0, 0))
    bars, gaps = (
        canvas.wall(Label.FENCE, scaled(colour, factor), x, Material.PLASTER) for factor in (1, 0.6)
    )
    width, spacing = {"boards": (0.03, 0.25), "pickets": (0.06, 0.2), "mesh": (0.05, 1.4)}[style]
    for near, far in segments:
        face = wall_quad(x, near, far, 0, height)
        if style == "boards":
            canvas.fill(bars, face)
        else:
            canvas.relabel(Label.FENCE, face)
            for low in (0.12, 0.5, 0.9) if style == "mesh" else (0.15, 0.85):
                rail = wall_quad(x, near, far, low * height, low * height + 0.05)
                canvas.fill(bars, rail)
        step = spacing if near < 25 else 4 * spacing
        along = np.arange(near, far, step)
        posts = boxes(along, np.zeros(1), width, height)[..., ::-1]
        canvas.fill(gaps if style == "boards" else bars, lift(posts, 0, x))


def _draw_hedge(canvas: Canvas, dice: Dice, leaves: Colour, x: float, segments: Segments) -> None:
    """A clipped hedge: a body, and clumps along its top."""
    height = dice.between(0.8, 2.0)
    colour = dice.vary(leaves, 0.2)
    lit = scaled(colour, 0.8 * canvas.light.on(-math.copysign(1, x), 0, 0))
    for near, far in segments:
        material = Material.LEAVES if near < 25 else Material.FOLIAGE_FAR
        body = canvas.wall(Label.VEGETATION, lit, x, material)
        canvas.fill(body, wall_quad(x, near, far, 0, height))
        centres = np.stack([dice.many(-0.2, 0.2, 4), height + dice.many(-0.2, 0.1, 4)], axis=-1)
        draw_clumps(canvas, dice, colour, clumps(dice, centres, dice.many(0.2, 0.4, 4)), x, near)


def _draw_guard_rail(canvas: Canvas, dice: Dice, x: float, segments: Segments) -> None:
    """A steel beam on posts; Cityscapes does not evaluate it."""
    steel = canvas.wall(Label.GUARD_RAIL, dice.grey(110, 200), x, Material.METAL)
    for near, far in segments:
        for post in np.arange(near, far, 2.0):
            canvas.fill(steel, wall_quad(x, post, post + 0.12, 0, 0.7))
        canvas.fill(steel, wall_quad(x, near, far, 0.4, 0.75))


def draw_pole(
    canvas: Canvas, colour: Colour, x: float, z: float, height: float, width: float
) -> None:
    """Draw a pole, its sunny half brighter."""
    bright, dark = (1.15, 0.8) if canvas.light.sun[0] < 0 else (0.8, 1.15)
    for left, right, factor in ((-width / 2, 0, bright), (0, width / 2, dark)):
        number = canvas.upright(Label.POLE, scaled(colour, factor), z, Material.METAL)
        canvas.fill(number, upright_quad(x + left, x + right, 0, height, z))
    shade_figure(canvas, x, z, width, height)


def pole_colour(dice: Dice) -> Colour:
    """Steel, painted or wooden."""
    if dice.chance(0.2):
        return dice.colour(hue=(0.03, 0.45), saturation=(0.1, 0.5), value=(40, 130))
    return dice.grey(35, 190)


def draw_lamp(canvas: Canvas, dice: Dice, x: float, z: float) -> None:
    """Draw a street lamp: a pole with an arm over the road, or a lantern."""
    height, colour = dice.between(4.5, 9), pole_colour(dice)
    reach = -math.copysign(dice.between(0.8, 2.2), x)
    draw_pole(canvas, colour, x, z, height, dice.between(0.12, 0.2))
    if dice.chance(0.6):
        parts = [
            Part(Label.POLE, colour, limb((0, height - 0.1), (reach, height + 0.25), 0.1)),
            Part(
                Label.POLE,
                dice.grey(60, 230),
                limb((reach, height + 0.2), (1.4 * reach, height + 0.25), 0.22),
            ),
        ]
    else:
        parts = [Part(Label.POLE, dice.grey(60, 240), polygon((0, height + 0.2), 0.35, 6))]
    draw_figure(canvas, parts, x, z, material=Material.METAL)


LENSES = ((255, 40, 30), (255, 180, 30), (50, 230, 120))


def _light_head(dice: Dice, x: float, top: float, facing: bool) -> list[Part]:
    """The box of a traffic light, with one of three lenses lit if it faces the camera."""
    case = (
        dice.grey(15, 70)
        if dice.chance(0.85)
        else dice.colour(hue=(0.1, 0.16), saturation=(0.5, 0.8), value=(120, 200))
    )
    label = Label.TRAFFIC_LIGHT
    parts = [Part(label, case, rectangle(x - 0.19, x + 0.19, top - 1.0, top))]
    if facing:
        lit = dice.count(0, 2)
        for number, lens in enumerate(LENSES):
            colour = lens if number == lit else blend(scaled(lens, 0.2), case, 0.6)
            parts.append(Part(label, colour, disc((x, top - 0.2 - 0.3 * number), 0.12)))
    return parts


def draw_traffic_light(canvas: Canvas, dice: Dice, x: float, z: float) -> None:
    """Draw a traffic light on a pole, with a second one on an arm over the road at times."""
    colour, facing = pole_colour(dice), dice.chance(0.8)
    overhead = dice.chance(0.4)
    height = dice.between(5, 6.2) if overhead else dice.between(3.0, 3.8)
    draw_pole(canvas, colour, x, z, height, 0.15)
    parts = _light_head(dice, 0, min(height, 3.5), facing)
    if overhead:
        reach = -math.copysign(dice.between(2.5, 4.5), x)
        parts.append(Part(Label.POLE, colour, limb((0, height), (reach, height + 0.2), 0.13)))
        parts += _light_head(dice, reach, height + 0.3, facing)
    draw_figure(canvas, parts, x, z, material=Material.PLAIN)


def _sign_face(dice: Dice, y: float) -> list[Part]:
    """The face of a traffic sign around height ``y``, or its grey back."""
    label, size = Label.TRAFFIC_SIGN, dice.between(0.28, 0.5)
    shape = dice.weighted(circle=0.35, triangle=0.2, down=0.1, diamond=0.1, octagon=0.05, board=0.2)
    corners, turn = {
        "circle": (14, 0.0),
        "triangle": (3, math.pi / 2),
        "down": (3, -math.pi / 2),
        "diamond": (4, 0.0),
        "octagon": (8, math.pi / 8),
        "board": (4, math.pi / 4),
    }[shape]
    outline = polygon((0, y), size, corners, turn)
    if shape == "board":
        outline *= np.array([dice.between(0.8, 1.6), 1.0])
    if dice.chance(0.15):
        return [Part(label, dice.grey(90, 170), outline)]
    red, blue, white, yellow = (200, 30, 40), (30, 70, 170), (235, 235, 235), (240, 190, 30)
    rim, field, symbol = dice.pick(
        (
            (red, white, (20, 20, 20)),
            (white, blue, white),
            (red, red, white),
            (white, yellow, white),
            (white, white, (30, 30, 30)),
            (yellow, yellow, (20, 20, 20)),
        )
    )
    centre = outline.mean(axis=0)
    mark = dice.pick(
        (
            rectangle(-0.2 * size, 0.2 * size, y - 0.35 * size, y + 0.35 * size),
            rectangle(-0.5 * size, 0.5 * size, y - 0.12 * size, y + 0.12 * size),
            polygon((0, y), 0.35 * size, 3, math.pi / 2),
        )
    )
    faded = dice.between(0, 0.35)
    paint = [blend(colour, (150, 150, 150), faded) for colour in (rim, field, symbol)]
    outlines = (outline, centre + 0.74 * (outline - centre), mark)
    return [Part(label, colour, shape) for colour, shape in zip(paint, outlines, strict=True)]


def draw_sign(canvas: Canvas, dice: Dice, x: float, z: float) -> None:
    """Draw one or two traffic signs on a pole."""
    y = dice.between(2.0, 3.0)
    draw_pole(canvas, dice.grey(90, 190), x, z, y + 0.2, dice.between(0.07, 0.1))
    draw_figure(canvas, _sign_face(dice, y), x, z, material=Material.PLAIN)
    if dice.chance(0.3):
        draw_figure(canvas, _sign_face(dice, y - 0.85), x, z, material=Material.PLAIN)


def draw_signpost(canvas: Canvas, dice: Dice, x: float, z: float) -> None:
    """Draw a large board with directions: lines of writing on blue, green, yellow or white."""
    low, width, height = dice.between(1.8, 3), dice.between(1.4, 3), dice.between(0.9, 1.8)
    for foot in (-0.35 * width, 0.35 * width):
        draw_pole(canvas, dice.grey(90, 170), x + foot, z, low + height, 0.1)
    field = dice.pick(((20, 60, 150), (10, 110, 70), (235, 190, 40), (230, 230, 230)))
    ink = (240, 240, 240) if field[0] < 100 else (30, 30, 30)
    board = rectangle(-width / 2, width / 2, low, low + height)
    parts = [Part(Label.TRAFFIC_SIGN, field, board)]
    for line in range(3):
        y, end = low + height * (0.2 + 0.27 * line), width * dice.between(-0.1, 0.42)
        ribbon = rectangle(-0.42 * width, end, y, y + 0.1 * height)
        parts.append(Part(Label.TRAFFIC_SIGN, ink, ribbon))
    draw_figure(canvas, parts, x, z, material=Material.PLAIN)


def draw_clutter(canvas: Canvas, dice: Dice, x: float, z: float) -> None:
    """Draw a bin, a box, a bench or a sack: static or dynamic, neither is evaluated."""
    label = Label.STATIC if dice.chance(0.7) else Label.DYNAMIC
    width, height = dice.between(0.4, 1.6), dice.between(0.4, 1.4)
    colour = dice.colour(saturation=(0, 0.6), value=(30, 200))
    lid = rectangle(-0.55 * width, 0.55 * width, 0.8 * height, height)
    parts = [
        Part(label, colour, rectangle(-width / 2, width / 2, 0, height)),
        Part(label, scaled(colour, 1.2), lid),
    ]
    draw_figure(canvas, parts, x, z, material=Material.METAL)
    canvas.shade(quad(z - 0.2, z + 0.4, x - width / 2, x + width / 2))


def draw_bridge(canvas: Canvas, dice: Dice, z: float) -> None:
    """Draw a bridge across the street; Cityscapes does not evaluate it."""
    low, height = dice.between(4.8, 6.5), dice.between(1.0, 2.2)
    colour = scaled(dice.grey(80, 170, tint=12), canvas.light.on(0, 0, -1))
    deck = canvas.upright(Label.BRIDGE, colour, z, Material.STONE)
    under = canvas.upright(Label.BRIDGE, scaled(colour, 0.5), z, Material.PLAIN)
    wide = 120.0
    canvas.fill(under, quad(z, z + 7, -wide, wide, low))
    canvas.fill(deck, upright_quad(-wide, wide, low, low + height, z))
    canvas.shade(quad(z, z + 7, -wide, wide), 0.9)
