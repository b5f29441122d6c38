"""Spectra and what a root does to them, against numpy in float64 and against whitened samples."""

import numpy as np
import pytest
import torch

from segdeconv.analysis import (
    centre_filters,
    condition,
    constant_response,
    correlation,
    effective_share,
    mean_correlation,
    spectrum,
    tap_filters,
    whiten,
    whitened,
    whitening_matrix,
)
from segdeconv.whitening import Blocks, PatchGrid, inverse_root, newton_schulz_gain, sampled_moments


def covariance_of(size, number=1, seed=0):
    """Covariances with a steep spectrum, as float64."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(number, size, size)) * np.geomspace(1, 0.01, size)
    return mixing @ mixing.transpose(0, 2, 1) / size


@pytest.mark.parametrize("number", [1, 3])
def test_the_spectrum_is_that_of_numpy(number):
    covariance = covariance_of(12, number)
    expected = np.sort(np.linalg.eigvalsh(covariance).ravel())[::-1]
    found = spectrum(torch.from_numpy(covariance).float())  # decomposed in float64 all the same
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6 * expected[0])
    found = spectrum(torch.from_numpy(covariance))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)
    assert condition(found, 0) == pytest.approx(expected[0] / expected[-1])


def test_a_column_that_is_always_zero_has_a_finite_condition_and_no_correlation():
    rows = np.random.default_rng(0).normal(size=(500, 3)) @ [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    rows = np.insert(rows, 1, 0, axis=1)
    covariance = torch.from_numpy(np.cov(rows.T, bias=True))
    assert condition(spectrum(covariance), 0.5) == pytest.approx(
        (float(spectrum(covariance)[0]) + 0.5) / 0.5
    )
    found = correlation(covariance)
    alive = [0, 2, 3]
    expected = np.corrcoef(rows[:, alive].T)
    np.testing.assert_allclose(found[alive][:, alive], expected, atol=1e-12)
    assert found[1].abs().sum() == found[:, 1].abs().sum() == 0
    apart = np.abs(expected[np.triu_indices(3, 1)]).mean()
    assert mean_correlation(found) == pytest.approx(apart)
    assert mean_correlation(torch.zeros(2, 2)) == 0


def test_effective_directions_are_counted_between_one_and_all():
    assert effective_share(torch.ones(7)) == pytest.approx(1)
    assert effective_share(torch.tensor([3.0, 0, 0, 0])) == 0.25
    assert effective_share(torch.zeros(3)) == 0


@pytest.mark.parametrize("n_iter", [1, 5, 15])
@pytest.mark.parametrize("number", [1, 2])
def test_a_root_of_the_same_covariance_has_the_truncated_gain(n_iter, number):
    covariance = torch.from_numpy(covariance_of(10, number))
    root = inverse_root(covariance, n_iter)
    found = whitened(covariance, root, n_iter)
    assert found.values.tolist() == sorted(found.values.tolist(), reverse=True)
    torch.testing.assert_close(found.gain, found.truncated, rtol=1e-7, atol=1e-9)
    expected = found.values.sqrt() * found.truncated
    torch.testing.assert_close(found.deviation, expected, rtol=1e-7, atol=1e-9)
    exact = found.values**-0.5
    assert (found.gain <= exact * (1 + 1e-9)).all()


def test_another_root_is_held_against_the_covariance_direction_by_direction():
    covariance, root = (torch.from_numpy(covariance_of(6, seed=seed)) for seed in (0, 1))
    found = whitened(covariance, root, 5)
    values, vectors = np.linalg.eigh(covariance[0].numpy())
    d = root[0].numpy()
    for place, direction in enumerate(vectors.T[::-1]):
        variance = direction @ d @ covariance[0].numpy() @ d @ direction
        assert float(found.values[place]) == pytest.approx(values[5 - place])
        assert float(found.gain[place]) == pytest.approx(direction @ d @ direction)
        assert float(found.deviation[place]) == pytest.approx(variance**0.5)


@pytest.mark.parametrize("share", ["both", "root", "none"])
@pytest.mark.parametrize("interleaved", [True, False])
def test_whitened_columns_are_those_of_each_block_multiplied_by_hand(share, interleaved):
    blocks = Blocks(3, 4, 1, interleaved, share)
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(12, 20, generator=generator, dtype=torch.float64)
    mean = torch.randn(blocks.num_means, 4, generator=generator, dtype=torch.float64)
    root = torch.randn(blocks.num_roots, 4, 4, generator=generator, dtype=torch.float64)
    before = columns.clone()
    found = whiten(columns, mean, root, blocks)
    assert torch.equal(columns, before)
    matrix = whitening_matrix(root, blocks)
    for block in range(3):
        members = [j for j in range(12) if (j % 3 if interleaved else j // 4) == block]
        m = mean[block % blocks.num_means]
        r = root[block % blocks.num_roots]
        expected = r @ (columns[members] - m[:, None])
        torch.testing.assert_close(found[members], expected)
        torch.testing.assert_close(matrix[members][:, members], r)
        others = [j for j in range(12) if j not in members]
        assert matrix[members][:, others].abs().sum() == 0


def test_patches_of_an_image_whitened_by_their_own_root_are_white_within_the_gain():
    """Whole patches of smooth images: every direction ends at the deviation that 5 steps give it,
    and those above 4.2 % of the norm within 5 % of 1."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, 40, 40, generator=generator, dtype=torch.float64)
    images = torch.nn.functional.avg_pool2d(images, 3, 1) + 0.3 * images[..., 1:-1, 1:-1]
    grid, blocks = PatchGrid((3, 3), (1, 1)), Blocks(1, 27)
    _, mean, covariance = sampled_moments(images, grid, blocks)
    root = inverse_root(covariance, 5)
    columns = grid.gather(images, torch.float64)
    after = torch.cov(whiten(columns, mean, root, blocks), correction=0)
    unit = torch.linalg.eigvalsh(covariance[0])
    unit = unit / unit.norm()
    expected = unit * newton_schulz_gain(unit, 5).square()
    torch.testing.assert_close(spectrum(after), expected.sort(descending=True).values)
    well = unit > 0.042
    assert well.any() and (expected[well] > 0.95**2).all() and (expected <= 1 + 1e-12).all()
    exact = inverse_root(covariance, 40)
    white = torch.cov(whiten(columns, mean, exact, blocks), correction=0)
    torch.testing.assert_close(white, torch.eye(27, dtype=torch.float64), rtol=0, atol=1e-6)


def test_filters_are_the_rows_of_the_middle_tap():
    matrix = torch.arange(18.0 * 18).view(18, 18)
    filters = centre_filters(tap_filters(matrix, 2, (3, 3)))
    assert filters.shape == (2, 2, 3, 3)
    for channel in (0, 1):
        assert torch.equal(filters[channel].flatten(), matrix[9 * channel + 4])


def test_a_surround_that_cancels_the_centre_answers_nothing_to_one_colour():
    plain = torch.zeros(2, 2, 3, 3)
    plain[0, 0, 1, 1] = plain[1, 1, 1, 1] = 4
    assert constant_response(plain).tolist() == [1, 1]
    cancelled = plain.clone()
    cancelled[0, 1] = -4 / 9
    cancelled[1, 1, 0] = -1
    assert constant_response(cancelled).tolist() == pytest.approx([0, 0.25], abs=1e-6)
