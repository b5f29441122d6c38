"""The benchmarks run, and what they measure against is what it claims to be."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.literal import LiteralDeconv2d
from segdeconv.operators.deconv import Deconv2d

ROOT = Path(__file__).resolve().parent.parent
VECTORS = ROOT / "tests" / "vectors"
CONVOLUTIONS = [
    path
    for path in sorted(VECTORS.glob("*.npz"))
    if path.stem.split("_")[0][-3:] in ("1x1", "3x3", "5x5", "7x7")
]

LAYERS = {
    "one block": ((6, 5, 3), {"padding": 1}),
    "interleaved blocks, strided": ((8, 6, 3, 2, 1), {"block": 2}),
    "1x1, blocks": ((12, 4, 1), {"block": 4}),
    "1x1, strided": ((8, 4, 1, 2), {"block": 4}),
    "dilated": ((4, 4, 3), {"padding": 2, "dilation": 2, "block": 2}),
    "grouped": ((8, 12, 3), {"padding": 1, "groups": 4}),
    "depthwise": ((6, 6, 3), {"padding": 1, "groups": 6, "n_iter": 1}),
    "stem": ((3, 4, 7, 2, 3), {"n_iter": 15, "freeze": True, "freeze_iter": 1}),
}


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=False,
    )


def close(actual, expected, tolerance=1e-10):
    difference = (actual - expected.view_as(actual)).abs().max()
    return difference < tolerance * expected.abs().max()


def training_step(layer, x):
    x = x.clone().requires_grad_()
    y = layer(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    grads = torch.autograd.grad((y * weights).sum(), (x, layer.weight, layer.bias))
    return [y.detach(), *grads, layer.running_mean.clone(), layer.running_deconv.clone()]


@pytest.mark.parametrize(("arguments", "options"), LAYERS.values(), ids=LAYERS)
def test_the_literal_layer_and_the_released_preset_are_one_function(arguments, options):
    torch.manual_seed(0)
    literal = LiteralDeconv2d(*arguments, **options).double()
    ours = Deconv2d(*arguments, **options, preset="released", dtype=torch.float64)
    ours.load_state_dict({**ours.state_dict(), **literal.state_dict()})
    ours.reset_running_stats()
    for step in range(4):
        x = step + torch.randn(5, arguments[0], 13, 11, dtype=torch.float64).cumsum(-1)
        pairs = zip(training_step(ours, x), training_step(literal, x), strict=True)
        assert all(close(actual, expected) for actual, expected in pairs)
    assert close(ours.eval()(x), literal.eval()(x))


@pytest.mark.parametrize("path", CONVOLUTIONS, ids=lambda path: path.stem)
def test_the_literal_layer_reproduces_the_recorded_released_one(path):
    data = np.load(path)
    settings = json.loads(str(data["settings"]))
    layer = LiteralDeconv2d(**settings["args"]).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(data["weight"]))
        layer.bias.copy_(torch.tensor(data["bias"]))
    for step in range(settings["steps"]):
        x = torch.tensor(data[f"step{step}_input"], requires_grad=True)
        y = layer(x)
        (grad,) = torch.autograd.grad((y * torch.tensor(data["probe"])).sum(), x)
        for actual, name in ((y, "output"), (grad, "grad_input")):
            assert close(actual, torch.tensor(data[f"step{step}_{name}"]), 1e-9)


def test_the_layer_benchmark_writes_its_figures_and_where_they_come_from(tmp_path):
    done = run("benchmarks/layers.py", "--tiny", "--seconds", "0", "--out", tmp_path / "layers")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "layers.json").read_text())
    assert {"commit", "processor", "torch", "threads", "seed"} <= record["environment"].keys()
    row = record["rows"]["tiny 3x3"]
    timings = row["training"]["literal"]
    assert 0 < timings["min"] <= timings["median"] <= timings["max"]
    assert timings["rounds"] >= 5
    assert row["literal / released"]["median"] > 0
    assert "| tiny 3x3 |" in (tmp_path / "layers.md").read_text()


def test_the_root_benchmark_times_both_backends(tmp_path):
    out = tmp_path / "roots"
    done = run("benchmarks/layers.py", "--roots", "--tiny", "--seconds", "0", "--out", out)
    assert done.returncode == 0, done.stderr
    for row in json.loads((tmp_path / "roots.json").read_text())["rows"]:
        assert row["seconds"].keys() == {"newton_schulz", "eigh", "literal"}


def test_a_shape_that_does_not_exist_is_one_sentence():
    done = run("benchmarks/layers.py", "--only", "nonsense*")
    assert done.returncode != 0
    assert done.stderr.strip() == "no shape matches nonsense*; --list shows the names"
