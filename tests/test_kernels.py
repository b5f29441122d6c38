"""The Triton kernels against the PyTorch code in float64.

On a GPU these tests run compiled (``pytest -m gpu``).  `test_kernels_interpreted.py` runs this file
on the CPU, in Triton's interpreter, which has to be chosen before triton is first imported.
"""

import os

import pytest
import torch

pytest.importorskip("triton", reason="triton has no build for this system")

from segdeconv.whitening import Blocks, PatchGrid, inverse_root, sampled_moments

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [] if INTERPRETED else pytest.mark.gpu


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def relative(actual, expected):
    return float(
        (actual.detach().double().cpu() - expected.detach()).norm() / expected.detach().norm()
    )


def spectra(size):
    i = torch.arange(1, size + 1, dtype=torch.float64)
    return {
        "1/i^2": i**-2,
        "flat": torch.ones_like(i),
        "rank deficient": torch.where(i > size // 3, 0.0, 1 / i),
        "one direction": torch.where(i > 1, 0.0, 1.0),
        "dead": torch.full_like(i, 1e-5),
        "below zero by rounding": torch.where(i > size // 2, -1e-7, 1 / i),
    }


def covariances(size, batch=3, spectrum="1/i^2"):
    basis = torch.linalg.qr(random(batch, size, size)).Q
    matrices = (basis * spectra(size)[spectrum]) @ basis.mT
    return 0.5 * (matrices + matrices.mT)


@pytest.mark.parametrize(
    "size, n_iter, spectrum",
    [(size, n_iter, "1/i^2") for size in (1, 9, 16, 27, 64) for n_iter in (1, 2, 5)]
    + [(27, 5, spectrum) for spectrum in spectra(27)],
)
def test_the_fused_root_and_its_gradient_equal_the_products(size, n_iter, spectrum):
    matrices = covariances(size, spectrum=spectrum).requires_grad_()
    weights = random(3, size, size, seed=1)
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


UNFIT = [(65, 5, "float32"), (9, 15, "float32"), (9, 5, "float64")]


@pytest.mark.parametrize("size, n_iter, dtype", UNFIT)
def test_matrices_the_kernel_is_not_for_take_the_products(size, n_iter, dtype):
    from segdeconv.whitening.kernels import fused_inverse_root

    matrices = covariances(size).to(DEVICE, getattr(torch, dtype))
    root = inverse_root(matrices, n_iter, "triton")
    assert torch.equal(root, inverse_root(matrices, n_iter, "newton_schulz"))
    with pytest.raises(
        ValueError, match=rf"float32 matrices of up to 64 .*{size} columns, n_iter="
    ):
        fused_inverse_root(matrices, n_iter)


GRIDS = {
    "padded": PatchGrid((3, 3), (3, 3), (1, 1)),
    "every pixel": PatchGrid((3, 2), (1, 1), (1, 1)),
    "dilated": PatchGrid((3, 2), (3, 2), (2, 1), (2, 3)),
    "meeting in one axis": PatchGrid((3, 3), (3, 2), (3, 1), (1, 2)),
    "padding beyond the taps": PatchGrid((2, 2), (5, 4), (3, 3)),
    "pixels": PatchGrid((1, 1), (2, 3)),
    "every other image": PatchGrid((3, 3), (3, 3), (1, 1), every=2),
}


def layouts(columns):
    return {
        "one block": Blocks(1, columns),
        "interleaved": Blocks(4, columns // 4, interleaved=True),
        "interleaved, own roots": Blocks(4, columns // 4, interleaved=True, share="none"),
        "channel, shared root": Blocks(2, columns // 2, share="root"),
        "channel, own roots": Blocks(2, columns // 2, share="none"),
    }


def columns_of(grid, channels):
    return channels * grid.kernel_size[0] * grid.kernel_size[1]


def feature_map(*shape, dtype=torch.float32, layout=torch.contiguous_format):
    """Far from zero, as behind a ReLU with a bias, so that padding and shift matter."""
    x = (3 + random(*shape)).to(dtype).to(memory_format=layout)
    return x.to(DEVICE)


def as_held_by(columns, dtype):
    """Rounded to a type, in float64; the interpreter cuts bfloat16 off where a GPU rounds."""
    if INTERPRETED and dtype == torch.bfloat16:
        columns = (columns.view(torch.int32) & -(2**16)).view(torch.float32)
    return columns.to(dtype).double()


def moments_and_gradient(function, x):
    x = x.clone().requires_grad_()
    results = function(x)
    weights = [random(*result.shape, seed=seed) for seed, result in enumerate(results)]
    loss = sum((r * w.to(r)).sum() for r, w in zip(results, weights, strict=True))
    return *results[1:], *torch.autograd.grad(loss, x)


def assert_moments_are_those_of_gathered_columns(x, grid, blocks, tolerance):
    from segdeconv.whitening.kernels import patch_moments

    shift = torch.full((blocks.num_means, blocks.size), 2.5, device=DEVICE)
    actual = moments_and_gradient(lambda x: patch_moments(x, grid, blocks, 1e-3, shift), x)
    expected = moments_and_gradient(
        lambda x: sampled_moments(x, grid, blocks, 1e-3), x.double().cpu()
    )
    assert [a.dtype for a in actual] == [torch.float32, torch.float32, x.dtype]
    for a, e in zip(actual, expected, strict=True):
        assert relative(a, e) < tolerance


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_moments_and_gradient_are_those_of_gathered_columns(grid, layout):
    x = feature_map(3, 4, 10, 7, layout=layout)
    blocks = Blocks(2, columns_of(grid, 4) // 2)
    assert_moments_are_those_of_gathered_columns(x, grid, blocks, 2e-6)


@pytest.mark.parametrize("blocks", layouts(72).values(), ids=layouts(72))
def test_moments_of_each_layout_are_those_of_gathered_columns(blocks):
    x = feature_map(2, 8, 10, 13)
    assert_moments_are_those_of_gathered_columns(x, GRIDS["padded"], blocks, 2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_moments_of_16_bit_maps_stay_within_their_rounding(dtype):
    x = feature_map(2, 8, 20, 23, dtype=dtype)
    blocks = layouts(72)["interleaved"]
    bound = torch.finfo(dtype).eps
    assert_moments_are_those_of_gathered_columns(x, GRIDS["padded"], blocks, bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
# One tile and several shares of the rows; three tiles.
@pytest.mark.parametrize("batch, channels", [(6, 2), (1, 16)])
def test_the_gram_matrix_loses_nothing_of_the_shifted_columns(batch, channels, dtype):
    from segdeconv.whitening.kernels import patch_gram

    grid, x = GRIDS["padded"], feature_map(batch, channels, 40, 39, dtype=dtype)
    blocks = Blocks(1, 9 * channels)
    shift = (3 + random(1, blocks.size, seed=5)).float().to(DEVICE)
    columns = as_held_by((grid.gather(x, torch.float32) - shift.T).cpu(), dtype)
    sums, gram = patch_gram(x, grid, blocks, shift)
    assert relative(sums[0], columns.sum(1)) < 1e-5
    assert relative(gram[0], columns @ columns.T) < 2e-6
    again = patch_gram(x, grid, blocks, shift)
    assert torch.equal(sums, again[0]) and torch.equal(gram, again[1])


def test_slices_of_maps_are_read_and_written_in_place():
    whole = feature_map(3, 8, 12, 11)
    blocks = layouts(36)["interleaved"]
    assert_moments_are_those_of_gathered_columns(
        whole[:, 2:6, 1:, ::2], GRIDS["padded"], blocks, 2e-6
    )


def test_a_gradient_that_is_one_number_everywhere_is_added_to():
    from segdeconv.whitening.kernels import patch_moments

    x = feature_map(2, 4, 9, 9).requires_grad_()
    passed, _, covariance = patch_moments(x, GRIDS["padded"], layouts(36)["one block"])
    (grad,) = torch.autograd.grad(passed.sum() + covariance.sum(), x, retain_graph=True)
    (of_covariance,) = torch.autograd.grad(covariance.sum(), x)
    torch.testing.assert_close(grad, 1 + of_covariance)


def test_compiled_moments_are_one_graph_and_equal_eager():
    from segdeconv.whitening.kernels import patch_moments

    grid, blocks = GRIDS["padded"], layouts(36)["interleaved"]

    def function(x):
        passed, mean, covariance = patch_moments(2 * x, grid, blocks, 1e-3)
        return passed.sin(), mean, covariance

    x = feature_map(2, 4, 9, 9)
    compiled = torch.compile(
        function, fullgraph=True, backend="aot_eager" if INTERPRETED else "inductor"
    )
    pairs = zip(moments_and_gradient(compiled, x), moments_and_gradient(function, x), strict=True)
    for actual, expected in pairs:
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_maps_the_kernel_does_not_read_are_one_sentence():
    from segdeconv.whitening.kernels import patch_moments

    with pytest.raises(ValueError, match=r"read float32, bfloat16 or float16, not torch.float64"):
        patch_moments(random(1, 4, 5, 5), GRIDS["pixels"], Blocks(1, 4))


@pytest.mark.skipif(INTERPRETED, reason="a CUDA graph needs a GPU")
def test_a_graph_of_the_kernels_replays_on_new_numbers():
    from segdeconv.whitening.kernels import patch_moments

    grid, blocks = GRIDS["padded"], layouts(36)["interleaved"]
    x = feature_map(2, 4, 9, 9).requires_grad_()

    def step():
        _, mean, covariance = patch_moments(x, grid, blocks, 1e-3)
        root = inverse_root(covariance, 5, "triton")
        return torch.autograd.grad(root.sum() + mean.sum(), x)[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    with torch.no_grad():
        x.copy_(feature_map(2, 4, 9, 9).flip(0))
    graph.replay()
    torch.testing.assert_close(result, step())
