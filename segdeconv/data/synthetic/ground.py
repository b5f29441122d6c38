"""Everything that lies flat: road and its paint, kerbs, sidewalks, grass."""

import numpy as np

from segdeconv.data.synthetic.camera import NEAR
from segdeconv.data.synthetic.canvas import Canvas, Label, lift, quad, wall_quad
from segdeconv.data.synthetic.dice import Colour, Dice, Floats, blend, scaled
from segdeconv.data.synthetic.shapes import polygon
from segdeconv.data.synthetic.street import Side, Street
from segdeconv.data.synthetic.textures import Material

FAR = 900.0
"""Where the ground meets the horizon, in metres."""


def draw_ground(canvas: Canvas, dice: Dice, street: Street) -> Colour:
    """Draw the ground of the whole scene; return the colour of the road."""
    road, footway = _hard_colour(dice), _hard_colour(dice)
    earth = _earth_colour(dice)
    kerbstone = dice.vary(blend(footway, dice.grey(120, 190), 0.5), 0.1)
    _fill(canvas, Label.ROAD, road, quad(NEAR, FAR, -street.left.kerb, street.right.kerb))
    for side in street.sides:
        _draw_side(canvas, dice, side, footway, earth, kerbstone)
    if street.crossing:
        _fill(canvas, Label.ROAD, dice.vary(road, 0.06), quad(*street.crossing, -FAR, FAR))
    _draw_repairs(canvas, dice, street, road)
    if street.tram is not None:
        _draw_rails(canvas, dice, street.tram, road)
    _draw_paint(canvas, dice, street, road)
    return road


def _hard_colour(dice: Dice) -> Colour:
    """Asphalt, concrete, cobble or brick: roads and sidewalks draw from the same colours."""
    if dice.chance(0.2):
        return dice.colour(hue=(-0.02, 0.12), saturation=(0.08, 0.35), value=(80, 170))
    return dice.grey(65, 165, tint=9)


def _earth_colour(dice: Dice) -> Colour:
    """Grass from lush to burnt, or bare soil."""
    if dice.chance(0.25):
        return dice.colour(hue=(0.05, 0.13), saturation=(0.15, 0.5), value=(80, 170))
    return dice.colour(hue=(0.13, 0.33), saturation=(0.2, 0.65), value=(70, 160))


def _fill(
    canvas: Canvas, label: Label, colour: Colour, points: Floats, material: Material | None = None
) -> None:
    lit = scaled(colour, canvas.light.on(0, 1, 0))
    if material is None:
        material = Material.ASPHALT if label == Label.ROAD else Material.PAVING
    canvas.fill(canvas.ground(label, lit, material), points)


def _strip(side: Side, inner: float, outer: float, near: float = NEAR, y: float = 0.0) -> Floats:
    """A strip along the street between two |x| of a side."""
    return quad(near, FAR, side.sign * inner, side.sign * outer, y)


def _draw_side(
    canvas: Canvas, dice: Dice, side: Side, footway: Colour, earth: Colour, kerbstone: Colour
) -> None:
    if side.parking and dice.chance(0.4):
        label = Label.PARKING if dice.chance(0.5) else Label.ROAD
        colour = dice.vary(footway, 0.15)
        _fill(canvas, label, colour, _strip(side, side.kerb - side.parking, side.kerb))
    material = Material.DIRT if dice.chance(0.2) else Material.GRASS
    if side.verge > side.kerb:
        _fill(canvas, Label.TERRAIN, earth, _strip(side, side.kerb, side.verge), material)
    _fill(canvas, Label.SIDEWALK, dice.vary(footway, 0.08), _strip(side, side.verge, side.footway))
    if side.garden:
        _fill(
            canvas, Label.TERRAIN, dice.vary(earth, 0.1), _strip(side, side.footway, FAR), material
        )
    else:
        _fill(canvas, Label.SIDEWALK, footway, _strip(side, side.footway - 0.1, FAR))
    label = Label.TERRAIN if side.verge > side.kerb and dice.chance(0.3) else Label.SIDEWALK
    _draw_kerb(canvas, side, kerbstone, label)


def _draw_kerb(canvas: Canvas, side: Side, colour: Colour, label: Label) -> None:
    """A kerbstone 12 cm high: its face towards the road and its top."""
    x = side.sign * side.kerb
    face = scaled(colour, 0.75 * canvas.light.on(-side.sign, 0, 0))
    canvas.fill(canvas.ground(label, face, Material.STONE), wall_quad(x, NEAR, FAR, 0.0, 0.12))
    _fill(canvas, label, colour, _strip(side, side.kerb, side.kerb + 0.18, y=0.12))


def _draw_repairs(canvas: Canvas, dice: Dice, street: Street, road: Colour) -> None:
    """Patches, seams and covers in the road."""
    for _ in range(dice.count(0, 6)):
        x, z = dice.between(-street.left.kerb, street.right.kerb - 1), dice.between(4, 40)
        if dice.chance(0.3):
            cover = _disc_on_ground(x, z, 0.35)
            _fill(canvas, Label.ROAD, dice.vary(scaled(road, 0.7), 0.2), cover)
            continue
        width, length = dice.pick(((0.1, 12.0), (0.8, 4.0), (1.6, 2.0), (1.0, 15.0)))
        patch = quad(z, z + length * dice.between(0.5, 1.5), x, min(x + width, street.right.kerb))
        _fill(canvas, Label.ROAD, dice.vary(road, 0.25), patch)


def _disc_on_ground(x: float, z: float, radius: float) -> Floats:
    return lift(polygon((x, z), radius, 14), 1, 0.0)


def _draw_rails(canvas: Canvas, dice: Dice, x: float, road: Colour) -> None:
    """Tram rails in their bed; Cityscapes does not evaluate the bed."""
    bed = dice.vary(road, 0.3) if dice.chance(0.6) else _earth_colour(dice)
    _fill(canvas, Label.RAIL_TRACK, bed, quad(NEAR, FAR, x - 1.2, x + 1.2), Material.PAVING)
    steel = dice.grey(120, 210)
    for rail in (x - 0.72, x + 0.72):
        _fill(canvas, Label.RAIL_TRACK, steel, quad(NEAR, FAR, rail - 0.06, rail + 0.06))


def _draw_paint(canvas: Canvas, dice: Dice, street: Street, road: Colour) -> None:
    """Lane lines, edge lines, arrows, a zebra crossing, a stop line."""
    if dice.chance(0.12):
        return
    paint = blend(dice.grey(190, 250), road, dice.between(0, 0.5))
    if dice.chance(0.1):
        paint = blend((230, 190, 60), road, dice.between(0, 0.4))
    for left, right in zip(street.lanes, street.lanes[1:], strict=False):
        between = (left.centre + right.centre) / 2
        dashed = left.away == right.away or dice.chance(0.6)
        _draw_line(canvas, dice, paint, between, dashed)
    if dice.chance(0.4):
        for side in street.sides:
            edge = side.sign * (side.kerb - side.parking - 0.25)
            _draw_line(canvas, dice, paint, edge, dashed=side.parking > 0 and dice.chance(0.5))
    _draw_arrows(canvas, dice, street, paint)
    if dice.chance(0.35):
        start = street.crossing[0] - 4.5 if street.crossing else dice.between(9, 35)
        _draw_zebra(canvas, dice, street, paint, start)


def _draw_line(canvas: Canvas, dice: Dice, paint: Colour, x: float, dashed: bool) -> None:
    half = dice.between(0.05, 0.11)
    if not dashed:
        _fill(canvas, Label.ROAD, paint, quad(NEAR, FAR, x - half, x + half))
        return
    dash, period = dice.between(2, 5), dice.between(6, 11)
    starts = dice.between(0, period) + period * np.arange(14)
    _fill(
        canvas, Label.ROAD, paint, np.array([quad(z, z + dash, x - half, x + half) for z in starts])
    )


def _draw_arrows(canvas: Canvas, dice: Dice, street: Street, paint: Colour) -> None:
    """Straight-ahead arrows: a shaft and a head."""
    for lane in street.lanes:
        if not dice.chance(0.15):
            continue
        x, z = lane.centre, dice.between(8, 30)
        tip, base = (z + 4.5, z + 2.8) if lane.away else (z - 1.7, z)
        head = np.array([(x - 0.4, 0, base), (x, 0, tip), (x + 0.4, 0, base)], float)
        _fill(canvas, Label.ROAD, paint, quad(z, z + 2.9, x - 0.09, x + 0.09))
        _fill(canvas, Label.ROAD, paint, head)


def _draw_zebra(canvas: Canvas, dice: Dice, street: Street, paint: Colour, start: float) -> None:
    """Bars along the street across its whole width, and a stop line before them."""
    bar = dice.between(0.4, 0.6)
    lefts = np.arange(-street.left.kerb + 0.3, street.right.kerb - bar, 2 * bar)
    end = start + dice.between(2.5, 4)
    bars = np.array([quad(start, end, x, x + bar) for x in lefts])
    _fill(canvas, Label.ROAD, paint, bars)
    if dice.chance(0.5):
        stop = quad(start - 1.5, start - 1.1, street.lanes[0].centre, street.right.kerb - 0.3)
        _fill(canvas, Label.ROAD, paint, stop)
