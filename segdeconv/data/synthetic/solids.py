"""Solids with flat faces, made from a side view.

A solid lives in a unit box (x across -0.5 to 0.5, y up 0 to 1, z along -0.5 to 0.5, front at 0.5)
and is stretched to metres when it is drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segdeconv.data.synthetic.dice import Floats


@dataclass(frozen=True)
class Solid:
    """Faces of a solid in its unit box.

    Args:
        points: Corners of all faces, one face after another, (V, 3).
        stops: Where each face's corners end in ``points``.
        normals: Outward normal of each face (F, 3), not of unit length.
        centres: Middle of each face (F, 3).
        parents: For each face the number of the face it lies on, or its own (F,).
        parts: What each face is: "body", "glass", "tyre", …
    """

    points: Floats
    stops: tuple[int, ...]
    normals: Floats
    centres: Floats
    parents: NDArray[np.intp]
    parts: tuple[str, ...]


Outline = Sequence[tuple[float, float]]
"""Corners (z, y) of a side view, z from 0 (rear) to 1 (front): up the rear, along the top, down."""


class Builder:
    """Collects the faces of a `Solid`.

    Args:
        waist: Height above which the sides lean in, 0 to 1.
        roof: Width of the roof as a share of the width below the waist.
    """

    def __init__(self, waist: float = 1.0, roof: float = 1.0) -> None:
        self.waist = waist
        self.roof = roof
        self.faces: list[Floats] = []
        self.parts: list[str] = []
        self.normals: list[Floats] = []
        self.parents: list[int] = []

    def half(self, y: float) -> float:
        """Half of the width at height ``y``."""
        lean = max(0.0, y - self.waist) / max(1e-6, 1 - self.waist)
        return 0.5 * (1 - (1 - self.roof) * lean)

    def extrude(self, outline: Outline, parts: Sequence[str], sides: str = "body") -> None:
        """Add the solid with this side view; ``parts`` names the face behind each edge."""
        for sign in (-1, 1):
            self._add(sides, self._side(outline, sign), (sign, 0, 0), parent=None)
        edges = zip(outline, [*outline[1:], outline[0]], parts, strict=True)
        for (z0, y0), (z1, y1), part in edges:
            a, b = self.half(y0), self.half(y1)
            corners = [(-a, y0, z0), (a, y0, z0), (b, y1, z1), (-b, y1, z1)]
            # The outline runs clockwise with the front to the right: outside is left of each edge.
            self._add(part, corners, (0, z1 - z0, y0 - y1), parent=None)

    def on_sides(self, part: str, outline: Outline) -> None:
        """Add something flat, given as (z, y), on both sides."""
        for sign in (-1, 1):
            self._lay(part, self._side(outline, sign), (sign, 0, 0))

    def on_end(self, part: str, z: float, box: tuple[float, float, float, float]) -> None:
        """Add a rectangle (left, right, low, high) on the upright face nearest to ``z``."""
        left, right, low, high = box
        corners = [(left, low, z), (right, low, z), (right, high, z), (left, high, z)]
        self._lay(part, corners, (0, 0, 1 if z > 0.5 else -1))

    def _side(self, outline: Outline, sign: int) -> list[tuple[float, float, float]]:
        return [(sign * self.half(y), y, z) for z, y in outline]

    def _lay(
        self, part: str, corners: Sequence[tuple[float, float, float]], normal: Sequence[float]
    ) -> None:
        """Add a face on the solid's face that looks the same way and lies closest."""
        centre = np.mean(corners, axis=0) - (0, 0, 0.5)

        def misfit(number: int) -> float:
            face, facing = self.faces[number], self.normals[number]
            facing = facing / np.linalg.norm(facing)
            away = abs(float(facing @ (centre - face.mean(axis=0))))
            return away + 2 * (1 - float(facing @ normal))

        owners = [n for n in range(len(self.faces)) if self.parents[n] == n]
        self._add(part, corners, normal, parent=min(owners, key=misfit))

    def _add(
        self,
        part: str,
        corners: Sequence[tuple[float, float, float]],
        normal: Sequence[float],
        parent: int | None,
    ) -> None:
        self.parents.append(len(self.faces) if parent is None else parent)
        self.faces.append(np.array(corners) - (0, 0, 0.5))
        self.parts.append(part)
        self.normals.append(np.array(normal, float))

    def build(self) -> Solid:
        """Finish the solid."""
        return Solid(
            points=np.concatenate(self.faces),
            stops=tuple(np.cumsum([len(face) for face in self.faces]).tolist()),
            normals=np.stack(self.normals),
            centres=np.stack([face.mean(axis=0) for face in self.faces]),
            parents=np.array(self.parents),
            parts=tuple(self.parts),
        )
