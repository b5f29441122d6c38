"""What is gathered from a running network, against patches cut out by hand."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from segdeconv.analysis import MAX_COLUMNS, MAX_PATCHES, observing, unobserved
from segdeconv.analysis import layers as layers_module
from segdeconv.operators.deconv import Deconv2d, DeconvTranspose2d, Delinear
from segdeconv.surgery import convert


def images(count=3, channels=3, size=12):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, channels, size, size, generator=generator)


def observe(network, *batches):
    with observing(network.eval()) as called, torch.no_grad():
        for batch in batches:
            network(batch)
    return called


def trained(layer, x):
    layer.train()(x)
    return layer.eval()


@pytest.mark.parametrize("groups", [1, 2])
def test_moments_before_and_after_are_those_of_all_patches(groups):
    torch.manual_seed(0)
    layer = Deconv2d(4, 6, 3, padding=1, groups=groups, block=2)
    x = images(channels=4)
    trained(layer, x)
    network = nn.Sequential(layer)
    statistics = observe(network, x[:2], x[2:])["0"]
    patches = F.unfold(x, 3, padding=1).transpose(0, 1).flatten(1).double()
    assert statistics.before.samples == patches.shape[1] == 3 * 144
    expected = np.cov(patches.numpy(), bias=True)
    np.testing.assert_allclose(statistics.before.covariance[0], expected, atol=1e-9)
    # what the kernel multiplies: the output of the layer is kernel times whitened patch
    rows = statistics.after
    weight = layer.weight.double()
    if groups == 2:
        weight = torch.block_diag(*weight.flatten(1).chunk(2))
    weight = weight.flatten(1)
    outputs = layer(x).transpose(0, 1).flatten(1).double()
    np.testing.assert_allclose(
        (weight @ rows.covariance[0] @ weight.T).detach(),
        np.cov(outputs.detach().numpy(), bias=True),
        atol=1e-5,
    )
    mean = weight @ rows.mean[0] + layer.bias.double()
    torch.testing.assert_close(mean, outputs.mean(1), rtol=1e-4, atol=1e-5)


def test_a_plain_layer_is_measured_as_its_whitening_twin_before_whitening():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, 2))
    plain.append(nn.Flatten(1)).append(nn.Linear(4 * 144, 5))
    white = nn.Sequential(
        Deconv2d.from_conv(plain[0]), nn.ReLU(), DeconvTranspose2d.from_conv(plain[2])
    )
    white.append(nn.Flatten(1)).append(Delinear.from_linear(plain[4]))
    one, other = observe(plain, images()), observe(white, images())
    assert list(one) == list(other) == ["0", "2", "4"]
    for name in one:
        torch.testing.assert_close(one[name].before.covariance, other[name].before.covariance)
        assert one[name].before.samples == other[name].before.samples > 0
        assert one[name].after.samples == 0 < other[name].after.samples
        assert one[name].zeros == other[name].zeros
    assert not any(module._forward_pre_hooks for module in plain.modules())
    assert all(module.__dict__.get("observer") is None for module in white.modules())


def test_observing_changes_neither_output_nor_state():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    convert(network[3:], "deconv")
    network.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    expected = network(images())
    with observing(network), torch.no_grad():
        assert torch.equal(network(images()), expected)
    after = network.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_zeros_of_a_layers_input_are_counted():
    """Three of eight entries are not above zero; the first layer sees none, the second these."""
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1))
    nn.init.ones_(network[0].weight)
    nn.init.zeros_(network[0].bias)
    x = torch.tensor([[1.0, -2, 3, 4], [-5, 6, 7, -8]]).view(1, 1, 2, 4)
    called = observe(network, x, x)
    assert [(each.zeros, each.entries) for each in called.values()] == [(0, 16), (6, 16)]


def test_wide_layers_are_looked_at_in_some_whole_channels_and_some_patches(monkeypatch):
    monkeypatch.setattr(layers_module, "MAX_PATCHES", 600)
    layer = Deconv2d(64, 4, 3, padding=1)
    x = images(2, 64, 48)
    statistics = observe(nn.Sequential(trained(layer, x)), x)["0"]
    channels = sorted({int(column) // 9 for column in statistics.columns})
    assert len(statistics.columns) == 9 * len(channels) == 252 <= MAX_COLUMNS
    assert channels[0] == 0 and channels[-1] >= 60 and len(channels) == 28
    assert 100 < statistics.before.samples <= 600 < 2 * 48 * 48 < MAX_PATCHES
    all_at_once = observe(nn.Sequential(nn.Conv2d(2, 4, 3)), images(channels=2))["0"]
    assert all_at_once.columns.tolist() == list(range(18))


def test_what_is_not_observed_is_named_with_the_reason():
    class Padded(nn.Conv2d):
        pass

    network = nn.Sequential(nn.Conv2d(3, 4, 1), Padded(4, 4, 1))
    network.add_module("idle", nn.Linear(2, 2))
    network.forward = lambda x: network[1](network[0](x))
    called = observe(network, images())
    reasons = unobserved(network, called)
    assert reasons == {
        "1": "a Padded, which has a forward of its own",
        "idle": "never called",
    }


def test_a_network_in_training_is_refused():
    with pytest.raises(ValueError, match="call eval"), observing(nn.Sequential(nn.Conv2d(1, 1, 1))):
        pass
