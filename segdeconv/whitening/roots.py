"""The truncated inverse square root and its gradient.

Source: Ye et al. 2020, Algorithm 1.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from segdeconv.whitening.polynomials import Stages, derivative, evaluate, fitted_polynomial
from segdeconv.whitening.products import product

Backend = Literal[
    "auto",
    "newton_schulz",
    "eigh",
    "triton",
    "fitted",
    "fitted_qqc",
    "fitted_hh",
    "fitted_qh",
    "fitted_qq",
    "fitted_ccq",
    "fitted_cccc",
]
BACKENDS: tuple[Backend, ...] = get_args(Backend)

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


def inverse_root(covariance: Tensor, n_iter: int = 5, backend: Backend = "auto") -> Tensor:
    """Truncated inverse square root: ``n_iter`` Newton-Schulz steps on the Frobenius-scaled matrix.

    Args:
        covariance: Symmetric positive semidefinite, (..., D, D), float32 or float64, finite.
        n_iter: Newton-Schulz steps; the released code uses 5, and 15 in the first layer.
        backend: "newton_schulz" iterates; "eigh" applies the same scalar function to eigenvalues;
            "triton" iterates in one CUDA kernel where the matrices fit it (float32, D up to 64, few
            steps), and else is "newton_schulz"; "auto" takes the faster of the first two for the
            device and size.  These agree to rounding.
            "fitted" is the closest polynomial with fewer products, off by 1e-4 in the standard
            deviation after whitening and by up to 5e-3 in the gradient; "fitted_qq" and the like
            name one, see `POLYNOMIALS` for the error of each.

    Returns:
        D, same shape and precision.

    Raises:
        ValueError: The backend is unknown, or has no polynomial for ``n_iter``, or it is "triton"
            and there is no triton or no GPU.

    Source: Ye et al. 2020, Algorithm 1.  Backward: the Frechet derivative in product form, and for
    "eigh" divided differences (Daleckii-Krein), neither of which assumes convergence.
    """
    if covariance.dim() != 3:
        matrices = covariance.reshape(-1, *covariance.shape[-2:])
        return inverse_root(matrices, n_iter, backend).view(covariance.shape)
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
    if backend == "auto":
        backend = _fastest_backend(covariance, n_iter)
    if backend == "triton":
        return _triton_root(covariance, n_iter)
    if backend.startswith("fitted"):
        stages = fitted_polynomial(n_iter, backend).stages
        fitted: Tensor = _PolynomialRoot.apply(covariance, stages)
        return fitted
    dtype = covariance.dtype
    if n_iter > MAX_STEPS_IN_SINGLE and covariance.device.type != "mps":
        covariance = covariance.double()
    function = _EighRoot if backend == "eigh" else _NewtonSchulzRoot
    root: Tensor = function.apply(covariance, n_iter)
    return root.to(dtype)


def _triton_root(covariance: Tensor, n_iter: int) -> Tensor:
    try:
        from segdeconv.whitening.kernels import fits_fused_root, fused_inverse_root
    except ModuleNotFoundError as error:
        raise ValueError(
            "backend 'triton' needs the package triton, which PyTorch for CUDA on Linux brings; "
            'use backend="auto" here'
        ) from error
    if not fits_fused_root(covariance, n_iter):
        return inverse_root(covariance, n_iter, "newton_schulz")
    return fused_inverse_root(covariance, n_iter)


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


class _PolynomialRoot(torch.autograd.Function):
    """A fitted polynomial in place of the steps."""

    @staticmethod
    def forward(ctx: Any, covariance: Tensor, stages: Stages) -> Tensor:
        scale = frobenius_norm(covariance)
        x, saved = evaluate(covariance / scale, stages)
        ctx.stages = stages
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(scale, x, *(tensor for stage in saved for tensor in stage))
        return x * scale.rsqrt()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        scale, result, *tensors = ctx.saved_tensors
        saved = [tuple(tensors[i : i + 5]) for i in range(0, len(tensors), 5)]
        grad = 0.5 * scale.rsqrt() * (grad + grad.mT)
        inner = (grad * result).sum((-2, -1), keepdim=True)
        grad_B = derivative(grad, saved, ctx.stages)
        return _grad_of_scaled(grad_B, scale, tensors[0], inner), None


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
        return product(vectors * gain[..., None, :], vectors.mT) * scale.rsqrt()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        unit, scale, values, vectors, gain = ctx.saved_tensors
        grad = 0.5 * scale.rsqrt() * (grad + grad.mT)
        in_basis = product(product(vectors.mT, grad), vectors)
        inner = (in_basis.diagonal(dim1=-2, dim2=-1) * gain).sum(-1)[..., None, None]
        weighted = in_basis * divided_differences(values, ctx.n_iter)
        grad_B = product(product(vectors, weighted), vectors.mT)
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
