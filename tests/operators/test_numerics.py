"""Long and ill-conditioned runs: no NaN, and steep stems stay near float64 in 16 bits."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segdeconv.operators.deconv import Deconv2d

BATCHES = {
    "usual": lambda g: F.avg_pool2d(torch.randn(4, 6, 14, 14, generator=g), 3, 1),
    "one image": lambda g: torch.rand(1, 6, 12, 12, generator=g),
    "one pixel": lambda g: torch.rand(1, 6, 1, 1, generator=g),
    "zero": lambda g: torch.zeros(2, 6, 8, 8),
    "constant": lambda g: torch.full((2, 6, 8, 8), float(torch.randn((), generator=g)) * 1e3),
    "dead channels": lambda g: (
        torch.rand(3, 6, 9, 9, generator=g) * torch.eye(6)[0].view(1, 6, 1, 1)
    ),
    "equal channels": lambda g: torch.rand(3, 1, 9, 9, generator=g).expand(3, 6, 9, 9),
    "huge": lambda g: torch.randn(2, 6, 8, 8, generator=g) * 1e15,
    "tiny": lambda g: torch.randn(2, 6, 8, 8, generator=g) * 1e-15,
    "far from zero": lambda g: 1e4 + torch.randn(2, 6, 8, 8, generator=g),
    "not finite": lambda g: torch.full((2, 6, 8, 8), float("inf")),
}


def soak(steps, dtype):
    """Train two layers on degenerate batches in random order; yields (kind, output, gradient)."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    stem = Deconv2d(6, 8, 3, padding=1, n_iter=15, min_rows=0)
    net = nn.Sequential(stem, nn.ReLU(), Deconv2d(8, 4, 1, max_rows=16))
    kinds = list(BATCHES)
    for _ in range(steps):
        kind = kinds[int(torch.randint(len(kinds), (), generator=generator))]
        x = BATCHES[kind](generator)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            y = net(x)
        net.zero_grad()
        # A loss of bounded gradient: what is asked here is that the layers make no NaN of it.
        torch.tanh(y.float()).mean().backward()
        yield kind, y.detach(), net


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("steps", [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_soak_in_degenerate_batches_leaves_no_nan(steps, dtype):
    seen = set()
    for kind, y, net in soak(steps, dtype):
        seen.add(kind)
        for name, buffer in net.named_buffers():
            assert buffer.isfinite().all(), (kind, name)
        overflows = kind == "not finite" or (kind == "huge" and dtype == torch.float16)
        if not overflows:
            assert y.isfinite().all(), kind
            for name, parameter in net.named_parameters():
                assert parameter.grad.isfinite().all(), (kind, name)
    assert seen == set(BATCHES)


def natural_images(n, size, seed=0):
    """A 1/f spectrum in 8 bits, channels nearly equal: the covariance of photographs."""
    generator = torch.Generator().manual_seed(seed)
    frequency = torch.fft.fftfreq(size)
    falloff = 1 / (frequency[:, None] ** 2 + frequency[None] ** 2 + 1 / size**2).sqrt()
    noise = torch.randn(n, 3, size, size, generator=generator)
    smooth = torch.fft.ifft2(torch.fft.fft2(noise) * falloff).real
    mixed = smooth.mean(1, keepdim=True) + 0.1 * smooth
    levels = (mixed - mixed.amin()) / (mixed.amax() - mixed.amin()) * 255
    return levels.round() / 127.5 - 1


@pytest.mark.parametrize("dtype, bound", [(torch.bfloat16, 0.03), (torch.float16, 0.01)], ids=str)
def test_a_fifteen_step_stem_under_autocast_stays_near_float64(dtype, bound):
    x = natural_images(4, 64)
    torch.manual_seed(0)
    layer = Deconv2d(3, 16, 7, 2, 3, n_iter=15)
    reference = Deconv2d(3, 16, 7, 2, 3, n_iter=15).double()
    reference.load_state_dict(layer.state_dict())
    expected = reference(x.double()).detach()
    with torch.autocast("cpu", dtype):
        y = layer(x).detach()
    assert y.dtype == dtype
    assert float((y.double() - expected).norm() / expected.norm()) < bound
    root = layer.running_deconv.double()
    assert float((root - reference.running_deconv).norm() / root.norm()) < 1e-3
