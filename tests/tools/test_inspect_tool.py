"""tools/inspect_run.py: from a run to a page, numbers, and a section of the run's report."""

import json
from pathlib import Path
from shutil import copytree

import pytest
import torch
import yaml
from bs4 import BeautifulSoup
from safetensors.torch import load_file, save_file

BATCH_NORM = ("--model.operator", "batchnorm", "--model.operator_options", "{}")


def page_of(path):
    return BeautifulSoup(Path(path).read_text(), "html.parser")


def numbers(path="runs/run/inspect.json"):
    return json.loads(Path(path).read_text())


@pytest.fixture
def twin(train_once, trained):
    """The batch-norm twin of the run in runs/run."""
    return copytree(train_once(*BATCH_NORM), Path("runs/twin"))


def test_a_run_is_inspected_on_some_of_its_images(tool, trained):
    code, out, err = tool("inspect_run", "last", "--images", "3")
    assert code == 0, err
    found = numbers()
    assert found["seen"] == "3 images of val, evenly spread" and found["twin"] is None
    heading, *rows = out.splitlines()
    assert heading.split()[:4] == ["layer", "D", "rows", "cond"]
    assert [row.split()[0] for row in rows[:-2]] == list(found["layers"])
    assert rows[-2:] == ["numbers: runs/run/inspect.json", "page: runs/run/inspect.html"]
    rows = json.loads((trained / "surgery.json").read_text())["rows"]
    white = {row["name"] for row in rows if row["action"] == "swapped"}
    seen = {name for name, row in found["layers"].items() if "after" in row["patch"]}
    assert seen == white
    page = page_of("runs/run/inspect.html")
    assert len(page.select(".maps img")) == 2 * 4  # four layers, before and after
    assert [row.th.get_text() for row in page.select("details tbody tr")] == list(found["layers"])
    targets = [field["target"] for field in found["fields"]]
    assert targets == ["encoder's last feature", "logits"]
    assert found["fields"][0]["size"] == [33, 49] and found["fields"][0]["images"] == 3
    assert not Path("runs/run/report.html").exists()


def test_whitening_brings_correlations_and_conditions_down(tool, trained):
    assert tool("inspect_run", trained)[0] == 0
    first = next(iter(numbers()["layers"].values()))
    for scope in ("block", "patch"):
        assert first[scope]["after"]["correlation"] < first[scope]["before"]["correlation"]
    assert first["block"]["after"]["condition"] < first["block"]["before"]["condition"]
    assert first["zeros"] < 0.01


def test_the_twin_stands_beside_the_run(tool, trained, twin):
    code, out, err = tool("inspect_run", trained, "--against", twin, "--images", "2")
    assert code == 0, err
    found = numbers()
    assert found["twin"]["run"] == "twin" and "t:patch" in out
    assert list(found["layers"]) == list(found["twin"]["layers"])
    assert all("after" not in row["patch"] for row in found["twin"]["layers"].values())
    first = next(iter(found["layers"]))
    own, other = (arm["layers"][first]["patch"]["before"] for arm in (found, found["twin"]))
    assert own == pytest.approx(other)  # the same images
    assert len(page_of("runs/run/inspect.html").select(".maps img")) == 3 * 4
    assert not (twin / "inspect.json").exists()
    # alone, the twin is shown without what it does not do
    assert tool("inspect_run", twin, "--images", "2")[0] == 0
    alone = numbers(twin / "inspect.json")
    assert alone["layers"] == found["twin"]["layers"]
    text = page_of(twin / "inspect.html").get_text()
    assert "this network whitens nothing" in text and "Gain by eigenvalue" not in text


def test_the_section_is_put_into_the_report_and_comes_back_with_the_next_one(tool, config_file):
    assert tool("train", "--config", config_file, "--write_report", "true")[0] == 0
    before = page_of("runs/run/report.html")
    assert before.select("#inspection") == [] and before.select("a[href='#inspection']") == []
    for _ in range(2):  # the second takes the place of the first
        code, out, err = tool("inspect_run", "last", "--images", "2")
        assert code == 0 and "report: runs/run/report.html, section Inspection" in out, err
        after = page_of("runs/run/report.html")
        assert len(after.select("#inspection")) == len(after.select("a[href='#inspection']")) == 1
    section = after.select_one("#inspection")
    assert "newer weights" not in section.get_text()
    assert len(section.select(".maps img")) == 8
    for part in ("#examples", "#curves", "#config", "#data"):
        assert after.select_one(part) == before.select_one(part)
    assert tool("eval", "last", "--report", "again.html")[0] == 0
    again = page_of("again.html").select_one("#inspection")
    assert again.get_text() == section.get_text()


def test_an_inspection_of_earlier_weights_says_so_in_the_next_report(tool, trained):
    assert tool("inspect_run", "last", "--images", "1")[0] == 0
    scores = json.loads((trained / "metrics.json").read_text())
    scores["best"]["step"] += 5
    (trained / "metrics.json").write_text(json.dumps(scores))
    assert tool("eval", "last", "--report", "page.html")[0] == 0
    assert "newer weights by now" in page_of("page.html").select_one("#inspection").get_text()
    (trained / "inspect.json").write_text('{"format": 0}')
    assert tool("eval", "last", "--report", "page.html")[0] == 0
    section = page_of("page.html").select_one("#inspection")
    assert "of another version" in section.get_text() and section.select("img") == []


def test_a_report_without_a_place_for_it_stays_as_it_is(tool, trained):
    (trained / "report.html").write_text("mine")
    code, out, err = tool("inspect_run", "last", "--images", "1")
    assert code == 0 and "earlier version and stays as it is" in out, err
    assert (trained / "report.html").read_text() == "mine"


def test_the_page_goes_where_it_is_wanted_and_leaves_the_run_alone(tool, trained):
    before = sorted(trained.iterdir())
    code, out, err = tool("inspect_run", trained, "--images", "1", "--out", "pages/a.html")
    assert code == 0 and "page: pages/a.html" in out, err
    assert sorted(map(str, Path("pages").iterdir())) == ["pages/a.html", "pages/a.json"]
    assert sorted(trained.iterdir()) == before


def test_layers_to_draw_are_named_by_globs(tool, trained, expect):
    assert tool("inspect_run", trained, "--images", "1", "--layers", "*decoder*conv2*")[0] == 0
    found = numbers()
    assert found["details"] and all("decoder" in name for name in found["details"])
    assert len(found["layers"]) > len(found["details"])
    expect(
        tool("inspect_run", trained, "--images", "1", "--layers", "layer9"),
        1,
        "--layers layer9 matches no layer",
    )


def test_a_classifier_and_a_published_model_are_inspected_too(tool, trained, tiny_camvid, expect):
    options = ("--task", "classification", "--data.root", small(Path("data")))
    options += ("--model.name", "tu-test_resnet", "--data.batch_size", 20, "--data.num_workers", 0)
    options += ("--trainer.max_epochs", 1, "--trainer.accelerator", "cpu", "--name", "classes")
    Path("empty.yaml").write_text("seed: 0\nwrite_report: false\n")
    assert tool("train", "--config", "empty.yaml", *options)[0] == 0
    code, _, err = tool("inspect_run", "runs/classes", "--images", "6")
    assert code == 0, err
    found = numbers("runs/classes/inspect.json")
    assert [field["target"] for field in found["fields"]] == ["last feature map"]
    assert found["fields"][0]["images"] == 6 and len(found["first_layer"]["own"]["all"]) == 3
    assert tool("export", trained, "--what", "pretrained", "--out", "mine")[0] == 0
    options = ("--data.root", tiny_camvid, "--images", "2")
    code, _, err = tool("inspect_run", "mine", *options)
    assert code == 0, err
    assert tool("inspect_run", trained, *options)[0] == 0
    assert numbers("mine_results/inspect.json")["layers"] == numbers()["layers"]
    assert not Path("mine/inspect.json").exists()  # what is handed on stays as it is
    words = ("--against runs/classes is a run of task classification", "one of segmentation")
    expect(tool("inspect_run", trained, "--against", "runs/classes"), 1, *words)


def small(root):
    from small_sets import write_all

    return write_all(root)


def test_weights_other_than_the_best_are_named(tool, trained):
    assert tool("inspect_run", trained, "--images", "1", "--checkpoint", "last")[0] == 0
    assert numbers()["weights"] == "last.ckpt, after 1 epochs"
    weights = load_file(trained / "weights.safetensors")
    roots = [name for name in weights if name.endswith("running_deconv")]
    for name in roots:
        weights[name] = torch.eye(weights[name].shape[-1]).expand_as(weights[name]).contiguous()
    save_file(weights, "identity.safetensors")
    assert (
        tool("inspect_run", trained, "--images", "1", "--checkpoint", "identity.safetensors")[0]
        == 0
    )
    found = numbers()
    assert found["weights"] == "identity.safetensors"
    for row in found["layers"].values():  # a root that does nothing
        assert row["patch"]["after"] == pytest.approx(row["patch"]["before"])


def test_mistakes_are_one_sentence(tool, trained, twin, expect):
    run = ("inspect_run", trained)
    expect(tool("inspect_run", "nowhere"), 1, "nowhere is not the folder of a run")
    expect(tool(*run, "--against", "nowhere"), 1, "nowhere is not the folder of a run")
    expect(tool(*run, "--against", "runs/../runs/run"), 1, "is the run itself")
    expect(tool(*run, "--images", "0"), 1, "images=0", "1 or more")
    expect(tool(*run, "--out", "page.pdf"), 2, "--out page.pdf", "--out inspect.html")
    expect(tool(*run, "--device", "cuda:99"), 1, "no device 'cuda:99'")
    expect(tool(*run, "--image", "3"), 2, "unknown key image", "images")
    expect(tool(*run, twin), 2, "expected one run and then options")
    config = yaml.safe_load((twin / "config.yaml").read_text())
    config["data"]["std"] = [1.0, 1.0, 1.0]
    (twin / "config.yaml").write_text(yaml.safe_dump(config))
    expect(tool(*run, "--against", twin), 1, "data.std", "a run of the same data set")
    (trained / "weights.safetensors").unlink()
    expect(tool(*run), 1, "no weights runs/run/weights.safetensors")
    with pytest.raises(SystemExit):
        tool("inspect_run", "--help")
