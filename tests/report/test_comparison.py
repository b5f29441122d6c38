"""Runs side by side."""

import math
import re
from statistics import fmean, stdev

import numpy as np
import pytest
from bs4 import BeautifulSoup

from segdeconv.report import read_run, render_comparison
from segdeconv.report.comparison import class_differences, group_runs


@pytest.fixture
def runs(make_run, tmp_path):
    made = [
        make_run(tmp_path / f"{operator}{seed}", operator, seed, shift + 0.01 * seed**2, lr)
        for operator, shift, lr in (("deconv", 0.05, 0.3), ("batchnorm", 0, 0.1))
        for seed in range(3)
    ]
    return [read_run(folder) for folder in made]


def table(page, section):
    rows = page.select(f"#{section} tbody tr")
    return [[cell.get_text(strip=True) for cell in row.select("th, td")] for row in rows]


def test_runs_that_differ_in_seed_and_place_alone_are_one_group(runs):
    groups = group_runs(runs)
    assert [group.label for group in groups] == ["deconv, lr 0.3", "batchnorm, lr 0.1"]
    assert [len(group.runs) for group in groups] == [3, 3]


def test_the_summary_has_mean_and_spread_over_seeds_and_when_the_reference_was_reached(runs):
    rows = table(BeautifulSoup(render_comparison(runs), "html.parser"), "summary")
    words = []
    for shift in (0, 0.05):
        best = [0.4 + shift + 0.01 * seed**2 for seed in range(3)]
        words.append([f"{100 * fmean(best):.1f} ± {100 * stdev(best):.1f}"] * 2)
    dash = "\N{EN DASH}"
    first = ["batchnorm, lr 0.1 (reference)", "0, 1, 2", *words[0], dash, dash, "6.5", "1.33"]
    # mean of the reference: 0.4167, which the others have after epoch 4
    assert rows == [first, ["deconv, lr 0.3", "0, 1, 2", *words[1], "4", "80", "6.5", "1.33"]]


def test_differences_of_classes_come_with_the_spread_of_single_runs(runs, known):
    rows = class_differences(group_runs(runs)[::-1])
    shifts = [0.01 * seed**2 for seed in range(3)]
    for row, name in zip(rows, known.names, strict=True):
        assert row["name"] == name
        ((difference, spread),) = row["differences"]
        assert difference == pytest.approx(0.05)
        assert spread == pytest.approx(math.sqrt(2) * stdev(shifts))
    page = BeautifulSoup(render_comparison(runs), "html.parser")
    drawn = page.find(id="difference-0").find_all("use")
    assert len(drawn) == 3 and len({mark["x"] for mark in drawn}) == 1
    assert [row[0] for row in table(page, "classes")] == list(known.names)


def test_curves_show_each_run_and_the_mean_of_a_group(runs):
    page = BeautifulSoup(render_comparison(runs), "html.parser")
    lines = page.find_all(id=re.compile(r"^miou-epochs-\d$"))
    assert len(lines) == 8  # three runs and their mean, of two groups
    heights = [[float(y) for _, y in re.findall(r"[ML] (\S+) (\S+)", g.path["d"])] for g in lines]
    assert np.allclose(np.mean(heights[:3], 0), heights[3], atol=1e-3)
    assert np.allclose(np.mean(heights[4:7], 0), heights[7], atol=1e-3)
    dashed = ["stroke-dasharray" in line.path["style"] for line in lines]
    assert dashed == [False] * 4 + [True] * 4


def test_single_runs_have_no_spread(make_run, tmp_path):
    runs = [read_run(make_run(tmp_path / name, name)) for name in ("batchnorm", "deconv")]
    page = BeautifulSoup(render_comparison(runs), "html.parser")
    assert [row[0] for row in table(page, "summary")] == ["batchnorm (reference)", "deconv"]
    assert "±" not in page.select_one("#summary tbody").get_text()
    assert "nan" not in page.get_text().lower()


def test_seeds_of_one_config_have_nothing_to_differ_from(make_run, tmp_path):
    runs = [read_run(make_run(tmp_path / f"run{seed}", seed=seed)) for seed in range(2)]
    page = BeautifulSoup(render_comparison(runs), "html.parser")
    assert [row[0] for row in table(page, "summary")] == ["deconv"]
    assert "reference" not in page.get_text() and page.find(id="difference-0") is None


def test_the_reference_is_the_best_of_the_batch_norm_groups(make_run, tmp_path):
    shifts = {("batchnorm", 0.1): 0, ("batchnorm", 0.3): 0.02, ("deconv", 0.1): 0.1, ("none", 1): 0}
    runs = [
        read_run(make_run(tmp_path / f"{operator}{lr}", operator, shift=shift, lr=lr))
        for (operator, lr), shift in shifts.items()
    ]
    page = BeautifulSoup(render_comparison(runs), "html.parser")
    assert table(page, "summary")[0][0] == "batchnorm, lr 0.3 (reference)"
    assert page.h1.get_text() == "4 groups of runs"
    svg = page.find(id="miou-epochs-0").find_parent("svg")
    height = float(svg["viewbox"].split()[-1])
    axes = svg.find(id="miou-epochs-0").parent.path["d"]
    top = min(float(y) for y in re.findall(r"[ML] \S+ (\S+)", axes))
    names = [text for text in svg.find_all("text") if text.string.startswith(("batch", "none"))]
    assert len(names) == 3 and all(float(text["y"]) < top for text in names) and height > 216


def test_groups_that_differ_in_much_have_the_name_of_a_run(make_run, tmp_path):
    folders = [make_run(tmp_path / name) for name in ("one", "two")]
    config = (folders[1] / "config.yaml").read_text()
    more = "".join(f"key{number}: {number}\n" for number in range(5))
    (folders[1] / "config.yaml").write_text(config + more)
    groups = group_runs([read_run(folder) for folder in folders])
    assert [group.label for group in groups] == ["one", "two"]


def test_runs_that_cannot_be_compared_are_refused(make_run, tmp_path):
    good, empty = (make_run(tmp_path / name) for name in ("good", "empty"))
    (empty / "metrics.csv").unlink()
    with pytest.raises(ValueError, match="empty has no validation yet; leave it out"):
        render_comparison([read_run(good), read_run(empty)])
    (empty / "metrics.csv").write_text("epoch,step,top1,images_per_second,seconds\n1,2,0.5,1,1\n")
    with pytest.raises(ValueError, match=r"runs of one task .*have (miou, top1|top1, miou)"):
        render_comparison([read_run(good), read_run(empty)])
