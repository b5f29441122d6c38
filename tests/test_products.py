"""Matrix products by oneDNN where they are large, by torch.bmm elsewhere."""

import pytest
import torch

from segdeconv.whitening import products
from segdeconv.whitening.products import matmul, product

SHAPES = [(2, 3, 4), (144, 1000, 144), (27, 40000, 5), (300, 144, 144), (576, 600, 576)]


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("matrices", [1, 2])
def test_a_product_agrees_with_float64_in_any_layout(shape, turned, matrices):
    rows, inner, columns = shape
    a = random(matrices, inner, rows).mT if turned[0] else random(matrices, rows, inner)
    b = (
        random(matrices, columns, inner, seed=1).mT
        if turned[1]
        else random(matrices, inner, columns)
    )
    exact = a.double() @ b.double()
    torch.testing.assert_close(product(a, b).double(), exact, rtol=1e-5, atol=1e-6 * inner)
    torch.testing.assert_close(
        product(a[:, 1:], b).double(), exact[:, 1:], rtol=1e-5, atol=1e-6 * inner
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_its_gradients_agree_with_those_of_torch(shape):
    rows, inner, columns = shape
    a, b = (
        random(1, rows, inner).requires_grad_(),
        random(1, inner, columns, seed=1).requires_grad_(),
    )
    grad = random(1, rows, columns, seed=2)
    ours = torch.autograd.grad(matmul(a, b), (a, b), grad)
    plain = torch.autograd.grad(torch.bmm(a.double(), b.double()), (a, b), grad.double())
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_only_large_single_matrices_in_float32_on_cpu_go_to_onednn(monkeypatch):
    if products._LINEAR is None or not torch.backends.mkldnn.is_available():
        pytest.skip("this torch was built without oneDNN")
    calls = []
    linear = products._LINEAR
    monkeypatch.setattr(products, "_LINEAR", lambda *given: calls.append(1) or linear(*given))
    large = random(1, 200, 200)
    product(large, large)
    assert len(calls) == 1
    for a in (random(1, 10, 10), random(2, 200, 200), large.double(), large.bfloat16()):
        product(a, a)
    thin = random(1, 20, 20000)
    product(thin.mT.contiguous().mT, thin.mT)
    product(large.to("meta"), large.to("meta"))
    assert len(calls) == 1


def test_a_torch_without_onednn_multiplies_all_the_same(monkeypatch):
    a = random(1, 200, 200)
    expected = product(a, a)
    monkeypatch.setattr(products, "_LINEAR", None)
    torch.testing.assert_close(product(a, a), expected, rtol=1e-5, atol=1e-4)
