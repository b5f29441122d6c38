"""Whitening as pure functions: moments, truncated inverse square root, merging into a kernel.

Ye et al., "Network Deconvolution", ICLR 2020, arXiv:1905.11926.  A convolution is a product of
im2col rows with a kernel matrix.  Whitening the rows first, ``y = (u - mean) D w + b``, is linear,
so it moves into the kernel: ``K = w D`` and ``b' = b - K mean``.

``D`` is *not* the inverse square root of the covariance but what ``n_iter`` Newton-Schulz steps
make of it.  They raise an eigenvalue ``l`` (of the covariance divided by its Frobenius norm) to a
gain of at most ``1.5**n_iter``, which makes the step count the regulariser of the method.  Every
backend here computes that same truncated function and its exact gradient; none leaves an autograd
tape through the steps.

Shapes: C channels, O output channels, taps = kernel height x width, G blocks of D columns
(G x D = C x taps), S samples (im2col rows), M matrices (1 when the blocks share one, else G).
Samples are stored column-major, (columns, S): the released interleaved blocks are then views.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Backend = Literal["auto", "newton_schulz", "eigh"]
Share = Literal["both", "root", "none"]

# Above this many steps the low end of the spectrum is amplified more than float32 resolves: a
# 15-step root of a 7x7x3 stem's covariance is off by 1e-3 in float32, so such roots run in float64.
MAX_STEPS_IN_SINGLE = 7

# One decomposition costs the same whatever n_iter is, so it wins earlier when there are many steps.
# CPU only; on GPUs a dozen products are much faster.  Products against decomposition, forward and
# backward of one matrix on one core (benchmarks/results/roots-2026-11-21.md): 5 steps 1.2 against
# 1.7 ms at size 96, 3.2 against 2.6 at 144; 15 steps (in float64) 0.8 against 1.0 at 36, 2.4
# against 1.5 at 64.
EIGH_FROM_SIZE = 128
EIGH_FROM_SIZE_MANY_STEPS = 48


@dataclass(frozen=True)
class Blocks:
    """How the C x taps columns of an im2col row (channel slowest) fall into whitening blocks.

    Attributes:
        num: Blocks G.
        size: Columns per block D.
        groups: Groups of the convolution; blocks never cross them.
        interleaved: Column j belongs to block j mod G (as released) instead of j div D.
        share: What the blocks have in common: "both" one mean and one root (as released), "root"
            one root about each block's own mean, "none" nothing.
    """

    num: int
    size: int
    groups: int = 1
    interleaved: bool = False
    share: Share = "both"

    @property
    def num_means(self) -> int:
        """Mean vectors: 1 or G."""
        return 1 if self.share == "both" else self.num

    @property
    def num_roots(self) -> int:
        """Inverse roots M: 1 or G."""
        return self.num if self.share == "none" else 1

    def degrees_of_freedom(self, samples: int) -> int:
        """Independent rows behind one covariance when each column has ``samples`` values."""
        rows = samples if self.share == "none" else samples * self.num
        return rows - self.num_means // self.num_roots

    def split(self, columns: Tensor) -> Tensor:
        """(C x taps, S) -> (G, D, S)."""
        if self.interleaved:
            return columns.view(self.size, self.num, -1).transpose(0, 1)
        return columns.view(self.num, self.size, -1)

    def split_kernel(self, weight: Tensor) -> Tensor:
        """(O, C / groups, ...) -> (M, rows, D): the rows that each inverse root multiplies."""
        if self.interleaved:
            split = weight.reshape(1, -1, self.size, self.num).transpose(2, 3)
        else:
            split = weight.reshape(self.groups, -1, self.num // self.groups, self.size)
        if self.num_roots > 1:
            split = split.transpose(1, 2)
        return split.reshape(self.num_roots, -1, self.size)

    def join_kernel(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """Inverse of `split_kernel`."""
        per_group = self.num // self.groups
        if self.num_roots > 1:
            split = rows.view(self.groups, per_group, -1, self.size).transpose(1, 2)
        else:
            split = rows.view(self.groups, -1, per_group, self.size)
        # Flat in between: a 1x1 kernel may else keep strides that torch reads as channels_last. The
        # convolution then copies its input to that layout: 92 instead of 57 ms per step for a layer
        # of 64 to 128 channels, stride 2, on 128 x 32 x 32.
        return (split.transpose(2, 3) if self.interleaved else split).flatten().view(shape)

    def mean_of_columns(self, mean: Tensor) -> Tensor:
        """(1 or G, D) -> (groups, C x taps / groups), the mean of each column."""
        means = mean.expand(self.num, -1)
        return (means.mT if self.interleaved else means).reshape(self.groups, -1)


def patch_columns(
    x: Tensor,
    kernel_size: tuple[int, int],
    step: tuple[int, int],
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> Tensor:
    """Patches on a grid of ``step`` pixels, one per column.

    Args:
        x: Activation, (N, C, H, W).
        kernel_size: Taps, (height, width).
        step: Distance between patches in pixels of ``x``, (vertical, horizontal).
        padding: Zeros on each side; they are part of the patches.
        dilation: Distance between taps.

    Returns:
        (C x taps, S): row c * taps + a * width + b holds channel c at tap (a, b).
    """
    if padding != (0, 0):
        x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    if kernel_size == (1, 1):
        return x[:, :, :: step[0], :: step[1]].transpose(0, 1).flatten(1)
    columns: Tensor = _PatchColumns.apply(x, kernel_size, step, dilation)
    return columns


def _windows(
    x: Tensor, kernel_size: tuple[int, int], step: tuple[int, int], dilation: tuple[int, int]
) -> Tensor:
    """Every patch as a view, (C, height, width of the taps, N, patches down, patches across)."""
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel_size, strict=True)]
    windows = x.transpose(0, 1).unfold(2, reach[0], step[0]).unfold(3, reach[1], step[1])
    return windows[..., :: dilation[0], :: dilation[1]].permute(0, 4, 5, 1, 2, 3)


class _PatchColumns(torch.autograd.Function):
    """Gathers patches in one copy.

    `F.unfold` puts images first, which costs a second copy to pool them: 38 ms against 5 ms for
    8 x 64 x 88 x 120, step 3, on one CPU core.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        kernel_size: tuple[int, int],
        step: tuple[int, int],
        dilation: tuple[int, int],
    ) -> Tensor:
        ctx.shape, ctx.arguments = x.shape, (kernel_size, step, dilation)
        taps = x.shape[1] * kernel_size[0] * kernel_size[1]
        return _windows(x, kernel_size, step, dilation).reshape(taps, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        kernel_size, step, dilation = ctx.arguments
        grad_x = grad.new_zeros(ctx.shape)
        windows = _windows(grad_x, kernel_size, step, dilation)
        grad = grad.reshape(windows.shape)
        if all(s > d * (k - 1) for s, d, k in zip(step, dilation, kernel_size, strict=True)):
            windows.copy_(grad)  # no pixel belongs to two patches
            return grad_x, None, None, None
        # Overlapping: tap by tap, because torch.compile refuses to write into overlapping views.
        maps, (down, across) = grad_x.transpose(0, 1), grad.shape[4:]
        for row in range(kernel_size[0]):
            rows = slice(row * dilation[0], row * dilation[0] + step[0] * (down - 1) + 1, step[0])
            for column in range(kernel_size[1]):
                left = column * dilation[1]
                columns = slice(left, left + step[1] * (across - 1) + 1, step[1])
                maps[:, :, rows, columns].add_(grad[:, row, column])
        return grad_x, None, None, None


def flat_columns(x: Tensor, step: int) -> Tensor:
    """Every ``step``-th pixel of the flattened batch, as the released 1x1 layers sample.

    (N, C, H, W) -> (C, S).  Runs through the batch in the order image, row, column, so the sampled
    pixels form stripes that depend on ``W mod step`` and on the place of an image in the batch.
    """
    return x.transpose(0, 1).flatten(1)[:, ::step]


class _Moments(torch.autograd.Function):
    """Mean and covariance over the last dimension; the backward is one product."""

    @staticmethod
    def forward(ctx: Any, samples: Tensor) -> tuple[Tensor, Tensor]:
        mean = samples.mean(-1)
        centred = samples - mean[..., None]
        covariance = centred @ centred.mT / samples.shape[-1]
        ctx.save_for_backward(centred)
        return mean, covariance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_mean: Tensor, grad_covariance: Tensor) -> Tensor:
        # The path through the centring vanishes: the centred samples sum to zero.
        (centred,) = ctx.saved_tensors
        samples = centred.shape[-1]
        both = (grad_covariance + grad_covariance.mT) / samples
        return torch.baddbmm(grad_mean[..., None] / samples, both, centred)


def moments(columns: Tensor, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Mean and covariance of each block, in the precision of ``columns``.

    Args:
        columns: (C x taps, S).
        blocks: Layout of the columns and what the blocks share.

    Returns:
        Mean (1 or G, D), covariance (M, D, D) with divisor S (not S - 1).
    """
    split_GDS = blocks.split(columns)
    if blocks.share == "both":
        split_GDS = split_GDS.transpose(0, 1).reshape(1, blocks.size, -1)
    mean, covariance = _Moments.apply(split_GDS)
    if blocks.share == "root":
        covariance = covariance.mean(0, keepdim=True)
    return mean, covariance


def shrink(covariance: Tensor, amount: float) -> Tensor:
    """Pull a covariance (..., D, D) towards ``trace / D`` times the identity; amount in 0..1."""
    variance = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    return (1 - amount) * covariance + amount * variance[..., None, None] * identity


def inverse_root(covariance: Tensor, n_iter: int = 5, backend: Backend = "auto") -> Tensor:
    """Truncated inverse square root: ``n_iter`` Newton-Schulz steps on the Frobenius-scaled matrix.

    Args:
        covariance: Symmetric positive semidefinite, (..., D, D), float32 or float64, finite.
        n_iter: Newton-Schulz steps; the released code uses 5, and 15 in the first layer.
        backend: "newton_schulz" iterates; "eigh" applies the same scalar function to eigenvalues;
            "auto" takes the faster for the device and size.  All agree to rounding.

    Returns:
        D, same shape and precision.

    Source: Ye et al. 2020, Algorithm 1.  Backward: the Frechet derivative in product form, and for
    "eigh" divided differences (Daleckii-Krein), neither of which assumes convergence.
    """
    if covariance.dim() != 3:
        matrices = covariance.reshape(-1, *covariance.shape[-2:])
        return inverse_root(matrices, n_iter, backend).view(covariance.shape)
    if backend == "auto":
        backend = _fastest_backend(covariance, n_iter)
    dtype = covariance.dtype
    if n_iter > MAX_STEPS_IN_SINGLE and covariance.device.type != "mps":
        covariance = covariance.double()
    function = _EighRoot if backend == "eigh" else _NewtonSchulzRoot
    root: Tensor = function.apply(covariance, n_iter)
    return root.to(dtype)


def _fastest_backend(covariance: Tensor, n_iter: int) -> Backend:
    """The decomposition for single large matrices on CPU, products everywhere else."""
    threshold = EIGH_FROM_SIZE if n_iter <= MAX_STEPS_IN_SINGLE else EIGH_FROM_SIZE_MANY_STEPS
    large = covariance.device.type == "cpu" and covariance.shape[-1] >= threshold
    return "eigh" if large else "newton_schulz"


def frobenius_norm(matrix: Tensor) -> Tensor:
    """Frobenius norm (..., 1, 1) whose squares neither overflow nor vanish in float32."""
    largest = matrix.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(matrix.dtype).tiny)
    norm: Tensor = torch.linalg.matrix_norm(matrix / largest, keepdim=True)
    return largest * norm.clamp_min(1.0)


def _grad_of_scaled(grad_B: Tensor, scale: Tensor, unit: Tensor, inner: Tensor) -> Tensor:
    """Gradient by A of ``s**-0.5 f(A / s)`` from that by ``B = A / s``, s the Frobenius norm.

    ``unit`` is B; ``inner`` is <sym G, f(B)> / sqrt(s), the change of the prefactor, (..., 1, 1).
    """
    through_norm = (grad_B * unit).sum((-2, -1), keepdim=True)
    return (grad_B - unit * (0.5 * inner + through_norm)) / scale


class _NewtonSchulzRoot(torch.autograd.Function):
    """M/X form: M = B, X = I; repeat T = (3I - M)/2, X <- X T, M <- T M T.  3(n_iter - 1) products.

    Unlike the Y/Z form of the released code it survives symmetrising and needs no first X product.
    T is never formed: A T = 1.5 A - 0.5 A M is one `torch.baddbmm`.
    """

    @staticmethod
    def forward(ctx: Any, covariance: Tensor, n_iter: int) -> Tensor:
        scale = frobenius_norm(covariance)
        m = covariance / scale
        x = -0.5 * m
        x.diagonal(dim1=-2, dim2=-1).add_(1.5)
        saved = []
        for _ in range(n_iter - 1):
            s = _times_t(m, m)
            if ctx.needs_input_grad[0]:  # keeping them costs memory, and so time in the caches
                saved += [m, s, x]
            m = _times_t(s, m)
            x = _times_t(x, m)
        ctx.n_iter = n_iter
        ctx.save_for_backward(scale, *saved, m, x)
        return x * scale.rsqrt()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        scale, *saved, result = ctx.saved_tensors
        grad_m = 0.5 * scale.rsqrt() * (grad + grad.mT)
        inner = (grad_m * result).sum((-2, -1), keepdim=True)
        grad_x = -0.5 * grad_m
        for step in range(ctx.n_iter - 1):
            m, s, x, m_next = saved[3 * step : 3 * step + 4]
            t_grad_m = torch.baddbmm(grad_m, m, grad_m, beta=1.5, alpha=-0.5)
            q = torch.bmm(grad_m, s)
            grad_m = _times_t(t_grad_m, m).sub_(q + q.mT, alpha=0.5)
            grad_x = torch.baddbmm(_times_t(grad_x, m_next), x, grad_m, alpha=-0.5)
        grad_B = 0.5 * (grad_x + grad_x.mT)
        return _grad_of_scaled(grad_B, scale, saved[0], inner), None


def _times_t(a: Tensor, m: Tensor) -> Tensor:
    """A T with T = (3I - M)/2; (M, D, D) each."""
    return torch.baddbmm(a, a, m, beta=1.5, alpha=-0.5)


class _EighRoot(torch.autograd.Function):
    """The same polynomial on eigenvalues; no 1/sqrt appears, so it needs no eigenvalue floor."""

    @staticmethod
    def forward(ctx: Any, covariance: Tensor, n_iter: int) -> Tensor:
        scale = frobenius_norm(covariance)
        unit = covariance / scale
        values, vectors = torch.linalg.eigh(unit)
        values = values.clamp_min(0)  # rounding can leave -1e-7
        gain = newton_schulz_gain(values, n_iter)
        ctx.n_iter = n_iter
        ctx.save_for_backward(unit, scale, values, vectors, gain)
        root: Tensor = (vectors * gain[..., None, :]) @ vectors.mT * scale.rsqrt()
        return root

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        unit, scale, values, vectors, gain = ctx.saved_tensors
        grad = 0.5 * scale.rsqrt() * (grad + grad.mT)
        in_basis = vectors.mT @ grad @ vectors
        inner = (in_basis.diagonal(dim1=-2, dim2=-1) * gain).sum(-1)[..., None, None]
        grad_B = vectors @ (in_basis * divided_differences(values, ctx.n_iter)) @ vectors.mT
        return _grad_of_scaled(grad_B, scale, unit, inner), None


# The two recurrences below are opaque to torch.compile: its fusion writes each step's expression
# out in the next one's, which doubles it step by step; 15 steps did not compile in 10 minutes.
@torch.library.custom_op("segdeconv::newton_schulz_gain", mutates_args=())
def newton_schulz_gain(values: Tensor, n_iter: int) -> Tensor:
    """What ``n_iter`` steps multiply each eigenvalue's direction by; any shape, values in 0..1.

    The standard deviation after whitening is ``sqrt(l) * gain(l)``, at most 1; ``gain(0)`` is
    ``1.5**n_iter``.
    """
    m, x = values, torch.ones_like(values)
    for _ in range(n_iter):
        t = 1.5 - 0.5 * m
        x, m = x * t, m * t * t
    return x


@newton_schulz_gain.register_fake
def _(values: Tensor, n_iter: int) -> Tensor:
    return torch.empty_like(values)


@torch.library.custom_op("segdeconv::divided_differences", mutates_args=())
def divided_differences(values: Tensor, n_iter: int) -> Tensor:
    """``(gain(a) - gain(b)) / (a - b)`` for all pairs, the derivative on the diagonal.

    (..., D) -> (..., D, D).  Carried through the recurrence by the product rule
    ``[pq] = p_i [q] + [p] q_j``: the quotient itself loses all digits for close eigenvalues.
    """
    shape = (*values.shape, values.shape[-1])
    m, x = values, torch.ones_like(values)
    diff_m, diff_x = values.new_ones(shape), values.new_zeros(shape)
    for _ in range(n_iter):
        t = 1.5 - 0.5 * m
        u = t * m
        diff_t = -0.5 * diff_m
        diff_x = x[..., :, None] * diff_t + diff_x * t[..., None, :]
        diff_m = t[..., :, None] * diff_m * t[..., None, :]
        diff_m += diff_t * (u[..., :, None] + u[..., None, :])
        x, m = x * t, u * t
    return 0.5 * (diff_x + diff_x.mT)


@divided_differences.register_fake
def _(values: Tensor, n_iter: int) -> Tensor:
    return values.new_empty(*values.shape, values.shape[-1])


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
    kernel = blocks.join_kernel(torch.bmm(rows, root), weight.shape).to(dtype or root.dtype)
    means = blocks.mean_of_columns(mean)
    by_group = kernel.reshape(blocks.groups, -1, means.shape[1]).to(root.dtype)
    shift = torch.bmm(by_group, means[..., None]).flatten()
    return kernel, -shift if bias is None else bias.to(root.dtype) - shift


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of ``number`` that is at most ``limit``."""
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)


def released_block(channels: int, block: int, groups: int) -> int:
    """Channels per block by the released rule: whole groups, else gcd with the wanted size."""
    if groups > 1:
        return channels // groups
    return channels if block > channels else math.gcd(block, channels)
