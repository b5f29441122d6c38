"""The rows of a whitening matrix as what they are: filters of the input patch.

Whitening a patch of an image gives, for each pixel of it, the pixel less what its surround tells of
it: a centre-surround filter, which Ye et al. 2020 compare with those of the visual system.

Shapes: C channels, taps = h x w.
"""

import torch
from torch import Tensor

from segdeconv.whitening import Blocks


def whitening_matrix(root: Tensor, blocks: Blocks) -> Tensor:
    """The matrix (C x taps, C x taps) that whitens a whole patch; row j gives its column j.

    Entries of columns in different blocks are 0.

    Args:
        root: (M, D, D).
        blocks: How the columns fall into blocks.
    """
    identity = torch.eye(blocks.num * blocks.size, dtype=root.dtype, device=root.device)
    return blocks.unpool(root @ blocks.pool(identity))


def tap_filters(matrix: Tensor, channels: int, kernel_size: tuple[int, int]) -> Tensor:
    """The rows as filters (C, h, w, C, h, w): that of channel and tap, over channels and taps."""
    return matrix.view(channels, *kernel_size, channels, *kernel_size)


def centre_filters(filters: Tensor) -> Tensor:
    """The filters (C, C, h, w) of the tap in the middle of the patch, one for each channel."""
    height, width = filters.shape[1:3]
    return filters[:, height // 2, width // 2]


def constant_response(filters: Tensor) -> Tensor:
    """What centre filters (C, C, h, w) answer to a patch of one colour, each for its own channel.

    Relative to the weight in the centre: 0 where centre and surround cancel, 1 where there is no
    surround.  All channels change together, as brightness does.
    """
    channels, _, height, width = filters.shape
    own = torch.arange(channels, device=filters.device)
    centre = filters[own, own, height // 2, width // 2]
    return filters.sum((1, 2, 3)) / centre
