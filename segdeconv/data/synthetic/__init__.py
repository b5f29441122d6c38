"""Street scenes that are drawn when they are asked for: a data set that needs no files.

Perspective, occlusion, light and texture are those of a street; colours are drawn anew for each
scene and object, so that a class is known by its place and shape more than by its colour.  See
`draw_scene` for one picture, `SyntheticStreets` for a data set.
"""

from segdeconv.data.synthetic.dataset import SyntheticStreets
from segdeconv.data.synthetic.scene import SPLITS, draw_scene

__all__ = ["SPLITS", "SyntheticStreets", "draw_scene"]
