"""What a covariance says, and what a root makes of it; float64 throughout.

Shapes: D columns, S samples, M matrices.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from segdeconv.whitening import Blocks, newton_schulz_gain

FLOOR = 1e-5
"""Added to eigenvalues before a quotient is taken, as the layers add it to the diagonal: a column
that is always zero has no finite condition."""

CONSTANT = 1e-12
"""Share of the largest variance below which a column counts as one that never changes."""


def spectrum(covariance: Tensor) -> Tensor:
    """Eigenvalues of symmetric matrices (M, D, D) or (D, D), all together, largest first, >= 0."""
    values: Tensor = torch.linalg.eigvalsh(covariance.double()).clamp_min(0).flatten()
    return values.sort(descending=True).values


def condition(values: Tensor, floor: float = FLOOR) -> float:
    """Largest over smallest of some eigenvalues, ``floor`` added to both."""
    return float((values.max() + floor) / (values.min() + floor))


def effective_share(values: Tensor) -> float:
    """Directions that carry the variance, as a share of all: (sum l)^2 / (D sum l^2).

    1 if all eigenvalues are alike, 1 / D if one has everything, 0 if there is no variance.
    """
    square = values.square().sum() * len(values)
    return float(values.sum().square() / square) if square > 0 else 0.0


def correlation(covariance: Tensor) -> Tensor:
    """Correlations (D, D) of a covariance (D, D); 0 beside a column that never changes."""
    variance = covariance.diagonal()
    alive = variance > CONSTANT * variance.max()
    scale = torch.where(alive, variance, 1).rsqrt() * alive
    return covariance * scale[:, None] * scale


def mean_correlation(correlations: Tensor) -> float:
    """Mean size of the correlations (D, D) of different columns, without those that never change.

    0 if fewer than two columns change.
    """
    alive = correlations.diagonal() > 0
    count = int(alive.sum())
    if count < 2:
        return 0.0
    return float((correlations.abs().sum() - count) / (count * (count - 1)))


@dataclass(frozen=True)
class Whitened:
    """What a root does to each principal direction of an input, all of (M x D,), by eigenvalue.

    Attributes:
        values: Variance of the input along the direction, largest first.
        gain: What the root multiplies the direction by.
        truncated: What the truncated steps would multiply it by if the covariance were the root's
            own; the exact inverse root has ``values**-0.5``.
        deviation: Standard deviation of the whitened input along the direction: 1 is fully
            whitened.
    """

    values: Tensor
    gain: Tensor
    truncated: Tensor
    deviation: Tensor


def whitened(covariance: Tensor, root: Tensor, n_iter: int) -> Whitened:
    """Hold a root against the covariance of an input.

    Args:
        covariance: (M, D, D).
        root: (M, D, D), that of these or of other inputs.
        n_iter: Newton-Schulz steps behind it.
    """
    covariance, root = covariance.double(), root.double()
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp_min(0)
    scale = values.square().sum(-1, keepdim=True).sqrt()  # the Frobenius norm
    unit = values / scale.clamp_min(torch.finfo(values.dtype).tiny)
    truncated = newton_schulz_gain(unit, n_iter) * scale.rsqrt()
    rotated = root @ vectors
    gain = (vectors * rotated).sum(-2)
    variance = (rotated * (covariance @ rotated)).sum(-2)
    parts = (values, gain, truncated, variance.clamp_min(0).sqrt())
    order = values.flatten().argsort(descending=True)
    return Whitened(*(part.flatten()[order] for part in parts))


def whiten(columns: Tensor, mean: Tensor, root: Tensor, blocks: Blocks) -> Tensor:
    """Whitened columns (C x taps, S), each where it was.

    Args:
        columns: (C x taps, S).
        mean: (1 or G, D).
        root: (M, D, D).
        blocks: How the columns fall into blocks.
    """
    pooled = blocks.pool(blocks.centre_(columns.clone(), mean))
    return blocks.unpool(root @ pooled)
