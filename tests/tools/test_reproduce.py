"""tools/reproduce.py: the paper's grid, by runs that are made up here."""

import json
from pathlib import Path

import pytest

from segdeconv.training.grid import Grid
from segdeconv.training.reproduction import (
    STUDIES,
    Cell,
    _operator,
    cells,
    remaining_seconds,
    report,
)

ROOT = Path(__file__).parents[2]
PUBLISHED = json.loads((ROOT / "benchmarks" / "published.json").read_text())


@pytest.fixture
def trained(monkeypatch):
    """Runs end at once, with an accuracy that depends on their arguments; one diverges."""
    seen = []

    def train(self, jobs, done):
        for job in jobs:
            job.check()
            if job.finished or job.failure:
                continue
            seen.append(job.arguments)
            job.note()
            given = dict(zip(job.arguments[::2], job.arguments[1::2], strict=True))
            if given["--model.name"] == "vgg16" and given["--seed"] == "1":
                job.note("the loss is nan at step 1")
                done(job)
                continue
            deconv = given["--model.operator"] == "deconv"
            last = {"top1": 0.5 + 0.2 * deconv + 0.01 * int(given["--seed"]), "top5": 0.9}
            job.folder.mkdir()
            scores = {"last": last, "best": {**last, "top1": last["top1"] + 0.001}}
            (job.folder / "metrics.json").write_text(json.dumps(scores))
            rows = "epoch,seconds,top1\n1,30.0,0.4\n2,30.0,0.7\n"
            (job.folder / "metrics.csv").write_text(rows)
            about = {"commit": "0a1b", "versions": {"torch": "2.11"}, "processor": "one of ours"}
            about |= {"cores": 2, "gpus": []}
            (job.folder / "environment.json").write_text(json.dumps(about))
            (job.folder / "finished").touch()
            done(job)

    monkeypatch.setattr(Grid, "train", train)
    return seen


GRID = ("cifar10", "--networks", "resnet18", "vgg16", "--epochs", 20, "--seeds", 2)


def test_the_table_holds_means_spreads_gaps_and_the_published_figures(tool, trained):
    code, out, err = tool("reproduce", *GRID)
    assert code == 0, err
    row = next(line for line in out.splitlines() if line.startswith("| resnet18"))
    figures = [cell.strip() for cell in row.strip("|").split("|")][1:]
    assert figures == [
        *("50.50 ± 0.71 (best 50.60)", "70.50 ± 0.71 (best 70.60)", "+20.00 ± 0.00"),
        *("92.64", "94.07", "+1.43", "92.35", "94.20", "+1.85"),
    ]
    row = next(line for line in out.splitlines() if line.startswith("| vgg16"))
    assert "50.00 (best 50.10, 1 of 2 diverged)" in row
    assert "- vgg16_deconv_20ep_seed1: the loss is nan at step 1" in out
    assert "arXiv:1905.11926" in out and "arXiv:2410.01189" in out
    assert "- 6 runs: one of ours, 2 cores, no GPU, torch 2.11, commit 0a1b" in out
    assert Path("runs/reproduce/cifar10-test/report.png").stat().st_size > 1000


def test_each_run_has_a_json_and_is_not_trained_again(tool, trained):
    tool("reproduce", *GRID)
    results = sorted(Path("runs/reproduce/cifar10-test/results").glob("*.json"))
    assert len(results) == 8 == len(trained)
    content = json.loads(results[0].read_text())
    assert content["network"] == "resnet18" and content["top1"] == 0.5
    assert content["curve"]["seconds"] == [30.0, 60.0]
    assert content["arguments"][:2] == ["--config", "configs/cifar10/recipes/paper.yaml"]
    assert tool("reproduce", *GRID, "--epochs", 1, 20)[0] == 0
    assert len(trained) == 16


def test_a_note_stands_in_the_report(tool, trained):
    note = "The machine did other things too."
    code, out, err = tool("reproduce", *GRID, "--seeds", 1, "--note", note)
    assert code == 0 and note in out, err


def test_held_out_images_have_runs_of_their_own(tool, trained):
    tool("reproduce", *GRID, "--holdout", "--seeds", 1, "--", "--trainer.precision", 32)
    given = " ".join(map(str, trained[0]))
    assert "--data.train_split fit --data.val_split holdout --trainer.precision 32" in given
    assert list(Path("runs/reproduce").iterdir()) == [Path("runs/reproduce/cifar10-holdout")]


def test_a_dry_run_lists_what_is_missing_with_its_time(tool, trained):
    tool("reproduce", *GRID, "--seeds", 1)
    code, out, _ = tool("reproduce", *GRID, "--epochs", 20, 40, "--seeds", 1, "--dry-run")
    assert code == 0
    assert "resnet18_deconv_20ep_seed0                         finished" in out
    assert "resnet18_deconv_40ep_seed0                         to be trained, about 0:02:00" in out
    assert "8 runs; what is missing takes about 0:08:00" in out
    assert len(trained) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cifar11"], "invalid choice: 'cifar11'"),
        (["cifar10", "--seeds", "0"], "--seeds 0: expected 1 or more"),
        (["cifar10", "--test", "--holdout"], "not allowed with"),
        (["cifar10", "--networks", "--seeds", "x"], "expected at least one argument"),
        (["cifar10", "--networks", "resnet18", "resnet19"], "'resnet19'; did you mean 'resnet18'?"),
        (["cifar10", "--operators", "decov"], "unknown operator 'decov'; did you mean 'deconv'?"),
        (["imagenet", "--networks", "senet18"], "'senet18' exists for images of 32 x 32 only"),
        (["cifar10", "--", "--trainer.max_epoch", "3"], "did you mean trainer.max_epochs?"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_a_mistake_is_a_sentence_before_anything_runs(tool, trained, expect, arguments, words, dry):
    code = 1 if "'" in words.partition(";")[0] and "choice" not in words else 2
    expect(tool("reproduce", arguments[0], *dry, *arguments[1:]), code, words)
    assert trained == [] and not Path("runs").exists()


def test_the_studies_name_recipes_networks_and_published_figures_that_exist():
    for name, study in STUDIES.items():
        assert (ROOT / study.recipe).is_file()
        for source in ("paper", "reproduction"):
            assert PUBLISHED[source].get(name, {}).keys() <= set(study.networks)
    assert PUBLISHED["paper"]["cifar100"]["vgg16"]["100"] == [72.75, 75.32]
    assert "100" not in PUBLISHED["reproduction"]["cifar10"]["vgg16"]


def test_the_papers_own_settings_are_the_released_ones_by_layer():
    given = _operator(Cell("vgg16", "released", 1, 0))
    options = json.loads(given["model.operator_options"])
    assert given["model.operator"] == "deconv" and options["preset"] == "released"
    assert options["options_by_name"] == {"network.features.0": {"n_iter": 15, "freeze": True}}
    assert _operator(Cell("vgg16", "batchnorm", 1, 0)) == {"model.operator": "batchnorm"}


def test_short_runs_come_first_and_time_is_that_of_the_nearest_run():
    grid = cells(["a", "b"], ["batchnorm", "deconv"], [20, 1], 2)
    assert [cell.epochs for cell in grid] == 8 * [1] + 8 * [20]
    run = {"network": "a", "operator": "batchnorm", "epochs": 2, "curve": {"seconds": [5.0, 10.0]}}
    assert remaining_seconds(Cell("a", "batchnorm", 20, 0), [run]) == 100
    assert remaining_seconds(Cell("a", "deconv", 20, 0), [run]) == 100
    assert remaining_seconds(Cell("b", "batchnorm", 20, 0), [run]) is None


def test_a_data_set_without_published_figures_has_none():
    run = {"network": "resnet18", "operator": "deconv", "epochs": 1, "seed": 0}
    run |= {"top1": 0.5, "best_top1": 0.6}
    text = report("mnist", "test", [run], PUBLISHED, [])
    assert "| network | deconv | deconv - batchnorm |" in text and "paper:" not in text
