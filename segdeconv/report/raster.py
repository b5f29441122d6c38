"""Matrices, maps and filters as small PNGs that lie in a page, on light and on dark paper alike.

Zero is transparent: what is drawn lets the page shine through the less the larger it is.
"""

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

NEGATIVE, POSITIVE = (0, 114, 178), (213, 94, 0)  # Okabe and Ito's blue and vermillion
LEVELS = 64
"""Shades of each colour; more would not be told apart, and cost bytes."""

Picture = npt.NDArray[np.uint8]


def signed(values: Tensor) -> str:
    """Numbers -1 to 1 (H, W): blue below zero, vermillion above, as opaque as they are large."""
    shades = (values.double().clamp(-1, 1) * LEVELS).round().long() + LEVELS
    colours = [NEGATIVE] * LEVELS + [POSITIVE] * (LEVELS + 1)
    alphas = [round(255 * abs(level) / LEVELS) for level in range(-LEVELS, LEVELS + 1)]
    image = Image.fromarray(shades.cpu().numpy().astype(np.uint8), "P")
    image.putpalette([part for colour in colours for part in colour])
    return _address(image, transparency=bytes(alphas))


def filters(weights: Tensor) -> str:
    """Filters (rows, columns, C, h, w) side by side, each on the scale of its own largest weight.

    Grey is 0.  Of three channels red, green and blue; of others a grey tile each.  Weights are
    drawn by the square root of their size: a surround is many times fainter than its centre.
    """
    rows, columns, channels, height, width = weights.shape
    if channels != 3:
        weights = weights.reshape(rows, columns * channels, 1, height, width)
    largest = weights.abs().amax((2, 3, 4), keepdim=True).clamp_min(1e-30)
    scaled = weights.sign() * (weights.abs() / largest).sqrt()
    shades = (127.5 + 127.5 * scaled).round().byte().permute(0, 1, 3, 4, 2).cpu().numpy()
    if channels != 3:
        shades = shades.repeat(3, -1)
    canvas = np.zeros((rows * (height + 1) - 1, shades.shape[1] * (width + 1) - 1, 4), np.uint8)
    for row in range(rows):
        for column in range(shades.shape[1]):
            top, left = row * (height + 1), column * (width + 1)
            tile = canvas[top : top + height, left : left + width]
            tile[..., :3], tile[..., 3] = shades[row, column], 255
    return _address(Image.fromarray(canvas))


def _address(image: Image.Image, **options: bytes) -> str:
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True, **options)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
