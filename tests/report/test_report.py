"""The page of a run: every number on it is the run's own, and it needs nothing else."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from PIL import Image

from segdeconv.report import (
    ClassificationObserver,
    Evaluation,
    Observer,
    make_example,
    read_run,
    render_report,
)
from segdeconv.report.examples import thumbnail
from segdeconv.report.figures import Line, draw_lines
from segdeconv.report.records import validation_limit
from segdeconv.report.template import duration, percent


@pytest.fixture
def observed(known):
    """An evaluation of 2 images with 3 classes."""
    generator = torch.Generator().manual_seed(0)
    observer = Observer(3, 255)
    masks = torch.randint(3, (2, 20, 30), generator=generator)
    masks[:, :2] = 255
    classes = torch.where(torch.rand(2, 20, 30, generator=generator) < 0.7, masks.clamp(max=2), 0)
    observer(["a </script>", "b"], classes, torch.rand(2, 20, 30, generator=generator), masks)
    image = np.full((20, 30, 3), 120, np.uint8)
    labels = [np.asarray(each[0], np.uint8) for each in (masks, classes)]
    examples = [
        make_example(name, score, rank, image, *labels)
        for rank, (name, score) in enumerate(observer.images.items(), 1)
    ]
    record = {
        "images": 2, "split": "test", "mode": "whole image", "miou": 0.5, "pixel_accuracy": 0.75,
        "class_iou": known.iou, "class_accuracy": {}, "confusion": known.confusion,
        "weights": "w", "device": "cpu",
    }  # fmt: skip
    facts = {"peak main memory": "1 GiB"}
    seen = "all 2 images of test"
    return Evaluation(record, observer.calibration, examples, seen, known.colours, 255, facts)


def page_of(folder, evaluation=None):
    return BeautifulSoup(render_report(read_run(folder), evaluation), "html.parser")


def points(page, gid):
    """The points of a drawn line, in the units of its axes, read off the ticks."""
    line = page.find(id=gid)
    drawn = [[float(n) for n in pair] for pair in re.findall(r"[ML] (\S+) (\S+)", line.path["d"])]
    svg = line.find_parent("svg")
    ticks = {"x": [], "y": []}
    for text in svg.find_all("text"):
        label = text.string.replace("\N{MINUS SIGN}", "-")
        if re.fullmatch(r"-?[\d.]+%?", label) and "rotate(-0" in text["transform"]:
            value = float(label.rstrip("%")) / (100 if label.endswith("%") else 1)
            mark = text.find_previous("use")
            axis = "x" if "middle" in text["style"] else "y"
            if axis == "x" or line.parent in text.parents:  # axes above one another share x
                ticks[axis].append((float(mark[axis]), value))
    units = {axis: np.polyfit(*zip(*pairs, strict=True), 1) for axis, pairs in ticks.items()}
    return [
        tuple(np.polyval(units[a], n) for a, n in zip("xy", pair, strict=True)) for pair in drawn
    ]


@pytest.mark.parametrize(
    ("gid", "x", "column"),
    [
        ("score-epochs-0", "epoch", "miou"),
        ("score-epochs-1", "epoch", "mean_accuracy"),
        ("score-seconds-0", "time", "miou"),
        ("loss-epochs-0", "epoch", "train_loss"),
        ("loss-seconds-1", "time", "val_loss"),
        ("rate-0", "epoch", "lr"),
    ],
)
def test_the_drawn_curves_are_the_rows_of_metrics_csv(run_folder, gid, x, column):
    run = read_run(run_folder)
    across = run.seconds if x == "time" else run.column(x)
    expected = list(zip(across, run.column(column), strict=True))
    assert run.seconds == [20, 40, 60, 80]
    assert np.allclose(points(page_of(run_folder), gid), expected, rtol=1e-3, atol=1e-3)


def test_a_score_that_was_not_measured_is_a_gap_and_not_a_zero(run_folder):
    assert len(points(page_of(run_folder), "score-epochs-2")) == 3  # of 4 validations
    assert "<td>nan</td>" in render_report(read_run(run_folder))


def test_the_classes_are_those_of_the_best_validation(run_folder, known):
    page = page_of(run_folder)
    rows = page.select("#classes tbody tr")
    assert [row["data-class"] for row in rows] == list(known.names)
    for row, iou, found, share in zip(
        rows, known.iou.values(), (80, 100, 0), (100, 50, 6), strict=True
    ):
        cells = [cell.get_text(strip=True) for cell in row.select("td")]
        assert cells == [f"{100 * iou:.1f}", "", f"{found:.1f}", f"{100 * share / 156:.1f}"]
        assert row.select_one(".bar span")["style"] == f"width: {100 * iou:.2f}%"
    assert page.select_one(".tiles dd").get_text() == "40.0 %"
    assert "best validation (val), after 4 epochs" in page.header.get_text()


def test_the_confusion_matrix_has_shares_and_counts(run_folder, known):
    rows = page_of(run_folder).select(".confusion tbody tr")
    shown = [[cell.get_text() for cell in row.select("td")] for row in rows]
    assert shown == [["80", "10", "10"], ["", "100", ""], ["100", "", ""]]
    first = rows[0].select("td")
    assert first[1]["title"] == f"10 pixels of {known.names[0]} predicted as {known.names[1]}"
    assert first[1]["style"] == "--share: 0.1000"
    assert [cell.get("class") for cell in first] == [["right"], None, None]


def test_an_evaluation_shows_its_own_scores_and_what_was_seen(run_folder, observed):
    page = page_of(run_folder, observed)
    assert [dd.get_text() for dd in page.select(".tiles dd")][:2] == ["50.0 %", "75.0 %"]
    assert page.select_one("#ece").get_text() == f"{100 * observed.calibration.error:.2f} %"
    curve = observed.calibration.curve()
    drawn = points(page, "reliability-0")
    assert np.allclose(drawn, [(confidence, right) for confidence, right, _ in curve], atol=2e-3)
    data = json.loads(page.select_one("#data").string)
    assert [each["truth"] for each in data["examples"]] == [e.truth for e in observed.examples]
    assert [each["colour"] for each in data["classes"]] == [list(c) for c in observed.colours]
    images = [image["src"] for image in page.select(".example img")]
    assert images == [example.image for example in observed.examples]
    assert "all 2 images of test" in page.select_one("#examples").get_text()
    assert "1 GiB" in page.select_one("#speed").get_text()


def test_names_of_classes_and_images_cannot_become_code(run_folder, observed, known):
    text = render_report(read_run(run_folder), observed)
    assert "<b>pole</b>" not in text and "a </script>" not in text
    page = BeautifulSoup(text, "html.parser")
    data = json.loads(page.select_one("#data").string)
    assert [each["name"] for each in data["classes"]] == list(known.names)
    assert len(page.select("script")) == 2


def test_nothing_on_the_page_lies_elsewhere(run_folder, observed):
    page = page_of(run_folder, observed)
    for name in ("src", "href", "xlink:href", "action", "srcset", "data", "poster"):
        for element in page.find_all(attrs={name: True}):
            assert element[name].startswith(("#", "data:")), element[name]
    styles = " ".join(style.string for style in page.select("style"))
    urls = re.findall(r"url\(([^)]*)\)", styles + str(page.select("[style]")))
    assert all(url.startswith("#") for url in urls) and "@import" not in styles
    policy = page.select_one("meta[http-equiv]")["content"]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_figures_take_their_colours_from_the_page(run_folder, observed):
    text = render_report(read_run(run_folder), observed)
    assert "#00f0" not in text and "currentColor" in text and "var(--series1)" in text
    used = set(re.findall(r"var\((--[\w-]+)\)", text))
    assert {name for name in used if f"{name}:" not in text} == set()


def test_lines_differ_in_more_than_their_colour():
    lines = [Line(f"line {n}", [0, 1], [n, n + 1], n) for n in range(6)]
    page = BeautifulSoup(draw_lines(lines, "x", "y", name="l"), "html.parser")
    looks = []
    for number in range(6):
        group = page.find(id=f"l-{number}")
        dash = re.search(r"stroke-dasharray: ([^;]+)", group.path["style"])
        looks.append((dash and dash[1], group.defs.path["d"]))
    assert len({dash for dash, _ in looks}) == len({mark for _, mark in looks}) == 6


def test_a_dollar_in_a_name_is_a_dollar():
    text = draw_lines([Line("$a_b$ & c", [0], [1]), Line("d", [0], [1], 1)], "x", "$y$")
    assert "$a_b$ &amp; c" in text and ">$y$<" in text


def test_a_run_without_a_validation_has_a_page_too(run_folder):
    for name in ("metrics.csv", "metrics.json", "surgery.json", "surgery.txt", "environment.json"):
        (run_folder / name).unlink()
    page = page_of(run_folder)
    assert "No validation was recorded" in page.get_text()
    assert page.select("#curves, #classes, #confusion, #examples, #surgery") == []
    assert "resnet18" in page.select_one("#config pre").get_text()


def test_a_classifier_has_its_own_scores(run_folder):
    path = run_folder / "metrics.json"
    best = {"epoch": 1, "step": 5, "top1": 0.625, "top5": 0.875, "mean_accuracy": 0.5}
    best |= {"class_accuracy": {"cat": 0.5, "dog": 0.75}, "confusion": [[1, 1], [1, 3]]}
    path.write_text(json.dumps({"best": best, "last": best}))
    (run_folder / "metrics.csv").write_text(
        "epoch,step,lr,train_loss,val_loss,top1,top5,mean_accuracy,images_per_second,seconds,accuracy/cat\n"
        "1,5,0.1,1,1,0.625,0.875,0.5,10,3,0.5\n"
    )
    page = page_of(run_folder)
    tiles = {d.dt.get_text(): d.dd.get_text() for d in page.select(".tiles div")}
    assert tiles == {"top-1": "62.5 %", "top-5": "87.5 %", "mean accuracy": "50.0 %"}
    rows = [
        [c.get_text(strip=True) for c in row.select("th, td")]
        for row in page.select(".bars tbody tr")
    ]
    assert rows == [["cat", "50.0", "", "33.3"], ["dog", "75.0", "", "66.7"]]
    assert "images of cat predicted as dog" in str(page.select_one(".confusion"))


@pytest.fixture
def classified():
    """The evaluation of a classifier: 2 mistakes and a hit."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(3, 3, 32, 32, generator=generator), torch.tensor([0, 1, 1])
    logits = torch.tensor([[0.0, 3.0], [2.0, 0.0], [0.0, 1.0]])
    observer = ClassificationObserver(("cat", "<i>dog</i>"), (0.0,) * 3, (1.0,) * 3)
    observer(["image 0", "image <1>", "image 2"], images, logits, labels)
    record = {"images": 3, "split": "test", "mode": "whole image", "top1": 1 / 3, "top5": 1.0}
    record |= {"class_accuracy": {"cat": 0.0, "<i>dog</i>": 0.5}, "confusion": [[0, 1], [1, 1]]}
    shown = {"Wrong": observer.wrong, "Right": observer.right, "Neither": []}
    return Evaluation(record, observer.calibration, seen="all 3 images", classified=shown)


def test_the_page_of_a_classifier_shows_images_with_truth_prediction_and_confidence(
    run_folder, classified
):
    text = render_report(read_run(run_folder), classified)
    page = BeautifulSoup(text, "html.parser")
    galleries = page.select("#examples .gallery")
    shown = [[li.get_text(" ", strip=True) for li in each.select("li")] for each in galleries]
    assert shown == [
        ["<i>dog</i> 95.3 % truth: cat", "cat 88.1 % truth: <i>dog</i>"],
        ["<i>dog</i> 73.1 % right"],
    ]
    assert "None." in page.select_one("#examples").get_text()
    assert "<i>dog" not in text and page.select("script") == []
    images = page.select("#examples img")
    for image, each in zip(images, [*classified.classified["Wrong"]], strict=False):
        data = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), each.picture)
        assert image["alt"] == each.name


def test_the_calibration_of_a_classifier_is_one_of_images(run_folder, classified):
    page = page_of(run_folder, classified)
    section = page.select_one("#calibration")
    assert section.select_one("#ece").get_text() == f"{100 * classified.calibration.error:.2f} %"
    assert "3 images in bins" in section.get_text() and "pixels" not in section.get_text()
    curve = [(confidence, right) for confidence, right, _ in classified.calibration.curve()]
    assert np.allclose(points(page, "reliability-0"), curve, atol=2e-3)


def test_a_photograph_is_made_small_enough_for_a_page():
    picture = np.random.default_rng(0).integers(0, 256, (224, 448, 3), np.uint8)
    kind, _, data = thumbnail(picture).partition(";base64,")
    assert kind == "data:image/jpeg"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (160, 80)


@pytest.mark.parametrize("name", ["metrics.csv", "metrics.json", "config.yaml", "surgery.json"])
def test_a_damaged_file_is_named(run_folder, name):
    (run_folder / name).write_text("epoch,step\n1,x" if name.endswith("csv") else "{[")
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        read_run(run_folder)
    with pytest.raises(ValueError, match=r"no_run is not the folder of a run"):
        read_run(run_folder / "no_run")


def test_numbers_are_said_as_people_say_them():
    dash = "\N{EN DASH}"
    shares = [percent(share) for share in (0.12345, None, float("nan"), 1)]
    assert shares == ["12.3", dash, dash, "100.0"]
    times = [duration(x) for x in (0.5, 59.4, 60, 3661, float("nan"))]
    assert times == ["0.5 s", "59.4 s", "1 min 0 s", "1 h 1 min", dash]


@pytest.mark.parametrize(
    ("limit", "known"), [(None, None), (1.0, None), (1, 1), (0.5, 0.5), (2, 2)], ids=str
)
def test_one_batch_of_validation_is_not_all_of_it(limit, known):
    assert repr(validation_limit({"limit_val_batches": limit})) == repr(known)
