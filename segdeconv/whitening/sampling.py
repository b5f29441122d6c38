"""Which rows the statistics are taken from, and mean and covariance over them.

A sampling says how an activation gives im2col columns and how their gradient goes back.  Columns
that are few beside the activation are kept for the backward; else it gathers them again.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from segdeconv.whitening.blocks import Blocks
from segdeconv.whitening.products import product, product_in_single

Pair = tuple[int, int]
Gram = Literal["single", "input"]

# A thinned grid keeps this many patches along each axis: fewer would give the border, where part of
# each patch is padding, too large a share of the rows.  Then it leaves out images, but keeps this
# many: images differ more than places.
MIN_PLACES, MIN_IMAGES = 8, 16

# Up to this product of steps a grid is gathered in one copy.  Tap by tap against one copy on one
# CPU core, 3x3 taps: 4.8 and 2.0 ms for 128 x 32 x 16 x 16 at step 3, 0.4 and 1.1 for 64 x 256 x
# 8 x 8 at step 9.
SMALL_STEPS = 16

# Columns are kept for the backward up to this share of the bytes of their activation, and up to so
# many bytes anyway.  Kept against gathered again, forward and backward of a layer on one CPU core:
# 80.6 and 87.2 ms for 64 to 128 channels at 128 x 32 x 32, 26.8 and 28.2 for a 1x1 shortcut.
KEPT_SHARE, KEPT_BYTES = 1 / 2, 2**20

SHIFT_ROWS = 256  # whose mean is the shift of 16-bit columns: some 1/16 deviation from that of all


class Sampling(Protocol):
    """Reads columns out of an activation."""

    def count(self, shape: torch.Size) -> int:
        """Columns S of an activation of this shape."""

    def thinned(self, shape: torch.Size, factor: float) -> "Sampling":
        """A sampling of the same kind with up to ``factor`` times fewer columns."""

    def gather(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Columns (C x taps, S), a new tensor in ``dtype``."""

    def add_back(self, grad_x: Tensor, grad: Tensor) -> Tensor:
        """``grad_x`` plus the gradient of the columns at the places they were read from."""


@dataclass(frozen=True)
class PatchGrid:
    """Patches of (N, C, H, W) on a grid; row c * taps + a * width + b is channel c, tap (a, b).

    Attributes:
        kernel_size: Taps, (height, width).
        step: Distance between patches in pixels, (vertical, horizontal).
        padding: Zeros on each side; they are part of the patches.
        dilation: Distance between taps.
        stride: The layer's.  A thinned grid's step grows by an even number of strides: a map that
            was upsampled has a period of two pixels, and an even step sees one phase of it only.
        every: Which images are read: the first and each that many-th.
    """

    kernel_size: Pair
    step: Pair
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    stride: Pair = (1, 1)
    every: int = 1

    def places(self, shape: torch.Size) -> Pair:
        """Patches down and across."""
        down, across = (
            max(0, -(-(shape[2 + i] + 2 * self.padding[i] - self._reach(i)) // self.step[i]))
            for i in (0, 1)
        )
        return down, across

    def _reach(self, axis: int) -> int:
        return self.dilation[axis] * (self.kernel_size[axis] - 1)

    def count(self, shape: torch.Size) -> int:
        """Patches in all images that are read."""
        return -(-shape[0] // self.every) * math.prod(self.places(shape))

    def thinned(self, shape: torch.Size, factor: float) -> "PatchGrid":
        """Larger steps, down to `MIN_PLACES` along an axis, then fewer images, to `MIN_IMAGES`."""
        places = self.places(shape)
        down, across = (
            self._larger_step(axis, min(math.sqrt(factor), places[axis] / MIN_PLACES))
            for axis in (0, 1)
        )
        thin = replace(self, step=(down, across))
        remaining = factor * math.prod(thin.places(shape)) / max(1, math.prod(places))
        images = -(-shape[0] // self.every)
        every = max(1, min(math.floor(remaining), images // MIN_IMAGES))
        return replace(thin, every=self.every * every)

    def _larger_step(self, axis: int, factor: float) -> int:
        """Up to ``factor`` times the step, by an even number of the layer's strides."""
        step, pair = self.step[axis], 2 * self.stride[axis]
        return step + max(0, math.floor(step * (factor - 1) / pair)) * pair

    def gather(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """(C x taps, S).

        With large steps tap by tap into the buffer: no padded copy of the whole map, and little is
        read.  With small ones in one copy, as each tap would read most of the map again.
        """
        padded, x = self.padding != (0, 0), x[:: self.every]
        shape = (x.shape[1], *self.kernel_size, x.shape[0], *self.places(x.shape))
        if math.prod(self.step) <= SMALL_STEPS and math.prod(shape) > 0:
            columns = torch.empty(shape, dtype=dtype, device=x.device)
            return columns.copy_(self._windows(x)).view(math.prod(shape[:3]), -1)
        columns = (torch.zeros if padded else torch.empty)(shape, dtype=dtype, device=x.device)
        maps = x.transpose(0, 1)
        for here, there in self._taps(x.shape):
            columns[here] = maps[there]
        return columns.view(math.prod(shape[:3]), -1)

    def _windows(self, x: Tensor) -> Tensor:
        """All patches as a view of the padded map, (C, taps down and across, N, places)."""
        top, left = self.padding
        x = F.pad(x, (left, left, top, top)) if self.padding != (0, 0) else x
        rows = x.transpose(0, 1).unfold(2, self._reach(0) + 1, self.step[0])
        windows = rows.unfold(3, self._reach(1) + 1, self.step[1])
        return windows[..., :: self.dilation[0], :: self.dilation[1]].permute(0, 4, 5, 1, 2, 3)

    def add_back(self, grad_x: Tensor, grad: Tensor) -> Tensor:
        """In place; taps of different patches may meet in a pixel."""
        read = grad_x[:: self.every]
        grad = grad.view(read.shape[1], *self.kernel_size, read.shape[0], *self.places(read.shape))
        maps = read.transpose(0, 1)
        for here, there in self._taps(read.shape):
            maps[there] += grad[here]
        return grad_x

    def _taps(self, shape: torch.Size) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
        """For each tap, its place in the buffer and the pixels of (C, N, H, W) that go there."""
        places = self.places(shape)
        ranges = [
            [self._tap(tap, axis, shape[2 + axis], places[axis]) for tap in range(taps)]
            for axis, taps in enumerate(self.kernel_size)
        ]
        for a, (rows, from_rows) in enumerate(ranges[0]):
            for b, (columns, from_columns) in enumerate(ranges[1]):
                every = slice(None)
                yield (every, a, b, every, rows, columns), (every, every, from_rows, from_columns)

    def _tap(self, tap: int, axis: int, size: int, places: int) -> tuple[slice, slice]:
        """Along one axis: the patches whose tap lies inside the map, and the pixels it meets."""
        step, start = self.step[axis], tap * self.dilation[axis] - self.padding[axis]
        first = max(0, -(start // step))
        end = max(first, min(places, (size - 1 - start) // step + 1))
        begin = start + first * step
        if end == first:
            return slice(0, 0), slice(0, 0)
        return slice(first, end), slice(begin, start + (end - 1) * step + 1, step)


@dataclass(frozen=True)
class FlatGrid:
    """Every ``step``-th pixel of the flattened batch, as the released 1x1 layers sample.

    Runs through the batch in the order image, row, column, so the sampled pixels form stripes that
    depend on ``W mod step`` and on the place of an image in the batch.
    """

    step: int

    def count(self, shape: torch.Size) -> int:
        """Sampled pixels."""
        return -(-shape[0] * math.prod(shape[2:]) // self.step)

    def thinned(self, shape: torch.Size, factor: float) -> "FlatGrid":
        """A larger step."""
        return FlatGrid(math.ceil(self.step * factor))

    def gather(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """(C, S), in an order of its own, which changes no sum."""
        if self._is_small(x.shape):
            return x.transpose(0, 1).flatten(1)[:, :: self.step].to(dtype, copy=True)
        maps = x.flatten(2).transpose(0, 1)
        parts = [maps[:, images, pixels].flatten(1) for images, pixels in self._phases(x.shape)]
        return torch.cat(parts, 1).to(dtype)

    def add_back(self, grad_x: Tensor, grad: Tensor) -> Tensor:
        """In place where the memory order allows."""
        if self._is_small(grad_x.shape):
            whole = grad_x.transpose(0, 1).flatten(1)
            whole[:, :: self.step] += grad
            per_image = whole.view(len(whole), len(grad_x), -1)
            return per_image.transpose(0, 1).reshape(grad_x.shape)
        maps = grad_x.flatten(2)
        into, start = maps.transpose(0, 1), 0
        for images, pixels in self._phases(grad_x.shape):
            part = into[:, images, pixels]
            part += grad[:, start : start + part[0].numel()].view(part.shape)
            start += part[0].numel()
        return maps.view(grad_x.shape)

    def _is_small(self, shape: torch.Size) -> bool:
        """Whether a copy of everything takes less time than one slice for each phase."""
        return math.prod(shape) < 10_000 * self.step

    def _phases(self, shape: torch.Size) -> Iterator[tuple[slice, slice]]:
        """Images in which the first sampled pixel has the same place, and their sampled pixels."""
        pixels = math.prod(shape[2:])
        period = self.step // math.gcd(self.step, pixels)
        for image in range(min(period, shape[0])):
            first = min(-image * pixels % self.step, pixels)
            yield slice(image, None, period), slice(first, None, self.step)


@dataclass(frozen=True)
class StretchedGrid:
    """Patches of a transposed convolution: of its input with zeros between and around the pixels.

    Attributes:
        grid: Patches of the stretched map; its own stride is the one below.
        stride: Distance of the input's pixels in the stretched map.
        before: Zeros above and left; a negative number cuts off.
        after: Zeros below and right.
    """

    grid: PatchGrid
    stride: Pair
    before: Pair
    after: Pair

    def _stretched_shape(self, shape: torch.Size) -> torch.Size:
        sizes = [
            (size - 1) * stride + 1 + before + after
            for size, stride, before, after in zip(
                shape[2:], self.stride, self.before, self.after, strict=True
            )
        ]
        return torch.Size((*shape[:2], *sizes))

    def _stretch(self, x: Tensor) -> Tensor:
        sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], self.stride, strict=True)]
        stretched = x.new_zeros(*x.shape[:2], *sizes)
        stretched[:, :, :: self.stride[0], :: self.stride[1]] = x
        (top, left), (bottom, right) = self.before, self.after
        return F.pad(stretched, (left, right, top, bottom))

    def count(self, shape: torch.Size) -> int:
        """Patches in all images that are read."""
        return self.grid.count(self._stretched_shape(shape))

    def thinned(self, shape: torch.Size, factor: float) -> "StretchedGrid":
        """A thinned grid of the stretched map."""
        return replace(self, grid=self.grid.thinned(self._stretched_shape(shape), factor))

    def gather(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """(C x taps, S)."""
        return self.grid.gather(self._stretch(x), dtype)

    def add_back(self, grad_x: Tensor, grad: Tensor) -> Tensor:
        """Gradients at the inserted zeros have nowhere to go."""
        whole = grad.new_zeros(self._stretched_shape(grad_x.shape))
        whole = self.grid.add_back(whole, grad)
        (top, left), (bottom, right) = self.before, self.after
        inner = F.pad(whole, (-left, -right, -top, -bottom))
        return grad_x + inner[:, :, :: self.stride[0], :: self.stride[1]].to(grad_x.dtype)


@dataclass(frozen=True)
class RowGrid:
    """Every ``step``-th row of features (..., C)."""

    step: int = 1

    def count(self, shape: torch.Size) -> int:
        """Sampled rows."""
        return -(-math.prod(shape[:-1]) // self.step)

    def thinned(self, shape: torch.Size, factor: float) -> "RowGrid":
        """A larger step."""
        return RowGrid(math.ceil(self.step * factor))

    def gather(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """(C, S)."""
        return x.reshape(-1, x.shape[-1])[:: self.step].mT.to(dtype, copy=True)

    def add_back(self, grad_x: Tensor, grad: Tensor) -> Tensor:
        """In place where the memory order allows."""
        rows = grad_x.reshape(-1, grad_x.shape[-1])
        rows[:: self.step] += grad.mT
        return rows.view(grad_x.shape)


def _gram(rows: Tensor) -> Tensor:
    """``rows @ rows.mT`` of (M, D, S).

    Of a large single matrix only the upper triangle is computed, in four stripes, and mirrored: on
    one CPU core 69 instead of 101 ms for 576 x 15488, 1.5 instead of 2.0 ms for 144 x 4608.
    """
    number, size, _ = rows.shape
    if rows.device.type != "cpu" or number > 1 or size < 128:
        return product(rows, rows.mT)
    gram = rows.new_empty(1, size, size)
    for stripe in range(4):
        above, below = stripe * size // 4, (stripe + 1) * size // 4
        gram[:, above:below, above:] = product(rows[:, above:below], rows[:, above:].mT)
        gram[:, below:, above:below] = gram[:, above:below, below:].mT
    return gram


def near_mean(columns: Tensor, blocks: Blocks) -> Tensor:
    """Mean (1 or G, D) of about `SHIFT_ROWS` of the samples, rounded to their own type.

    So rounded, what lies close to it loses nothing by the subtraction.  The step has no factor in
    common with the number of samples, and so meets all places of an image: those at the border
    alone, whose patches are partly padding, would be far off.
    """
    samples = columns.shape[1]
    step = max(1, samples // SHIFT_ROWS)
    while math.gcd(step, samples) > 1:
        step += 1
    return blocks.mean(columns[:, ::step], torch.float32).to(columns.dtype)


def moments_of_shifted(
    shift: Tensor, mean: Tensor, second_moment: Tensor, blocks: Blocks
) -> tuple[Tensor, Tensor]:
    """Mean (1 or G, D) and covariance (M, D, D) of columns from those moments less a shift."""
    outer = mean[:, :, None] * mean[:, None, :]
    if blocks.num_roots < blocks.num_means:
        outer = outer.mean(0, keepdim=True)
    return shift + mean, second_moment - outer


def _moments_in_16_bits(x: Tensor, sampling: Sampling, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the columns of a 16-bit activation, multiplied in its own type.

    Shifted before they are rounded, and only inputs are: 16-bit results would not be positive
    semidefinite.  Centred so, columns are rounded by no more than they were when ``x`` was.
    """
    columns = sampling.gather(x, x.dtype)
    shift = near_mean(columns, blocks)
    shifted = blocks.centre_(columns, shift)
    rows = blocks.pool(shifted)
    second_moment = product_in_single(rows, rows.mT) / rows.shape[-1]
    return moments_of_shifted(shift, blocks.mean(shifted, torch.float32), second_moment, blocks)


def centred_columns(x: Tensor, mean: Tensor, sampling: Sampling, blocks: Blocks) -> Tensor:
    """The sampled columns of ``x`` about a mean (1 or G, D), as (M, D, rows of each matrix)."""
    return blocks.pool(blocks.centre_(sampling.gather(x, mean.dtype), mean))


class _Moments(torch.autograd.Function):
    """Mean and covariance of sampled columns.

    ``x`` passes through, for the convolution to read: so the backward receives its gradient and
    adds to it in place, instead of filling a map of zeros that autograd then adds to it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        sampling: Sampling,
        blocks: Blocks,
        eps: float,
        dtype: torch.dtype,
        gram: Gram,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.sampling, ctx.blocks, ctx.few = sampling, blocks, False
        if gram == "input" and x.element_size() == 2 and dtype == torch.float32:
            # The backward gathers again, and is that of unrounded columns.
            mean, covariance = _moments_in_16_bits(x, sampling, blocks)
            kept = x
        else:
            columns = sampling.gather(x, dtype)
            mean = blocks.mean(columns, dtype)
            centred = blocks.pool(blocks.centre_(columns, mean))
            # Not div_: torch 2.11 compiles a result changed in place as one without gradient.
            covariance = _gram(centred) / centred.shape[-1]
            ctx.few = centred.nbytes <= max(KEPT_BYTES, KEPT_SHARE * x.nbytes)
            kept = centred if ctx.few else x
        covariance.diagonal(dim1=-2, dim2=-1).add_(eps)
        ctx.save_for_backward(mean, kept)
        return x.view_as(x), mean, covariance

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_x: Tensor, grad_mean: Tensor, grad_covariance: Tensor
    ) -> tuple[Tensor, None, None, None, None, None]:
        mean, kept = ctx.saved_tensors
        sampling, blocks = ctx.sampling, ctx.blocks
        centred = kept if ctx.few else centred_columns(kept, mean, sampling, blocks)
        grad_x = add_moments_gradient(grad_x, grad_mean, grad_covariance, centred, sampling, blocks)
        return grad_x, None, None, None, None, None


def add_moments_gradient(
    grad_x: Tensor,
    grad_mean: Tensor,
    grad_covariance: Tensor,
    centred: Tensor,
    sampling: Sampling,
    blocks: Blocks,
) -> Tensor:
    """``grad_x`` plus what mean and covariance of the centred columns add, in place."""
    if 0 in grad_x.stride():  # an expanded number, as after a sum: it cannot be added to
        grad_x = grad_x.contiguous()
    # The path through the centring vanishes: the centred samples sum to zero.
    both = (grad_covariance + grad_covariance.mT).div_(centred.shape[-1])
    grad = blocks.unpool(product(both, centred))
    grad = blocks.centre_(grad, grad_mean / -blocks.rows_per_mean(grad.shape[1]))
    return sampling.add_back(grad_x, grad)


def sampled_moments(
    x: Tensor,
    sampling: Sampling,
    blocks: Blocks,
    eps: float = 0.0,
    dtype: torch.dtype | None = None,
    gram: Gram = "single",
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and covariance of each block over the sampled columns of an activation.

    Args:
        x: Activation, in a shape that ``sampling`` reads.
        sampling: Which columns.
        blocks: Layout of the columns and what the blocks share.
        eps: Added to the diagonals.
        dtype: Precision of the statistics, that of ``x`` if None.
        gram: "single" multiplies columns in ``dtype``; "input" those of a 16-bit ``x`` in its own
            type, less a shift and with float32 sums, if ``dtype`` is float32.  Each entry of the
            covariance is then off by at most 2.5 roundings of that type (2**-8 for bfloat16, 2**-11
            for float16) times the two deviations; gradients are as for "single".

    Returns:
        ``x``, which whoever reads it next must take from here and nobody else: the gradient of the
        statistics is added in place to the one that comes back for it.  Mean (1 or G, D),
        covariance (M, D, D) with divisor S (not S - 1).
    """
    result: tuple[Tensor, Tensor, Tensor] = _Moments.apply(
        x, sampling, blocks, eps, dtype or x.dtype, gram
    )
    return result


def shrink(covariance: Tensor, amount: float) -> Tensor:
    """Pull a covariance (..., D, D) towards ``trace / D`` times the identity; amount in 0..1."""
    variance = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    return (1 - amount) * covariance + amount * variance[..., None, None] * identity
