"""Whitening as pure functions: moments, truncated inverse square root, merging into a kernel.

Ye et al., "Network Deconvolution", ICLR 2020, arXiv:1905.11926.  A convolution is a product of
im2col rows with a kernel matrix.  Whitening the rows first, ``y = (u - mean) D w + b``, is linear,
so it moves into the kernel: ``K = w D`` and ``b' = b - K mean``.

``D`` is *not* the inverse square root of the covariance but what ``n_iter`` Newton-Schulz steps
make of it.  They raise an eigenvalue ``l`` (of the covariance divided by its Frobenius norm) to a
gain of at most ``1.5**n_iter``, which makes the step count the regulariser of the method.  Every
exact backend computes that same truncated function and its exact gradient; none leaves an autograd
tape through the steps.  Fitted polynomials, chosen by name, come close to it in fewer products.

Shapes: C channels, O output channels, taps = kernel height x width, G blocks of D columns
(G x D = C x taps), S samples (im2col rows), M matrices (1 when the blocks share one, else G).
Samples are stored column-major, (columns, S): the released interleaved blocks are then views.

Files: `sampling` reads patches and takes their moments, `blocks` says how columns fall into blocks,
`roots` takes the inverse root (`polynomials` holds the fits), `kernels` does both in Triton on CUDA
and is imported only when asked for, `merging` puts the result into kernel and bias; `products`
multiplies matrices.
"""

from segdeconv.whitening.blocks import Blocks, Share, largest_divisor, released_block
from segdeconv.whitening.kronecker import kronecker_root
from segdeconv.whitening.merging import merge, unmerge
from segdeconv.whitening.polynomials import POLYNOMIALS, Polynomial
from segdeconv.whitening.roots import (
    BACKENDS,
    Backend,
    divided_differences,
    frobenius_norm,
    inverse_root,
    newton_schulz_gain,
)
from segdeconv.whitening.sampling import (
    FlatGrid,
    Gram,
    PatchGrid,
    RowGrid,
    Sampling,
    StretchedGrid,
    sampled_moments,
    shrink,
)

__all__ = [
    "BACKENDS",
    "POLYNOMIALS",
    "Backend",
    "Blocks",
    "FlatGrid",
    "Gram",
    "PatchGrid",
    "Polynomial",
    "RowGrid",
    "Sampling",
    "Share",
    "StretchedGrid",
    "divided_differences",
    "frobenius_norm",
    "inverse_root",
    "kronecker_root",
    "largest_divisor",
    "merge",
    "newton_schulz_gain",
    "released_block",
    "sampled_moments",
    "shrink",
    "unmerge",
]
