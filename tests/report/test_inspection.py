"""The page of an inspection: numbers are those of the patches, pictures those of the numbers."""

import base64
import copy
import io
import re

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from PIL import Image
from torch import nn

from segdeconv.report import raster, read_run, render_inspection, render_report
from segdeconv.report.figures import Line, draw_lines
from segdeconv.report.inspection import in_report, put_into, tiles
from segdeconv.report.layer_table import layer_table, text_table


def parsed(text):
    return BeautifulSoup(text, "html.parser")


def pixels(address):
    kind, content = address.split(",")
    assert kind == "data:image/png;base64"
    image = Image.open(io.BytesIO(base64.b64decode(content))).convert("RGBA")
    return np.asarray(image).astype(int)


def patches(images):
    """All columns (27, patches) of the first layer, in float64."""
    columns = nn.functional.unfold(images.double(), 3, padding=1)
    return columns.transpose(0, 1).flatten(1).numpy()


def own_ids(page):
    """All ids, without those of matplotlib's markers, which are named by what they look like."""
    ids = [element["id"] for element in page.find_all(id=True)]
    return [each for each in ids if not re.fullmatch(r"[mp][0-9a-f]{10}", each)]


def drawn(page, gid):
    """The points of a line, in pixels, upwards."""
    path = page.find(id=gid).path["d"]
    points = [[float(n) for n in pair] for pair in re.findall(r"[ML] (\S+) (\S+)", path)]
    return np.array(points) * [1, -1]


def test_the_numbers_of_a_layer_are_those_of_its_patches(inspected):
    columns = patches(inspected.images)
    row = inspected.data["layers"]["0"]
    covariance = np.cov(columns, bias=True)
    apart = ~np.eye(27, dtype=bool)
    values = np.linalg.eigvalsh(covariance)
    before = row["patch"]["before"]
    assert before["correlation"] == pytest.approx(np.abs(np.corrcoef(columns)[apart]).mean())
    assert before["condition"] == pytest.approx((values[-1] + 1e-5) / (values[0] + 1e-5))
    assert before["effective"] == pytest.approx(values.sum() ** 2 / (27 * (values**2).sum()))
    root = inspected.network[0].running_deconv.double().numpy()
    white = root @ covariance @ root
    after = row["patch"]["after"]
    scale = np.sqrt(np.diag(white))
    expected = np.abs((white / scale / scale[:, None])[apart]).mean()
    assert after["correlation"] == pytest.approx(expected)
    assert after["correlation"] < before["correlation"] / 2
    block = row["block"]
    assert (block["columns"], block["blocks"], block["rows"]) == (27, 1, columns.shape[1])
    directions = np.linalg.eigh(covariance)[1]
    deviations = np.sqrt(np.diag(directions.T @ white @ directions))
    assert block["deviation"] == pytest.approx(deviations.mean(), rel=1e-4)  # eps on the diagonal
    hidden = inspected.network[:2](inspected.images)
    assert inspected.data["layers"]["2"]["zeros"] == float((hidden == 0).double().mean())


def test_a_heat_map_is_as_opaque_as_its_correlation_is_large(inspected):
    expected = np.corrcoef(patches(inspected.images))
    shown = pixels(inspected.data["details"]["0"]["before"]["picture"])
    assert shown.shape == (27, 27, 4)
    assert np.abs(shown[..., 3] / 255 - np.abs(expected)).max() < 0.01
    strong = np.abs(expected) > 0.02
    for sign, colour in ((1, raster.POSITIVE), (-1, raster.NEGATIVE)):
        place = strong & (np.sign(expected) == sign)
        assert place.any() and (shown[place][:, :3] == colour).all()


def test_filters_are_drawn_by_the_root_of_their_size_about_grey():
    weights = torch.zeros(1, 2, 3, 3, 3)
    weights[0, 0, 0, 1, 1], weights[0, 0, 2, 0, 2] = 4, -1
    shown = pixels(raster.filters(weights))
    assert shown.shape == (3, 7, 4)
    assert shown[1, 1].tolist() == [255, 128, 128, 255]
    assert shown[0, 2].tolist() == [128, 128, 64, 255]  # -1/4 of the largest: half of the way
    assert (shown[:, 3, 3] == 0).all() and (shown[:, 4:, :3] == 128).all()
    for channels in (1, 4):  # a grey tile for each
        shown = pixels(raster.filters(torch.ones(2, 1, channels, 3, 3)))
        assert shown.shape == (7, 4 * channels - 1, 4)
        assert (shown[:3, :3] == 255).all()


def test_the_first_layers_filters_are_the_rows_of_its_root(inspected):
    root = inspected.network[0].running_deconv.double()
    rows = root.view(3, 9, 3, 3, 3)[:, 4]
    shown = pixels(inspected.data["first_layer"]["own"]["centre"])
    expected = pixels(raster.filters(rows[None]))
    assert (shown == expected).all() and shown.shape == (3, 11, 4)
    answers = inspected.data["first_layer"]["own"]["constant_response"]
    by_hand = [float(rows[c].sum() / rows[c, c, 1, 1]) for c in range(3)]
    assert answers == pytest.approx(by_hand, rel=1e-4) and max(answers) < 0.7


def test_lines_of_a_logarithmic_axis_lie_at_the_logarithms():
    values = np.geomspace(1e-7, 3e4, 9)
    line = Line("line", values, values**-0.5)
    page = parsed(draw_lines([line], "x", "y", name="l", logarithmic="xy"))
    points = drawn(page, "l-0")
    steps = np.diff(points, axis=0)
    assert np.allclose(steps, steps[0], rtol=1e-3)  # a power law is a straight line
    labels = [text.string for text in page.find_all("text")]
    assert {"1e-5", "0.001", "10"} <= set(labels) and "$" not in str(page)
    narrow = draw_lines([Line("l", [0, 1], [2, 6])], "x", "y", logarithmic="y")
    labels = [text.string for text in parsed(narrow).find_all("text")]
    assert "2" in labels and "5" in labels
    nothing = draw_lines([Line("l", [1], [float("nan")])], "x", "y", logarithmic="xy")
    assert parsed(nothing).svg is not None


def test_spectra_and_gains_are_drawn_as_they_were_measured(inspected):
    page = parsed(render_inspection(inspected.data))
    details = inspected.data["details"]["0"]
    for number, values in enumerate((details["before"]["spectrum"], details["after"]["spectrum"])):
        heights = drawn(page, f"spectrum-0-{number}")[:, 1]
        assert len(heights) == 27
        assert np.corrcoef(heights, np.log10(values))[0, 1] > 0.999999
    exact = np.diff(drawn(page, "gain-0-0"), axis=0)
    slopes = exact[:, 1] / exact[:, 0]
    assert np.allclose(slopes, slopes[0], rtol=2e-2)
    gain = details["gain"]
    assert (np.array(gain["truncated"]) <= np.array(gain["values"]) ** -0.5 * 1.0001).all()
    heights = drawn(page, "gain-0-1")[:, 1]
    assert np.corrcoef(heights, np.log10(gain["truncated"]))[0, 1] > 0.9999


def test_the_table_has_a_row_for_each_layer_and_the_twins_figures_beside_it(inspected):
    page = parsed(render_inspection(inspected.data))
    (table,) = [t for t in page.select("table") if "layer" in t.thead.get_text()]
    titles = [cell.get_text() for cell in table.select("thead th")]
    rows = [[c.get_text() for c in row.select("th, td")] for row in table.select("tbody tr")]
    assert rows == layer_table(inspected.data) and [row[0] for row in rows] == ["0", "2"]
    twin = inspected.data["twin"]["layers"]["0"]["patch"]["before"]["correlation"]
    assert rows[0][titles.index("correlation in the patch, twin")] == f"{twin:.3g}"
    heading, *lines = text_table(inspected.data).splitlines()
    assert [line.split() for line in lines] == rows and len(heading.split()) == len(titles)
    assert len({len(line) for line in [heading, *lines]}) == 1
    alone = {**inspected.data, "twin": None}
    assert [len(row) for row in layer_table(alone)] == [len(titles) - 4] * 2
    figures = {label: (figure, other) for label, figure, other in tiles(inspected.data)}
    assert figures["receptive field, radius"][0].endswith(" px")
    assert "\N{RIGHTWARDS ARROW}" in figures["condition, median"][0]


def test_squares_lie_around_the_middle_of_the_field(inspected):
    page = parsed(render_inspection(inspected.data))
    field = inspected.data["fields"][0]
    svg = page.select_one("svg.field")
    assert svg["viewbox"] == "0 0 32 32"
    sides = [side for share, side, area in field["raw"]["squares"] if share in (0.5, 0.99)]
    assert sides == [3, 3]  # the receptive field of one 3 x 3 and one 1 x 1 convolution
    for rect in svg.select("rect"):
        assert [int(rect[name]) for name in ("x", "y", "width", "height")] == [15, 15, 3, 3]
    shown = pixels(field["pictures"]["raw"])
    assert {tuple(place) for place in np.argwhere(shown[..., 3])} <= {
        (row, column) for row in (15, 16, 17) for column in (15, 16, 17)
    }


def test_names_cannot_become_code_and_nothing_lies_elsewhere(inspected):
    text = render_inspection(inspected.data)
    assert "<b>run</b>" not in text and "&lt;b&gt;run" in text
    page = parsed(text)
    assert page.select("script") == []
    for name in ("src", "href", "xlink:href", "action", "srcset", "data", "poster"):
        for element in page.find_all(attrs={name: True}):
            assert element[name].startswith(("#", "data:")), element[name]
    used = set(re.findall(r"var\((--[\w-]+)\)", text))
    assert {name for name in used if f"{name}:" not in text} == {"--share"}
    assert "#00f0" not in text
    assert len(own_ids(page)) == len(set(own_ids(page)))
    assert "never called" in text


def test_a_report_takes_the_section_in_and_keeps_the_rest(run_folder, inspected):
    report = render_report(read_run(run_folder))
    assert "inspect.json" not in report
    once = put_into(report, inspected.data)
    assert put_into(once, inspected.data) == once
    section = str(in_report(inspected.data))
    assert once.count(section) == 1
    link = '<a href="#inspection">Inspection</a>'
    assert once.replace(section, "").replace(link, "") == report
    assert put_into("<html></html>", inspected.data) is None
    ids = own_ids(parsed(once))
    assert len(ids) == len(set(ids))


def test_a_layer_that_sees_nothing_is_drawn_all_the_same(inspected, inspect):
    network = copy.deepcopy(inspected.network)
    nn.init.zeros_(network[0].weight)
    nn.init.constant_(network[0].bias, -1)
    data = {"format": 1, **inspect(network, inspected.images), "twin": None}
    assert data["layers"]["2"]["zeros"] == 1
    assert data["layers"]["2"]["patch"]["before"]["correlation"] == 0
    page = parsed(render_inspection(data))
    assert len(page.select("svg")) > 5 and "nan" not in text_table(data)
