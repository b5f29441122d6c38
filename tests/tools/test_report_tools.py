"""Reports of train and eval, and tools/compare.py."""

import json
from pathlib import Path
from shutil import copytree

import pytest
import yaml
from bs4 import BeautifulSoup

from segdeconv.training import reporting


def page_of(path):
    return BeautifulSoup(Path(path).read_text(), "html.parser")


def tiles(page):
    return {tile.dt.get_text(): tile.dd.get_text() for tile in page.select(".tiles div")}


def test_training_ends_with_a_report_of_its_best_weights(tool, config_file):
    code, out, err = tool("train", "--config", config_file, "--write_report", "true")
    assert code == 0 and "report: runs/run/report.html" in out, err
    page = page_of("runs/run/report.html")
    best = json.loads(Path("runs/run/metrics.json").read_text())["best"]
    assert tiles(page)["mIoU"] == f"{100 * best['miou']:.1f} %"
    examples = page.select(".example h3")
    assert len(examples) == 5 and "rank 1" in examples[0].get_text()
    ious = [float(each.small.get_text().split()[2]) for each in examples]
    assert ious == sorted(ious, reverse=True)
    assert "all 5 images of val" in page.select_one("#examples").get_text()
    assert "deconv on" in page.select_one("#surgery pre").get_text()
    assert page.select_one("#config pre").get_text() == Path("runs/run/config.yaml").read_text()


def test_evaluation_writes_a_report_beside_its_scores(tool, trained):
    code, out, err = tool("eval", "last", "--limit", "3", "--flip")
    assert code == 0, err
    (scores,) = Path("runs/run").glob("eval_*.json")
    record = json.loads(scores.read_text())
    page = page_of(scores.with_suffix(".html"))
    assert f"report: {scores.with_suffix('.html')}" in out
    assert tiles(page)["mIoU"] == f"{100 * record['miou']:.1f} %"
    assert "3 images of val, whole image, mirrored too" in page.header.get_text()
    cells = [row.get_text(strip=True) for row in page.select(".bars tbody td:nth-child(2)")]
    expected = record["class_iou"].values()
    assert cells == ["\N{EN DASH}" if v is None else f"{100 * v:.1f}" for v in expected]
    assert len(page.select(".example")) == 3


def test_the_place_of_a_report_is_the_users(tool, trained):
    given = ("eval", "last", "--limit", "1", "--json", "a/scores.json")
    assert tool(*given, "--report", "b/page.html")[0] == 0
    assert sorted(map(str, Path().glob("[ab]/*"))) == ["a/scores.json", "b/page.html"]
    code, out, _ = tool(*given, "--report", "none")
    assert code == 0 and "report" not in out
    assert sorted(map(str, Path().glob("[ab]/*"))) == ["a/scores.json", "b/page.html"]


@pytest.mark.parametrize("name", ["render_report", "_examples"])
def test_a_report_that_fails_is_a_warning_and_no_failed_run(tool, config_file, monkeypatch, name):
    def fail(*_):
        raise RuntimeError("no ink")

    monkeypatch.setattr(reporting, name, fail)
    code, out, err = tool("train", "--config", config_file, "--write_report", "true")
    assert code == 0 and "done" in out
    assert err.strip().endswith("warning: no report was written: RuntimeError: no ink")
    code, out, err = tool("eval", "last")
    assert code == 0 and "written to" in out and "no ink" in err


def test_a_published_model_has_a_report_of_its_evaluation(tool, trained, tiny_camvid):
    assert tool("export", "last", "--what", "pretrained", "--out", "mine")[0] == 0
    code, _, err = tool("eval", "mine", "--data.root", tiny_camvid, "--report", "page.html")
    assert code == 0, err
    assert page_of("page.html").h1.get_text() == "mine"


def test_runs_are_compared_side_by_side(tool, trained, expect):
    config = yaml.safe_load(Path("runs/run/config.yaml").read_text())
    for number, change in enumerate(({"seed": 1}, {"optimizer": {**config["optimizer"], "lr": 1}})):
        copytree("runs/run", f"runs/other{number}")
        Path(f"runs/other{number}/config.yaml").write_text(yaml.safe_dump({**config, **change}))
    runs = ("runs/run", "runs/other0", "runs/other1")
    code, out, err = tool("compare", *runs, "--out", "pages/two.html")
    assert code == 0 and "written to pages/two.html" in out, err
    page = page_of("pages/two.html")
    rows = [row.th.get_text(strip=True) for row in page.select("#summary tbody tr")]
    assert rows == ["lr 0.05 (reference)", "lr 1"]
    assert [row.td.get_text() for row in page.select("#summary tbody tr")] == ["0, 1", "0"]
    expect(tool("compare", "runs/run"), 2, "name two runs or more")
    expect(tool("compare", "runs/run", "runs/../runs/run"), 2, "named twice")
    expect(tool("compare", "runs/run", "runs/no"), 1, "runs/no is not the folder of a run")
    expect(tool("compare", "runs/run", "--output", "x"), 2, "unknown option --output", "--out")
    expect(tool("compare", "runs/run", "runs/other0", "--out"), 2, "--out needs a file")
    Path("runs/other0/metrics.csv").write_text("epoch\nx")
    expect(tool("compare", *runs), 1, "runs/other0/metrics.csv is damaged")
    with pytest.raises(SystemExit):
        tool("compare")
