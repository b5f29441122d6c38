"""Long and ill-conditioned runs: no NaN, and steep stems stay near float64 in 16 bits."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.literal import LiteralDeconv2d
from segdeconv.operators.deconv import Deconv2d
from segdeconv.whitening import BACKENDS
from segdeconv.whitening.polynomials import fitted_polynomial

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
    """Train two layers on degenerate batches in random order; yields (kind, output, network)."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    stem = Deconv2d(6, 8, 3, padding=1, n_iter=15, min_rows=0)
    net = nn.Sequential(stem, nn.ReLU(), Deconv2d(8, 4, 1, max_rows=16, gram="input"))
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


def losses(stem, images, dtype=None, steps=20):
    """Of training a stem and a linear classifier on 32 images of four classes."""
    torch.manual_seed(0)
    net = nn.Sequential(stem(), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 4))
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    labels, values = torch.arange(len(images)) % 4, []
    for _ in range(steps):
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = F.cross_entropy(net(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values


@pytest.mark.parametrize("gram", ["single", "input"])
def test_a_fifteen_step_stem_trains_in_bfloat16_as_in_float32(gram):
    images = natural_images(32, 32)
    images = images.bfloat16() if gram == "input" else images
    make = partial(Deconv2d, 3, 8, 7, 2, 3, n_iter=15, gram=gram)
    expected = losses(make, images.float())
    assert expected[-1] < 0.7 * expected[0]
    assert losses(make, images, torch.bfloat16) == pytest.approx(expected, rel=0.02)


def test_the_literal_fifteen_step_stem_trains_in_float32_and_diverges_in_bfloat16():
    images, make = natural_images(32, 32), partial(LiteralDeconv2d, 3, 8, 7, 2, 3, n_iter=15)
    ours = losses(partial(Deconv2d, 3, 8, 7, 2, 3, n_iter=15), images)
    assert losses(make, images) == pytest.approx(ours, rel=0.02)
    assert math.isnan(losses(make, images, torch.bfloat16)[-1])


def photographs(generator):
    """Six channels, each of three but for little twice: a steep spectrum."""
    x = natural_images(4, 32).repeat(1, 2, 1, 1)
    return x + 1e-3 * torch.randn(x.shape, generator=generator)


INPUTS = {name: batch for name, batch in BATCHES.items() if name != "not finite"}
INPUTS["photographs"] = photographs


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "triton"])
def test_every_backend_stays_near_float64_on_any_input(backend, kind):
    x = INPUTS[kind](torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    layer = Deconv2d(6, 8, 3, padding=1, backend=backend)
    exact = Deconv2d(6, 8, 3, padding=1, backend="newton_schulz").double()
    exact.load_state_dict(layer.state_dict())
    fit = fitted_polynomial(5, backend) if backend.startswith("fitted") else None
    x, y, expected = x.requires_grad_(), layer(x), exact(x.double())
    torch.tanh(y).sum().backward(), torch.tanh(expected).sum().backward()
    assert x.grad.isfinite().all() and layer.weight.grad.isfinite().all()
    bound = 2 * fit.error if fit else 1e-5
    assert (y - expected).norm() < bound * expected.norm()
    if kind not in ("zero", "tiny"):  # nothing of them reaches the output, so gradients are nil
        bound = fit.gradient_error if fit else 1e-3
        difference = (layer.weight.grad - exact.weight.grad).norm()
        assert difference < bound * exact.weight.grad.norm()
