"""One whole scene: plan a street, draw it from far to near, take the picture."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from segdeconv.data.synthetic.buildings import draw_houses, draw_street_end, plan_lots
from segdeconv.data.synthetic.camera import SHIFT, draw_camera
from segdeconv.data.synthetic.canvas import Canvas, Label
from segdeconv.data.synthetic.dice import Colour, Dice, scaled
from segdeconv.data.synthetic.furniture import (
    draw_barrier,
    draw_bridge,
    draw_clutter,
    draw_lamp,
    draw_sign,
    draw_signpost,
    draw_traffic_light,
)
from segdeconv.data.synthetic.greenery import (
    draw_bush,
    draw_leaf_colour,
    draw_skyline,
    draw_thicket,
    draw_tree,
)
from segdeconv.data.synthetic.ground import draw_ground
from segdeconv.data.synthetic.light import draw_light
from segdeconv.data.synthetic.people import draw_cycle, draw_person
from segdeconv.data.synthetic.render import render
from segdeconv.data.synthetic.street import Side, Street, draw_street
from segdeconv.data.synthetic.textures import Material
from segdeconv.data.synthetic.vehicles import draw_vehicle, place_vehicle

SPLITS = ("train", "val", "test")

Item = tuple[float, Callable[[], None]]
"""Something upright: its distance in metres, and how to draw it."""


def draw_scene(
    seed: int, index: int, size: tuple[int, int] = (256, 512), split: str = "train"
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw one street scene; the same arguments give the same bits, in any process.

    Args:
        seed: Seed of the whole set, 0 or more.
        index: Number of the scene, 0 or more.
        size: Height and width in pixels.  The same scene in another size (of the same shape) shows
            the same street at another resolution.
        split: One of `SPLITS`; scenes of different splits are drawn independently.

    Returns:
        The image, uint8 (H, W, 3) RGB, and its Cityscapes label ids, uint8 (H, W).
    """
    dice = Dice(seed, SPLITS.index(split), index)
    camera = draw_camera(dice, size)
    street = draw_street(dice, camera)
    canvas = Canvas(camera, draw_light(dice))
    leaves = draw_leaf_colour(dice)
    _draw_far(canvas, dice, street, leaves)
    draw_ground(canvas, dice, street)
    for side in street.sides:
        _draw_behind_footway(canvas, dice, side, street, leaves)
    for _, draw in sorted(_plan_items(canvas, dice, street, leaves), key=lambda item: -item[0]):
        draw()
    _draw_void(canvas, dice)
    image = render(canvas, dice, (-street.left.front, street.right.front))
    return image, canvas.labels()


def _draw_far(canvas: Canvas, dice: Dice, street: Street, leaves: Colour) -> None:
    """What closes the view."""
    if dice.chance(0.85):
        draw_skyline(canvas, dice, leaves)
    if dice.chance(0.35):
        draw_street_end(canvas, dice, street)


def _draw_behind_footway(
    canvas: Canvas, dice: Dice, side: Side, street: Street, leaves: Colour
) -> None:
    """Houses or trees, then the garden, then the barrier before it."""
    start = 0.6 * canvas.camera.edge(side.sign * side.front)
    lots = plan_lots(dice, side, street, start)
    wooded = [
        lot for lot in lots if side.kind == "park" or (side.kind == "mixed" and dice.chance(0.5))
    ]
    for near, far in reversed(wooded):
        _draw_wood(canvas, dice, side, leaves, near, far)
    draw_houses(canvas, dice, side, street, [lot for lot in lots if lot not in wooded])
    if side.front - side.footway > 2:
        for z in sorted(dice.many(start, 60, dice.count(0, 5)).tolist(), reverse=True):
            x = side.sign * dice.between(side.footway + 0.6, side.front)
            draw = draw_tree if dice.chance(0.3) else draw_bush
            draw(canvas, dice, leaves, x, z)
    draw_barrier(canvas, dice, side, street, leaves)


def _draw_wood(
    canvas: Canvas, dice: Dice, side: Side, leaves: Colour, near: float, far: float
) -> None:
    """Trees, or the edge of a wood, on a lot without a house."""
    if dice.chance(0.5):
        inner, outer = side.front, side.front + dice.between(8, 25)
        ends = sorted((side.sign * inner, side.sign * outer))
        draw_thicket(canvas, dice, leaves, (ends[0], ends[1]), far)
    for _ in range(dice.count(0, 2)):
        x = side.sign * (side.front + dice.between(0, 8))
        draw_tree(canvas, dice, leaves, x, dice.between(near, far))


def _plan_items(canvas: Canvas, dice: Dice, street: Street, leaves: Colour) -> list[Item]:
    """Everything upright on road and sidewalks, in no order."""
    items = _plan_traffic(canvas, dice, street)
    for side in street.sides:
        items += _plan_parked(canvas, dice, side, street)
        items += _plan_kerb(canvas, dice, side, street, leaves)
        items += _plan_footway(canvas, dice, side, street)
    items += _plan_crossing(canvas, dice, street)
    if dice.chance(0.04):
        z = dice.between(25, 80)
        items.append((z, partial(draw_bridge, canvas, dice, z)))
    return items


def _plan_traffic(canvas: Canvas, dice: Dice, street: Street) -> list[Item]:
    """Vehicles in their lanes; a tram where rails lie."""
    items: list[Item] = []
    for lane in street.lanes:
        z = dice.between(7, 40) if lane.away or lane.centre < -2 else dice.between(12, 40)
        while z < 110:
            on_rails = lane.centre == street.tram and dice.chance(0.6)
            kind = (
                "train"
                if on_rails
                else dice.weighted(
                    car=0.56,
                    van=0.1,
                    truck=0.1,
                    bus=0.08,
                    trailer=0.01,
                    motorcycle=0.07,
                    bicycle=0.08,
                )
            )
            x = lane.centre + dice.between(-0.3, 0.3) * (not on_rails)
            if kind in ("motorcycle", "bicycle"):
                x = lane.centre + dice.between(-0.2, 0.4) * street.lane_width
                items.append(
                    (
                        z,
                        partial(
                            draw_cycle,
                            canvas,
                            dice,
                            x,
                            z,
                            motor=kind == "motorcycle",
                            ridden=True,
                            along=True,
                        ),
                    )
                )
                z += dice.between(4, 25)
                continue
            vehicle = draw_vehicle(dice, kind)
            heading = (0 if lane.away else math.pi) + dice.between(-0.03, 0.03) * (not on_rails)
            middle = z + vehicle.length / 2
            items.append((z, partial(place_vehicle, canvas, vehicle, x, middle, heading)))
            z += vehicle.length + dice.between(3, 12 + 60 * (1 - street.bustle))
    return items


def _plan_parked(canvas: Canvas, dice: Dice, side: Side, street: Street) -> list[Item]:
    """Vehicles in the parking lane."""
    items: list[Item] = []
    if not side.parking:
        return items
    x = side.sign * (side.kerb - side.parking / 2)
    z, filled = canvas.camera.edge(x) + dice.between(-2, 4), dice.between(0.3, 1)
    while z < 80:
        kind = dice.weighted(car=0.8, van=0.12, truck=0.05, trailer=0.02, bus=0.01)
        vehicle = draw_vehicle(dice, kind)
        clear = not _crossed(street, z, vehicle.length)
        if dice.chance(filled) and clear:
            heading = math.pi * (side.sign < 0) + dice.between(-0.04, 0.04)
            middle = z + vehicle.length / 2
            items.append((z, partial(place_vehicle, canvas, vehicle, x, middle, heading)))
        z += vehicle.length + dice.between(0.5, 1.5)
    return items


def _crossed(street: Street, z: float, length: float) -> bool:
    """Whether something from ``z`` on, ``length`` metres long, stands on the crossing street."""
    crossing = street.crossing
    return crossing is not None and z + length > crossing[0] and z < crossing[1]


def _plan_crossing(canvas: Canvas, dice: Dice, street: Street) -> list[Item]:
    """Vehicles and people that cross, seen from the side."""
    items: list[Item] = []
    if not street.crossing:
        return items
    near, far = street.crossing
    for place, heading in ((0.28, math.pi / 2), (0.72, -math.pi / 2)):
        if dice.chance(0.5):
            z, x = near + place * (far - near), dice.between(-14, 14)
            kind = dice.weighted(
                car=0.5, truck=0.13, bus=0.12, train=0.05, bicycle=0.1, motorcycle=0.1
            )
            if kind in ("motorcycle", "bicycle"):
                items.append(
                    (
                        z,
                        partial(
                            draw_cycle,
                            canvas,
                            dice,
                            x,
                            z,
                            motor=kind == "motorcycle",
                            ridden=True,
                            along=False,
                        ),
                    )
                )
                continue
            vehicle = draw_vehicle(dice, kind)
            items.append((z, partial(place_vehicle, canvas, vehicle, x, z, heading)))
    for _ in range(dice.count(0, 3)):
        z, x = near - dice.between(1, 4), dice.between(-street.left.kerb, street.right.kerb)
        items.append((z, partial(draw_person, canvas, dice, x, z)))
    return items


def _plan_kerb(
    canvas: Canvas, dice: Dice, side: Side, street: Street, leaves: Colour
) -> list[Item]:
    """Poles, lamps, lights, signs and trees in a row behind the kerb."""
    items: list[Item] = []
    x = side.sign * (side.kerb + 0.5)
    alley = dice.chance(0.35)
    z = canvas.camera.edge(x) + dice.between(0, 8)
    while z < 90:
        kind = dice.weighted(
            lamp=0.22,
            sign=0.3,
            light=0.14,
            signpost=0.06,
            tree=0.5 if alley else 0.08,
            clutter=0.08,
        )
        drawers: dict[str, Callable[[], None]] = {
            "lamp": partial(draw_lamp, canvas, dice, x, z),
            "sign": partial(draw_sign, canvas, dice, x, z),
            "light": partial(draw_traffic_light, canvas, dice, x, z),
            "signpost": partial(draw_signpost, canvas, dice, x, z),
            "tree": partial(draw_tree, canvas, dice, leaves, x, z),
            "clutter": partial(draw_clutter, canvas, dice, x, z),
        }
        if not _crossed(street, z, 0):
            items.append((z, drawers[kind]))
        z += dice.between(2.5, 13)
    if street.crossing and dice.chance(0.5):
        z = street.crossing[0] - 1
        items.append((z, partial(draw_traffic_light, canvas, dice, x, z)))
    return items


def _plan_footway(canvas: Canvas, dice: Dice, side: Side, street: Street) -> list[Item]:
    """People, alone and in groups, and cycles left standing."""
    items: list[Item] = []
    start = canvas.camera.edge(side.footway) + 1
    for _ in range(dice.count(0, 1 + int(7 * street.bustle))):
        x = side.sign * dice.between(side.kerb + 0.4, side.footway - 0.3)
        z = start * math.exp(dice.between(0, 2))
        for _ in range(dice.count(1, 3) if dice.chance(0.4) else 1):
            items.append((z, partial(draw_person, canvas, dice, x, z)))
            x, z = x + dice.between(-0.8, 0.8), z + dice.between(0, 0.8)
    for _ in range(dice.count(0, 3) if dice.chance(0.5) else 0):
        x, z = side.sign * dice.between(side.kerb + 0.3, side.footway), start * dice.between(1, 4)
        motor, ridden = dice.chance(0.35), dice.chance(0.25)
        items.append(
            (
                z,
                partial(
                    draw_cycle,
                    canvas,
                    dice,
                    x,
                    z,
                    motor=motor,
                    ridden=ridden,
                    along=dice.chance(0.3),
                ),
            )
        )
    return items


def _draw_void(canvas: Canvas, dice: Dice) -> None:
    """The car's own bonnet, and borders that rectifying the picture leaves."""
    height, width = canvas.camera.size
    if dice.chance(0.5):
        top = dice.between(0.88, 0.99)
        across = np.linspace(-0.05, 1.05, 12)
        bulge = dice.between(0.02, 0.08) * (2 * across - 1) ** 2
        rim = np.stack([across * width, (top + bulge) * height], axis=-1)
        foot = np.array([(1.1 * width, 1.1 * height), (-0.1 * width, 1.1 * height)])
        paint = dice.grey(20, 200) if dice.chance(0.6) else dice.colour()
        number = canvas.upright(Label.EGO_VEHICLE, scaled(paint, 0.9), 1.0, Material.METAL)
        outline = np.concatenate([rim, foot]) * (1 << SHIFT)
        canvas.fill_pixels(number, np.rint(outline).astype(np.int32))
    if dice.chance(0.15):
        border = max(1, round(0.01 * height))
        label = Label.RECTIFICATION_BORDER if dice.chance(0.5) else Label.OUT_OF_ROI
        number = canvas.upright(label, (10, 10, 10), 1.0, Material.PLAIN)
        canvas.numbers[:, :border] = number
        canvas.numbers[height - border :] = number
