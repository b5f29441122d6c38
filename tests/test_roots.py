"""Every backend of the inverse root against a float64 oracle, over spectra that occur and worse."""

from itertools import pairwise

import pytest
import torch

from segdeconv.whitening import BACKENDS, POLYNOMIALS, inverse_root
from segdeconv.whitening.polynomials import evaluate

EXACT = ["newton_schulz", "eigh"]
FITS = {f"fitted_{name}": POLYNOMIALS[5][name] for name in POLYNOMIALS[5]}
STEPS = ((1.5, -0.5),)  # one Newton-Schulz step as a stage
SIZE = 48


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def spectra(size=SIZE):
    i = torch.arange(1, size + 1, dtype=torch.float64)
    return {
        "1/i": 1 / i,
        "1/i^1.5": i**-1.5,
        "1/i^2": i**-2,
        "flat": torch.ones_like(i),
        "rank deficient": torch.where(i > size // 3, 0.0, 1 / i),
        "one direction": torch.where(i > 1, 0.0, 1.0),
        "dead": torch.full_like(i, 1e-5),
        "below zero by rounding": torch.where(i > size // 2, -1e-7, 1 / i),
    }


SPECTRA = list(spectra())
HARMLESS = [name for name in SPECTRA if name != "below zero by rounding"]


def matrix_with(spectrum):
    basis = torch.linalg.qr(random(len(spectrum), len(spectrum))).Q
    matrix = (basis * spectrum) @ basis.T
    return 0.5 * (matrix + matrix.T)


def literal(matrix, stages):
    """Stage after stage with matrix powers and nothing left out, on autograd's tape."""
    scale = torch.linalg.matrix_norm(matrix)
    identity = torch.eye(len(matrix), dtype=matrix.dtype)
    m, x = matrix / scale, identity
    for coefficients in stages:
        t = sum(c * torch.linalg.matrix_power(m, k) for k, c in enumerate(coefficients))
        x, m = x @ t, t @ m @ t
    return x / scale.sqrt()


def with_gradient(root, matrix):
    """The root and the symmetric gradient of a random weighting of it."""
    matrix = matrix.clone().requires_grad_()
    result = root(matrix)
    weights = random(*matrix.shape, seed=1).to(matrix.dtype)
    (grad,) = torch.autograd.grad((result * weights).sum(), matrix)
    return result.detach(), 0.5 * (grad + grad.mT)


def difference(actual, expected):
    """Relative, in the Frobenius norm."""
    return float((actual.double() - expected).norm() / expected.norm())


def backend(name, n_iter=5):
    return lambda matrix: inverse_root(matrix, n_iter, name)


@pytest.mark.parametrize("n_iter", [1, 5, 15])
@pytest.mark.parametrize("spectrum", HARMLESS)
@pytest.mark.parametrize("name", EXACT)
def test_exact_roots_and_gradients_equal_the_unrolled_iteration(name, spectrum, n_iter):
    matrix = matrix_with(spectra()[spectrum])
    root, grad = with_gradient(backend(name, n_iter), matrix)
    expected, expected_grad = with_gradient(lambda a: literal(a, STEPS * n_iter), matrix)
    assert difference(root, expected) < 1e-11
    assert difference(grad, expected_grad) < 1e-8


# 15 steps multiply an error of 1e-7 at the low end by 2.25**15.  The decomposition, which takes
# eigenvalues below zero for zero, then differs from the steps by 4e-3, else by 1e-4 at most.
@pytest.mark.parametrize("n_iter, bound", [(5, 1e-5), (15, 1e-2)])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("name", EXACT)
def test_exact_roots_and_gradients_in_float32_stay_close_to_float64(name, spectrum, n_iter, bound):
    matrix = matrix_with(spectra()[spectrum]).float()
    root, grad = with_gradient(backend(name, n_iter), matrix)
    expected, expected_grad = with_gradient(lambda a: literal(a, STEPS * n_iter), matrix.double())
    assert difference(root, expected) < bound
    assert difference(grad, expected_grad) < 10 * bound


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_a_fit_follows_the_curve_of_the_steps_within_its_stated_error(fit):
    small = torch.logspace(-9, 0, 5001, dtype=torch.float64)
    deviations = torch.cat([torch.linspace(0, 1, 40001, dtype=torch.float64), small])
    values = deviations.square()[:, None, None]
    gain = evaluate(values, fit.stages)[0].flatten()
    steps = evaluate(values, STEPS * 5)[0].flatten()
    error = float((deviations * (gain - steps)).abs().max())
    assert 0.9 * fit.error < error <= fit.error


@pytest.mark.parametrize("spectrum", ["1/i", "1/i^1.5", "1/i^2", "flat", "rank deficient"])
@pytest.mark.parametrize("name", FITS)
def test_gradients_of_a_fit_differ_from_the_exact_ones_by_no_more_than_stated(name, spectrum):
    matrix = matrix_with(spectra(96)[spectrum])
    grad = with_gradient(backend(name), matrix)[1]
    exact = with_gradient(lambda a: literal(a, STEPS * 5), matrix)[1]
    assert difference(grad, exact) <= FITS[name].gradient_error


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("name", FITS)
def test_roots_and_gradients_of_a_fit_are_those_of_its_polynomial(name, spectrum):
    matrix = matrix_with(spectra()[spectrum])
    root, grad = with_gradient(backend(name), matrix)
    expected, expected_grad = with_gradient(lambda a: literal(a, FITS[name].stages), matrix)
    assert difference(root, expected) < 1e-10
    assert difference(grad, expected_grad) < 1e-10
    root, grad = with_gradient(backend(name), matrix.float())
    assert difference(root, expected) < 1e-5
    assert difference(grad, expected_grad) < 1e-4


@pytest.mark.parametrize("name", FITS)
def test_gradient_of_a_fit_agrees_with_finite_differences(name):
    def root(factor):
        return inverse_root(factor @ factor.mT + 0.1 * torch.eye(5), 5, name)

    assert torch.autograd.gradcheck(root, random(2, 5, 5).requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("name", FITS)
def test_a_batch_of_fitted_roots_equals_the_roots_one_by_one(name):
    matrices = torch.stack([matrix_with(values) for values in spectra(9).values()])
    together = inverse_root(matrices.view(2, 4, 9, 9), 5, name).view(8, 9, 9)
    alone = torch.stack([inverse_root(matrix, 5, name) for matrix in matrices])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("name", [*EXACT, *FITS])
def test_a_root_scales_as_its_matrix_does_over_the_whole_range_of_float32(name, spectrum, scale):
    values = spectra(24)[spectrum]
    if spectrum == "dead":
        values = values / 1e-5  # 1e-35 would be below the normal numbers of float32
    matrix = matrix_with(values)
    root = inverse_root((scale * matrix).float(), 5, name)
    assert difference(root.double() * scale**0.5, inverse_root(matrix, 5, name)) < 1e-5


@pytest.mark.parametrize("name", [*EXACT, *FITS])
def test_the_root_of_nothing_and_of_a_single_number_is_finite(name):
    assert inverse_root(torch.zeros(7, 7), 5, name).isfinite().all()
    number = torch.full((3, 1, 1), 4.0)
    torch.testing.assert_close(
        inverse_root(number, 5, name), torch.full((3, 1, 1), 0.5), rtol=2e-2, atol=0
    )


@pytest.mark.parametrize("name", ["newton_schulz", "fitted_qqc", "fitted_hh"])
def test_a_compiled_root_is_one_graph_and_equals_eager(name):
    matrix = matrix_with(spectra(6)["1/i"])[None].expand(2, 6, 6).contiguous()
    compiled = torch.compile(backend(name), fullgraph=True, backend="aot_eager")
    for actual, expected in zip(
        with_gradient(compiled, matrix), with_gradient(backend(name), matrix), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_fewer_products_cost_accuracy_among_the_fits_worth_having():
    kept = sorted(
        (sum(fit.products), fit.error)
        for name, fit in FITS.items()
        if name in ("fitted_qqc", "fitted_hh", "fitted_qh", "fitted_qq")
    )
    assert all(more[1] < fewer[1] for fewer, more in pairwise(kept))


def test_fitted_is_the_closest_fit_and_each_fit_is_a_backend():
    assert set(FITS) <= set(BACKENDS)
    matrix = matrix_with(spectra(9)["1/i"])
    assert torch.equal(inverse_root(matrix, 5, "fitted"), inverse_root(matrix, 5, "fitted_qqc"))


def test_a_backend_that_does_not_exist_is_one_sentence():
    with pytest.raises(
        ValueError, match=r"unknown backend 'svd'; known: auto, newton_schulz, eigh,"
    ):
        inverse_root(torch.eye(4), 5, "svd")


def test_steps_without_a_fit_are_one_sentence():
    with pytest.raises(ValueError, match=r"'fitted' has no polynomial for n_iter=15, only for"):
        inverse_root(torch.eye(4), 15, "fitted")
