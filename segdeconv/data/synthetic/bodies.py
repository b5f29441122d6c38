"""Bodies of cars, trucks, buses and trains, with glass, doors, wheels and lamps.

All numbers are shares of a vehicle's width, height and length.
"""

from functools import lru_cache

import numpy as np

from segdeconv.data.synthetic.shapes import disc
from segdeconv.data.synthetic.solids import Builder, Outline, Solid


def upright_box(rear: float, front: float, low: float, high: float) -> Outline:
    """A rectangle as a side view."""
    return ((rear, low), (rear, high), (front, high), (front, low))


def wheel(builder: Builder, z: float, radius_z: float, radius_y: float) -> None:
    """Add a wheel on both sides, its middle at ``z``; radii as shares of length and height."""
    for part, size in (("tyre", 1.0), ("hub", 0.55)):
        outline = disc((0, 0), size) * (radius_z, radius_y) + (z, radius_y)
        builder.on_sides(part, [(float(a), float(b)) for a, b in outline])


# Side views of cars, (z, y) in shares of length and height; the part of the face behind each edge;
# the side window.
CARS: dict[str, tuple[Outline, tuple[str, ...], Outline]] = {
    "saloon": (
        (
            (0, 0.2),
            (0, 0.52),
            (0.02, 0.64),
            (0.15, 0.67),
            (0.29, 0.96),
            (0.38, 1),
            (0.55, 1),
            (0.72, 0.66),
            (0.96, 0.55),
            (1, 0.45),
            (1, 0.2),
        ),
        ("body", "body", "body", "glass", "body", "body", "glass", "body", "body", "body", "under"),
        ((0.2, 0.66), (0.31, 0.93), (0.55, 0.94), (0.68, 0.66)),
    ),
    "hatchback": (
        (
            (0, 0.2),
            (0, 0.6),
            (0.03, 0.66),
            (0.1, 0.95),
            (0.18, 1),
            (0.52, 1),
            (0.72, 0.66),
            (0.96, 0.54),
            (1, 0.44),
            (1, 0.2),
        ),
        ("body", "body", "glass", "body", "body", "glass", "body", "body", "body", "under"),
        ((0.1, 0.66), (0.16, 0.92), (0.52, 0.94), (0.68, 0.66)),
    ),
    "suv": (
        (
            (0, 0.22),
            (0, 0.58),
            (0.02, 0.64),
            (0.07, 0.95),
            (0.13, 1),
            (0.58, 1),
            (0.72, 0.68),
            (0.97, 0.62),
            (1, 0.5),
            (1, 0.22),
        ),
        ("body", "body", "glass", "body", "body", "glass", "body", "body", "body", "under"),
        ((0.07, 0.65), (0.11, 0.92), (0.57, 0.93), (0.69, 0.67)),
    ),
    "van": (
        (
            (0, 0.16),
            (0, 0.55),
            (0.01, 0.6),
            (0.02, 0.94),
            (0.05, 1),
            (0.72, 1),
            (0.86, 0.58),
            (0.98, 0.45),
            (1, 0.38),
            (1, 0.16),
        ),
        ("body", "body", "glass", "body", "body", "glass", "body", "body", "body", "under"),
        ((0.05, 0.6), (0.06, 0.88), (0.71, 0.89), (0.82, 0.6)),
    ),
}


def _car(kind: str) -> Solid:
    outline, parts, window = CARS[kind]
    builder = Builder(waist=0.62, roof=0.78)
    builder.extrude(outline, parts)
    builder.on_sides("glass", window)
    first, last = window[0][0], window[3][0]
    for post in (0.55 * first + 0.45 * last, 0.05 * first + 0.95 * last):
        builder.on_sides("body", upright_box(post, post + 0.015, 0.64, 0.95))
    for axle in (0.19, 0.81):
        wheel(builder, axle, 0.075, 0.22)
    _tyres(builder, 0.21)
    _pair(builder, "tail", 0.0, (0.28, 0.46), (0.44, 0.56))
    _pair(builder, "lamp", 1.0, (0.28, 0.46), (0.36, 0.46))
    builder.on_end("plate", 0.0, (-0.14, 0.14, 0.32, 0.4))
    builder.on_end("plate", 1.0, (-0.14, 0.14, 0.24, 0.31))
    builder.on_end("under", 1.0, (-0.25, 0.25, 0.34, 0.44))
    return builder.build()


def _panes(
    builder: Builder, part: str, span: tuple[float, float], heights: tuple[float, float], count: int
) -> None:
    """Add a row of side windows."""
    step = (span[1] - span[0]) / count
    for number in range(count):
        z = span[0] + number * step
        builder.on_sides(part, upright_box(z, z + 0.88 * step, *heights))


def _bus(decks: int) -> Solid:
    builder = Builder()
    builder.extrude(
        ((0, 0.1), (0, 0.97), (0.02, 1), (0.98, 1), (1, 0.95), (1, 0.1)),
        ("body", "body", "body", "body", "body", "under"),
    )
    rows = ((0.42, 0.8),) if decks == 1 else ((0.24, 0.46), (0.62, 0.86))
    for low, high in rows:
        _panes(builder, "glass", (0.03, 0.97), (low, high), 7)
        builder.on_end("glass", 1.0, (-0.44, 0.44, low - 0.05, high))
        builder.on_end("glass", 0.0, (-0.38, 0.38, low + 0.08, high))
    foot = rows[0][0]
    builder.on_sides("stripe", upright_box(0, 1, foot - 0.14, foot - 0.06))
    for z in (0.86, 0.45):
        builder.on_sides("door", upright_box(z, z + 0.09, 0.12, rows[0][1]))
    for end in (0.0, 1.0):
        builder.on_end("sign", end, (-0.35, 0.35, 0.87, 0.95))
    for axle in (0.2, 0.78):
        wheel(builder, axle, 0.042, 0.16 if decks == 1 else 0.12)
    _tyres(builder, 0.11)
    _lamps(builder, 0.18, 0.26)
    return builder.build()


def _pair(
    builder: Builder, part: str, z: float, span: tuple[float, float], heights: tuple[float, float]
) -> None:
    """Add a rectangle at one end, and its mirror image; ``span`` is seen from the middle."""
    inner, outer = span
    builder.on_end(part, z, (-outer, -inner, *heights))
    builder.on_end(part, z, (inner, outer, *heights))


def _tyres(builder: Builder, high: float) -> None:
    """Add the tyres that show under both ends."""
    for end in (0.0, 1.0):
        _pair(builder, "tyre", end, (0.26, 0.46), (0.0, high))


def _lamps(builder: Builder, low: float, high: float) -> None:
    """Add lamps at both ends, and a plate behind."""
    _pair(builder, "tail", 0.0, (0.34, 0.47), (low, high))
    _pair(builder, "lamp", 1.0, (0.34, 0.47), (low, high))
    builder.on_end("plate", 0.0, (-0.1, 0.1, low, low + 0.05))


def _truck(open_top: bool) -> Solid:
    builder = Builder()
    top = 0.66 if open_top else 1.0
    builder.extrude(upright_box(0, 0.97, 0.12, 0.3), ("under",) * 4, sides="under")
    load = upright_box(0, 0.74, 0.3, top)
    builder.extrude(load, ("cargo", "cargo", "cargo", "under"), sides="cargo")
    builder.extrude(
        ((0.77, 0.14), (0.77, 0.78), (0.8, 0.84), (0.94, 0.84), (1, 0.55), (1, 0.14)),
        ("body", "body", "body", "glass", "body", "under"),
    )
    builder.on_sides("glass", ((0.84, 0.52), (0.84, 0.76), (0.94, 0.76), (0.98, 0.52)))
    builder.on_end("glass", 1.0, (-0.44, 0.44, 0.5, 0.76))
    builder.on_end("under", 1.0, (-0.35, 0.35, 0.26, 0.44))
    for seam in (0.0, 0.12) if open_top else (0.0,):
        builder.on_end("seam", 0.0, (seam - 0.01, seam + 0.01, 0.32, top - 0.02))
    for rib in np.linspace(0.08, 0.66, 5).tolist():
        builder.on_sides("seam", upright_box(rib, rib + 0.006, 0.32, top - 0.03))
    for axle in (0.1, 0.24, 0.86):
        wheel(builder, axle, 0.062, 0.14)
    _tyres(builder, 0.13)
    _lamps(builder, 0.17, 0.25)
    return builder.build()


def _train() -> Solid:
    builder = Builder(waist=0.8, roof=0.86)
    builder.extrude(
        (
            (0.02, 0.04),
            (0, 0.3),
            (0.03, 0.92),
            (0.05, 1),
            (0.95, 1),
            (0.97, 0.92),
            (1, 0.3),
            (0.98, 0.04),
        ),
        ("body", "glass", "body", "body", "body", "glass", "body", "under"),
    )
    for first, last in ((0.04, 0.33), (0.36, 0.65), (0.68, 0.97)):
        builder.on_sides("glass", upright_box(first, last, 0.42, 0.74))
        for z in (first + 0.05, last - 0.09):
            builder.on_sides("door", upright_box(z, z + 0.04, 0.1, 0.78))
    for joint in (0.335, 0.655):
        builder.on_sides("seam", upright_box(joint, joint + 0.02, 0.05, 0.97))
    builder.on_sides("stripe", upright_box(0.01, 0.99, 0.2, 0.32))
    for end in (0.0, 1.0):
        builder.on_end("sign", end, (-0.25, 0.25, 0.84, 0.94))
        builder.on_end("stripe", end, (-0.48, 0.48, 0.22, 0.34))
    _lamps(builder, 0.14, 0.2)
    return builder.build()


def _trailer() -> Solid:
    builder = Builder()
    builder.extrude(
        ((0, 0.2), (0, 0.95), (0.05, 1), (0.95, 1), (1, 0.95), (1, 0.2)),
        ("body", "body", "body", "body", "body", "under"),
    )
    wheel(builder, 0.45, 0.1, 0.17)
    _lamps(builder, 0.24, 0.34)
    return builder.build()


@lru_cache(maxsize=1)
def bodies() -> dict[str, Solid]:
    """All bodies by name."""
    built = {kind: _car(kind) for kind in CARS}
    return built | {
        "bus": _bus(1),
        "double decker": _bus(2),
        "truck": _truck(open_top=False),
        "tipper": _truck(open_top=True),
        "train": _train(),
        "trailer": _trailer(),
    }
