"""Noise and patterns, and how strongly each material shows them.

A texture is a periodic tile of zero mean and unit spread.  Four layers of them lie over a scene:
two on the picture plane, one on the ground and one on the walls along the street, in perspective.
"""

import math
from enum import IntEnum
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from segdeconv.data.synthetic.camera import Camera
from segdeconv.data.synthetic.dice import Dice

Layer = NDArray[np.float32]

TILE = 512
"""Side of a tile in texels."""

GROUND_DENSITY = 24.0
"""Texels per metre on the ground; a tile repeats after 21 m."""

WALL_DENSITY = 20.0
"""Texels per metre on walls."""

# At the horizon and the vanishing point the coordinates grow without bound, and OpenCV 5.0 returns
# numbers beyond 1e9 or NaN there.
TEXTURE_END = 300.0
"""Ground and walls are smooth from this distance on, in metres."""


class Material(IntEnum):
    """What a surface is made of; the number is its row in `WEIGHTS`."""

    PLAIN = 0
    SKY = 1
    ASPHALT = 2
    PAVING = 3
    GRASS = 4
    MASONRY = 5
    PLASTER = 6
    LEAVES = 7
    METAL = 8
    CLOTH = 9
    STONE = 10
    FOLIAGE_FAR = 11
    DIRT = 12


# Strength of the layers: fine and clumped noise on the picture, then the ground's, the walls'.
WEIGHTS = {
    Material.PLAIN: (0.02, 0, 0, 0),
    Material.SKY: (0, 0, 0, 0),
    Material.ASPHALT: (0.02, 0, 0.09, 0),
    Material.PAVING: (0.02, 0, 0.09, 0),
    Material.GRASS: (0.07, 0.06, 0.14, 0),
    Material.MASONRY: (0.02, 0, 0, 0.13),
    Material.PLASTER: (0.015, 0, 0, 0.06),
    Material.LEAVES: (0.14, 0.20, 0, 0),
    Material.METAL: (0.015, 0.02, 0, 0),
    Material.CLOTH: (0.03, 0.08, 0, 0),
    Material.STONE: (0.04, 0.04, 0, 0.08),
    Material.FOLIAGE_FAR: (0.16, 0.07, 0, 0),
    Material.DIRT: (0.05, 0.06, 0.17, 0),
}


def layer_tables(dice: Dice) -> Layer:
    """Strength of each layer (4, 256) by material, each material's contrast drawn per scene."""
    tables = np.zeros((4, 256), np.float32)
    for material, weights in WEIGHTS.items():
        tables[:, material] = np.multiply(weights, dice.between(0.5, 1.5))
    return tables


def draw_layers(dice: Dice, camera: Camera, wall_x: tuple[float, float]) -> list[Layer]:
    """Four layers of noise (H, W) for one scene.

    Args:
        dice: Chooses tiles and their offsets.
        camera: Lays the tiles on the ground and the walls.
        wall_x: Where the walls stand, left (negative) and right, in metres.
    """
    (height, width), zoom = camera.size, camera.size[0] / 256
    flat = [stretch(dice, name, (height, width), zoom, zoom) for name in ("rough", "clumps")]
    ground = mixed_tile(dice.pick(("rough", "slabs", "cells")), "cloud")
    wall = mixed_tile(dice.pick(("bricks", "rough", "streaks")), dice.pick(("cloud", "streaks")))
    return [*flat, _on_ground(dice, ground, camera), _on_walls(dice, wall, camera, wall_x)]


def stretch(dice: Dice, name: str, size: tuple[int, int], wide: float, high: float) -> Layer:
    """A random part of a tile, magnified by these factors, over a picture of this size."""
    height, width = round(size[0] / high), round(size[1] / wide)
    part = cut(dice, name, max(1, height), max(1, width))
    if part.shape == size:
        return part
    resized: Layer = cv2.resize(part, size[::-1], interpolation=cv2.INTER_LINEAR)
    return resized


def cut(dice: Dice, name: str, height: int, width: int) -> Layer:
    """A random part of a tile, which repeats beyond its edges."""
    top, left = dice.count(0, TILE - 1), dice.count(0, TILE - 1)
    repeated = _repeated(name, height // TILE + 2, width // TILE + 2)
    return repeated[top : top + height, left : left + width]


# Slices of a repeated tile cost nothing; warpAffine with wrapped borders took 1 ms at 256 x 512.
@lru_cache(maxsize=16)
def _repeated(name: str, down: int, across: int) -> Layer:
    return np.tile(noise_tiles()[name], (down, across))


@lru_cache(maxsize=16)
def mixed_tile(fine: str, coarse: str) -> Layer:
    """Two tiles in one: a perspective warp is the dearest step, and this saves every other one."""
    return _unit(noise_tiles()[fine] + noise_tiles()[coarse])


def _on_ground(dice: Dice, tile: Layer, camera: Camera) -> Layer:
    """A tile lying on the ground, over the whole picture (zero from `TEXTURE_END` on)."""
    height, width = camera.size
    tilt = abs(camera.roll) * max(camera.vanishing[0], width - camera.vanishing[0])
    end = camera.focal * camera.height / TEXTURE_END
    rows = (min(height, math.ceil(camera.vanishing[1] + tilt + end)), height)
    layer = np.zeros((height, width), np.float32)
    _lay(dice, tile, camera.ground_map(GROUND_DENSITY), layer, rows, (0, width))
    return layer


def _on_walls(dice: Dice, tile: Layer, camera: Camera, wall_x: tuple[float, float]) -> Layer:
    """A tile on the wall to the left and on the one to the right, as `_on_ground`."""
    height, width = camera.size
    tilt = abs(camera.roll) * max(camera.vanishing[1], height - camera.vanishing[1])
    layer = np.zeros((height, width), np.float32)
    for x in wall_x:
        end = tilt + camera.focal * abs(x) / TEXTURE_END
        left, right = math.floor(camera.vanishing[0] - end), math.ceil(camera.vanishing[0] + end)
        columns = (0, max(0, left)) if x < 0 else (min(width, right), width)
        onto = camera.wall_map(x, WALL_DENSITY * dice.between(0.6, 1.4))
        _lay(dice, tile, onto, layer, (0, height), columns)
    return layer


def _lay(
    dice: Dice,
    tile: Layer,
    onto: NDArray[np.float64],
    layer: Layer,
    rows: tuple[int, int],
    columns: tuple[int, int],
) -> None:
    """Write a tile in perspective into a part of a layer."""
    shift = np.array([[1, 0, -dice.count(0, TILE)], [0, 1, -dice.count(0, TILE)], [0, 0, 1]])
    part = np.array([[1, 0, -columns[0]], [0, 1, -rows[0]], [0, 0, 1]])
    height, width = rows[1] - rows[0], columns[1] - columns[0]
    if height and width:
        layer[rows[0] : rows[1], columns[0] : columns[1]] = cv2.warpPerspective(
            tile,
            part @ onto @ shift,
            (width, height),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_WRAP,
        )


@lru_cache(maxsize=1)
def noise_tiles() -> dict[str, Layer]:
    """The tiles by name, each (TILE, TILE), always the same."""
    generator = np.random.Generator(np.random.PCG64(0))
    return {
        "white": _unit(generator.standard_normal((TILE, TILE))),
        "rough": _noise(generator, steepness=0.6, shortest=0.0, longest=64),
        "clumps": _noise(generator, steepness=0.9, shortest=3.0, longest=24),
        "cloud": _noise(generator, steepness=1.6, shortest=2.0, longest=TILE),
        "streaks": _streaks(generator),
        "bricks": _blocks(generator, height=8, width=16, bond=True),
        "slabs": _blocks(generator, height=16, width=16, bond=False),
        "cells": _blocks(generator, height=4, width=8, bond=True),
    }


def _noise(
    generator: np.random.Generator, steepness: float, shortest: float, longest: float
) -> Layer:
    """Periodic noise whose amplitude falls as frequency ** -steepness, between two wavelengths."""
    frequency = np.hypot(np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE)[None, :])
    frequency[0, 0] = 1.0
    spectrum = frequency**-steepness * np.exp(-((shortest * frequency) ** 2))
    spectrum[frequency < 1 / longest] = 0
    white = np.fft.rfft2(generator.standard_normal((TILE, TILE)))
    noise: NDArray[np.float64] = np.fft.irfft2(white * spectrum, s=(TILE, TILE))
    return _unit(noise)


def _streaks(generator: np.random.Generator) -> Layer:
    """Noise drawn out along the second texture axis, like rain marks on plaster."""
    long = cv2.blur(_noise(generator, 0.4, 1.0, 64), (1, 41), borderType=cv2.BORDER_REFLECT)
    return _unit(long)


def _blocks(generator: np.random.Generator, height: int, width: int, bond: bool) -> Layer:
    """Bricks or slabs: one brightness each, light joints, every other course shifted by half."""
    rows, columns = np.indices((TILE, TILE))
    course = rows // height
    along = (columns + (course % 2) * (width // 2) * bond) % TILE
    brightness = generator.standard_normal((TILE // height, TILE // width))
    tile = brightness[course, along // width]
    tile[(rows % height == 0) | (along % width == 0)] = generator.choice((-2.0, 2.0))
    return _unit(tile + 0.4 * generator.standard_normal((TILE, TILE)))


def _unit(tile: NDArray[np.float64] | Layer) -> Layer:
    """Zero mean, unit spread, nothing beyond 2.5."""
    scaled = (tile - tile.mean()) / tile.std()
    clipped: Layer = np.clip(scaled, -2.5, 2.5).astype(np.float32)
    return clipped
