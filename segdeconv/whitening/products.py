"""Matrix products by the faster of the libraries at hand."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# On processors oneDNN multiplies float32 matrices too, and on AMD's, for which MKL has no AVX-512,
# twice as fast: 100 against 47 billion multiplications a second on one core of an EPYC.  The
# operator is the one that torch.compile lowers linear layers to.
_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
LEAST_WORK, LEAST_SIDE = 4 * 10**6, 33
"""From so many multiplications it is worth the 15 microseconds that a call takes more (10**6 for
16 x 16 results take 28 us either way); for a left matrix that lies column by column, which it turns
first, from results of so many rows and columns (16 x 40000 x 16: 680 against 320 us)."""


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of (M, R, K) and (M, K, C); outside of autograd, see `matmul`."""
    if _onednn_serves(a, b):
        (left,), (right,) = a, b
        return cast(Any, _LINEAR)(left, right.mT, None, "none", [], "")[None]  # type: ignore[no-any-return]
    return torch.bmm(a, b)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of (M, R, K) and (M, K, C), with a gradient: where oneDNN serves, a first one."""
    if not _onednn_serves(a, b):
        return torch.bmm(a, b)
    result: Tensor = _Product.apply(a, b)
    return result


def product_in_single(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of (M, R, K) and (M, K, C) in 16 bits, with float32 sums and result.

    Elsewhere than on CUDA `torch.bmm` gives no more digits than it is given, so the same numbers
    are multiplied in float32.  Outside of autograd.
    """
    if a.device.type == "cuda":
        return torch.bmm(a, b, out_dtype=torch.float32)
    return product(a.float(), b.float())


def _onednn_serves(a: Tensor, b: Tensor) -> bool:
    rows, columns = a.shape[1], b.shape[2]
    return (
        len(a) == 1
        and a.device.type == "cpu"
        and a.dtype == torch.float32
        and a.numel() * columns >= LEAST_WORK
        and (a.stride(2) == 1 or min(rows, columns) >= LEAST_SIDE)
        and not torch.compiler.is_compiling()
        and _LINEAR is not None
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return product(a, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        needs_a, needs_b = ctx.needs_input_grad
        grad_a = product(grad, b.mT) if needs_a else None
        return grad_a, product(a.mT, grad) if needs_b else None
