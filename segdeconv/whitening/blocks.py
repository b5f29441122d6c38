"""How the columns of a layer fall into whitening blocks."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Share = Literal["both", "root", "none"]


@dataclass(frozen=True)
class Blocks:
    """How the C x taps columns of an im2col row (channel slowest) fall into whitening blocks.

    Attributes:
        num: Blocks G.
        size: Columns per block D.
        groups: Groups of the convolution; blocks never cross them.
        interleaved: Column j belongs to block j mod G (as released) instead of j div D.
        share: What the blocks have in common: "both" one mean and one root (as released), "root"
            one root about each block's own mean, "none" nothing.
    """

    num: int
    size: int
    groups: int = 1
    interleaved: bool = False
    share: Share = "both"

    @property
    def num_means(self) -> int:
        """Mean vectors: 1 or G."""
        return 1 if self.share == "both" else self.num

    @property
    def num_roots(self) -> int:
        """Inverse roots M: 1 or G."""
        return self.num if self.share == "none" else 1

    def rows(self, samples: int) -> int:
        """Rows behind one covariance when each column has ``samples`` values."""
        return samples if self.share == "none" else samples * self.num

    def degrees_of_freedom(self, samples: int) -> int:
        """Independent ones of these rows."""
        return self.rows(samples) - self.num_means // self.num_roots

    def rows_per_mean(self, samples: int) -> int:
        """Rows behind each mean when each column has ``samples`` values."""
        return samples * self.num // self.num_means

    def _split(self, columns: Tensor) -> Tensor:
        """(C x taps, S) -> a view (G, D, S)."""
        if self.interleaved:
            return columns.view(self.size, self.num, -1).transpose(0, 1)
        return columns.view(self.num, self.size, -1)

    def mean(self, columns: Tensor, dtype: torch.dtype) -> Tensor:
        """(C x taps, S) -> (1 or G, D), summed in ``dtype``."""
        split = self._split(columns)
        if self.share == "both":
            return split.mean((0, 2), dtype=dtype)[None]
        return split.mean(-1, dtype=dtype)

    def centre_(self, columns: Tensor, mean: Tensor) -> Tensor:
        """Subtract a mean (1 or G, D) from each column, in place; rounded once, after that."""
        self._split(columns).sub_(mean[..., None])
        return columns

    def pool(self, columns: Tensor) -> Tensor:
        """(C x taps, S) -> (M, D, rows of each matrix); copies only runs of shared columns."""
        split = self._split(columns)
        return split if self.share == "none" else split.transpose(0, 1).reshape(1, self.size, -1)

    def unpool(self, pooled: Tensor) -> Tensor:
        """Inverse of `pool`."""
        if self.share == "none":
            split = pooled
        else:
            split = pooled.view(self.size, self.num, -1).transpose(0, 1)
        columns = split.transpose(0, 1) if self.interleaved else split
        return columns.reshape(self.num * self.size, -1)

    def split_kernel(self, weight: Tensor) -> Tensor:
        """(O, C / groups, ...) -> (M, rows, D): the rows that each inverse root multiplies."""
        if self.interleaved:
            split = weight.reshape(1, -1, self.size, self.num).transpose(2, 3)
        else:
            split = weight.reshape(self.groups, -1, self.num // self.groups, self.size)
        if self.num_roots > 1:
            split = split.transpose(1, 2)
        return split.reshape(self.num_roots, -1, self.size)

    def join_kernel(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """Inverse of `split_kernel`."""
        per_group = self.num // self.groups
        if self.num_roots > 1:
            split = rows.view(self.groups, per_group, -1, self.size).transpose(1, 2)
        else:
            split = rows.view(self.groups, -1, per_group, self.size)
        # Flat in between: a 1x1 kernel may else keep strides that torch reads as channels_last. The
        # convolution then copies its input to that layout: 92 instead of 57 ms per step for a layer
        # of 64 to 128 channels, stride 2, on 128 x 32 x 32.
        return (split.transpose(2, 3) if self.interleaved else split).flatten().view(shape)

    def mean_of_columns(self, mean: Tensor) -> Tensor:
        """(1 or G, D) -> (groups, C x taps / groups), the mean of each column."""
        means = mean.expand(self.num, -1)
        return (means.mT if self.interleaved else means).reshape(self.groups, -1)


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of ``number`` that is at most ``limit``."""
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)


def released_block(channels: int, block: int, groups: int) -> int:
    """Channels per block by the released rule: whole groups, else gcd with the wanted size."""
    if groups > 1:
        return channels // groups
    return channels if block > channels else math.gcd(block, channels)
