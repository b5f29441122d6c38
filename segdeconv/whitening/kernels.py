"""Triton kernels for CUDA: the inverse root of small matrices, moments of patches without im2col.

Importing this file imports ``triton``, which comes with PyTorch's CUDA builds for Linux; nothing
else needs it.  The plain PyTorch code of `roots` and `sampling` computes the same and is what the
tests compare with.  On the CPU the kernels run in Triton's interpreter, if ``TRITON_INTERPRET=1``
is set before this file is imported.

All are custom operators, so torch.compile sees one node each; they read nothing back, so a CUDA
graph can hold them, and they use no atomics, so equal inputs give equal bits.
"""

# mypy: disable-error-code="import-untyped, untyped-decorator"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from segdeconv.whitening.blocks import Blocks
from segdeconv.whitening.roots import MAX_STEPS_IN_SINGLE
from segdeconv.whitening.sampling import (
    PatchGrid,
    add_moments_gradient,
    centred_columns,
    moments_of_shifted,
)

LARGEST_ROOT = 64  # a program holds whole matrices in registers
TILE = 64  # columns of a tile of the Gram matrix, at most
ROWS = 32  # samples it takes in at a time
BACKWARD_STAGES = 2  # 80 KiB of shared memory; triton's 3 take 113, where some cards have 99
PROGRAMS = 1024  # aimed at; a constant, as the order of the sums must not depend on the device


@triton.jit
def _load_scaled(matrix: tl.tensor, size: tl.tensor, PADDED: tl.constexpr) -> tl.tuple:
    """This program's matrix over its Frobenius norm, that norm, pointer offsets and mask.

    The padding is zero: it changes no norm, and products keep it apart from the matrix.
    """
    i = tl.arange(0, PADDED)
    inside = (i[:, None] < size) & (i[None, :] < size)
    places = tl.program_id(0).to(tl.int64) * size * size + i[:, None] * size + i[None, :]
    m = tl.load(matrix + places, mask=inside, other=0.0)
    largest = tl.maximum(tl.max(tl.max(tl.abs(m), 1), 0), 1.1754944e-38)
    m = m / largest  # so that no square overflows or vanishes
    norm = tl.maximum(tl.sqrt(tl.sum(tl.sum(m * m, 1), 0)), 1.0)
    return m / norm, largest * norm, places, inside


@triton.jit
def _factor(m: tl.tensor, PADDED: tl.constexpr) -> tl.tensor:
    """T = (3I - M) / 2."""
    i = tl.arange(0, PADDED)
    return tl.where(i[:, None] == i[None, :], 1.5, 0.0) - 0.5 * m


@triton.jit
def _root_kernel(
    matrix: tl.tensor,
    root: tl.tensor,
    size: tl.tensor,
    steps: tl.tensor,
    PADDED: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """One program per matrix, which stays in registers from the first step to the last."""
    m, scale, places, inside = _load_scaled(matrix, size, PADDED)
    t = _factor(m, PADDED)
    x = t
    for _ in range(steps - 1):
        m = tl.dot(tl.dot(t, m, input_precision=PRECISION), t, input_precision=PRECISION)
        t = _factor(m, PADDED)
        x = tl.dot(x, t, input_precision=PRECISION)
    tl.store(root + places, x / tl.sqrt(scale), mask=inside)


@triton.jit
def _root_backward_kernel(
    grad: tl.tensor,
    matrix: tl.tensor,
    result: tl.tensor,
    size: tl.tensor,
    steps: tl.tensor,
    PADDED: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Steps and their derivative side by side: nothing is saved, nothing runs backwards.

    The derivative of a polynomial of a symmetric matrix is self-adjoint, so the gradient goes
    through the steps in their own order, as a change of the matrix would: (dM, dX) beside (M, X).
    """
    unit, scale, places, inside = _load_scaled(matrix, size, PADDED)
    g = tl.load(grad + places, mask=inside, other=0.0)
    g = 0.5 * (g + tl.trans(g)) / tl.sqrt(scale)
    m = unit
    t = _factor(m, PADDED)
    x = t
    dm = g
    dx = -0.5 * g
    for _ in range(steps - 1):
        s = tl.dot(t, m, input_precision=PRECISION)
        q = -0.5 * tl.dot(dm, s, input_precision=PRECISION)
        dm = tl.dot(tl.dot(t, dm, input_precision=PRECISION), t, input_precision=PRECISION)
        dm += q + tl.trans(q)
        m = tl.dot(s, t, input_precision=PRECISION)
        t = _factor(m, PADDED)
        dx = tl.dot(dx, t, input_precision=PRECISION)
        dx += -0.5 * tl.dot(x, dm, input_precision=PRECISION)
        x = tl.dot(x, t, input_precision=PRECISION)
    dx = 0.5 * (dx + tl.trans(dx))
    # The path through the Frobenius norm, as in `roots._grad_of_scaled`.
    through = tl.sum(tl.sum(0.5 * g * x + dx * unit, 1), 0)
    tl.store(result + places, (dx - unit * through) / scale, mask=inside)


INTERPRETED = not isinstance(_root_kernel, triton.runtime.JITFunction)


def fused_inverse_root(covariance: Tensor, n_iter: int = 5) -> Tensor:
    """`roots.inverse_root` in one launch, and one more for the backward.

    Args:
        covariance: Symmetric positive semidefinite, (..., D, D), float32, on CUDA, D up to 64.
        n_iter: Newton-Schulz steps, up to 7: more lose too many digits in float32.

    Returns:
        D, same shape.

    Raises:
        ValueError: The matrices or steps are none the kernel is for.
    """
    size = covariance.shape[-1]
    if not fits_fused_root(covariance, n_iter):
        raise ValueError(
            f"the Triton kernel takes float32 matrices of up to {LARGEST_ROOT} columns and up to "
            f"{MAX_STEPS_IN_SINGLE} steps, not {covariance.dtype}, {size} columns, n_iter={n_iter};"
            f' use backend="auto" there'
        )
    _require_gpu(covariance)
    root: Tensor = torch.ops.segdeconv.fused_root(covariance.reshape(-1, size, size), n_iter)
    return root.view(covariance.shape)


def fits_fused_root(covariance: Tensor, n_iter: int) -> bool:
    """Whether `fused_inverse_root` takes such matrices and steps."""
    small = covariance.shape[-1] <= LARGEST_ROOT and n_iter <= MAX_STEPS_IN_SINGLE
    return small and covariance.dtype == torch.float32


def _require_gpu(tensor: Tensor) -> None:
    if tensor.device.type != "cuda" and not INTERPRETED:
        raise ValueError(
            f"the Triton kernels run on CUDA, not on {tensor.device.type}; move the tensor there, "
            f"or set TRITON_INTERPRET=1 before the import to try them without a GPU"
        )


def _launch_root(kernel: Any, *tensors: Tensor, n_iter: int) -> Tensor:
    """One program per matrix of ``tensors``; contiguous (M, D, D) each."""
    result = torch.empty_like(tensors[0])
    batch, size, _ = result.shape
    padded = max(16, triton.next_power_of_2(size))
    # Three TF32 products are as accurate as one of float32 and run on tensor cores.  At 64 columns
    # plain float32 products spill: the compiler reports 7 kB of stack per thread instead of 1.8.
    precision = "tf32x3" if padded == 64 else "ieee"
    if batch:
        warps = 1 if padded == 16 else 4
        kernel[(batch,)](*tensors, result, size, n_iter, padded, precision, num_warps=warps)
    return result


@torch.library.custom_op("segdeconv::fused_root", mutates_args=())
def _fused_root(covariance: Tensor, n_iter: int) -> Tensor:
    return _launch_root(_root_kernel, covariance.contiguous(), n_iter=n_iter)


@torch.library.custom_op("segdeconv::fused_root_backward", mutates_args=())
def _fused_root_backward(grad: Tensor, covariance: Tensor, n_iter: int) -> Tensor:
    tensors = grad.contiguous(), covariance.contiguous()
    return _launch_root(_root_backward_kernel, *tensors, n_iter=n_iter)


@_fused_root.register_fake
def _(covariance: Tensor, n_iter: int) -> Tensor:
    return covariance.new_empty(covariance.shape)


@_fused_root_backward.register_fake
def _(grad: Tensor, covariance: Tensor, n_iter: int) -> Tensor:
    return covariance.new_empty(covariance.shape)


def _save_for_root(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.n_iter = inputs[1]


def _grad_of_root(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (covariance,) = ctx.saved_tensors
    return torch.ops.segdeconv.fused_root_backward(grad, covariance, ctx.n_iter), None


_fused_root.register_autograd(_grad_of_root, setup_context=_save_for_root)


@triton.jit
def _places(
    f: tl.tensor, g: tl.tensor, r: tl.tensor, sizes: tl.tuple, GRID: tl.constexpr
) -> tl.tuple:
    """Where column f of block g meets the map in row r: image, channel, y, x and two masks.

    The first mask: there are such a column and row; the second: not in the padding either.
    """
    height, width, down, across, rows, columns, blocks = sizes
    taps: tl.constexpr = GRID[0] * GRID[1]
    j = f * blocks + g if GRID[8] else g * columns + f
    tap = j % taps
    y = (r // across % down * GRID[2] - GRID[4])[None, :] + (tap // GRID[1] * GRID[6])[:, None]
    x = (r % across * GRID[3] - GRID[5])[None, :] + (tap % GRID[1] * GRID[7])[:, None]
    exists = (f < columns)[:, None] & (r < rows)[None, :]
    inside = exists & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return (r // (across * down))[None, :], (j // taps)[:, None], y, x, exists, inside


@triton.jit
def _pointers(
    map: tl.tensor, strides: tl.tuple, n: tl.tensor, c: tl.tensor, y: tl.tensor, x: tl.tensor
) -> tl.tensor:
    return map + n.to(tl.int64) * strides[0] + c * strides[1] + y * strides[2] + x * strides[3]


@triton.jit
def _load_patches(
    map: tl.tensor,
    shift: tl.tensor,
    f: tl.tensor,
    g: tl.tensor,
    r: tl.tensor,
    strides: tl.tuple,
    sizes: tl.tuple,
    GRID: tl.constexpr,
) -> tl.tensor:
    """Columns f of block g in rows r less the shift, (f, r), as the map's own type can hold them.

    Shifted before rounding: a mean of many deviations would otherwise cost the digits.  Zero where
    there is no such column or row, minus the shift in the padding.
    """
    n, c, y, x, exists, inside = _places(f, g, r, sizes, GRID)
    columns = sizes[5]
    value = tl.load(_pointers(map, strides, n, c, y, x), mask=inside, other=0.0).to(tl.float32)
    value -= tl.load(shift + f, mask=f < columns, other=0.0)[:, None]
    return tl.where(exists, value, 0.0).to(map.dtype.element_ty).to(tl.float32)


@triton.jit
def _gram_kernel(
    map: tl.tensor,
    shift: tl.tensor,
    sums: tl.tensor,
    gram: tl.tensor,
    strides: tl.tuple,
    sizes: tl.tuple,
    means: tl.tensor,
    rows_each: tl.tensor,
    GRID: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """One program per tile on or above the diagonal, block, and share of the rows.

    It reads its columns of its rows straight from the map, ROWS at a time, and keeps its
    tile of the Gram matrix in registers.  The shares are summed afterwards, in their order.
    """
    columns, blocks = sizes[5], sizes[6]
    across = tl.cdiv(columns, TILE)
    i, j = tl.program_id(0) // across, tl.program_id(0) % across
    g, share = tl.program_id(1), tl.program_id(2)
    if i <= j:
        fi, fj = i * TILE + tl.arange(0, TILE), j * TILE + tl.arange(0, TILE)
        product = tl.zeros((TILE, TILE), tl.float32)
        total = tl.zeros((TILE,), tl.float32)
        first = share * rows_each
        shift += g % means * columns
        for start in range(first, first + rows_each, ROWS):
            r = start + tl.arange(0, ROWS)
            u = _load_patches(map, shift, fi, g, r, strides, sizes, GRID)
            v = _load_patches(map, shift, fj, g, r, strides, sizes, GRID)
            product = tl.dot(u, tl.trans(v), product, input_precision=PRECISION)
            total += tl.sum(u, 1)
        block = share.to(tl.int64) * blocks + g
        tile = gram + (block * columns + fi[:, None]) * columns + fj[None, :]
        mirrored = gram + (block * columns + fj[:, None]) * columns + fi[None, :]
        in_i, in_j = fi < columns, fj < columns
        tl.store(tile, product, mask=in_i[:, None] & in_j[None, :])
        if i < j:
            tl.store(mirrored, tl.trans(product), mask=in_j[:, None] & in_i[None, :])
        else:
            tl.store(sums + block * columns + fi, total, mask=in_i)


@triton.jit
def _gram_backward_kernel(
    map: tl.tensor,
    mean: tl.tensor,
    weight: tl.tensor,
    offset: tl.tensor,
    grad: tl.tensor,
    strides: tl.tuple,
    grad_strides: tl.tuple,
    sizes: tl.tuple,
    means: tl.tensor,
    roots: tl.tensor,
    GRID: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """One program per tile of TILE rows and columns f of a block: weight @ (u - mean) + offset.

    Added to ``grad`` at the pixels the columns were read from; no two programs share a pixel, as
    the caller has made sure that patches do not overlap.
    """
    columns = sizes[5]
    r = tl.program_id(0) * TILE + tl.arange(0, TILE)
    f = tl.program_id(1) * TILE + tl.arange(0, TILE)
    g = tl.program_id(2)
    in_f = f < columns
    product = tl.zeros((TILE, TILE), tl.float32)
    product += tl.load(offset + g % means * columns + f, mask=in_f, other=0.0)[:, None]
    mean += g % means * columns
    weight += g % roots * columns * columns
    for start in range(0, columns, TILE):
        k = start + tl.arange(0, TILE)
        u = _load_patches(map, mean, k, g, r, strides, sizes, GRID)
        both = in_f[:, None] & (k < columns)[None, :]
        w = tl.load(weight + f[:, None] * columns + k[None, :], mask=both, other=0.0)
        product = tl.dot(w, u, product, input_precision=PRECISION)
    n, c, y, x, _, inside = _places(f, g, r, sizes, GRID)
    pixels = _pointers(grad, grad_strides, n, c, y, x)
    product += tl.load(pixels, mask=inside, other=0.0).to(tl.float32)
    tl.store(pixels, product.to(grad.dtype.element_ty), mask=inside)


def patch_gram(x: Tensor, grid: PatchGrid, blocks: Blocks, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and second moment of shifted patches, in one pass over the map and without im2col.

    Args:
        x: Activation (N, C, H, W), any strides, float32, bfloat16 or float16, on CUDA.
        grid: Where the patches are.
        blocks: Layout of their columns and what the blocks share.
        shift: Subtracted from the columns before they are rounded to the type of ``x``, (1 or G,
            D), float32; close to the mean, or digits are lost.

    Returns:
        Sum of v (1 or G, D) and of v v^T (M, D, D) over all rows, v = column - shift; float32.

    Raises:
        ValueError: ``x`` is of another type or not on CUDA.
    """
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(
            f"the Triton kernels read float32, bfloat16 or float16, not {x.dtype}; "
            f"use segdeconv.whitening.sampled_moments there"
        )
    _require_gpu(x)
    sums: Tensor
    gram: Tensor
    sums, gram = torch.ops.segdeconv.patch_gram(
        x[:: grid.every], shift, _as_integers(grid, blocks), blocks.num, blocks.num_roots
    )
    return sums, gram


def patch_moments(
    x: Tensor, grid: PatchGrid, blocks: Blocks, eps: float = 0.0, shift: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`sampled_moments` by the kernels: the same arguments, results and rules for ``x``.

    Args:
        x: As in `patch_gram`.
        grid: As there.
        blocks: As there.
        eps: Added to the diagonals.
        shift: As there, without gradient; zero if None.

    Returns:
        ``x`` to read on, mean (1 or G, D) and covariance (M, D, D), both float32.
    """
    if shift is None:
        shift = x.new_zeros(blocks.num_means, blocks.size, dtype=torch.float32)
    result: tuple[Tensor, Tensor, Tensor] = _PatchMoments.apply(x, grid, blocks, eps, shift)
    return result


class _PatchMoments(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, grid: PatchGrid, blocks: Blocks, eps: float, shift: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        sums, gram = patch_gram(x, grid, blocks, shift)
        rows = grid.count(x.shape)
        from_shift, second_moment = sums / blocks.rows_per_mean(rows), gram / blocks.rows(rows)
        mean, covariance = moments_of_shifted(shift, from_shift, second_moment, blocks)
        covariance.diagonal(dim1=-2, dim2=-1).add_(eps)
        ctx.save_for_backward(x, mean)
        ctx.grid, ctx.blocks = grid, blocks
        return x.view_as(x), mean, covariance

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_x: Tensor, grad_mean: Tensor, grad_covariance: Tensor
    ) -> tuple[Tensor, None, None, None, None]:
        x, mean = ctx.saved_tensors
        grid, blocks = ctx.grid, ctx.blocks
        if _apart(grid):
            rows = grid.count(x.shape)
            weight = (grad_covariance + grad_covariance.mT) / blocks.rows(rows)
            offset = grad_mean / blocks.rows_per_mean(rows)
            grad_x = _add_gram_gradient(grad_x, x, mean, weight, offset, grid, blocks)
        else:
            centred = centred_columns(x, mean, grid, blocks)
            grad_x = add_moments_gradient(grad_x, grad_mean, grad_covariance, centred, grid, blocks)
        return grad_x, None, None, None, None


def _add_gram_gradient(
    grad_x: Tensor,
    x: Tensor,
    mean: Tensor,
    weight: Tensor,
    offset: Tensor,
    grid: PatchGrid,
    blocks: Blocks,
) -> Tensor:
    """``grad_x`` plus ``weight @ (column - mean) + offset`` where columns were read, in place."""
    if 0 in grad_x.stride():
        grad_x = grad_x.contiguous()
    read, integers = slice(None, None, grid.every), _as_integers(grid, blocks)
    torch.ops.segdeconv.patch_gram_backward(
        grad_x[read], x[read], mean, weight, offset, integers, blocks.num
    )
    return grad_x


def _apart(grid: PatchGrid) -> bool:
    """Whether no pixel belongs to two patches."""
    return all(
        tap * grid.dilation[axis] % grid.step[axis]
        for axis in (0, 1)
        for tap in range(1, grid.kernel_size[axis])
    )


def _as_integers(grid: PatchGrid, blocks: Blocks) -> list[int]:
    """What operators and kernels are told: GRID in the kernels above."""
    pairs = grid.kernel_size, grid.step, grid.padding, grid.dilation
    return [*(number for pair in pairs for number in pair), int(blocks.interleaved)]


def _sizes(x: Tensor, integers: list[int], columns: int, num: int) -> tuple[int, ...]:
    """Height, width, patches down and across, rows, columns of a block, blocks."""
    kernel_size, step, padding, dilation = ((integers[i], integers[i + 1]) for i in (0, 2, 4, 6))
    down, across = PatchGrid(kernel_size, step, padding, dilation).places(x.shape)
    return (*x.shape[2:], down, across, x.shape[0] * down * across, columns, num)


def _tiling(x: Tensor, columns: int) -> dict[str, Any]:
    """Sides of tiles, warps, and products that lose nothing.

    16-bit numbers fit into TF32; float32 ones take three TF32 products.
    """
    tile = min(TILE, max(16, triton.next_power_of_2(columns)))
    precision = "tf32x3" if x.dtype == torch.float32 else "tf32"
    return {"TILE": tile, "PRECISION": precision, "num_warps": tile // 8}


@torch.library.custom_op("segdeconv::patch_gram", mutates_args=())
def _patch_gram(
    x: Tensor, shift: Tensor, grid: list[int], num: int, roots: int
) -> tuple[Tensor, Tensor]:
    means, columns = shift.shape
    sizes, tiling = _sizes(x, grid, columns, num), _tiling(x, columns)
    tile, rows = tiling["TILE"], sizes[4]
    across = triton.cdiv(columns, tile)
    shares = triton.cdiv(PROGRAMS, num * across * (across + 1) // 2)
    shares = max(1, min(shares, rows // (8 * ROWS)))
    rows_each = triton.cdiv(triton.cdiv(rows, shares), ROWS) * ROWS
    sums = shift.new_empty(shares, num, columns)
    gram = shift.new_empty(shares, num, columns, columns)
    _gram_kernel[(across * across, num, shares)](
        x,
        shift.contiguous(),
        sums,
        gram,
        x.stride(),
        sizes,
        means,
        rows_each,
        tuple(grid),
        ROWS=ROWS,
        **tiling,
    )
    return (
        sums.view(-1, means, columns).sum(0),
        gram.view(-1, roots, columns, columns).sum(0),
    )


@_patch_gram.register_fake
def _(x: Tensor, shift: Tensor, grid: list[int], num: int, roots: int) -> tuple[Tensor, Tensor]:
    columns = shift.shape[1]
    return shift.new_empty(shift.shape), shift.new_empty(roots, columns, columns)


@torch.library.custom_op("segdeconv::patch_gram_backward", mutates_args=("grad_x",))
def _patch_gram_backward(
    grad_x: Tensor,
    x: Tensor,
    mean: Tensor,
    weight: Tensor,
    offset: Tensor,
    grid: list[int],
    num: int,
) -> None:
    means, columns = mean.shape
    sizes, tiling = _sizes(x, grid, columns, num), _tiling(x, columns)
    tile, rows = tiling["TILE"], sizes[4]
    _gram_backward_kernel[(triton.cdiv(rows, tile), triton.cdiv(columns, tile), num)](
        x,
        mean.contiguous(),
        weight.contiguous(),
        offset.contiguous(),
        grad_x,
        x.stride(),
        grad_x.stride(),
        sizes,
        means,
        len(weight),
        tuple(grid),
        num_stages=BACKWARD_STAGES,
        **tiling,
    )


@_patch_gram_backward.register_fake
def _(
    grad_x: Tensor,
    x: Tensor,
    mean: Tensor,
    weight: Tensor,
    offset: Tensor,
    grid: list[int],
    num: int,
) -> None:
    return None
