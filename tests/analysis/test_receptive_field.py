"""The effective receptive field: recorded maps, and those of networks whose field is known."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from segdeconv.analysis import (
    in_evaluation,
    last_map,
    log_map,
    mean_map,
    participation,
    radius,
    receptive_field,
    squares,
    variances,
)


@pytest.fixture(scope="module")
def recorded():
    """Map of a small network and squares of a blob, by the functions of the RepLKNet tool."""
    return np.load(Path(__file__).with_name("receptive_field.npz"))


def test_the_map_of_a_network_equals_the_recorded_one(recorded):
    w1, w2, w3 = (torch.from_numpy(recorded[f"net/w{n}"]) for n in (1, 2, 3))

    def features(x):
        x = F.conv2d(x, w1, stride=2, padding=2).relu()
        return F.conv2d(F.conv2d(x, w2, padding=2, dilation=2).relu(), w3, padding=1)

    field = receptive_field(features, torch.from_numpy(recorded["net/x"]).double())
    expected = torch.from_numpy(recorded["net/erf_map"])
    torch.testing.assert_close(field, expected, rtol=0, atol=1e-6 * float(expected.max()))


@pytest.mark.parametrize("reading", ["raw", "log"])
def test_squares_are_the_recorded_ones(recorded, reading):
    blob = torch.from_numpy(recorded["blob"])
    field = blob if reading == "raw" else log_map(blob)
    found = squares(field, recorded["thresholds"].tolist())
    sides, areas = zip(*recorded[f"rect_{reading}"].tolist(), strict=True)
    assert [side for side, _ in found] == list(sides)
    assert [area for _, area in found] == pytest.approx(areas, abs=1e-12)


def test_the_participation_of_a_map_is_the_recorded_one(recorded):
    cam = torch.from_numpy(recorded["focus/cam"])
    assert participation(cam) == pytest.approx(float(recorded["focus/participation"]), abs=1e-12)


@pytest.mark.parametrize(
    ("layers", "taps", "dilation", "variance"), [(5, 3, 1, 10 / 3), (4, 5, 1, 8), (3, 3, 2, 8)]
)
def test_stacked_box_filters_have_the_variance_of_a_sum_of_uniform_steps(
    layers, taps, dilation, variance
):
    """One box of k taps at dilation d: variance (k^2 - 1) / 12 d^2 along each axis; n add up."""
    assert variance == pytest.approx(layers * (taps**2 - 1) / 12 * dilation**2)
    padding = dilation * (taps // 2)
    box = torch.ones(1, 1, taps, taps, dtype=torch.float64)

    def features(x):
        for _ in range(layers):
            x = F.conv2d(x, box, padding=padding, dilation=dilation)
        return x

    field = receptive_field(features, torch.ones(1, 1, 41, 45, dtype=torch.float64))
    down, across = variances(field)
    assert down == pytest.approx(variance, abs=1e-9) and across == pytest.approx(variance, abs=1e-9)
    assert radius(field) == pytest.approx((2 * variance) ** 0.5, abs=1e-9)


def test_maps_of_known_shape_have_the_known_figures():
    point = torch.zeros(9, 11)
    point[4, 5] = 3
    assert variances(point) == (0, 0)
    assert participation(point) == pytest.approx(1 / 99)
    assert squares(point) == [(3, pytest.approx(9 / 99))] * 4
    flat = torch.ones(9, 11)
    assert participation(flat) == 1 and participation(flat * 0) == 0
    assert squares(flat, [0.09, 0.9]) == [
        (3, pytest.approx(9 / 99)),
        (11, 1.0),
    ]  # none of 3 to 7 holds 90 %


def test_each_image_and_colour_adds_its_rectified_gradient():
    """One pixel, two colours of weights 2 and -3: only the first counts, in each image."""
    weight = torch.tensor([[[[2.0]], [[-3.0]]]])
    field = receptive_field(lambda x: F.conv2d(x, weight) + 10, torch.ones(4, 2, 5, 5))
    expected = torch.zeros(5, 5)
    expected[2, 2] = 4 * 2
    assert torch.equal(field, expected)


def test_images_without_a_response_are_left_out_of_the_mean():
    good, empty = torch.ones(3, 3), torch.zeros(3, 3)
    mean, count = mean_map([good, empty, good * float("nan"), 3 * good])
    assert count == 2 and torch.equal(mean, 2 * good)
    assert mean_map([empty]) == (None, 0)


def test_the_network_is_in_evaluation_for_a_while_and_then_in_its_own_modes():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    network.train()
    network[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with in_evaluation(network):
        assert not any(module.training for module in network.modules())
        receptive_field(network, torch.randn(1, 3, 9, 9))
    assert [module.training for module in network.modules()] == [True, True, False, True]
    after = network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_last_map_is_the_parts_own_or_the_last_inside_it():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 5, 3, 2)

        def forward(self, x):
            one = self.one(x)
            return [x, one, self.two(one)]

    encoder, images = Encoder(), torch.randn(1, 3, 17, 17)
    segments = nn.Sequential(encoder)
    assert torch.equal(last_map(segments, encoder)(images), encoder(images)[-1])
    classifier = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    expected = classifier[1](classifier[0](images))
    assert torch.equal(last_map(classifier, classifier)(images), expected)
    assert not any(module._forward_hooks for module in classifier.modules())
    with pytest.raises(ValueError, match="no part of the encoder gives a feature map"):
        last_map(nn.Flatten(), nn.Flatten())(images)
