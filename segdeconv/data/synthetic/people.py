"""Pedestrians, and cycles with and without riders, as flat figures."""

from collections.abc import Callable

from segdeconv.data.synthetic.canvas import Canvas, Label, quad
from segdeconv.data.synthetic.dice import Colour, Dice, blend, scaled
from segdeconv.data.synthetic.shapes import (
    Part,
    Point,
    disc,
    draw_figure,
    limb,
    rectangle,
    ring,
    shade_figure,
)


def skin_colour(dice: Dice) -> Colour:
    """Draw a skin from dark to pale."""
    return blend((70, 45, 35), (240, 200, 175), dice.unit())


def cloth_colour(dice: Dice) -> Colour:
    """Draw clothes: half of them grey, black or white."""
    if dice.chance(0.5):
        return dice.grey(15, 220, tint=10)
    return dice.colour(saturation=(0.2, 0.85), value=(40, 220))


def draw_person(canvas: Canvas, dice: Dice, x: float, z: float) -> None:
    """Draw a pedestrian, standing or in mid-stride, as seen from any side."""
    height = dice.between(1.5, 1.95) if dice.chance(0.88) else dice.between(1.0, 1.4)
    stride = dice.between(0, 0.22) if dice.chance(0.75) else 0.04
    parts = _walker(dice, Label.PERSON, stride, broad=dice.between(0.30, 0.46))
    for_height = [Part(part.label, part.colour, part.outline * (height / 1.8)) for part in parts]
    shade_figure(canvas, x, z, 0.4, height)
    draw_figure(canvas, for_height, x, z, squeeze=dice.pick((-1, 1)))


def _walker(dice: Dice, label: Label, stride: float, broad: float) -> list[Part]:
    """A person 1.8 m tall: legs apart by twice ``stride``, shoulders ``broad`` wide."""
    coat, trousers, skin = cloth_colour(dice), cloth_colour(dice), skin_colour(dice)
    hair = dice.pick(((25, 20, 15), (70, 45, 25), (160, 120, 70), (150, 150, 150)))
    shoes, half = dice.grey(15, 90), broad / 2
    swing = 0.8 * stride + dice.between(0, 0.06)
    hem = dice.pick((0.85, 0.85, 0.85, 0.5, 0.65))
    knee = 0.07 + 0.3 * stride
    outlines = [
        (scaled(trousers, 0.8), limb((-0.06, 0.9), (-0.07 - stride, 0.08), 0.17, 0.65)),
        (scaled(coat, 0.75), limb((-half + 0.03, 1.42), (-half - swing, 0.85), 0.11, 0.8)),
        (trousers, limb((0.06, 0.9), (knee, 0.5), 0.18, 0.8)),
        (trousers, limb((knee, 0.52), (0.07 + 0.8 * stride, 0.08), 0.14, 0.8)),
        (shoes, rectangle(-0.16 - stride, 0.02 - stride, 0, 0.09)),
        (shoes, rectangle(0.03 + 0.8 * stride, 0.2 + 0.8 * stride, 0, 0.09)),
        (coat, limb((0, hem), (0, 1.5), 0.85 * broad, 1.15)),
        (scaled(coat, 0.88), limb((half - 0.03, 1.42), (half + swing, 0.88), 0.11, 0.8)),
        (skin, disc((half + swing, 0.85), 0.05)),
        (hair, disc((0, 1.69), 0.125)),
        (skin, disc((dice.between(-0.04, 0.04), 1.65), 0.1)),
    ]
    if dice.chance(0.25):
        side = dice.pick((-1, 1)) * (half + 0.05)
        outlines.append((cloth_colour(dice), rectangle(side - 0.1, side + 0.1, 0.75, 1.3)))
    return [Part(label, colour, outline) for colour, outline in outlines]


def _wheel(centre: Point, tyre: Colour) -> list[Part]:
    """A wheel 0.68 m high that one can see through: label, tyre, spokes."""
    label, rim = Label.BICYCLE, disc(centre, 0.34)
    spokes = [limb(centre, (float(x), float(y)), 0.015) for x, y in rim[::3]]
    return [
        Part(label, tyre, rim, see_through=True),
        Part(label, tyre, ring(centre, 0.34, 0.28)),
        *(Part(label, scaled(tyre, 1.6), spoke) for spoke in spokes),
    ]


def _bicycle(dice: Dice) -> list[Part]:
    """A bicycle in profile, facing right: wheels at 0.53 m before and behind its middle."""
    label, tyre = Label.BICYCLE, dice.grey(20, 60)
    frame = dice.colour(saturation=(0, 0.8), value=(20, 230))
    parts = _wheel((-0.53, 0.34), tyre) + _wheel((0.53, 0.34), tyre)
    tubes = (
        ((-0.53, 0.34), (-0.12, 0.32)),
        ((-0.12, 0.32), (-0.22, 0.82)),
        ((-0.22, 0.8), (-0.53, 0.34)),
        ((-0.12, 0.32), (0.38, 0.8)),
        ((-0.2, 0.76), (0.38, 0.82)),
        ((0.36, 0.98), (0.53, 0.34)),
    )
    parts += [Part(label, frame, limb(a, b, 0.05)) for a, b in tubes]
    parts.append(Part(label, tyre, limb((-0.36, 0.9), (-0.1, 0.9), 0.07)))
    parts.append(Part(label, tyre, limb((0.3, 1.02), (0.46, 1.0), 0.05)))
    return parts


def _bicycle_along(dice: Dice) -> list[Part]:
    """A bicycle from behind or from ahead: a wheel, a saddle, a handlebar."""
    label, tyre = Label.BICYCLE, dice.grey(20, 60)
    frame = dice.colour(saturation=(0, 0.8), value=(20, 230))
    return [
        Part(label, tyre, rectangle(-0.04, 0.04, 0, 0.68)),
        Part(label, frame, limb((0, 0.4), (0, 0.95), 0.08)),
        Part(label, frame, rectangle(-0.13, 0.13, 0.66, 0.74)),
        Part(label, tyre, rectangle(-0.1, 0.1, 0.86, 0.94)),
        Part(label, frame, limb((-0.3, 1.05), (0.3, 1.05), 0.05)),
        Part(label, (200, 30, 30), rectangle(-0.04, 0.04, 0.55, 0.63)),
    ]


def _motorcycle(dice: Dice) -> list[Part]:
    """A motorcycle or scooter in profile, facing right."""
    label, dark = Label.MOTORCYCLE, dice.grey(20, 60)
    paint = dice.colour(saturation=(0, 0.9), value=(30, 230))
    return [
        Part(label, dark, disc((-0.62, 0.31), 0.31)),
        Part(label, dark, disc((0.68, 0.31), 0.31)),
        Part(label, dice.grey(90, 200), disc((-0.62, 0.31), 0.15)),
        Part(label, dice.grey(90, 200), disc((0.68, 0.31), 0.15)),
        Part(label, dice.grey(50, 140), rectangle(-0.35, 0.3, 0.2, 0.6)),
        Part(label, dice.grey(120, 200), limb((-0.75, 0.3), (0.1, 0.25), 0.1)),
        Part(label, dice.grey(60, 140), limb((0.45, 1.0), (0.68, 0.31), 0.09)),
        Part(label, paint, limb((-0.85, 0.75), (-0.1, 0.6), 0.2)),
        Part(label, paint, limb((-0.1, 0.72), (0.45, 0.85), 0.32, 0.8)),
        Part(label, dark, limb((-0.75, 0.86), (-0.05, 0.8), 0.12)),
        Part(label, dark, limb((0.28, 1.08), (0.48, 1.0), 0.07)),
        Part(label, dice.grey(160, 240), disc((0.55, 0.85), 0.1)),
    ]


def _motorcycle_along(dice: Dice) -> list[Part]:
    """A motorcycle from behind or from ahead: tyre, body, light, handlebar and mirrors."""
    label, dark = Label.MOTORCYCLE, dice.grey(20, 60)
    paint = dice.colour(saturation=(0, 0.9), value=(30, 230))
    lamp = dice.pick(((220, 40, 30), (255, 245, 220)))
    return [
        Part(label, dark, rectangle(-0.09, 0.09, 0, 0.62)),
        Part(label, dice.grey(70, 160), rectangle(0.1, 0.22, 0.28, 0.42)),
        Part(label, paint, rectangle(-0.22, 0.22, 0.45, 0.85)),
        Part(label, dark, rectangle(-0.17, 0.17, 0.8, 0.92)),
        Part(label, lamp, rectangle(-0.1, 0.1, 0.66, 0.78)),
        Part(label, dark, limb((-0.4, 1.05), (0.4, 1.05), 0.06)),
        Part(label, dark, disc((-0.42, 1.18), 0.07)),
        Part(label, dark, disc((0.42, 1.18), 0.07)),
    ]


def _rider(dice: Dice, seat: Point, bar: Point, foot: Point) -> list[Part]:
    """A rider in profile: seat, handlebar and pedal say how the body bends."""
    coat, trousers, skin = cloth_colour(dice), cloth_colour(dice), skin_colour(dice)
    helmet = dice.colour(saturation=(0, 0.8), value=(20, 230))
    shoulder = (seat[0] + dice.between(0.1, 0.3), seat[1] + 0.52)
    knee = ((seat[0] + foot[0]) / 2 + 0.2, (seat[1] + foot[1]) / 2 + 0.1)
    head = (shoulder[0] + 0.06, shoulder[1] + 0.22)
    outlines = [
        (trousers, limb(seat, knee, 0.19, 0.8)),
        (trousers, limb(knee, foot, 0.14, 0.75)),
        (coat, limb(seat, shoulder, 0.28, 1.1)),
        (scaled(coat, 0.85), limb(shoulder, bar, 0.11, 0.7)),
        (skin, disc(head, 0.12)),
        (helmet, disc((head[0] - 0.01, head[1] + 0.05), 0.125)),
    ]
    return [Part(Label.RIDER, colour, outline) for colour, outline in outlines]


def _rider_along(dice: Dice, seat: float) -> list[Part]:
    """A rider from behind or from ahead, sitting at height ``seat``."""
    coat, trousers, skin = cloth_colour(dice), cloth_colour(dice), skin_colour(dice)
    helmet = dice.colour(saturation=(0, 0.8), value=(20, 230))
    top = seat + 0.58
    outlines = [
        (trousers, limb((-0.12, seat), (-0.2, seat - 0.35), 0.16)),
        (trousers, limb((0.12, seat), (0.2, seat - 0.3), 0.16)),
        (trousers, limb((-0.2, seat - 0.3), (-0.16, 0.22), 0.13, 0.8)),
        (trousers, limb((0.2, seat - 0.28), (0.16, 0.35), 0.13, 0.8)),
        (coat, limb((0, seat - 0.05), (0, top), 0.36, 1.2)),
        (scaled(coat, 0.85), limb((-0.2, top - 0.05), (-0.33, seat + 0.12), 0.11, 0.8)),
        (scaled(coat, 0.85), limb((0.2, top - 0.05), (0.33, seat + 0.12), 0.11, 0.8)),
        (skin, disc((0, top + 0.16), 0.11)),
        (helmet, disc((0, top + 0.21), 0.13)),
    ]
    return [Part(Label.RIDER, colour, outline) for colour, outline in outlines]


def draw_cycle(
    canvas: Canvas, dice: Dice, x: float, z: float, motor: bool, ridden: bool, along: bool
) -> None:
    """Draw a bicycle or motorcycle.

    Args:
        canvas: Where to draw.
        dice: Draws colours and posture.
        x: Metres to the right.
        z: Distance in metres.
        motor: A motorcycle rather than a bicycle.
        ridden: With a rider.
        along: Seen from behind or ahead rather than from the side.
    """
    side: tuple[Callable[[Dice], list[Part]], ...] = (_bicycle, _motorcycle)
    ahead: tuple[Callable[[Dice], list[Part]], ...] = (_bicycle_along, _motorcycle_along)
    parts = (ahead if along else side)[motor](dice)
    if ridden and along:
        parts += _rider_along(dice, 0.82 if motor else 0.95)
    elif ridden:
        seat, bar, foot = (
            ((-0.3, 0.9), (0.35, 1.05), (0.05, 0.3))
            if motor
            else ((-0.25, 0.95), (0.38, 1.02), (0.0, 0.2))
        )
        parts += _rider(dice, seat, bar, foot)
    length = 0.6 if along else 1.7
    canvas.shade(quad(z - 0.3, z + 0.5, x - length / 2, x + length / 2), 0.8)
    squeeze = 1.0 if along else dice.pick((-1, 1)) * dice.between(0.55, 1)
    draw_figure(canvas, parts, x, z, squeeze=squeeze)
