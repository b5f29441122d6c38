"""Statistics of a whitening layer from some batches, pooled, not averaged as in training."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from segdeconv.operators.whitened_layer import WhitenedLayer
from segdeconv.whitening import Sampling, sampled_moments, shrink


class PooledMoments:
    """Mean and covariance of columns that come in parts, in float64.

    Pooled by the number of samples (Chan, Golub and LeVeque, "Algorithms for computing the sample
    variance", 1983), so that the parts together give the covariance of all of them.

    Args:
        means: Mean vectors, 1 or more.
        matrices: Covariances, 1 or as many as there are means.
        size: Columns D of each.
        like: Tensor on the device to work on.

    Attributes:
        samples: How many came so far.
        mean: (means, D).
        covariance: (matrices, D, D), divisor ``samples``.
    """

    def __init__(self, means: int, matrices: int, size: int, like: Tensor) -> None:
        zeros = partial(like.new_zeros, dtype=torch.float64)
        self.samples = 0
        self.mean = zeros((means, size))
        self.covariance = zeros((matrices, size, size))

    def add(self, samples: int, mean: Tensor, covariance: Tensor) -> None:
        """Pool mean and covariance of further samples in, in the shapes of the attributes."""
        total, difference = self.samples + samples, mean - self.mean
        between = difference[:, :, None] * difference[:, None, :]
        if len(between) > len(covariance):  # several means around one covariance
            between = between.mean(0, keepdim=True)
        within = self.covariance.lerp(covariance, samples / total)
        self.covariance = within + between * (self.samples * samples / total**2)
        self.mean = self.mean.lerp(mean, samples / total)
        self.samples = total


class Calibration(PooledMoments):
    """Mean and covariance of the input patches of a layer, over all its calls, in float64.

    A few small batches give the covariance of all of them, which an average of roots does not.
    """

    def __init__(self, layer: WhitenedLayer) -> None:
        blocks = layer.blocks
        super().__init__(blocks.num_means, blocks.num_roots, blocks.size, layer.running_mean)
        self.layer = layer

    def observe(self, x: Tensor, sampling: Callable[[int], Sampling]) -> None:
        """Pool the patches of one input in, sampled as in training."""
        self.read(x, self.layer._choose_sampling(x, sampling)[0])

    @torch.no_grad()
    def read(self, x: Tensor, grid: Sampling) -> None:
        """Pool these patches of one input in."""
        layer, samples = self.layer, grid.count(x.shape)
        if samples:
            eps = layer.settings.eps
            self.add(samples, *sampled_moments(x, grid, layer.blocks, eps, torch.float64)[1:])

    @property
    def rows_per_column(self) -> float:
        """Degrees of freedom behind each column of the covariance."""
        blocks = self.layer.blocks
        return max(0, blocks.degrees_of_freedom(self.samples)) / blocks.size

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean (1 or G, D) and root (M, D, D); shrunk as in training where the rows are few.

        With a single row there is no covariance, and the root is the identity.
        """
        rows, wanted = self.rows_per_column, self.layer.settings.min_rows
        if rows == 0:
            identity = torch.eye(self.layer.blocks.size).to(self.covariance)
            return self.mean, identity.expand_as(self.covariance)
        covariance = self.covariance
        if rows < wanted:
            covariance = shrink(covariance, 1 - rows / wanted)
        return self.mean, self.layer._root(covariance)


@contextmanager
def calibrating(layers: Mapping[str, WhitenedLayer]) -> Iterator[dict[str, Calibration]]:
    """Observe what the layers get in evaluation mode; yields their calibrations by name."""
    calibrations = {name: Calibration(layer) for name, layer in layers.items()}
    for calibration in calibrations.values():
        calibration.layer.observer = calibration.observe
    try:
        yield calibrations
    finally:
        for layer in layers.values():
            del layer.observer


def condition(root: Tensor) -> float:
    """Largest over smallest eigenvalue of the worst of some symmetric roots (M, D, D)."""
    sizes = torch.linalg.eigvalsh(root.double()).abs()
    return float((sizes.amax(-1) / sizes.amin(-1)).max())
