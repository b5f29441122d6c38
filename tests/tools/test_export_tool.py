"""tools/export.py: from a run to files that others read, and back into a run."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from segdeconv.export import comparison, network
from segdeconv.training.publishing import run_arguments
from segdeconv.training.run_folder import results_folder


def read(path):
    return np.array(Image.open(path))


def test_an_unfolded_encoder_starts_a_run(tool, trained, config_file):
    code, out, err = tool("export", "last", "--what", "encoder", "--unfolded", "--out", "mine/enc")
    assert code == 0, err
    assert re.search(r"model.safetensors: differs by 0.0e\+00 .*\d+ tensors .* timm's", out)
    config = json.loads(Path("mine/enc/config.json").read_text())
    assert config["model"]["operator"] == "deconv" and config["mean"]
    start = ("train", "--config", config_file, "--model.weights", "mine/enc", "--name", "second")
    code, out, err = tool(*start, "--optimizer.lr", "1e-9", "--trainer.max_steps", "1")
    assert code == 0, err
    assert "mine/enc" in out and "tensors into the encoder" in out
    assert "tensors into the encoder" in Path("runs/second/start_weights.txt").read_text()
    first, second = (load_file(f"runs/{name}/weights.safetensors") for name in ("run", "second"))
    kernels = [k for k, v in first.items() if ".encoder." in k and k.endswith(".weight")]
    assert all(torch.allclose(first[key], second[key], atol=1e-6) for key in kernels)


def test_a_folded_encoder_starts_a_run_with_batch_norms(tool, trained, config_file, expect):
    assert tool("export", "runs/run", "--what", "encoder")[0] == 0
    start = ("train", "--config", config_file, "--model.weights", "runs/run/encoder")
    options = ("--model.operator", "batchnorm", "--model.operator_options", "{}")
    code, out, err = tool(*start, *options, "--trainer.max_steps", "1")
    assert code == 0, err
    assert "tensors into the encoder" in out
    tool("export", "runs/run", "--what", "encoder", "--unfolded", "--overwrite")
    result = tool(*start, *options)
    expect(result, 1, "holds whitening statistics, but the model has none", "use 'deconv'")


def test_prediction_reads_what_was_exported(tool, trained, tiny_camvid):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    photos = tiny_camvid / "val" / "images"
    code, out, err = tool(
        "export", "last", "--formats", "onnx", "--argmax", "--normalize", "--out", "deploy"
    )
    assert code == 0, err
    assert "pixels 0 to 255 (N, 3, H, W) -> classes (N, H, W)" in out
    for name, given in {"run": [], "onnx": ["--onnx", "deploy"]}.items():
        options = ("--write", "ids", "--out", name, *given)
        assert tool("predict", "last", photos, *options)[0] == 0
    for name in ("00", "03"):
        same = read(f"run/ids/{name}.png") == read(f"onnx/ids/{name}.png")
        assert same.mean() > 0.999


def test_a_published_model_stands_in_for_its_run(tool, trained, tiny_camvid, expect):
    code, out, err = tool("export", "runs/run", "--what", "pretrained", "--out", "mine")
    assert code == 0, err
    assert "model.safetensors: differs by 0.0e+00" in out
    best = json.loads(Path("runs/run/metrics.json").read_text())["best"]
    card = Path("mine/README.md").read_text()
    assert f"| mean IoU | {100 * best['miou']:.2f} |" in card
    assert f"| Sky | {100 * best['class_iou']['Sky']:.2f} |" in card
    assert "lr 0.05" in card and "Trained on camvid" in card
    assert str(tiny_camvid) not in card + Path("mine/config.json").read_text()
    photos = tiny_camvid / "val" / "images"
    for run in ("runs/run", "mine"):
        options = ("--write", "ids", "colour", "--out", f"seen/{run}")
        code, _, err = tool("predict", run, photos, *options)
        assert code == 0, err
        code, _, err = tool("eval", run, "--data.root", tiny_camvid, "--json", f"seen/{run}.json")
        assert code == 0, err
    for name in ("ids/00.png", "colour/03.png"):
        assert np.array_equal(read(f"seen/runs/run/{name}"), read(f"seen/mine/{name}"))
    scores = [json.loads(Path(f"seen/{run}.json").read_text()) for run in ("runs/run", "mine")]
    assert scores[0]["confusion"] == scores[1]["confusion"]
    code, out, err = tool("export", "mine", "--what", "pretrained", "--out", "again")
    assert code == 0, err
    assert Path("again/README.md").read_text() == card
    assert tool("export", "mine", "--formats", "safetensors", "--out", "net")[0] == 0
    expect(tool("train", "--resume", "mine"), 1, "no run to go on with", "--model.weights mine")


def test_results_about_a_published_model_go_beside_its_folder(tool, trained, tiny_camvid):
    assert tool("export", "last", "--what", "pretrained", "--out", "models/mine")[0] == 0
    before = sorted(Path("models/mine").rglob("*"))
    code, out, err = tool("eval", "models/mine", "--data.root", tiny_camvid, "--limit", 1)
    assert code == 0, err
    assert "written to models/mine_results/eval_val_best_first1.json" in out
    assert Path("models/mine_results/eval_val_best_first1.html").is_file()
    given = ("export", "models/mine", "--formats", "safetensors")
    assert tool(*given)[0] == 0
    assert Path("models/mine_results/network/model.safetensors").is_file()
    assert sorted(Path("models/mine").rglob("*")) == before
    # one that stands elsewhere, or where one is, too
    assert results_folder(Path("models/mine/")) == Path("models/mine_results")
    assert results_folder(Path("models/mine").resolve()) == Path("models/mine_results").resolve()
    os.chdir("models/mine")
    assert results_folder(Path()) == Path("../mine_results")
    os.chdir("../..")
    assert results_folder(Path("runs/run")) == Path("runs/run")


def test_an_exported_network_stands_in_for_its_run(tool, trained, tiny_camvid, expect):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    photos = tiny_camvid / "val" / "images"
    for name, formats in {"folded": ["safetensors", "program"], "onnx": ["onnx"]}.items():
        options = ("--formats", *formats, "--out", name)
        assert (
            tool("export", "runs/run", *options, *(["--argmax"] if name == "onnx" else []))[0] == 0
        )
    for run in ("runs/run", "folded", "onnx"):
        code, _, err = tool("predict", run, photos, "--write", "ids", "--out", f"seen/{run}")
        assert code == 0, err
        given = ("--data.root", tiny_camvid, "--report", "none", "--json", f"seen/{run}.json")
        code, _, err = tool("eval", run, *given)
        assert code == 0, err
    expected = json.loads(Path("seen/runs/run.json").read_text())
    for run in ("folded", "onnx"):
        same = read("seen/runs/run/ids/00.png") == read(f"seen/{run}/ids/00.png")
        assert same.mean() > 0.999
        scores = json.loads(Path(f"seen/{run}.json").read_text())
        assert scores["miou"] == pytest.approx(expected["miou"], abs=1e-3)
        assert Path(scores["weights"]).parent == Path(run)
    code, _, err = tool("eval", "runs/run", "--onnx", "onnx", "--report", "none")
    assert code == 0 and Path("runs/run/eval_val_best_onnx.json").is_file(), err
    refused = "folded network, to run and not to change; name the run"
    expect(tool("export", "folded", "--what", "encoder"), 1, refused)
    refused = "folded network, to run and not to train; name the run"
    expect(tool("train", "--resume", "folded"), 1, refused)
    given = ("--data.root", tiny_camvid, "--checkpoint", "last")
    expect(tool("eval", "folded", *given), 1, "no checkpoints; leave --checkpoint out")
    start = tool("train", "--config", "runs/run/config.yaml", "--model.weights", "folded")
    expect(start, 1, "folded network, to run and not to train; start from the weights of the run")
    before = sorted(Path("folded").iterdir())
    assert tool("eval", "folded", "--data.root", tiny_camvid, "--report", "none")[0] == 0
    assert sorted(Path("folded").iterdir()) == before
    assert Path("folded_results/eval_val_best.json").is_file()


@pytest.mark.parametrize("kind", ["safetensors", "onnx"])
def test_an_exported_network_is_not_scored_on_other_classes(tool, trained, expect, kind):
    if kind == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    options = ("--argmax",) if kind == "onnx" else ()
    assert tool("export", "last", "--formats", kind, *options, "--out", "folded")[0] == 0
    given = ("--data.dataset", "synthetic", "--data.root", "null", "--limit", "1")
    words = (f"model.{kind} gives 11 classes", "has 19", "with the same classes")
    expect(tool("eval", "folded", *given), 1, *words)


def test_a_published_model_starts_a_run(tool, trained, config_file):
    assert tool("export", "last", "--what", "pretrained", "--out", "mine")[0] == 0
    start = ("train", "--config", config_file, "--model.weights", "mine", "--name", "second")
    code, out, err = tool(*start, "--optimizer.lr", "1e-9", "--trainer.max_steps", "1")
    assert code == 0, err
    assert re.search(r"weights: mine: \d+ tensors into the model", out)
    first, second = (load_file(f"runs/{name}/weights.safetensors") for name in ("run", "second"))
    kernels = [key for key in first if key.endswith(".weight")]
    assert all(torch.allclose(first[key], second[key], atol=1e-6) for key in kernels)


def test_a_folder_that_cannot_stand_in_for_a_run_is_one_sentence(tool, trained, tiny_camvid):
    assert tool("export", "last", "--what", "pretrained", "--out", "mine")[0] == 0
    config = Path("mine/config.json")
    whole = json.loads(config.read_text())
    about = whole["about"]
    for change, words in {
        "task": ({"task": "classification"}, "this tool is for segmentation"),
        "none": ({"about": {**about, "classes": []}}, "does not name its classes"),
        "few": ({"about": {**about, "classes": about["classes"][:3]}}, "3 classes of a network"),
        "bare": ({"about": {**about, "classes": [{"name": "a"}]}}, "without name or colour"),
        "key": ({"about": {**about, "planet": 1}}, "unknown key 'planet'"),
    }.values():
        config.write_text(json.dumps({**whole, **change}))
        code, _, err = tool("predict", "mine", tiny_camvid / "val" / "images")
        assert code in (1, 2) and words in err and err.count("\n") == 1, err


def test_help_has_examples(tool, capsys):
    for arguments in ([], ["--help"]):
        with pytest.raises(SystemExit):
            tool("export", *arguments)
        shown = capsys.readouterr().out
        assert "usage: python tools/export.py RUN_DIR" in shown
        assert "\nExamples\n" in shown and "--argmax" in shown


def test_mistakes_are_one_sentence_and_leave_nothing(tool, trained, expect, monkeypatch):
    before = sorted(Path().rglob("*"))
    expect(tool("export", "runs/other"), 1, "runs/other is not the folder of a run")
    expect(tool("export", "--argmax"), 2, "name the folder of a run first")
    expect(tool("export", "last", "--what", "decoder"), 2, "network, encoder")
    expect(tool("export", "last", "--what", "encoder", "--argmax"), 2, "--argmax is for")
    onnx = ("--what", "pretrained", "--formats", "onnx")
    expect(tool("export", "last", *onnx), 2, "--formats is for --what network")
    expect(tool("export", "last", "--unfolded"), 2, "--unfolded is for --what encoder")
    expect(tool("export", "last", "--formats", "onx"), 1, "'onx'", "safetensors, onnx, program")
    plain = "--formats", "safetensors"  # ONNX needs packages that may not be there
    expect(tool("export", "last", "--out", "runs", *plain), 1, "--overwrite replaces it")
    expect(tool("export", "last", "--out", "/proc/net/mine", *plain), 1, "/proc")
    with monkeypatch.context() as patch:
        patch.setattr(network, "find_spec", lambda name: None)
        expect(tool("export", "last"), 1, "onnxruntime", "extra `export`")
    with monkeypatch.context() as patch:
        patch.setattr(comparison, "TOLERANCE", -1)
        patch.setattr(comparison, "ROUNDING", -1)
        expect(tool("export", "last", *plain), 1, "more than rounding")
    assert sorted(Path().rglob("*")) == before
    (trained / "weights.safetensors").unlink()
    expect(tool("export", "last", *plain), 1, "has the run finished a validation yet?")


def test_what_is_exported_is_not_replaced_by_its_export(tool, trained, expect):
    given = ("export", trained, "--what", "pretrained", "--out", trained, "--overwrite")
    expect(tool(*given), 2, "is what is exported")
    assert (trained / "weights.safetensors").exists()


def test_a_comparison_replaces_no_file_of_another_kind(tool, expect):
    Path("README.md").write_text("mine")
    expect(tool("compare", "a", "b", "--out", "README.md"), 2, "comparison.html")
    assert Path("README.md").read_text() == "mine"


def test_a_card_says_what_was_validated_and_what_training_started_from(tool, train_once):
    first = train_once()
    start = ("--model.weights", first / "weights.safetensors")
    given = ("--trainer.limit_val_batches", 2, "--write_report", "true", *start)
    run = train_once(*given)
    code, _, err = tool("export", run, "--what", "pretrained", "--out", "card")
    assert code == 0, err
    card = Path("card/README.md").read_text()
    assert "On val, the first 2 batches" in card
    assert "run/weights.safetensors" in card and str(first) not in card
    assert "limit_val_batches 2" in (run / "report.html").read_text()
    assert "--data.val_split=val" in run_arguments(Path("card"))
