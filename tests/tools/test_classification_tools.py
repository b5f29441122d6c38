"""The tools on a classifier: what they give, and what they do not take."""

import json
from pathlib import Path

import pytest
import torch
from small_sets import write_all

from segdeconv.data import CLASSIFICATION_DATASETS
from segdeconv.models import create_classifier
from segdeconv.training.run_folder import read_weights


@pytest.fixture
def classifier(tool):
    """A run of a few steps in runs/run, and its data."""
    options = ("--task", "classification", "--data.root", write_all(Path("data")))
    options += ("--model.name", "tu-test_resnet", "--data.batch_size", 20, "--data.num_workers", 0)
    options += ("--trainer.max_epochs", 2, "--trainer.accelerator", "cpu", "--name", "run")
    Path("empty.yaml").write_text("seed: 0\n")
    code, out, err = tool("train", "--config", "empty.yaml", *options)
    assert code == 0, err
    assert "top-1" in out
    return Path("runs/run")


def test_eval_gives_what_the_weights_give_on_the_images(classifier, tool):
    code, out, err = tool("eval", classifier, "--json", "scores.json")
    assert code == 0, err
    assert "top-1" in out and "class 3" in out
    network = create_classifier("tu-test_resnet", 10).eval()
    network.load_state_dict(read_weights(classifier / "weights.safetensors"))
    samples = CLASSIFICATION_DATASETS["cifar10"]("data", "test")
    mean, std = (255 * torch.tensor(each).view(3, 1, 1) for each in (samples.MEAN, samples.STD))
    with torch.no_grad():
        logits = network((samples.images - mean) / std)
    scores = json.loads(Path("scores.json").read_text())
    assert scores["top1"] == (logits.argmax(1) == samples.labels).sum().item() / 20
    assert scores["loss"] == pytest.approx(
        torch.nn.functional.cross_entropy(logits, samples.labels).item(), rel=1e-4
    )
    assert scores == scores | {"images": 20, "split": "test", "precision": "float32"}


def test_eval_of_another_split_and_of_the_first_images_has_a_file_of_its_own(classifier, tool):
    assert tool("eval", classifier, "--split", "holdout", "--limit", 7)[0] == 0
    scores = json.loads((classifier / "eval_holdout_best_first7.json").read_text())
    assert sum(map(sum, scores["confusion"])) == 7


def test_what_is_for_segmentation_is_refused(classifier, tool, expect):
    words = ("for segmentation", "--split, --limit, --checkpoint, --device and --precision")
    windows, files = ["--slide", "--crop", 8, 8], ["--save-predictions", "x"]
    for options in (["--tta"], windows, files, ["--official"]):
        expect(tool("eval", classifier, *options), 1, *words)
    words = ("is a run of task classification, and this tool is for segmentation",)
    expect(tool("predict", classifier, "x.png"), 2, *words)
    expect(tool("check_data", "--config", classifier / "config.yaml"), 2, "for segmentation")


def test_its_options_may_change_when_it_goes_on(classifier, tool):
    code, out, err = tool("train", "--resume", classifier, "--data.num_workers", 1)
    assert code == 0 and "nothing to do" in out, err
    code, out, err = tool("train", "--resume", "last", "--trainer.max_epochs", 3)
    assert code == 0, err


def test_its_task_cannot_change(classifier, tool, expect):
    done = tool("train", "--resume", classifier, "--task", "segmentation")
    expect(done, 2, "command line: task is 'segmentation'", "is a run of task classification")
    expect(tool("eval", classifier, "--task", "segmentation"), 2, "which cannot change; leave it")


def test_its_encoder_starts_a_segmentation(classifier, tool, config_file):
    options = ("--model.encoder", "tu-test_resnet", "--model.arch_options", "{}")
    options += ("--model.operator_options", "{}", "--trainer.max_steps", 1)
    options += ("--model.weights", classifier / "weights.safetensors", "--name", "segments")
    code, out, err = tool("train", "--config", config_file, *options)
    assert code == 0, err
    assert "tensors into the encoder" in out


def test_its_exported_encoder_starts_a_segmentation(classifier, tool, config_file, expect):
    code, out, err = tool("export", classifier, "--what", "encoder", "--unfolded", "--out", "mine")
    assert code == 0 and "with the names of timm's test_resnet" in out, err
    about = json.loads(Path("mine/config.json").read_text())
    assert about["task"] == "classification" and len(about["mean"]) == 3
    options = ("--model.encoder", "tu-test_resnet", "--model.arch_options", "{}")
    options += ("--model.operator_options", "{}", "--trainer.max_steps", 1)
    start = ("train", "--config", config_file, *options, "--model.weights", "mine")
    code, out, err = tool(*start, "--name", "segments")
    assert code == 0, err
    assert "tensors into the encoder" in out


def test_it_is_exported_for_others_to_run(classifier, tool, expect):
    formats = ("--formats", "safetensors", "program")
    code, out, err = tool("export", classifier, *formats, "--argmax", "--normalize")
    assert code == 0, err
    assert "pixels 0 to 255 (N, 3, H, W) -> classes (N,)" in out
    program = torch.export.load(classifier / "network" / "model.pt2").module()
    samples = CLASSIFICATION_DATASETS["cifar10"]("data", "test")
    found = program(samples.images.float())
    tool("eval", classifier, "--json", "scores.json")
    scores = json.loads(Path("scores.json").read_text())
    assert (found == samples.labels).sum().item() / 20 == scores["top1"]
    code, _, err = tool("eval", classifier / "network", "--data.root", "data", "--json", "it.json")
    assert code == 0, err
    assert json.loads(Path("it.json").read_text())["confusion"] == scores["confusion"]
    refused = tool("predict", classifier / "network", "x.png")
    expect(refused, 2, "for segmentation; tools/eval.py takes both")
    assert "--model.weights" not in refused[2]


def test_it_is_published_evaluated_from_there_and_looked_at(classifier, tool, expect):
    code, out, err = tool("export", classifier, "--what", "pretrained", "--out", "mine")
    assert code == 0 and "differs by 0.0e+00" in out, err
    for name, run in {"run": classifier, "mine": "mine"}.items():
        code, _, err = tool("eval", run, "--data.root", "data", "--json", f"{name}.json")
        assert code == 0, err
    run, mine = (json.loads(Path(f"{name}.json").read_text()) for name in ("run", "mine"))
    assert run["confusion"] == mine["confusion"]
    card, page = Path("mine/README.md").read_text(), Path("mine.html").read_text()
    best = json.loads((classifier / "metrics.json").read_text())["best"]
    assert f"| top-1 accuracy | {100 * best['top1']:.2f} |" in card
    assert "| class 3 |" in card and "images of class 3 predicted as class 4" in page
    expect(tool("predict", "mine", "x.png"), 2, "for segmentation", "--model.weights mine starts")
