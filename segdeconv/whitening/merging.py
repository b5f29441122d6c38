"""Whitening merged into kernel and bias of a plain convolution."""

import torch
from torch import Tensor

from segdeconv.whitening.blocks import Blocks
from segdeconv.whitening.products import matmul


def merge(
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    root: Tensor,
    blocks: Blocks,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Kernel and bias of the plain convolution that whitens each patch and then convolves.

    ``w D (u - mean) + b  =  (w D) u + (b - w D mean)``, block by block.

    Args:
        weight: (O, C / groups, ...), any layout that flattens to columns, channel slowest.
        bias: (O,) or None, which counts as zero: the shift by the mean always needs a bias.
        mean: (1 or G, D).
        root: (M, D, D).
        blocks: Layout.
        dtype: What the convolution will compute in.  The kernel is rounded first and the bias
            follows the rounded kernel: with a mean of 8 standard deviations and bfloat16 that makes
            the output eight times more accurate than a bias from the exact kernel.

    Returns:
        Kernel in the shape of ``weight``, in ``dtype``; bias (O,) in the precision of ``root``.
    """
    rows = blocks.split_kernel(weight.to(root.dtype))
    kernel = blocks.join_kernel(matmul(rows, root), weight.shape).to(dtype or root.dtype)
    shift = _shift(kernel.to(root.dtype), mean, blocks)
    return kernel, -shift if bias is None else bias.to(root.dtype) - shift


def unmerge(
    kernel: Tensor, bias: Tensor, mean: Tensor, root: Tensor, blocks: Blocks
) -> tuple[Tensor, Tensor]:
    """Weight and bias that `merge` turns into this kernel and bias: its inverse.

    ``w = K D^-1`` by solving, block by block, and ``b = b' + K mean``.

    Args:
        kernel: (O, C / groups, ...), of the plain convolution.
        bias: (O,).
        mean: (1 or G, D).
        root: (M, D, D), invertible.
        blocks: Layout.

    Returns:
        Weight in the shape of ``kernel`` and bias (O,), in the precision of ``root``.
    """
    kernel = kernel.to(root.dtype)
    rows = torch.linalg.solve(root, blocks.split_kernel(kernel), left=False)
    weight = blocks.join_kernel(rows, kernel.shape)
    return weight, bias.to(root.dtype) + _shift(kernel, mean, blocks)


def _shift(kernel: Tensor, mean: Tensor, blocks: Blocks) -> Tensor:
    """What a kernel makes of the mean patch, (O,)."""
    means = blocks.mean_of_columns(mean)
    by_group = kernel.reshape(blocks.groups, -1, means.shape[1])
    return torch.bmm(by_group, means[..., None]).flatten()
