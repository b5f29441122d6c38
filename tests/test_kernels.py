"""The Triton kernels against the PyTorch code in float64.

On a GPU these tests run compiled (``pytest -m gpu``).  `test_kernels_interpreted.py` runs this file
on the CPU, in Triton's interpreter, which has to be chosen before triton is first imported.
"""

import os

import pytest
import torch

pytest.importorskip("triton", reason="triton has no build for this system")

from segdeconv.whitening import inverse_root

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [] if INTERPRETED else pytest.mark.gpu


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def relative(actual, expected):
    return float((actual.detach().double().cpu() - expected.detach()).norm() / expected.norm())


def covariances(size, batch=3):
    """With the spectrum 1/i^2."""
    basis = torch.linalg.qr(random(batch, size, size)).Q
    matrices = (basis / torch.arange(1, size + 1).square()) @ basis.mT
    return 0.5 * (matrices + matrices.mT)


@pytest.mark.parametrize("n_iter", [1, 2, 5, 7])
@pytest.mark.parametrize("size", [1, 9, 16, 27, 36, 64])
def test_the_fused_root_and_its_gradient_equal_the_products(size, n_iter):
    matrices, weights = covariances(size).requires_grad_(), random(3, size, size, seed=1)
    expected = inverse_root(matrices, n_iter, "newton_schulz")
    (expected_grad,) = torch.autograd.grad((expected * weights).sum(), matrices)
    matrices = matrices.detach().float().to(DEVICE).requires_grad_()
    root = inverse_root(matrices, n_iter, "triton")
    (grad,) = torch.autograd.grad((root * weights.float().to(DEVICE)).sum(), matrices)
    assert relative(root, expected) < 2e-6
    assert relative(grad, expected_grad) < 1e-5


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_the_fused_root_of_extreme_matrices_is_finite_and_scales_with_them(scale):
    matrices = covariances(12)
    root = inverse_root((scale * matrices).float().to(DEVICE), 5, "triton")
    assert root.isfinite().all()
    if scale:
        assert relative(root * scale**0.5, inverse_root(matrices, 5, "newton_schulz")) < 1e-5


def test_the_fused_root_takes_single_empty_and_strided_matrices():
    matrices = covariances(5, 4).float().to(DEVICE)
    together = inverse_root(matrices, 5, "triton")
    torch.testing.assert_close(inverse_root(matrices[2], 5, "triton"), together[2])
    torch.testing.assert_close(inverse_root(matrices[::2].mT, 5, "triton"), together[::2])
    assert inverse_root(matrices[:0], 5, "triton").shape == (0, 5, 5)


def test_a_compiled_fused_root_is_one_graph_and_equals_eager():
    def loss(matrices):
        return inverse_root(2 * matrices, 5, "triton").sin().sum()

    matrices = covariances(9).float().to(DEVICE).requires_grad_()
    compiled = torch.compile(
        loss, fullgraph=True, backend="aot_eager" if INTERPRETED else "inductor"
    )
    actual, expected = (torch.autograd.grad(f(matrices), matrices)[0] for f in (compiled, loss))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size, n_iter, dtype", [(65, 5, "float32"), (9, 15, "float32")])
def test_matrices_the_kernel_is_not_for_are_one_sentence(size, n_iter, dtype):
    with pytest.raises(
        ValueError, match=rf"float32 matrices of up to 64 .*{size} columns, n_iter="
    ):
        inverse_root(torch.eye(size, device=DEVICE, dtype=getattr(torch, dtype)), n_iter, "triton")
