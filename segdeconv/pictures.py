"""Pictures of predictions: colours, overlays, image and overlay side by side.

Images are (H, W, 3) uint8 in red green blue, classes (H, W) uint8 train ids.
"""

import io

import numpy as np
from PIL import Image

from segdeconv.data.labels import LabelSet
from segdeconv.data.readers import ImageArray, LabelArray


def colour_mask(classes: LabelArray, label_set: LabelSet) -> ImageArray:
    """Each pixel in the colour of its class; black where it has none (`ignore_index`)."""
    table = np.zeros((256, 3), np.uint8)
    table[: label_set.num_classes] = label_set.colours
    return np.asarray(table[classes])


def overlay(
    image: ImageArray, classes: LabelArray, label_set: LabelSet, opacity: float = 0.5
) -> ImageArray:
    """The image, mixed with the colours of its classes.

    Args:
        image: (H, W, 3).
        classes: (H, W).
        label_set: Where the colours stand.
        opacity: Share of the colours, 0 to 1.
    """
    mixed = (1 - opacity) * image + opacity * colour_mask(classes, label_set)
    return np.asarray(mixed.round().astype(np.uint8))


def side_by_side(*pictures: ImageArray) -> ImageArray:
    """Pictures of one height, from left to right."""
    return np.hstack(pictures)


def encode(picture: ImageArray | LabelArray, ending: str) -> bytes:
    """Content of an image file of the kind that ``ending`` names: ".png" (exact) or ".jpg"."""
    content = io.BytesIO()
    # full resolution of the colours, as classes end at sharp borders
    options = {"quality": 92, "subsampling": 0} if ending == ".jpg" else {"compress_level": 1}
    Image.fromarray(picture).save(content, {".png": "PNG", ".jpg": "JPEG"}[ending], **options)
    return content.getvalue()
