"""Inverse root of a patch covariance taken as a Kronecker product of channels and taps."""

import torch
from torch import Tensor

from segdeconv.whitening.roots import Backend, inverse_root


def kronecker_root(
    covariance: Tensor, taps: int, n_iter: int = 5, backend: Backend = "auto"
) -> Tensor:
    """``root(channels) x root(taps)`` of the nearest such product by partial traces.

    Two small roots instead of one of size channels x taps; correlation between the taps of one
    channel is taken to be the same for all, and what is not of that form stays in the data.

    Args:
        covariance: (M, D, D) of blocks of whole channels, D = channels x taps, channel slowest.
        taps: Per channel.
        n_iter: Newton-Schulz steps of both roots.
        backend: As `inverse_root`.

    Returns:
        (M, D, D).

    Source: the factorisation of K-FAC (Martens and Grosse 2015), applied to patch covariances.
    """
    whole = covariance.view(len(covariance), -1, taps, covariance.shape[-1] // taps, taps)
    channels = whole.diagonal(dim1=2, dim2=4).mean(-1)
    by_tap = whole.diagonal(dim1=1, dim2=3).mean(-1)
    variance = by_tap.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None]
    by_tap = by_tap / variance.clamp_min(torch.finfo(variance.dtype).tiny)
    roots = inverse_root(channels, n_iter, backend), inverse_root(by_tap, n_iter, backend)
    return torch.einsum("mac,mbd->mabcd", *roots).reshape(covariance.shape)
