"""Whitening mathematics against literal float64 code, parity vectors, finite differences."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segdeconv.whitening import (
    Blocks,
    FlatGrid,
    PatchGrid,
    RowGrid,
    StretchedGrid,
    divided_differences,
    frobenius_norm,
    inverse_root,
    largest_divisor,
    merge,
    newton_schulz_gain,
    released_block,
    sampled_moments,
    shrink,
)

VECTORS = Path(__file__).parent / "vectors"
BACKENDS = ["newton_schulz", "eigh"]


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def covariance(size, *batch, seed=0):
    factor = random(*batch, size, 2 * size, seed=seed)
    return factor @ factor.mT / (2 * size)


def relative(actual, expected):
    return float((actual.detach() - expected).abs().max() / expected.abs().max())


def literal_root(matrix, n_iter):
    """The coupled iteration as released, left to autograd."""
    scale = torch.linalg.matrix_norm(matrix, keepdim=True)
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
    y, z = matrix / scale, identity
    for _ in range(n_iter):
        t = 0.5 * (3 * identity - z @ y)
        y, z = y @ t, t @ z
    return z / scale.sqrt()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_iter", [1, 3, 5, 10, 15])
@pytest.mark.parametrize("case", ["generic", "rank_deficient", "identity", "dead"])
def test_root_and_gradient_equal_the_released_ones(case, n_iter, backend):
    data = np.load(VECTORS / "isqrt.npz")
    matrix = torch.tensor(data[f"{case}_A"]).requires_grad_()
    root = inverse_root(matrix, n_iter, backend)
    (root * torch.tensor(data["grad_out"])).sum().backward()
    grad = 0.5 * (matrix.grad + matrix.grad.T)
    tolerance = 1e-12 if n_iter <= 7 else 1e-9
    assert relative(root, torch.tensor(data[f"{case}_n{n_iter}_D"])) < tolerance
    assert relative(grad, torch.tensor(data[f"{case}_n{n_iter}_grad_A_sym"])) < tolerance


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_iter", [1, 2, 5])
def test_gradient_of_the_root_agrees_with_finite_differences(backend, n_iter):
    def root(factor):
        return inverse_root(factor @ factor.mT + 0.1 * torch.eye(6), n_iter, backend)

    assert torch.autograd.gradcheck(root, random(3, 6, 6).requires_grad_())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_of_roots_equals_the_roots_one_by_one(backend):
    matrices = covariance(7, 4)
    together = inverse_root(matrices, 5, backend)
    alone = torch.stack([inverse_root(matrix, 5, backend) for matrix in matrices])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n_iter, bound", [(5, 1e-5), (15, 1e-4)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_root_of_a_steep_spectrum_stays_close_to_float64(backend, n_iter, bound):
    basis, _ = torch.linalg.qr(random(147, 147))
    matrix = (basis * torch.arange(1, 148).double() ** -1.5) @ basis.T
    matrix = (0.5 * (matrix + matrix.T)).float()
    assert (
        relative(inverse_root(matrix, n_iter, backend), literal_root(matrix.double(), n_iter))
        < bound
    )


def test_the_gain_of_five_steps_is_the_published_curve():
    values = torch.tensor([1.0, 0.1, 0.05, 0.02, 0.01, 1e-3, 1e-4], dtype=torch.float64)
    whitened = values.sqrt() * newton_schulz_gain(values, 5)
    expected = torch.tensor([1, 0.997, 0.967, 0.822, 0.659, 0.237, 0.076], dtype=torch.float64)
    torch.testing.assert_close(whitened, expected, atol=6e-4, rtol=0)


def test_divided_differences_are_quotients_off_the_diagonal_and_the_derivative_on_it():
    values = torch.tensor([0.0, 0.013, 0.2, 0.71, 1.0], dtype=torch.float64, requires_grad=True)

    def gain(v):
        m, x = v, torch.ones_like(v)
        for _ in range(5):
            t = (3 - m) / 2
            m, x = m * t * t, x * t
        return x

    (derivative,) = torch.autograd.grad(gain(values).sum(), values)
    v, g = values.detach(), gain(values.detach())
    quotients = (g[:, None] - g) / (v[:, None] - v).fill_diagonal_(1) + torch.diag(derivative)
    torch.testing.assert_close(divided_differences(v, 5), quotients, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_roots_of_extreme_matrices_are_finite(scale, backend):
    assert inverse_root((scale * covariance(12)).float(), 5, backend).isfinite().all()


def test_frobenius_norm_neither_overflows_nor_vanishes():
    for scale in (1e-30, 1.0, 1e30):
        norm = frobenius_norm(torch.full((4, 4), scale))
        torch.testing.assert_close(norm, torch.full((1, 1), 4 * scale), rtol=1e-6, atol=0)


LAYOUTS = {
    "one block": Blocks(1, 36),
    "interleaved": Blocks(4, 9, interleaved=True),
    "interleaved, own roots": Blocks(4, 9, interleaved=True, share="none"),
    "channel": Blocks(2, 18),
    "channel, shared root": Blocks(2, 18, share="root"),
    "channel, own roots": Blocks(2, 18, share="none"),
}


def literal_columns(blocks):
    """Column indices of each block, written out."""
    columns = range(blocks.num * blocks.size)
    if blocks.interleaved:
        return [[j for j in columns if j % blocks.num == g] for g in range(blocks.num)]
    return [[j for j in columns if j // blocks.size == g] for g in range(blocks.num)]


@pytest.mark.parametrize("blocks", LAYOUTS.values(), ids=LAYOUTS)
def test_moments_equal_those_of_rows_pooled_by_hand(blocks):
    columns = random(36, 50) + torch.arange(36)[:, None] / 9
    groups = [columns[index] for index in literal_columns(blocks)]
    if blocks.share == "both":
        groups = [torch.cat(groups, 1)]
    means = torch.stack([group.mean(1) for group in groups])
    covariances = torch.stack([torch.cov(group, correction=0) for group in groups])
    if blocks.share == "root":
        covariances = covariances.mean(0, keepdim=True)
    _, mean, covariance = sampled_moments(columns.T, RowGrid(), blocks)
    torch.testing.assert_close(mean, means, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(covariance, covariances, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [127, 128, 147, 578])
def test_a_large_covariance_computed_by_halves_is_whole_and_symmetric(size):
    rows = random(50, size)
    _, _, covariance = sampled_moments(rows, RowGrid(), Blocks(1, size))
    expected = torch.cov(rows.T, correction=0)
    torch.testing.assert_close(covariance[0], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(covariance, covariance.mT, rtol=0, atol=1e-15)


@pytest.mark.parametrize("blocks", LAYOUTS.values(), ids=LAYOUTS)
def test_gradient_of_the_moments_agrees_with_finite_differences(blocks):
    rows = random(3, 36).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sampled_moments(x, RowGrid(), blocks), rows)


SAMPLINGS = {
    "padded patches": PatchGrid((3, 3), (3, 3), (1, 1)),
    "overlapping dilated patches": PatchGrid((3, 2), (1, 2), (2, 1), (2, 3)),
    "padding beyond the taps": PatchGrid((2, 2), (5, 4), (3, 3)),
    "pixels": PatchGrid((1, 1), (2, 3)),
    "flat": FlatGrid(9),
    "flat, longer than an image": FlatGrid(100),
    "stretched": StretchedGrid(PatchGrid((2, 2), (3, 3)), (2, 2), (1, 0), (1, 1)),
    "stretched and cut": StretchedGrid(PatchGrid((3, 3), (1, 1)), (2, 1), (-1, 2), (0, 2)),
}


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kept", [0, 2**20], ids=["gathered again", "kept"])
def test_gradient_through_each_sampling_agrees_with_finite_differences(
    sampling, layout, kept, monkeypatch
):
    monkeypatch.setattr("segdeconv.whitening.sampling.KEPT_SHARE", 0)
    monkeypatch.setattr("segdeconv.whitening.sampling.KEPT_BYTES", kept)
    x = random(5, 2, 7, 6).to(memory_format=layout).requires_grad_()
    blocks = Blocks(1, 2 * (sampling.gather(x, x.dtype).shape[0] // 2))

    def function(x):  # what passes through is used too, as the convolution does
        passed, mean, covariance = sampled_moments(x, sampling, blocks)
        return passed.sin(), mean, covariance

    assert torch.autograd.gradcheck(function, x)


@pytest.mark.parametrize("step, kept", [(1, False), (3, False), (5, True)])
def test_columns_are_kept_for_the_backward_only_where_they_are_few(step, kept):
    x = torch.randn(8, 16, 64, 64, requires_grad=True)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, id):
        sampled_moments(x, PatchGrid((3, 3), (step, step)), Blocks(1, 144))
    assert (x.numel() not in sizes) == kept
    assert max(sizes) <= x.numel()


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_a_sampling_gathers_as_many_columns_as_it_counts(sampling):
    x = random(5, 2, 7, 6)
    assert sampling.gather(x, x.dtype).shape[1] == sampling.count(x.shape)


@pytest.mark.parametrize("blocks", LAYOUTS.values(), ids=LAYOUTS)
def test_merged_convolution_equals_whitening_then_convolving(blocks):
    x, weight, bias = random(2, 4, 7, 9), random(5, 4, 3, 3, seed=1), random(5, seed=2)
    mean = random(blocks.num_means, blocks.size, seed=3)
    root = random(blocks.num_roots, blocks.size, blocks.size, seed=4)  # not symmetric on purpose
    patches = F.unfold(x, 3).transpose(1, 2)
    expected = bias + torch.zeros(2, patches.shape[1], 5, dtype=torch.float64)
    for g, index in enumerate(literal_columns(blocks)):
        whitened = (patches[..., index] - mean[g % len(mean)]) @ root[g % len(root)].T
        expected = expected + whitened @ weight.flatten(1)[:, index].T
    kernel, shift = merge(weight, bias, mean, root, blocks)
    actual = F.conv2d(x, kernel, shift).flatten(2).transpose(1, 2)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_merged_grouped_convolution_whitens_each_group_by_its_own_blocks():
    x, weight = random(2, 8, 6, 5), random(6, 4, 3, 3, seed=1)
    blocks = Blocks(4, 18, groups=2, share="none")  # two blocks of two channels in each group
    mean, root = random(4, 18, seed=3), random(4, 18, 18, seed=4)
    expected = []
    for group in range(2):
        patches = F.unfold(x[:, 4 * group : 4 * group + 4], 3).transpose(1, 2)
        parts = [
            (patches[..., 18 * b : 18 * b + 18] - mean[2 * group + b]) @ root[2 * group + b].T
            for b in range(2)
        ]
        expected.append(torch.cat(parts, -1) @ weight[3 * group : 3 * group + 3].flatten(1).T)
    kernel, shift = merge(weight, None, mean, root, blocks)
    actual = F.conv2d(x, kernel, shift, groups=2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(actual, torch.cat(expected, -1), rtol=1e-10, atol=1e-10)


def test_the_bias_follows_the_rounded_kernel():
    torch.manual_seed(0)
    u = 8 + torch.randn(64, 200)
    weight, mean, root = torch.randn(16, 64), u.mean(1)[None], torch.eye(64)[None]
    exact = weight @ (u - mean[0][:, None])
    kernel, bias = merge(weight, None, mean, root, Blocks(1, 64), torch.bfloat16)
    error = (kernel.float() @ u + bias[:, None] - exact).std()
    naive_bias = merge(weight, None, mean, root, Blocks(1, 64))[1]
    naive_error = (kernel.float() @ u + naive_bias[:, None] - exact).std()
    assert error < naive_error / 4


@pytest.mark.parametrize("dilation", [1, 2])
def test_patches_are_read_at_each_grid_position_with_zeros_outside(dilation):
    x = random(2, 3, 8, 7)
    grid = PatchGrid((3, 2), (3, 2), (1, 1), (dilation, dilation))
    columns = grid.gather(x, x.dtype)
    padded = F.pad(x, (1, 1, 1, 1))
    rows = range(0, 10 - 2 * dilation, 3)
    places = [(n, p, q) for n in range(2) for p in rows for q in range(0, 9 - dilation, 2)]
    assert columns.shape == (18, len(places))
    for s, (n, p, q) in enumerate(places):
        patch = padded[n, :, p : p + 3 * dilation : dilation, q : q + 2 * dilation : dilation]
        assert torch.equal(columns[:, s], patch.flatten())


@pytest.mark.parametrize("step", [1, 5, 9, 50])
def test_flat_sampling_runs_on_across_rows_and_images(step):
    x = torch.arange(4 * 3 * 5 * 7).view(4, 3, 5, 7)
    pixels = [(n, h, w) for n in range(4) for h in range(5) for w in range(7)][::step]
    expected = torch.stack([x[n, :, h, w] for n, h, w in pixels], 1)
    columns = FlatGrid(step).gather(x, x.dtype)
    order = columns[0].argsort()
    assert torch.equal(columns[:, order], expected)


def test_full_shrinkage_leaves_the_mean_variance_and_none_leaves_the_matrix():
    matrix = covariance(5)
    torch.testing.assert_close(shrink(matrix, 0.0), matrix)
    torch.testing.assert_close(
        shrink(matrix, 1.0), matrix.trace() / 5 * torch.eye(5, dtype=torch.float64)
    )


def test_block_rules():
    released = [(3, 3), (96, 32), (100, 4), (320, 64), (67, 1)]
    assert [released_block(c, 64, 1) for c, _ in released] == [block for _, block in released]
    assert released_block(32, 64, 4) == 8
    assert [largest_divisor(c, 16) for c in (3, 24, 100, 64)] == [3, 12, 10, 16]
