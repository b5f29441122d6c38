"""Images and label maps from files, exactly or not at all.

Both come through Pillow.  OpenCV turns palette PNGs into three channels or wrong grey values, and
hands back the upper part of a truncated PNG as if nothing were missing.
"""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from segdeconv.data.labels import LabelSet

ImageArray = NDArray[np.uint8]  # (H, W, 3), red green blue
LabelArray = NDArray[np.uint8]  # (H, W)

# Modes in which a pixel is one whole number: bilevel, grey, palette index, 16 and 32 bit.
LABEL_MODES = ("1", "L", "P", "I;16", "I;16B", "I")
DEEP_MODES = ("I;16", "I;16B", "I", "F")  # Pillow clips these to white when it makes RGB of them
STRIP_PIXELS = 2**17  # 384 KiB


class UnreadableError(ValueError):
    """A file that is missing, forbidden, damaged or no image; other files may do better."""


def _load(path: Path) -> Image.Image:
    """The decoded image; a file that is missing, damaged or cut short is an `UnreadableError`."""
    try:
        image = Image.open(path)
        image.load()
    except FileNotFoundError as error:
        raise UnreadableError(
            f"{path} does not exist; it may have been moved or deleted"
        ) from error
    except PermissionError as error:
        raise UnreadableError(
            f"{path} may not be read by this user; change its permissions"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        # One line, so that the sentence survives the traceback of a data loader's worker.
        reason = " ".join(str(error).split()).replace(f" '{path}'", "").replace(str(path), "file")
        raise UnreadableError(
            f"cannot read {path} ({reason}); it is damaged, cut short or no image: copy it again"
        ) from error
    return image


def read_image(path: str | Path) -> ImageArray:
    """Read an 8 bit image of any colour mode.

    Turned upright where the file says so (EXIF), because labelling tools show it that way too.

    Returns:
        (H, W, 3) uint8, red green blue.

    Raises:
        ValueError: The file cannot be read to its end, or has more than 8 bits per channel.
    """
    path = Path(path)
    image = _load(path)
    if image.mode in DEEP_MODES:
        raise ValueError(
            f"{path} has the mode {image.mode}, more than 8 bits per channel; convert it to 8 bits"
        )
    # Both would copy the image even where nothing is to be done.
    ImageOps.exif_transpose(image, in_place=True)
    return _to_array(image if image.mode == "RGB" else image.convert("RGB"))


def _to_array(image: Image.Image) -> ImageArray:
    """``np.array(image)`` of an RGB image, made of strips that stay in the processor's cache.

    Pillow writes its pixels out in pieces and joins them: with that, reading a PNG of 2048 x 1024
    pixels took 43 ms, with strips 31 ms, of which decoding is 30.
    """
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        pixels[top : top + rows] = np.asarray(strip)
    return pixels


def read_labels(path: str | Path) -> LabelArray:
    """Read a label map: the stored numbers, of a palette image the indices.

    Returns:
        (H, W) uint8.

    Raises:
        ValueError: As `read_labels_and_palette`.
    """
    return read_labels_and_palette(path)[0]


def read_labels_and_palette(path: str | Path) -> tuple[LabelArray, ImageArray | None]:
    """Read a label map, and the colours that it is shown in.

    Returns:
        (H, W) uint8; the palette (up to 256, 3) in red green blue, None if the file has none.

    Raises:
        ValueError: The file cannot be read to its end, holds colours instead of ids, was compressed
            with loss, or holds an id above 255.
    """
    path = Path(path)
    image = _load(path)
    if image.format == "JPEG":
        raise ValueError(f"{path} is a JPEG, which alters ids; save label maps as PNG")
    if image.mode not in LABEL_MODES:
        raise ValueError(
            f"{path} holds colours (mode {image.mode}), not ids; convert it to a grey or palette "
            f"PNG in which each pixel is the id of its class"
        )
    labels = np.array(image)
    if labels.dtype != np.uint8:
        if labels.min() < 0 or labels.max() > 255:
            worst = labels.max() if labels.max() > 255 else labels.min()
            raise ValueError(
                f"{path} holds the value {worst}; ids go from 0 to 255, so this may be an instance "
                f"map: pass the label map"
            )
        labels = labels.astype(np.uint8)
    palette = image.getpalette() if image.mode == "P" else None
    return labels, None if palette is None else np.array(palette, np.uint8).reshape(-1, 3)


def to_train_ids(ids: LabelArray, label_set: LabelSet, path: Path, hint: str) -> LabelArray:
    """Map the ids of a label file to train ids.

    Args:
        ids: (H, W) uint8, as read from the file.
        label_set: What the ids mean.
        path: The file, for the message.
        hint: What to do about an id that has no meaning.

    Raises:
        ValueError: The file holds an id that the label set does not know.
    """
    if cv2.LUT(ids, label_set.is_unknown).any():
        counts = np.bincount(ids.ravel(), minlength=256)
        raise ValueError(describe_unknown_id(counts, label_set, path, hint))
    return np.asarray(cv2.LUT(ids, label_set.id_to_train))


def describe_unknown_id(
    counts: NDArray[np.int64], label_set: LabelSet, path: Path, hint: str
) -> str:
    """A sentence on the first id of a label file that has no meaning.

    Args:
        counts: Pixels of each id, (256,).
        label_set: What the ids mean.
        path: The file.
        hint: What to do about it.
    """
    value = np.flatnonzero((counts > 0) & (label_set.is_unknown > 0))[0]
    names = label_set.class_names
    listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return (
        f"{path} holds the value {value} in {counts[value]} of {counts.sum()} pixels, but the "
        f"label set {label_set.name} has the ids {label_set.describe_ids()} ({listed}); {hint}"
    )
