"""Images with their labels and predictions, small enough for a page.

The page draws labels itself, so that classes can be hidden: they travel as runs of equal pixels,
row by row, three bytes each (class, length as two bytes, low one first), in base64.
"""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from segdeconv.data.readers import ImageArray, LabelArray

LONGEST_SIDE = 480  # pixels; an example then takes 100 kB at most
THUMBNAIL = 160
TINY = 32  # as CIFAR's, whose pixels one sees
_LONGEST_RUN = 0xFFFF


@dataclass(frozen=True)
class Example:
    """One image with its labels.

    Attributes:
        name: Of the image.
        score: Its mean IoU, 0 to 1.
        rank: 1 for the best of all images that were scored.
        image: Its `address`.
        width: Of picture and labels, in pixels.
        height: The same.
        truth: True classes as base64 of runs.
        prediction: Predicted classes, likewise.
    """

    name: str
    score: float
    rank: int
    image: str
    width: int
    height: int
    truth: str
    prediction: str


def choose(scores: Mapping[str, float], count: int) -> list[tuple[int, str]]:
    """Rank and name of images from the best to the worst, evenly spread over the ranks.

    Args:
        scores: Name of each image -> its score.
        count: How many; all, if there are no more.
    """
    ranked = sorted(scores, key=lambda name: -scores[name])
    ranks = np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)
    return [(rank + 1, ranked[rank]) for rank in ranks.tolist()]


def make_example(
    name: str,
    score: float,
    rank: int,
    image: ImageArray,
    truth: LabelArray,
    prediction: LabelArray,
) -> Example:
    """Shrink an image (H, W, 3) and its classes (H, W) and pack them."""
    factor = min(1, LONGEST_SIDE / max(truth.shape))
    height, width = (max(1, round(side * factor)) for side in truth.shape)
    small = Image.fromarray(image).resize((width, height), Image.Resampling.BOX)
    packed = []
    for labels in (truth, prediction):
        picture = Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST)
        packed.append(base64.b64encode(pack(np.asarray(picture))).decode())
    return Example(name, score, rank, address(small), width, height, packed[0], packed[1])


def thumbnail(image: ImageArray) -> str:
    """Address of a picture (H, W, 3) that is at most `THUMBNAIL` pixels wide and high."""
    small = Image.fromarray(image)
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return address(small)


def address(picture: Image.Image) -> str:
    """A picture as "data:image/…;base64,…": a tiny one exactly (PNG), else as JPEG."""
    kind = "png" if max(picture.size) <= TINY else "jpeg"
    content = io.BytesIO()
    picture.save(content, kind, quality=80)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def pack(labels: LabelArray) -> bytes:
    """Runs of equal labels (H, W) uint8, row by row."""
    flat = labels.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths = np.diff(starts, append=flat.size)
    pieces = -(-lengths // _LONGEST_RUN)  # a long run is cut into pieces
    values = np.repeat(flat[starts], pieces)
    cut = np.full(len(values), _LONGEST_RUN)
    last = np.cumsum(pieces) - 1
    cut[last] = lengths - (pieces - 1) * _LONGEST_RUN
    return np.stack([values, cut & 0xFF, cut >> 8], 1).astype(np.uint8).tobytes()
