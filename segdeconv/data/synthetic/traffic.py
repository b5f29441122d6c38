"""What stands and moves on road and sidewalks, planned as items that are drawn far to near."""

import math
from collections.abc import Callable
from functools import partial

from segdeconv.data.synthetic.canvas import Canvas
from segdeconv.data.synthetic.dice import Colour, Dice
from segdeconv.data.synthetic.furniture import (
    draw_bridge,
    draw_clutter,
    draw_lamp,
    draw_sign,
    draw_signpost,
    draw_traffic_light,
)
from segdeconv.data.synthetic.greenery import draw_tree
from segdeconv.data.synthetic.people import draw_cycle, draw_person
from segdeconv.data.synthetic.street import Lane, Side, Street
from segdeconv.data.synthetic.vehicles import draw_vehicle, place_vehicle

Item = tuple[float, Callable[[], None]]
"""Something upright: its distance in metres, and how to draw it."""

# Beyond these distances, in metres, nearer things hide most of what would be drawn.
LANES_END, PARKING_END, KERB_END = 85.0, 60.0, 75.0


def plan_items(canvas: Canvas, dice: Dice, street: Street, leaves: Colour) -> list[Item]:
    """Everything upright on road and sidewalks, in no order."""
    items = [item for lane in street.lanes for item in _plan_lane(canvas, dice, street, lane)]
    for side in street.sides:
        items += _plan_parked(canvas, dice, side, street)
        items += _plan_kerb(canvas, dice, side, street, leaves)
        items += _plan_people(canvas, dice, side, street)
        items += _plan_cycles(canvas, dice, side)
    if street.crossing:
        items += _plan_crossing(canvas, dice, street, street.crossing)
    if dice.chance(0.04):
        z = dice.between(25, 80)
        items.append((z, partial(draw_bridge, canvas, dice, z)))
    return items


def _cycle(
    canvas: Canvas, dice: Dice, x: float, z: float, motor: bool, ridden: bool, along: bool
) -> Item:
    return z, partial(draw_cycle, canvas, dice, x, z, motor=motor, ridden=ridden, along=along)


def _plan_lane(canvas: Canvas, dice: Dice, street: Street, lane: Lane) -> list[Item]:
    """Vehicles in a lane, one behind the other; trams where rails lie."""
    items: list[Item] = []
    z = dice.between(7, 40) if lane.away or lane.centre < -2 else dice.between(12, 40)
    while z < LANES_END:
        kind = dice.weighted(
            car=0.58, van=0.1, truck=0.08, bus=0.07, trailer=0.01, motorcycle=0.08, bicycle=0.08
        )
        if kind in ("motorcycle", "bicycle"):
            x = lane.centre + dice.between(-0.2, 0.4) * street.lane_width
            items.append(_cycle(canvas, dice, x, z, kind == "motorcycle", True, True))
            z += dice.between(4, 25)
            continue
        heading = 0 if lane.away else math.pi
        x = lane.centre
        if lane.centre == street.tram and dice.chance(0.6):
            kind = "train"
        else:
            x += dice.between(-0.3, 0.3)
            heading += dice.between(-0.03, 0.03)
        vehicle = draw_vehicle(dice, kind)
        middle = z + vehicle.length / 2
        items.append((z, partial(place_vehicle, canvas, vehicle, x, middle, heading)))
        z += vehicle.length + dice.between(3, 12 + 60 * (1 - street.bustle))
    return items


def _plan_parked(canvas: Canvas, dice: Dice, side: Side, street: Street) -> list[Item]:
    """Vehicles in the parking lane, if there is one."""
    items: list[Item] = []
    x = side.sign * (side.kerb - side.parking / 2)
    z, filled = canvas.camera.edge(x) + dice.between(-2, 4), dice.between(0.3, 1)
    while side.parking and z < PARKING_END:
        if not dice.chance(filled):
            z += dice.between(4, 7)
            continue
        kind = dice.weighted(car=0.8, van=0.12, truck=0.05, trailer=0.02, bus=0.01)
        vehicle = draw_vehicle(dice, kind)
        if not _crossed(street, z, vehicle.length):
            heading = math.pi * (side.sign < 0) + dice.between(-0.04, 0.04)
            middle = z + vehicle.length / 2
            items.append((z, partial(place_vehicle, canvas, vehicle, x, middle, heading)))
        z += vehicle.length + dice.between(0.5, 1.5)
    return items


def _crossed(street: Street, z: float, length: float) -> bool:
    """Whether something ``length`` metres long from ``z`` on would stand on the crossing street."""
    crossing = street.crossing
    return crossing is not None and z + length > crossing[0] and z < crossing[1]


def _plan_crossing(
    canvas: Canvas, dice: Dice, street: Street, crossing: tuple[float, float]
) -> list[Item]:
    """Vehicles that cross, seen from the side, and people who walk across before them."""
    items: list[Item] = []
    near, far = crossing
    for place, heading in ((0.28, math.pi / 2), (0.72, -math.pi / 2)):
        z, x = near + place * (far - near), dice.between(-14, 14)
        kind = dice.weighted(
            none=1.0, car=0.5, truck=0.1, bus=0.1, train=0.05, bicycle=0.12, motorcycle=0.12
        )
        if kind in ("motorcycle", "bicycle"):
            items.append(_cycle(canvas, dice, x, z, kind == "motorcycle", True, False))
        elif kind != "none":
            vehicle = draw_vehicle(dice, kind)
            items.append((z, partial(place_vehicle, canvas, vehicle, x, z, heading)))
    for _ in range(dice.count(0, 4)):
        z, x = near - dice.between(1, 4), dice.between(-street.left.kerb, street.right.kerb)
        items.append((z, partial(draw_person, canvas, dice, x, z)))
    return items


def _plan_kerb(
    canvas: Canvas, dice: Dice, side: Side, street: Street, leaves: Colour
) -> list[Item]:
    """Poles, lamps, lights, signs and trees in a row behind the kerb."""
    items: list[Item] = []
    x = side.sign * (side.kerb + 0.5)
    drawers: dict[str, Callable[[Canvas, Dice, float, float], None]] = {
        "lamp": draw_lamp,
        "sign": draw_sign,
        "light": draw_traffic_light,
        "signpost": draw_signpost,
        "clutter": draw_clutter,
    }
    trees = 0.6 if dice.chance(0.45) else 0.08
    z = canvas.camera.edge(x) + dice.between(0, 8)
    while z < KERB_END:
        kind = dice.weighted(
            lamp=0.22, sign=0.25, light=0.12, signpost=0.04, clutter=0.08, tree=trees
        )
        if not _crossed(street, z, 0):
            if kind == "tree":
                items.append((z, partial(draw_tree, canvas, dice, leaves, x, z)))
            else:
                items.append((z, partial(drawers[kind], canvas, dice, x, z)))
        z += dice.between(2.5, 13)
    if street.crossing and dice.chance(0.5):
        z = street.crossing[0] - 1
        items.append((z, partial(draw_traffic_light, canvas, dice, x, z)))
    return items


def _plan_people(canvas: Canvas, dice: Dice, side: Side, street: Street) -> list[Item]:
    """People on the sidewalk, alone and in groups."""
    items: list[Item] = []
    start = canvas.camera.edge(side.footway) + 1
    for _ in range(dice.count(0, 2 + int(7 * street.bustle))):
        x = side.sign * dice.between(side.kerb + 0.4, side.footway - 0.3)
        z = start * math.exp(dice.between(-0.2, 1.3))
        for _ in range(dice.count(1, 3) if dice.chance(0.4) else 1):
            items.append((z, partial(draw_person, canvas, dice, x, z)))
            x, z = x + dice.between(-0.8, 0.8), z + dice.between(0, 0.8)
    return items


def _plan_cycles(canvas: Canvas, dice: Dice, side: Side) -> list[Item]:
    """Cycles on the sidewalk, most of them left standing, several side by side at times."""
    items: list[Item] = []
    start = canvas.camera.edge(side.footway)
    for _ in range(dice.count(0, 4)):
        x = side.sign * dice.between(side.kerb + 0.3, side.footway)
        z = start * math.exp(dice.between(-0.1, 0.9))
        motor, ridden, along = dice.chance(0.4), dice.chance(0.25), dice.chance(0.3)
        for _ in range(1 if ridden else dice.count(1, 3)):
            items.append(_cycle(canvas, dice, x, z, motor, ridden, along))
            x, z = x + dice.between(-0.3, 0.3), z + dice.between(0.6, 1.5)
    return items
