"""What whitening does in a trained network: numbers and pictures of a run, and the page of them.

All that is kept lies as JSON types in inspect.json in the run's folder, from which the page and the
section of the run's report are drawn.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from markupsafe import Markup

from segdeconv.report.figures import Line, draw_lines
from segdeconv.report.findings import DECADES
from segdeconv.report.layer_table import (
    Inspection,
    columns_of,
    figure_at,
    last_stage,
    layer_table,
    number,
    whitens,
)
from segdeconv.report.template import environment, percent

FORMAT = 1
"""Of inspect.json; a file of another format is not drawn."""


def tiles(data: Inspection) -> list[tuple[str, str, str]]:
    """The run in a handful of figures: label, figure, and that of the twin's kernels."""
    twin, stages = data["twin"], ["before", "after"] if whitens(data) else ["before"]
    shown = []
    for label, path, middle in (
        ("condition, median", ("block", "condition"), median),
        ("correlation in the block", ("block", "correlation"), fmean),
        ("correlation in the patch", ("patch", "correlation"), fmean),
    ):
        figures = [number(middle(_moments(data, stage, *path))) for stage in stages]
        other = number(middle(_moments(twin, last_stage(twin), *path))) if twin else ""
        shown.append((label, " \N{RIGHTWARDS ARROW} ".join(figures), other))
    shown.append(("zeros behind the first layer", _zeros(data), _zeros(twin) if twin else ""))
    if data["fields"]:
        shown.append(("receptive field, radius", _radius(data), _radius(twin) if twin else ""))
    return shown


def _moments(data: Inspection, stage: str, scope: str, key: str) -> list[float]:
    """A figure of all layers; of one that does not whiten, that of its input."""
    scopes = [row[scope] for row in data["layers"].values()]
    return [moments.get(stage, moments["before"])[key] for moments in scopes]


def _zeros(data: Inspection) -> str:
    shares = [row["zeros"] for row in data["layers"].values()]
    return f"{percent(fmean(shares[1:] or shares))} %"


def _radius(data: Inspection) -> str:
    return f"{data['fields'][0]['raw']['radius']:.0f} px" if data["fields"] else ""


def section(data: Inspection) -> Markup:
    """The inspection as a part of a page."""
    return Markup(
        environment()
        .get_template("inspection.html")
        .render(
            data=data,
            twin=data["twin"],
            whitened=whitens(data),
            tiles=tiles(data),
            columns=columns_of(data),
            rows=[(name, cells) for name, *cells in layer_table(data)],
            overview=_overview(data),
            layers=list(_layer_figures(data)),
            profile=_profile(data),
            fields=_fields(data),
            decades=DECADES,
        )
    )


def render_inspection(data: Inspection) -> str:
    """The page of an inspection."""
    return environment().get_template("inspect.html").render(data=data, section=section(data))


def put_into(report: str, data: Inspection) -> str | None:
    """A report with the section of an inspection in its place; None if it has no such place.

    The rest of the page stays as it is, examples included.
    """
    for name, content in {"link": LINK, "section": in_report(data)}.items():
        begin, end = f"<!-- inspection {name} -->", "<!-- end -->"
        before, found, rest = report.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            return None
        report = f"{before}{begin}{content}{end}{after}"
    return report


LINK = Markup('<a href="#inspection">Inspection</a>')


def in_report(data: Inspection, step: int | None = None) -> Markup:
    """The inspection as a section of a report.

    Args:
        data: The inspection.
        step: Step of the run's weights; None: that of the inspection.
    """
    note, content = "", Markup()
    if data.get("format") != FORMAT:
        note = "inspect.json is of another version; run tools/inspect_run.py again."
    else:
        content = section(data)
        if data["checkpoint"] == "best" and step not in (None, data["step"]):
            note = "The run has newer weights by now; run tools/inspect_run.py again."
    paragraph = Markup('<p class="note">{}</p>\n').format(note) if note else ""
    frame = Markup('<section id="inspection">\n<h2>Inspection</h2>\n{}{}\n</section>')
    return frame.format(paragraph, content)


def _overview(data: Inspection) -> list[tuple[str, Markup]]:
    """Title and figure of each number, layer by layer."""
    drawn = []
    for title, path, what, share in (
        ("Condition of the blocks", ("block", "condition"), "condition", False),
        ("Mean correlation in a block", ("block", "correlation"), "correlation", False),
        ("Mean correlation in the whole patch", ("patch", "correlation"), "correlation", False),
        ("Directions that carry the patch's variance", ("patch", "effective"), "directions", True),
    ):
        lines = list(_stage_lines(data, *path))
        log = "y" if what == "condition" else ""
        name = "-".join(path)
        figure = draw_lines(lines, "layer", what, percent=share, name=name, logarithmic=log)
        drawn.append((title, figure))
    if whitens(data):
        deviations = _line("", data, data, ("block", "deviation"), 1)
        figure = draw_lines([deviations], "layer", "deviation", name="deviation")
        drawn.append(("Deviation after whitening, mean over directions; white is 1", figure))
    lines = [_line("this run", data, data, ("zeros",), 0)]
    if data["twin"]:
        lines.append(_line("twin", data, data["twin"], ("zeros",), 2))
    zeros = draw_lines(lines, "layer", "zeros", percent=True, name="zeros")
    return [*drawn, ("Zeros in the input", zeros)]


def _stage_lines(data: Inspection, scope: str, key: str) -> Iterator[Line]:
    """Lines of one figure: before and after whitening, and what the twin's kernels multiply."""
    arms = [("before whitening" if whitens(data) else "input", data, "before", 0)]
    arms += [("after", data, "after", 1)] if whitens(data) else []
    arms += [("twin", data["twin"], last_stage(data["twin"]), 2)] if data["twin"] else []
    for label, arm, stage, style in arms:
        yield _line(label, data, arm, (scope, stage, key), style)


def _line(label: str, data: Inspection, arm: Inspection, path: Sequence[str], style: int) -> Line:
    """A figure of each of the run's layers, of one arm; a gap where that has none."""
    found = [figure_at(arm["layers"].get(name), path) for name in data["layers"]]
    known = [math.nan if figure is None else figure for figure in found]
    return Line(label, range(1, len(known) + 1), known, style)


def _layer_figures(data: Inspection) -> Iterator[dict[str, Any]]:
    """Pictures and figures of each layer that is shown in detail."""
    for place, (name, details) in enumerate(data["details"].items()):
        row = data["layers"][name]
        arms = [("before whitening" if "after" in details else "input", details, row, "before", 0)]
        if "after" in details:
            arms.append(("after", details, row, "after", 1))
        if data["twin"] and name in data["twin"]["details"]:
            other = data["twin"]["details"][name]
            stage = "after" if "after" in other else "before"
            arms.append(("twin", other, data["twin"]["layers"][name], stage, 2))
        maps = [
            (label, seen[stage]["picture"], numbers["patch"][stage]["correlation"])
            for label, seen, numbers, stage, _ in arms
        ]
        lines = [_spectrum_line(label, seen[stage], s) for label, seen, _, stage, s in arms]
        spectra = draw_lines(
            lines, "direction", "eigenvalue", name=f"spectrum-{place}", logarithmic="y"
        )
        figures = [("Eigenvalues of the patch's covariance", spectra)]
        if "gain" in details:
            gain = _gain(details["gain"], row["block"]["n_iter"], f"gain-{place}")
            figures.append(("Gain by eigenvalue of the blocks", gain))
        noise = math.sqrt(2 / math.pi / row["patch"]["samples"])
        yield {"name": name, "row": row, "maps": maps, "figures": figures, "noise": noise}


def _spectrum_line(label: str, details: Mapping[str, Any], style: int) -> Line:
    """Eigenvalues against their number, on a logarithmic scale: what is nothing is left out."""
    values = [value if value > 1e-12 else math.nan for value in details["spectrum"]]
    return Line(label, range(1, len(values) + 1), values, style)


def _gain(gain: Mapping[str, Sequence[float]], steps: int, name: str) -> Markup:
    """Gain of each direction beside the exact inverse root and the truncated one."""
    values = gain["values"]
    lines = [Line("exact inverse root", values, [value**-0.5 for value in values], 3)]
    if "truncated" in gain:
        lines.append(Line(f"{steps} steps", values, gain["truncated"], 0))
    lines.append(Line("the layer's", values, gain["gain"], 1, dots=True))
    return draw_lines(lines, "eigenvalue", "gain", name=name, logarithmic="xy")


def _profile(data: Inspection) -> Markup | None:
    """A cut through the centre filters of the first layer, relative to the centre."""
    first, lines = data["first_layer"], []
    for style, (key, label) in enumerate({"own": "the layer's", "whole": "the patch's"}.items()):
        if key in first and len(first[key]["profile"]) > 1:
            profile = first[key]["profile"]
            places = [place - len(profile) // 2 for place in range(len(profile))]
            words = f"{label}, {first[key]['n_iter']} steps"
            lines.append(Line(words, places, profile, style))
    return draw_lines(lines, "pixels", "weight", name="profile") if lines else None


def _fields(data: Inspection) -> list[dict[str, Any]]:
    """Receptive fields of the run, then those of the twin."""
    arms = [("", data), ("twin, ", data["twin"])]
    return [
        {**field, "label": f"{prefix}{field['target']}", "arm": prefix}
        for prefix, each in arms
        if each
        for field in each["fields"]
    ]
