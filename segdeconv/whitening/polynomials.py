"""Polynomials fitted to the gain of the Newton-Schulz steps: nearly the same curve, fewer products.

The steps are a composition of polynomials in the covariance, and so is

    M = B, X = I;    for each stage T = q(M), X <- X T, M <- T M T

with q(M) = c0 I + c1 M + c2 M^2 + c3 M^3, whose coefficients are fitted so that s -> s X(s^2)
follows that of ``n_iter`` steps for all s in 0..1: the truncated curve, not its limit 1/s.  Same
shape as in Muon's and Polar Express's iterations, which fit the limit.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from segdeconv.registry import Registry

Stages = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Polynomial:
    """A fit to the gain of some number of steps.

    Attributes:
        stages: Coefficients (c0, c1, ...) of each stage, first stage first.  Two of them make a
            cubic stage (letter c), three a quintic (q), four a septic (h).
        products: Matrix products of the forward and of the backward pass.
        error: Largest difference of the standard deviation after whitening, over all standard
            deviations before it.
        gradient_error: Largest relative difference (Frobenius norm) of the gradient by the
            covariance, measured on spectra from flat to 1/i^2 of 64 to 576 values.  A uniform fit
            oscillates about its target, so slopes differ more than values.
    """

    stages: Stages
    products: tuple[int, int]
    error: float
    gradient_error: float


# n_iter -> its fits.  5 trimmed Newton-Schulz steps take 12 + 20 products.  ccq and cccc are here
# for comparison: qh does better than the one, hh nearly as well as the other in fewer products.
POLYNOMIALS: dict[int, Registry[Polynomial]] = {
    5: Registry(
        "polynomial",
        qqc=Polynomial(
            (
                (1.7764312877330686, -2.605959211835071, 1.446520752976532),
                (1.7712520034610912, -2.8299170798270166, 2.232609168312961),
                (2.4123831084068663, -2.0796945452925244),
            ),
            products=(8, 12),
            error=9.9e-5,
            gradient_error=5e-3,
        ),
        hh=Polynomial(
            (
                (2.9198286335171004, -8.964358991949407, 14.663339043923214, -7.891664649974015),
                (2.5980789424341624, -3.624672599982127, 2.990438024379914, -0.9654016851333934),
            ),
            products=(7, 11),
            error=2.6e-4,
            gradient_error=1.1e-2,
        ),
        qh=Polynomial(
            (
                (3.453711656578832, -5.595989076708521, 3.2767189167729867),
                (2.1804155975986736, -2.277600165723405, 1.4920735699557084, -0.3945285137425232),
            ),
            products=(6, 9),
            error=2.3e-3,
            gradient_error=7.6e-2,
        ),
        qq=Polynomial(
            (
                (3.285104509802202, -6.018216610987085, 3.7404848550030376),
                (2.233028113844008, -2.1401432619565335, 0.9147580298300836),
            ),
            products=(5, 7),
            error=1.1e-2,
            gradient_error=2.3e-1,
        ),
        ccq=Polynomial(
            (
                (3.075434111801296, -2.156387921085054),
                (1.3740041855033984, -0.33170152278769904),
                (1.7794096732688927, -1.1028346863703606, 0.3202780255423313),
            ),
            products=(7, 11),
            error=2.8e-3,
            gradient_error=7.9e-2,
        ),
        cccc=Polynomial(
            (
                (1.6717093412418145, -1.0981860470775464),
                (1.3417961287949247, -0.9486221471124328),
                (1.8465958209303686, -1.4047321090086684),
                (1.8315599770997804, -0.9093542495919887),
            ),
            products=(9, 15),
            error=2.5e-4,
            gradient_error=9.7e-3,
        ),
    )
}


def fitted_polynomial(n_iter: int, backend: str) -> Polynomial:
    """The fit that a backend stands for: "fitted" the closest one, "fitted_qq" the one named so.

    Raises:
        ValueError: No fit for ``n_iter`` is known.
    """
    if n_iter not in POLYNOMIALS:
        known = ", ".join(map(str, POLYNOMIALS))
        raise ValueError(
            f"backend {backend!r} has no polynomial for n_iter={n_iter}, only for n_iter={known}; "
            f'use backend="auto" there'
        )
    fits = POLYNOMIALS[n_iter]
    if backend == "fitted":
        return min((fits[name] for name in fits), key=lambda fit: fit.error)
    return fits[backend.removeprefix("fitted_")]


# What the derivative of one stage needs: M, M^2 (septic stages only), T, the X before it (None in
# the first stage, where it is the identity), S = T M (None in the last stage, which makes no M).
Saved = tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor | None]


def evaluate(unit: Tensor, stages: Stages) -> tuple[Tensor, list[Saved]]:
    """The polynomial of symmetric matrices (M, D, D) with eigenvalues in 0..1.

    Returns:
        X after the last stage, and per stage what `derivative` needs.
    """
    m: Tensor = unit
    x: Tensor | None = None
    saved: list[Saved] = []
    for number, coefficients in enumerate(stages, 1):
        t, square = _factor(m, coefficients)
        s = torch.bmm(t, m) if number < len(stages) else None
        saved.append((m, square, t, x, s))
        x = t if x is None else torch.bmm(x, t)
        if s is not None:
            m = torch.bmm(s, t)
    assert x is not None
    return x, saved


def derivative(direction: Tensor, saved: list[Saved], stages: Stages) -> Tensor:
    """Frechet derivative of the polynomial in a symmetric direction (M, D, D).

    It is self-adjoint because the matrix is symmetric: it maps gradients back as it maps changes
    forward, so nothing is run backwards.
    """
    grad_m, grad_x = direction, direction
    for coefficients, (m, square, t, x, s) in zip(stages, saved, strict=True):
        grad_t = _factor_derivative(grad_m, m, square, coefficients)
        grad_x = grad_t if x is None else torch.baddbmm(torch.bmm(grad_x, t), x, grad_t)
        if s is not None:
            q = torch.bmm(grad_t, s)
            grad_m = torch.bmm(torch.bmm(t, grad_m), t) + q + q.mT
    return 0.5 * (grad_x + grad_x.mT)


def _factor(m: Tensor, coefficients: tuple[float, ...]) -> tuple[Tensor, Tensor | None]:
    """T = q(M), and M^2 where it was formed: none, one, two products."""
    square = None
    if len(coefficients) == 2:
        t = coefficients[1] * m
    elif len(coefficients) == 3:
        t = torch.baddbmm(m, m, m, beta=coefficients[1], alpha=coefficients[2])
    else:
        square = torch.bmm(m, m)
        t = torch.baddbmm(m, m, square, beta=coefficients[1], alpha=coefficients[3])
        t.add_(square, alpha=coefficients[2])
    t.diagonal(dim1=-2, dim2=-1).add_(coefficients[0])
    return t, square


def _factor_derivative(
    grad_m: Tensor, m: Tensor, square: Tensor | None, coefficients: tuple[float, ...]
) -> Tensor:
    """Change of T = q(M) with M: none, one, three products."""
    grad_t = coefficients[1] * grad_m
    if len(coefficients) == 2:
        return grad_t
    product = torch.bmm(grad_m, m)
    grad_square = product + product.mT
    grad_t = grad_t.add_(grad_square, alpha=coefficients[2])
    if square is None:
        return grad_t
    by_square = torch.bmm(grad_square, m).baddbmm_(square, grad_m)
    return grad_t.add_(by_square, alpha=coefficients[3])
