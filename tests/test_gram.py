"""Moments of 16-bit columns multiplied in their own type, against float64."""

import copy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from segdeconv.operators.deconv import Deconv2d
from segdeconv.whitening import Blocks, FlatGrid, PatchGrid, inverse_root, sampled_moments, sampling

GRID = PatchGrid((3, 3), (3, 3), (1, 1))
ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-11}
HALVES = pytest.mark.parametrize("dtype", ROUNDING, ids=str)
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def maps(seed=0):
    return random(16, 8, 24, 24, seed=seed)


def dead():
    x = maps().relu()
    x[:, :3] = 0
    return x


INPUTS = {
    "zero mean": maps,
    "behind a ReLU": lambda: maps().relu(),
    "100 deviations from zero": lambda: 100 + maps(),
    "equal channels": lambda: 2 + maps()[:, :1].expand(16, 8, 24, 24),
    "nearly equal channels": lambda: 1 + maps()[:, :1] + 0.02 * maps(1),
    "rank deficient": lambda: torch.einsum("ck,nkhw->nchw", random(8, 2), maps()[:, :2]),
    "dead channels": dead,
    "constant": lambda: torch.full((16, 8, 24, 24), 7.0),
    "huge": lambda: 1e4 * maps().clamp(-4, 4),
    "tiny": lambda: 1e-3 * maps(),
}
LAYOUTS = {
    "one block": Blocks(1, 72),
    "interleaved": Blocks(4, 18, interleaved=True),
    "own means": Blocks(2, 36, share="root"),
    "own roots": Blocks(2, 36, share="none"),
}


def in_16_bits(x, blocks, grid=GRID):
    return sampled_moments(x, grid, blocks, 0.0, torch.float32, "input")[1:]


def exact(x, blocks, grid=GRID):
    return sampled_moments(x.cpu(), grid, blocks, 0.0, torch.float64)[1:]


def worst_error(covariance, expected):
    """In units of the product of the two columns' deviations."""
    deviations = expected.diagonal(dim1=1, dim2=2).sqrt()
    units = deviations[:, :, None] * deviations[:, None, :]
    error = (covariance.cpu().double() - expected).abs()
    assert (error[units == 0] == 0).all()
    return float((error / units)[units > 0].amax()) if units.any() else 0.0


@DEVICES
@HALVES
@pytest.mark.parametrize("blocks", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("kind", INPUTS)
def test_no_entry_is_off_by_more_than_stated(kind, blocks, dtype, device):
    x = INPUTS[kind]().to(device, dtype)
    expected_mean, expected = exact(x, blocks)
    mean, covariance = in_16_bits(x, blocks)
    assert mean.dtype == covariance.dtype == torch.float32
    # |v_i + e_i| with |e_i| <= rounding * |v_i| gives 2 roundings, the shift beside the mean the
    # rest.
    assert worst_error(covariance, expected) < 2.5 * ROUNDING[dtype]
    deviations = expected.diagonal(dim1=1, dim2=2).sqrt()
    off = (mean.cpu().double() - expected_mean).abs()
    assert (off <= ROUNDING[dtype] * deviations + 1e-6 * expected_mean.abs()).all()
    values = torch.linalg.eigvalsh(covariance.double())
    assert (values[:, 0] >= -1e-6 * values[:, -1]).all()


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_without_the_shift_small_variances_drown_in_the_mean(dtype, monkeypatch):
    x, blocks = INPUTS["100 deviations from zero"]().to(dtype), LAYOUTS["own means"]
    zero = torch.zeros(blocks.num_means, blocks.size)
    shifted = worst_error(in_16_bits(x, blocks)[1], exact(x, blocks)[1])
    monkeypatch.setattr(sampling, "near_mean", lambda *_: zero)
    assert worst_error(in_16_bits(x, blocks)[1], exact(x, blocks)[1]) > 20 * shifted


@pytest.mark.parametrize("places", [(11, 11), (8, 8), (5, 64)], ids=str)
def test_the_shift_is_taken_from_all_places_of_an_image(places):
    # Columns as of 64 images, whose value is the place: their mean is that of the places.
    number = places[0] * places[1]
    columns = torch.arange(number).float().repeat(64)[None]
    shift = float(sampling.near_mean(columns, Blocks(1, 1)))
    assert abs(shift - (number - 1) / 2) < number / 16


@HALVES
@pytest.mark.parametrize("grid", [GRID, PatchGrid((3, 3), (1, 1), (1, 1)), FlatGrid(9)], ids=str)
def test_gradients_are_those_of_unrounded_columns(grid, dtype):
    x = INPUTS["behind a ReLU"]().to(dtype)
    blocks = Blocks(1, 8 if isinstance(grid, FlatGrid) else 72)
    weights = random(blocks.size, blocks.size, seed=1), random(blocks.size, seed=2)

    def gradient(x, precision, gram):
        x = x.clone().requires_grad_()
        _, mean, covariance = sampled_moments(x, grid, blocks, 0.0, precision, gram)
        loss = (covariance[0] * weights[0]).sum() + (mean[0] * weights[1]).sum()
        return torch.autograd.grad(1e3 * loss, x)[0]  # clear of the small numbers of float16

    expected = gradient(x.double(), torch.float64, "single")
    usual, actual = (gradient(x, torch.float32, gram) for gram in ("single", "input"))
    assert actual.dtype == dtype
    # Most of the error is the rounding of the gradient itself, which both have.
    assert (actual - expected).norm() < 1.1 * (usual - expected).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_other_inputs_know_no_difference(dtype):
    x, blocks = INPUTS["behind a ReLU"]().to(dtype), LAYOUTS["interleaved"]
    same = sampled_moments(x, GRID, blocks), sampled_moments(x, GRID, blocks, gram="input")
    assert all(torch.equal(a, b) for a, b in zip(*same, strict=True))


# The more steps, the more they amplify what is lost at the low end.
@pytest.mark.parametrize("n_iter, bound", [(5, 1e-3), (15, 2e-2)])
@pytest.mark.parametrize("blocks", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("kind", INPUTS)
def test_roots_of_the_rounded_covariance_stay_near_those_in_float64(kind, blocks, n_iter, bound):
    x, eps = INPUTS[kind]().bfloat16(), 1e-5 * torch.eye(blocks.size)
    expected = inverse_root(exact(x, blocks)[1] + eps, n_iter)
    root = inverse_root(in_16_bits(x, blocks)[1] + eps, n_iter)
    assert float((root - expected).norm() / expected.norm()) < bound


def step(layer, x, dtype=torch.bfloat16):
    x = x.detach().clone().requires_grad_()
    with torch.autocast(x.device.type, dtype):
        y = layer(x)
    y.float().square().mean().backward()
    return y.detach(), x.grad, layer.weight.grad


@DEVICES
@pytest.mark.parametrize("options", [{}, {"share": "none"}, {"preset": "released"}], ids=str)
def test_a_layer_trains_as_with_products_in_float32(options, device):
    torch.manual_seed(0)
    usual = Deconv2d(8, 6, 3, padding=1, block=4, **options).to(device)
    layer = Deconv2d(8, 6, 3, padding=1, block=4, gram="input", **options).to(device)
    layer.load_state_dict(usual.state_dict())
    x = INPUTS["behind a ReLU"]().to(device, torch.bfloat16)
    for actual, expected in zip(step(layer, x), step(usual, x), strict=True):
        assert float((actual - expected).norm() / expected.norm()) < 0.02
    assert layer.running_deconv.dtype == torch.float32
    assert not torch.equal(layer.running_deconv, usual.running_deconv)
    torch.testing.assert_close(layer.running_deconv, usual.running_deconv, rtol=0.01, atol=0.01)


def test_a_compiled_layer_is_one_graph_and_equals_eager():
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = Deconv2d(8, 6, 3, padding=1, gram="input").train()
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    x = INPUTS["behind a ReLU"]().bfloat16()
    for actual, expected in zip(step(compiled, x), step(layer, x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=2e-2, atol=1e-3)


def test_operators_for_a_gpu_take_the_types_and_shapes_they_get():
    with FakeTensorMode():
        x = torch.empty(4, 8, 12, 12, dtype=torch.bfloat16, device="cuda")
        for blocks in LAYOUTS.values():
            _, mean, covariance = sampled_moments(x, GRID, blocks, 1e-5, torch.float32, "input")
            assert covariance.shape == (blocks.num_roots, blocks.size, blocks.size)
            assert mean.dtype == covariance.dtype == torch.float32
            assert mean.device == covariance.device == x.device
