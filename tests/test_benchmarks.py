"""The benchmarks run, and what they measure against is what it claims to be."""

import argparse
import importlib
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

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
    assert (tmp_path / "layers.png").stat().st_size > 1000
    assert "| tiny 3x3 |" in (tmp_path / "layers.md").read_text()


def test_the_root_benchmark_times_both_backends(tmp_path):
    out = tmp_path / "roots"
    done = run("benchmarks/layers.py", "--roots", "--tiny", "--seconds", "0", "--out", out)
    assert done.returncode == 0, done.stderr
    for row in json.loads((tmp_path / "roots.json").read_text())["rows"]:
        assert row["seconds"].keys() == {"newton_schulz", "eigh", "literal"}


def test_a_multiplied_batch_is_the_one_that_is_recorded(tmp_path):
    options = ["--tiny", "--batch-times", "3", "--seconds", "0", "--out", tmp_path / "layers"]
    done = run("benchmarks/layers.py", *options)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "layers.json").read_text())["rows"]
    assert [row["batch"] for row in rows.values()] == [2 * 3, 2 * 3]


def test_inverse_roots_are_not_called_those_of_a_gpu(script, capsys):
    with pytest.raises(SystemExit):
        script("layers").parse(["--roots", "--device", "cuda"])
    assert "--roots times the processor; benchmarks/kernels.py" in capsys.readouterr().err


def test_a_shape_that_does_not_exist_is_one_sentence():
    done = run("benchmarks/layers.py", "--only", "nonsense*")
    assert done.returncode != 0
    assert done.stderr.strip() == "no shape matches nonsense*; --list shows the names"


def test_the_training_benchmark_times_whole_networks_against_batch_norm(tmp_path):
    out = tmp_path / "steps"
    variant = ["--variant", "small:block=2,n_iter=3"]
    done = run("benchmarks/train_step.py", "--tiny", "--seconds", "0", *variant, "--out", out)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "steps.json").read_text())["networks"]["tiny"]
    assert rows.keys() == {
        *("batchnorm", "groupnorm", "default", "block64", "released", "literal", "small")
    }
    for row in rows.values():
        assert 0 < row["seconds"]["min"] <= row["seconds"]["median"] <= row["seconds"]["max"]
        assert row["peak_bytes"] > row["saved_bytes"] > 0
    assert rows["batchnorm"]["time / batchnorm"]["median"] == 1
    assert rows["default"]["operators"] > rows["batchnorm"]["operators"]
    assert rows["small"]["options"] == {"block": 2, "n_iter": 3}
    # One function and one set of parameters, so one loss after as many steps
    assert rows["literal"]["first_loss"] == pytest.approx(rows["released"]["first_loss"], rel=1e-5)
    assert rows["default"]["first_loss"] != pytest.approx(rows["batchnorm"]["first_loss"], rel=1e-3)
    assert "| small |" in (tmp_path / "steps.md").read_text()
    assert (tmp_path / "steps.png").exists()


@pytest.fixture
def script(monkeypatch):
    """Imports a script of benchmarks/ as a module."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


@pytest.fixture
def train_step(script):
    """benchmarks/train_step.py as a module."""
    return script("train_step")


def test_saved_bytes_are_those_of_the_activations_a_backward_needs(train_step):
    model = nn.Sequential(nn.Linear(3, 5), nn.Sigmoid(), nn.Linear(5, 2))
    saved = train_step.SavedBytes(model)
    with saved:
        model(torch.randn(7, 3))
    assert sum(saved.sizes.values()) == 4 * (7 * 3 + 7 * 5)  # input, and the sigmoid's output once


def test_peak_memory_is_what_was_held_at_once(train_step):
    before = torch.empty(300)
    with train_step.PeakMemory("cpu") as peak:
        first, second = torch.empty(1000), torch.empty(1000)
        del first, second, before
        torch.empty(1500)
    assert peak.bytes == 4 * 2000


def test_convolutions_that_the_literal_layer_cannot_take_are_named(train_step):
    square, oblong = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, (3, 1))
    model = nn.Sequential(square, nn.BatchNorm2d(4), oblong, nn.BatchNorm2d(4))
    assert train_step.make_literal(model) == ["2"]
    assert [type(layer).__name__ for layer in model[:2]] == ["LiteralDeconv2d", "Identity"]
    assert model[0].weight is square.weight


def test_the_inference_benchmark_compares_networks_that_compute_the_same(tmp_path):
    pytest.importorskip("onnxruntime", reason="the benchmark runs ONNX files: .[export]")
    done = run("benchmarks/inference.py", "--tiny", "--seconds", "0", "--out", tmp_path / "eval")
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "eval.json").read_text())["networks"]["tiny"]
    assert row["batch norms left"] == 0
    assert len(row["differences"]) == 6
    assert max(row["differences"].values()) < 1e-5
    assert row["quotients"]["deconv folded / batchnorm folded"]["rounds"] >= 7
    assert "| deconv onnx |" in (tmp_path / "eval.md").read_text()


@pytest.mark.gpu
def test_the_training_benchmark_replays_16_bit_steps_as_graphs(tmp_path):
    setup = ["--device", "cuda", "--amp", "bf16", "--channels-last", "--cuda-graph"]
    out = tmp_path / "steps"
    done = run(
        "benchmarks/train_step.py", "--tiny", "--seconds", "0", "--skip", "literal", *setup,
        "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "steps.json").read_text())["networks"]["tiny"]
    assert {row["launches"] for row in rows.values()} == {1}
    assert all(row["kernels"] > 10 for row in rows.values())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--only", "vgg*"], "no network matches vgg*; there are resnet18-cifar"),
        (["--profile", "nonsense"], "no variant is called 'nonsense'; there are batchnorm"),
        (["--variant", "block=3"], "'block=3': expected NAME:key=value,key=value"),
        (["--cuda-graph"], "--cuda-graph goes with --device cuda"),
        (["--resident", "--compile"], "not --tiny, and without --compile"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_at_the_training_benchmark_is_one_sentence(
    train_step, capsys, arguments, sentence
):
    with pytest.raises(SystemExit) as stop:
        options = train_step.parse(arguments)
        train_step.chosen_variants(options)
        train_step.chosen_networks(options)
    assert sentence in f"{stop.value.code} {capsys.readouterr().err}"


def test_the_study_of_options_tabulates_and_keeps_its_runs(tmp_path):
    arguments = ["--tiny", "--epochs", "1", "--width", "4", "--seconds", "0", "--runs", tmp_path]
    names = ["--only", "batchnorm", "rows 8", "constant*"]
    done = run("benchmarks/pareto.py", *arguments, *names, "--out", tmp_path / "study")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "study.json").read_text())
    assert [row["name"] for row in record["rows"]] == ["batchnorm", "rows 8", "constant statistics"]
    assert record["rows"][0]["step"]["median"] == 1
    kept = run("benchmarks/pareto.py", *arguments, "--only", "*", "--no-training")
    assert kept.returncode == 0, kept.stderr
    assert "rows 8" in kept.stdout
    assert "block 8" not in kept.stdout


def test_the_study_of_options_keeps_runs_of_different_recipes_apart(script):
    pareto = script("pareto")
    recipes = [[], ["--tiny"], ["--batch", "64"], ["--lr", "0.2"], ["--images", "10000"]]
    folders = {pareto.recipe_name(pareto.parse(recipe)) for recipe in recipes}
    assert len(folders) == len(recipes)


def test_onnx_runtime_is_asked_for_before_anything_is_measured(script, monkeypatch, capsys):
    inference = script("inference")
    monkeypatch.setattr(inference, "find_spec", lambda name: None)
    assert not inference.parse(["--no-onnx"]).onnx
    with pytest.raises(SystemExit):
        inference.parse([])
    assert "pip install '.[export]' or add --no-onnx" in capsys.readouterr().err


def recorded_run(folder, seed, miou, walls):
    path = folder / f"a-lr0.1-seed{seed}"
    path.mkdir(parents=True)
    last = {"miou": miou, "pixel_accuracy": 0.5, "class_iou": {"road": miou, "wall": walls}}
    (path / "metrics.json").write_text(json.dumps({"last": last}))
    (path / "metrics.csv").write_text(f"epoch,seconds,miou\n1,2.0,0.1\n2,3.0,{miou}\n")


def test_the_loaders_are_timed_beside_a_step(tmp_path):
    done = run("benchmarks/loading.py", "--tiny", "--seconds", "0", "--out", tmp_path / "loading")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "loading.json").read_text())["rows"]
    assert rows.keys() == {"batches", "one by one", "tu-test_resnet"}
    assert rows["batches"]["median"] > rows["one by one"]["median"]


def test_an_evaluation_is_timed_in_parts_and_against_its_forward(tmp_path):
    options = ["--tiny", "--seconds", "0", "--images", "2", "--workers", "1"]
    done = run("benchmarks/evaluation.py", *options, "--out", tmp_path / "evaluation")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "evaluation.json").read_text())
    ours, theirs = ("decode", "normalise", "collate", "argmax", "metric"), ("torchmetrics",)
    assert record["parts"].keys() >= {*ours, *theirs, "upsample", "confidence", "observe"}
    assert record["networks"].keys() == {"unet/resnet18"}
    for figures in record["networks"]["unet/resnet18"].values():
        assert figures["seconds per image"].keys() == {"forward", "evaluation", "with report"}
        assert figures["quotients"]["evaluation / forward"]["rounds"] >= 3
    text = (tmp_path / "evaluation.md").read_text()
    assert "2 drawn images of 128x64 pixels" in text and "| metric |" in text
    assert "- evaluation / forward, main process: below 1.1 " in text


def test_twins_are_averaged_over_seeds_and_an_absent_class_has_no_score(script, tmp_path):
    twins = script("twins")
    for seed, miou in enumerate((0.2, 0.4)):
        recorded_run(tmp_path, seed, miou, walls=None)
    options = argparse.Namespace(runs=tmp_path.parent, name=tmp_path.name, overrides=[])
    jobs = [twins.Job.of(Path("a.yaml"), 0.1, seed, options) for seed in (0, 1)]
    twin = twins.summary(Path("a.yaml"), jobs)
    assert twin["class_iou"] == {"road": pytest.approx(0.3), "wall": None}
    record = {"twins": [twin, twin], "timed": True, "tuning": []}
    text = twins.text("pair", record)
    assert "| a | 0.1 | 2 | 30.00 ± 14.14 | 50.00 | 5 |" in text
    assert "| wall | - | - |" in text
    twins.plot(record["twins"], tmp_path / "curves.png", timed=False)
    assert (tmp_path / "curves.png").stat().st_size > 1000


@pytest.fixture
def gpu_all(script, monkeypatch):
    """Runs benchmarks/gpu_all.py with these arguments and, if given, other steps."""
    module = script("gpu_all")

    def call(*arguments, steps=module.STEPS):
        monkeypatch.setattr(module, "STEPS", steps)
        monkeypatch.setattr(sys, "argv", ["gpu_all.py", *map(str, arguments)])
        module.main()

    call.module = module
    return call


def test_the_plan_for_a_gpu_has_parts_that_fit_and_every_step_once(gpu_all, capsys):
    gpu_all("--plan", "--minutes", "9.5")
    text = capsys.readouterr().out
    runs = gpu_all.module.parts(gpu_all.module.STEPS, 9.5)
    assert all(sum(step.minutes for step in run) <= 9.5 for run in runs)
    assert [step for run in runs for step in run] == list(gpu_all.module.STEPS)
    assert all(f"{step.name}: python " in text for step in gpu_all.module.STEPS)


def test_scripts_understand_what_they_are_told_on_a_gpu(gpu_all, script, tmp_path):
    understood = set()
    for step in gpu_all.module.STEPS:
        name, *arguments = step.arguments(tmp_path, tiny=False)
        if name.endswith(("train_step.py", "layers.py", "inference.py", "pareto.py")):
            module = script(Path(name).stem)
            options = module.parse(arguments)
            understood.add(module.__name__)
            assert options.device == "cuda" and options.out == tmp_path / step.name
    assert len(understood) == 4


def test_a_step_that_fails_or_takes_too_long_does_not_keep_the_next_from_running(
    gpu_all, tmp_path, capsys
):
    step = partial(gpu_all.module.Step, gpu="", tiny="")
    steps = (
        step("fails", "-c 'raise SystemExit(\"no such card\")'", minutes=1),
        step("sleeps", "-c 'import time; time.sleep(60)'", minutes=0.01),
        step("works", "-c 'print(1)'", minutes=1),
    )
    with pytest.raises(SystemExit) as stop:
        gpu_all("--tiny", "--out", tmp_path, steps=steps)
    assert stop.value.code
    notes = json.loads((tmp_path / "steps.json").read_text())
    ended = {name: record["ended"] for name, record in notes.items()}
    assert ended == {
        "fails": "failed with 1",
        "sleeps": "stopped after 0.01 minutes",
        "works": "ok",
    }
    assert "no such card" in capsys.readouterr().out
    assert (tmp_path / "works.log").read_text() == "1\n"


def test_a_step_without_its_data_says_so(gpu_all, tmp_path):
    lacks = gpu_all.module.Step("options", "-c pass", "", minutes=1, needs="data/nothing-here")
    ended = gpu_all.module.run(lacks, tmp_path, tiny=False, minutes=1)["ended"]
    assert ended == "left out: there is no data/nothing-here"


def test_benchmarks_for_a_gpu_run_on_a_cpu_with_tiny_inputs(gpu_all, tmp_path):
    with pytest.raises(SystemExit) as stop:
        gpu_all("--tiny", "--out", tmp_path, "--only", "tests", "layers")
    assert not stop.value.code
    assert json.loads((tmp_path / "layers.json").read_text())["rows"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--plan", "--part", "99"], "--part 99: there are 1 to "),
        (["--plan", "--only", "nonsense"], "no step matches nonsense; there are tests, kernels"),
        ([], "nowhere to put the results; give --out FOLDER or set OUT"),
    ],
    ids=str,
)
def test_a_mistake_at_the_runner_is_one_sentence(gpu_all, capsys, monkeypatch, arguments, sentence):
    monkeypatch.delenv("OUT", raising=False)
    with pytest.raises(SystemExit) as stop:
        gpu_all(*arguments)
    assert sentence in f"{stop.value.code} {capsys.readouterr().err}"
