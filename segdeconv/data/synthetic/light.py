"""Sun, shade and haze of one scene."""

import math
from dataclasses import dataclass

import numpy as np

from segdeconv.data.synthetic.dice import Colour, Dice, Floats, blend


@dataclass(frozen=True)
class Light:
    """What the weather does to colours.

    Args:
        sun: Unit vector (3,) towards the sun.
        ambient: Brightness of a face turned away from the sun, 0 to 1.
        shadow: Share of light that a cast shadow takes from the ground.
        haze_distance: Distance in metres at which 63 % of a colour is haze.
        zenith: Colour of the sky overhead.
        horizon: Colour of the sky at the horizon, and of the haze.
        clouds: Share of the sky under clouds, 0 to 1.
    """

    sun: Floats
    ambient: float
    shadow: float
    haze_distance: float
    zenith: Colour
    horizon: Colour
    clouds: float

    def on(self, x: float, y: float, z: float) -> float:
        """Brightness of a face with this unit normal."""
        facing = max(0.0, x * self.sun[0] + y * self.sun[1] + z * self.sun[2])
        return float(self.ambient + (1.15 - self.ambient) * facing)

    def on_faces(self, normals: Floats) -> Floats:
        """Brightness of faces with these unit normals (F, 3)."""
        facing = np.maximum(0.0, normals @ self.sun)
        lit: Floats = self.ambient + (1.15 - self.ambient) * facing
        return lit

    def reach(self, height: float) -> tuple[float, float]:
        """Where the shadow of a point at this height falls, as (x, z) beside its foot."""
        run = -height / max(0.2, float(self.sun[1]))
        return (run * float(self.sun[0]), run * float(self.sun[2]))


def draw_light(dice: Dice) -> Light:
    """Draw sun, clouds and haze: clear, broken or overcast, noon or low sun."""
    clouds = dice.between(0, 1)
    azimuth, elevation = dice.between(0, 2 * math.pi), dice.between(0.3, 1.15)
    flat = math.cos(elevation)
    zenith, horizon = _sky(dice, clouds)
    return Light(
        sun=np.array([flat * math.sin(azimuth), math.sin(elevation), flat * math.cos(azimuth)]),
        ambient=0.50 + 0.35 * clouds,
        shadow=0.55 * (1 - 0.75 * clouds),
        haze_distance=dice.between(80, 260) if dice.chance(0.3) else dice.between(260, 1500),
        zenith=zenith,
        horizon=horizon,
        clouds=clouds,
    )


def _sky(dice: Dice, clouds: float) -> tuple[Colour, Colour]:
    """Colours overhead and at the horizon: blue, grey, or the yellow to pink of a low sun."""
    blue = dice.colour(hue=(0.53, 0.64), saturation=(0.25, 0.75), value=(150, 245))
    grey = dice.grey(120, 245, tint=10)
    warm = dice.colour(hue=(-0.08, 0.14), saturation=(0.05, 0.45), value=(180, 250))
    zenith = blend(blue, grey, clouds**2)
    pale = blend(zenith, (245, 245, 240), dice.between(0.35, 0.8))
    return zenith, blend(pale, warm, 0.8 if dice.chance(0.2) else 0.1)
