"""Triton kernels for CUDA: the inverse root of small matrices.

Importing this file imports ``triton``, which comes with PyTorch's CUDA builds for Linux; nothing
else needs it.  The plain PyTorch code of `roots` computes the same and is what the
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

from segdeconv.whitening.roots import MAX_STEPS_IN_SINGLE

LARGEST_ROOT = 64  # a program holds whole matrices in registers


@triton.jit
def _load_scaled(matrix: Any, size: Any, PADDED: tl.constexpr) -> Any:
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
def _factor(m: Any, PADDED: tl.constexpr) -> Any:
    """T = (3I - M) / 2."""
    i = tl.arange(0, PADDED)
    return tl.where(i[:, None] == i[None, :], 1.5, 0.0) - 0.5 * m


@triton.jit
def _root_kernel(
    matrix: Any, root: Any, size: Any, STEPS: tl.constexpr, PADDED: tl.constexpr
) -> None:
    """One program per matrix, which stays in registers from the first step to the last."""
    m, scale, places, inside = _load_scaled(matrix, size, PADDED)
    t = _factor(m, PADDED)
    x = t
    for _ in range(STEPS - 1):
        m = tl.dot(tl.dot(t, m, input_precision="ieee"), t, input_precision="ieee")
        t = _factor(m, PADDED)
        x = tl.dot(x, t, input_precision="ieee")
    tl.store(root + places, x / tl.sqrt(scale), mask=inside)


@triton.jit
def _root_backward_kernel(
    grad: Any, matrix: Any, result: Any, size: Any, STEPS: tl.constexpr, PADDED: tl.constexpr
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
    for _ in range(STEPS - 1):
        s = tl.dot(t, m, input_precision="ieee")
        q = -0.5 * tl.dot(dm, s, input_precision="ieee")
        dm = tl.dot(tl.dot(t, dm, input_precision="ieee"), t, input_precision="ieee")
        dm += q + tl.trans(q)
        m = tl.dot(s, t, input_precision="ieee")
        t = _factor(m, PADDED)
        dx = tl.dot(dx, t, input_precision="ieee")
        dx += -0.5 * tl.dot(x, dm, input_precision="ieee")
        x = tl.dot(x, t, input_precision="ieee")
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
    if size > LARGEST_ROOT or n_iter > MAX_STEPS_IN_SINGLE or covariance.dtype != torch.float32:
        raise ValueError(
            f"the Triton kernel takes float32 matrices of up to {LARGEST_ROOT} columns and up to "
            f"{MAX_STEPS_IN_SINGLE} steps, not {covariance.dtype}, {size} columns, n_iter={n_iter};"
            f' use backend="auto" there'
        )
    _require_gpu(covariance)
    root: Tensor = torch.ops.segdeconv.fused_root(covariance.reshape(-1, size, size), n_iter)
    return root.view(covariance.shape)


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
    if batch:
        kernel[(batch,)](
            *tensors, result, size, STEPS=n_iter, PADDED=padded, num_warps=max(1, padded // 8)
        )
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
