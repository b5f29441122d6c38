"""Matrix products by the faster of the libraries at hand."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# On processors oneDNN multiplies float32 matrices too, and on AMD's, for which MKL has no AVX-512,
# twice as fast: 100 against 47 billion multiplications a second on one core of an EPYC.  A call
# takes 15 microseconds more.  The operator is the one that torch.compile lowers linear layers to.
_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
LEAST_WORK = 10**6
"""Multiplications in a product from which it is worth that: 8 x 10**5 take 20 against 23 us."""


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


def _onednn_serves(a: Tensor, b: Tensor) -> bool:
    return (
        len(a) == 1
        and a.device.type == "cpu"
        and a.dtype == torch.float32
        and a[0].numel() * b.shape[-1] >= LEAST_WORK
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
