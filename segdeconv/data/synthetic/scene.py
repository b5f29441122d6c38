"""One whole scene: plan a street, draw it from far to near, take the picture."""

import numpy as np
from numpy.typing import NDArray

from segdeconv.data.synthetic.buildings import draw_houses, draw_street_end, plan_lots
from segdeconv.data.synthetic.camera import SHIFT, draw_camera
from segdeconv.data.synthetic.canvas import Canvas, Label
from segdeconv.data.synthetic.dice import Colour, Dice, scaled
from segdeconv.data.synthetic.furniture import draw_barrier
from segdeconv.data.synthetic.greenery import (
    draw_bush,
    draw_leaf_colour,
    draw_skyline,
    draw_thicket,
    draw_tree,
)
from segdeconv.data.synthetic.ground import draw_ground
from segdeconv.data.synthetic.light import draw_light
from segdeconv.data.synthetic.render import render
from segdeconv.data.synthetic.street import Side, Street, draw_street
from segdeconv.data.synthetic.textures import Material
from segdeconv.data.synthetic.traffic import plan_items

SPLITS = ("train", "val", "test")


def draw_scene(
    seed: int, index: int, size: tuple[int, int] = (256, 512), split: str = "train"
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw one street scene; the same arguments give the same bits, in any process.

    Between releases of OpenCV edges may be rounded differently: 4.10 and 5.0 disagree about the
    label of 0.2 % of the pixels.

    Args:
        seed: Seed of the whole set, 0 or more.
        index: Number of the scene, 0 or more.
        size: Height and width in pixels.  The same scene in another size (of the same shape) shows
            the same street at another resolution.
        split: One of `SPLITS`; scenes of different splits are drawn independently.

    Returns:
        The image, uint8 (H, W, 3) RGB, and its Cityscapes label ids, uint8 (H, W).
    """
    image, canvas = draw_canvas(seed, index, size, split)
    return image, canvas.labels()


def draw_canvas(
    seed: int, index: int, size: tuple[int, int], split: str
) -> tuple[NDArray[np.uint8], Canvas]:
    """`draw_scene`'s image, and the canvas, which tells labels and single objects."""
    dice = Dice(seed, SPLITS.index(split), index)
    camera = draw_camera(dice, size)
    street = draw_street(dice, camera)
    canvas = Canvas(camera, draw_light(dice))
    leaves = draw_leaf_colour(dice)
    _draw_far(canvas, dice, street, leaves)
    draw_ground(canvas, dice, street)
    for side in street.sides:
        _draw_behind_footway(canvas, dice, side, street, leaves)
    for _, draw in sorted(plan_items(canvas, dice, street, leaves), key=lambda item: -item[0]):
        canvas.begin_object()
        draw()
    _draw_void(canvas, dice)
    return render(canvas, dice, (-street.left.front, street.right.front)), canvas


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
