"""tools/graft.py: from a batch-norm run, or weights, to a run with whitening layers."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

BATCH_NORM = ("--model.operator", "batchnorm", "--model.operator_options", "{}")


@pytest.fixture
def parent(train_once):
    """Folder of a finished run with batch norms."""
    return train_once(*BATCH_NORM)


def test_a_grafted_run_scores_as_its_parent_and_trains_on(tool, parent):
    code, out, err = tool("graft", parent, "--out", "grafted", "--images", "8")
    assert code == 0, err
    assert "the same function" in out and "--config grafted/config.yaml" in out
    assert sorted(path.name for path in Path("grafted").iterdir()) == [
        "config.yaml",
        "model.safetensors",
        "report.txt",
    ]
    start = ("train", "--config", "grafted/config.yaml", "--output_dir", "runs")
    code, out, err = tool(*start, "--optimizer.lr", "1e-12", "--trainer.max_steps", "1")
    assert code == 0, err
    assert "not in the file" not in out
    same, other = (scores(tool, run) for run in ("runs/grafted", parent))
    assert same == pytest.approx(other, abs=0.02)  # one step moved the running statistics


def scores(tool, run):
    """MIoU that the tool finds."""
    code, _, err = tool("eval", run, "--json", "scores.json")
    assert code == 0, err
    return yaml.safe_load(Path("scores.json").read_text())["miou"]


def test_an_encoder_is_enough_and_the_rest_is_new(tool, parent, config_file):
    assert tool("export", parent, "--what", "encoder", "--out", "encoder")[0] == 0
    given = ("--config", config_file, "--model.weights", "encoder")
    code, _, err = tool("graft", *given, "--out", "grafted", "--images", "8")
    assert code == 0, err
    config = yaml.safe_load(Path("grafted/config.yaml").read_text())
    assert config["model"]["operator"] == "deconv"
    state = load_file("grafted/model.safetensors")
    assert any(key.endswith("running_deconv") for key in state)
    assert all(value.isfinite().all() for value in state.values())
    code, _, err = tool("train", "--config", "grafted/config.yaml", "--trainer.max_steps", "1")
    assert code == 0, err


def test_options_of_the_operator_reach_the_layers(tool, parent):
    options = ("--model.operator_options", "{block: 4}", "--images", "8")
    assert tool("graft", parent, "--out", "grafted", *options)[0] == 0
    roots = [v for k, v in load_file("grafted/model.safetensors").items() if "running_deconv" in k]
    assert max(root.shape[-1] for root in roots) <= 4 * 9


@pytest.mark.parametrize(
    "options, words",
    [
        ((), ("nothing says what to graft", "--model.weights FILE")),
        (("--model.weights", "nowhere.pth"), ("nowhere.pth",)),
        (("--images", "0"), ("images=0", "1 or more")),
    ],
    ids=["no weights", "no file", "no images"],
)
def test_a_graft_without_weights_or_images_says_what_is_missing(
    tool, config_file, expect, options, words
):
    expect(tool("graft", "--config", config_file, "--out", "grafted", *options), 1, *words)
    assert not Path("grafted").exists()


def test_a_network_that_whitens_already_is_not_grafted(tool, trained, expect):
    expect(tool("graft", "last", "--out", "grafted"), 1, "operator 'deconv'", "'batchnorm'")
    assert not Path("grafted").exists()


def test_a_classifier_is_grafted_through_the_config_of_a_segmentation(tool, expect):
    Path("classifier.yaml").write_text("task: classification\n")
    given = ("--config", "classifier.yaml", "--model.weights", "x.pth", "--out", "grafted")
    expect(tool("graft", *given), 2, "that of the segmentation to come")


def test_an_earlier_folder_is_not_replaced(tool, parent, expect):
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    expect(tool("graft", parent, "--out", "mine"), 2, "mine is there already")
    assert Path("mine/notes.txt").read_text() == "mine"
    expect(tool("graft", parent), 2, "--out FOLDER")


def test_norms_of_new_parts_get_the_statistics_of_the_batches():
    from segdeconv.training.graft_run import settle_norms

    network = torch.nn.ModuleDict({"encoder": norm_net(), "decoder": norm_net()})
    network.forward = lambda x: network["decoder"](network["encoder"](x))
    batches = [torch.randn(4, 2, 3, 3) * 3 + 1 for _ in range(3)]
    settle_norms(network.eval(), ("decoder",), batches)
    mean = torch.cat(batches).mean((0, 2, 3))
    torch.testing.assert_close(network["decoder"][0].running_mean, mean, rtol=1e-4, atol=1e-4)
    assert network["encoder"][0].running_mean.abs().sum() == 0
    assert network["decoder"][0].momentum == 0.1 and not network["decoder"][0].training


def norm_net():
    return torch.nn.Sequential(torch.nn.BatchNorm2d(2))
