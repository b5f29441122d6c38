"""Options that make the statistics of a step cheaper, each alone."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from segdeconv.operators.deconv import Deconv2d, DeconvTranspose2d, Delinear
from segdeconv.operators.whitened_layer import FEWEST_PATCHES
from segdeconv.whitening import PatchGrid, inverse_root, kronecker_root


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def images(n, c, h, w, seed=0):
    return F.avg_pool2d(random(n, c, h + 2, w + 2, seed=seed), 3, 1)


def make(kind, *args, **options):
    torch.manual_seed(0)
    return kind(*args, **options).double()


SHAPES = [(8, 16, 96, 96), (128, 16, 8, 8), (64, 16, 32, 20), (3, 16, 200, 9), (1, 16, 300, 300)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cap", [8, 32])
def test_a_cap_leaves_enough_rows_and_less_than_three_times_as_many(shape, cap):
    layer = Deconv2d(16, 4, 3, padding=1, max_rows=cap)
    x = torch.empty(shape, device="meta")
    _, rows = layer._choose_sampling(x, layer._sampling)
    _, without = Deconv2d(16, 4, 3, padding=1, max_rows=0)._choose_sampling(x, layer._sampling)
    enough = max(cap * layer.blocks.size, FEWEST_PATCHES - 1)
    # From one step to the next, 3 to 5 at worst, the rows fall to (3 / 5) squared.
    assert min(without, enough) <= rows < 3 * enough


def test_a_cap_leaves_wide_layers_more_than_a_handful_of_patches():
    layer = Deconv2d(1024, 4, 1, max_rows=32)
    grid, _ = layer._choose_sampling(torch.empty(8, 1024, 32, 64, device="meta"), layer._sampling)
    assert grid.count(torch.Size((8, 1024, 32, 64))) >= FEWEST_PATCHES


@pytest.mark.parametrize("stride", [1, 2])
def test_a_cap_takes_patches_of_both_phases_of_an_upsampled_map(stride):
    layer = Deconv2d(16, 4, 3, stride=stride, padding=1, max_rows=8)
    grid, _ = layer._choose_sampling(torch.empty(8, 16, 256, 256, device="meta"), layer._sampling)
    assert grid.step[0] > 3 * stride
    assert {step // stride % 2 for step in grid.step} == {1}
    assert {step % stride for step in grid.step} == {0}


def test_a_cap_leaves_out_no_image_of_a_small_batch():
    layer = Deconv2d(16, 4, 3, padding=1, max_rows=4)
    for images, every in ((8, 1), (31, 1), (32, 2), (128, 8)):
        x = torch.empty(images, 16, 24, 24, device="meta")
        assert layer._choose_sampling(x, layer._sampling)[0].every == every


def test_a_cap_of_half_the_rows_takes_half_the_images():
    layer = Deconv2d(16, 4, 3, padding=1, max_rows=8)
    x = torch.empty(64, 16, 18, 18, device="meta")  # 6 x 6 patches of each image
    assert layer.blocks.rows(64 * 36) == 2 * 8 * layer.blocks.size
    assert layer._choose_sampling(x, layer._sampling)[0].every == 2


def test_a_thinned_grid_keeps_the_border_from_weighing_too_much():
    grid = PatchGrid((3, 3), (3, 3), (1, 1)).thinned(torch.Size((64, 4, 32, 32)), 16)
    assert min(grid.places(torch.Size((64, 4, 32, 32)))) >= 8
    assert grid.every > 1


def test_images_left_out_by_the_cap_do_not_enter_the_statistics():
    layer = make(Deconv2d, 16, 4, 3, padding=1, max_rows=8)
    x = images(160, 16, 12, 12)
    every = layer._choose_sampling(x, layer._sampling)[0].every
    assert every > 1
    changed = x.clone()
    changed[1::every] += 100
    a, b = layer(x)[::every], layer(changed)[::every]
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "kind, shape", [(DeconvTranspose2d, (32, 8, 12, 12)), (Delinear, (4000, 8))]
)
def test_transposed_and_linear_layers_take_a_cap_too(kind, shape):
    arguments = (8, 4, 2, 2) if kind is DeconvTranspose2d else (8, 4)
    layer = make(kind, *arguments, max_rows=8)
    x = random(*shape).requires_grad_()
    layer(x).square().sum().backward()
    grid = layer._sampling([0, 0], 3) if kind is DeconvTranspose2d else None
    assert x.grad.isfinite().all()
    if grid is not None:
        assert grid.count(x.shape) / 4 <= grid.thinned(x.shape, 4).count(x.shape)
        assert grid.thinned(x.shape, 4).count(x.shape) < grid.count(x.shape)


def test_a_cap_visits_every_phase_of_a_transposed_layer():
    layer = DeconvTranspose2d(16, 4, 4, stride=2, padding=1, max_rows=8)
    grid, _ = layer._choose_sampling(
        torch.empty(4, 16, 128, 128, device="meta"), partial(layer._sampling, [0, 0])
    )
    assert grid.grid.step[0] > 3
    assert all(math.gcd(step, 2) == 1 for step in grid.grid.step)


def test_gradients_with_a_cap_agree_with_finite_differences():
    layer = make(Deconv2d, 2, 2, 3, padding=1, max_rows=4)
    x = images(300, 2, 5, 5).requires_grad_()
    assert layer._choose_sampling(x, layer._sampling)[0].every > 1
    layer.reset_running_stats()
    assert torch.autograd.gradcheck(layer, x, fast_mode=True)


def test_constant_statistics_change_no_output_and_are_constants_in_the_gradient():
    x = images(4, 8, 12, 12).requires_grad_()
    full, constant = (make(Deconv2d, 8, 4, 3, detach=detach) for detach in (False, True))
    assert torch.equal(full(x), constant(x))
    mean, root = constant._running()  # one batch, corrected: those of this batch
    kernel, bias = constant._merge(mean, root, x.dtype)
    (expected,) = torch.autograd.grad(F.conv2d(x, kernel.detach(), bias.detach()).sin().sum(), x)
    (actual,) = torch.autograd.grad(constant(x).sin().sum(), x)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_between_updates_the_running_statistics_serve_and_stand_still():
    layer = make(Deconv2d, 8, 4, 3, update_every=3)
    counted = []
    for step in range(7):
        before = layer.running_deconv.clone()
        x = images(4, 8, 12, 12, seed=step)
        y = layer(x)
        moved = not torch.equal(before, layer.running_deconv)
        counted.append(moved)
        if not moved:
            torch.testing.assert_close(y, layer.eval()(x), rtol=1e-12, atol=1e-12)
            layer.train()
    assert counted == [True, False, False, True, False, False, True]


def test_a_repeated_forward_of_a_skipped_step_counts_once():
    plain, repeated = (make(Deconv2d, 8, 4, 3, update_every=2) for _ in range(2))
    for step in range(3):
        x = images(4, 8, 12, 12, seed=step).requires_grad_()
        plain(x).square().sum().backward()
        checkpoint(repeated, x, use_reentrant=False).square().sum().backward()
    assert torch.equal(plain.counter, repeated.counter)
    torch.testing.assert_close(plain.running_deconv, repeated.running_deconv)


def test_a_kronecker_covariance_has_a_kronecker_root():
    factors = [random(size, 3 * size, seed=size) for size in (4, 9)]
    channels, taps = (factor @ factor.T for factor in factors)
    root = kronecker_root(torch.kron(channels, taps)[None], 9, n_iter=40)[0]
    exact = torch.linalg.inv(torch.linalg.cholesky(torch.kron(channels, taps)))
    torch.testing.assert_close(root @ root.T, exact.T @ exact, rtol=1e-6, atol=1e-8)


def test_a_kronecker_layer_uses_the_root_of_its_patch_covariance():
    layer = make(Deconv2d, 8, 4, 3, block=4, grouping="channel", structure="kronecker")
    full = make(Deconv2d, 8, 4, 3, block=4, grouping="channel", momentum=1.0)
    x = images(6, 8, 15, 15)
    layer(x)
    patches = F.unfold(x, 3, stride=3).view(6, 2, 36, -1).permute(2, 0, 1, 3).flatten(1)
    covariance = torch.cov(patches, correction=0) + 1e-5 * torch.eye(36).double()
    torch.testing.assert_close(layer.running_deconv, kronecker_root(covariance[None], 9)[0])
    full(x)
    torch.testing.assert_close(full.running_deconv, inverse_root(covariance[None])[0])


@pytest.mark.parametrize(
    "options",
    [{"max_rows": 2}, {"max_rows": math.nan}, {"update_every": 0}, {"structure": "kronecker"}],
    ids=str,
)
def test_options_out_of_range_are_refused_by_name(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Deconv2d(8, 4, 3, **options)
