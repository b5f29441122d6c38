"""The plan of a street: what lies where across it, before anything is drawn."""

from dataclasses import dataclass

from segdeconv.data.synthetic.camera import Camera
from segdeconv.data.synthetic.dice import Dice


@dataclass(frozen=True)
class Side:
    """One side of the street; distances are |x| from the camera's axis in metres, kerb outwards.

    Args:
        sign: -1 for the left side, 1 for the right.
        kerb: Where the road ends.
        parking: Width of the parking lane inside the kerb; 0 for none.
        verge: Where the grass strip behind the kerb ends; the kerb itself if there is none.
        footway: Where the sidewalk ends.
        front: Where the houses stand.
        kind: "houses", "park" or "mixed".
        barrier: What stands behind the sidewalk: "none", "wall", "fence", "hedge" or "rail".
    """

    sign: int
    kerb: float
    parking: float
    verge: float
    footway: float
    front: float
    kind: str
    barrier: str

    @property
    def garden(self) -> bool:
        """Whether terrain, and not pavement, lies between the sidewalk and the houses."""
        return self.barrier != "none" or self.kind == "park"


@dataclass(frozen=True)
class Lane:
    """A lane: its centre's x in metres, and whether its traffic moves away from the camera."""

    centre: float
    away: bool


@dataclass(frozen=True)
class Street:
    """The plan of one street.

    Args:
        left: Its left side.
        right: Its right side.
        lanes: Its lanes, left to right; parking lanes not counted.
        lane_width: Width of each lane in metres.
        crossing: Near and far edge of a crossing street in metres, if there is one.
        tram: x of the middle of tram rails, if there are any.
        end: Where the houses end, in metres.
        bustle: How full the street is, 0 to 1.
    """

    left: Side
    right: Side
    lanes: tuple[Lane, ...]
    lane_width: float
    crossing: tuple[float, float] | None
    tram: float | None
    end: float
    bustle: float

    @property
    def sides(self) -> tuple[Side, Side]:
        """Left and right side."""
        return (self.left, self.right)


def draw_street(dice: Dice, camera: Camera) -> Street:
    """Draw a plan: traffic keeps to the right, the camera drives in one of the lanes."""
    width = dice.between(2.9, 3.7)
    own, oncoming = dice.count(1, 2), dice.count(0 if dice.chance(0.2) else 1, 2)
    place = dice.count(0, own - 1)
    shift = dice.between(-0.4, 0.4)
    lanes = [
        Lane(centre=shift + (number - place) * width, away=number >= 0)
        for number in range(-oncoming, own)
    ]
    tram = dice.pick(lanes).centre if dice.chance(0.2) else None
    near = dice.between(12, 45)
    return Street(
        left=_draw_side(dice, -1, -lanes[0].centre + width / 2),
        right=_draw_side(dice, 1, lanes[-1].centre + width / 2),
        lanes=tuple(lanes),
        lane_width=width,
        crossing=(near, near + dice.between(6, 12)) if dice.chance(0.4) else None,
        tram=tram,
        end=dice.between(60, 180),
        bustle=dice.unit(),
    )


def _draw_side(dice: Dice, sign: int, road: float) -> Side:
    kind = dice.weighted(houses=0.5, mixed=0.25, park=0.25)
    parking = dice.between(1.9, 2.4) if dice.chance(0.5) else 0.0
    kerb = road + parking + dice.between(0, 0.6)
    verge = kerb + (dice.between(0.8, 3.0) if dice.chance(0.3) else 0.0)
    footway = verge + dice.between(1.6, 4.5)
    barrier = "none"
    if kind != "houses" or dice.chance(0.4):
        barrier = dice.weighted(none=0.1, wall=0.33, fence=0.33, hedge=0.17, rail=0.07)
    garden = dice.between(1.5, 7) if barrier != "none" else dice.between(0, 0.3)
    return Side(sign, kerb, parking, verge, footway, footway + garden, kind, barrier)
