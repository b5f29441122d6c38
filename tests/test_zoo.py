"""A quick subset of benchmarks/zoo.py, and that the zoo can fail."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import zoo

from segdeconv.operators import Deconv2d
from segdeconv.surgery import convert

ROWS = zoo.zoo()


@pytest.mark.parametrize(
    "name",
    [
        "smp/unet/tu-regnety_004",  # fused norm-activations, grouped convolutions
        "smp/fpn/mobilenet_v2",  # group norms in the decoder, depthwise convolutions
        "smp/segformer/mit_b0",  # layer norms in the encoder
        "smp/deeplabv3/densenet121",  # refused: cannot be dilated
        "torchvision/lraspp/mobilenet_v3_large",
        "timm/tf_efficientnetv2_b0",  # Conv2dSame
        "timm/nf_resnet50",  # refused: nothing to swap
        "timm/resnetv2_50x1_bit",  # weight standardisation everywhere but in the head
    ],
)
def test_a_network_of_the_zoo_passes(name):
    result = zoo.run(name, replace(ROWS[name], size=32))
    assert result["passed"], result
    assert ("refused" in result) == ROWS[name].refused


def test_the_zoo_holds_what_it_promises():
    smp_rows = [name for name in ROWS if name.startswith("smp/")]
    assert len(smp_rows) == 12 * 13
    assert len([name for name in ROWS if name.startswith("timm/")]) >= 30
    assert sum(ROWS[name].refused for name in smp_rows) == 3 * 3 + 2 + 9


class Loud(nn.Module):
    """A network with one fault that a check is to find."""

    def __init__(self, fault):
        super().__init__()
        self.conv, self.fault = nn.Conv2d(3, 2, 1), fault
        self.leftover = Deconv2d(2, 2, 1) if fault == "plain" else nn.Identity()

    def forward(self, x):
        y = self.conv(x)
        if self.fault == "finite":
            return y / 0
        if self.fault == "fold_error" and type(self.conv) is nn.Conv2d:
            return y * 1.000001
        return y


@pytest.mark.parametrize("fault", ["finite", "fold_error"])
def test_a_fault_is_found(fault):
    def build():
        net = Loud(fault)
        return net, convert(net)

    result = zoo.check(zoo.Row(build, 8))
    assert not result["passed"] and result["problems"][0] == fault


def test_a_layer_that_is_left_after_folding_is_found(monkeypatch):
    monkeypatch.setattr(zoo, "fold", lambda network: network)
    net = Loud(None)
    convert(net)
    assert zoo.folded(net, torch.randn(1, 3, 4, 4)) == {"fold_error": 0.0, "plain": False}


def test_a_network_that_is_built_although_it_is_to_be_refused_fails():
    def build():
        net = Loud(None)
        return net, convert(net)

    assert not zoo.run("any", zoo.Row(build, 8, refused=True))["passed"]


def test_a_missing_copy_is_found(monkeypatch):
    name = "timm/resnetv2_50"
    assert zoo.shortcut_error(name, 32) == 0
    monkeypatch.setattr("segdeconv.surgery._copy_activations", lambda module: 0)
    assert zoo.shortcut_error(name, 32) > 0.1


def test_the_table_says_what_passed_what_was_refused_and_what_failed():
    row = {
        "passed": True,
        "problems": [],
        "parameters": 1_500_000,
        "counts": {"swapped": 3, "skipped": 1},
        "layers": [["swapped", "Conv2d", "now Deconv2d", 3], ["skipped", "StdConv2d", "odd", 1]],
        "biases_added": 2,
        "uncalled": ["a"],
        "fold_error": 1e-15,
        "shortcut_error": None,
        "seconds": 1.5,
    }
    failed = row | {"passed": False, "problems": ["finite"]}
    rows = {"timm/a": row, "timm/b": failed, "smp/c/d": {"passed": True, "refused": "cannot"}}
    text = zoo.text(rows)
    assert '"deconv": 2 networks; refused: 1; failed: 1: timm/b.' in text
    assert "| timm/a | 1.5 | 3 | 0 | 0 | 1 | 2 | 1 | 1e-15 | - | 1.5 |" in text
    assert "timm/b **failed: finite**" in text and "- smp/c/d: cannot" in text
    assert "| swapped Conv2d: now Deconv2d | 6 | 2 |" in text
