"""What whitening does in a trained network: numbers and pictures of a run, and the page of them.

`Inspection` is all that is kept, as JSON types: inspect.json in the run's folder, from which the
page and the section of the run's report are drawn.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from segdeconv.analysis import (
    THRESHOLDS,
    LayerStatistics,
    Whitened,
    centre_filters,
    condition,
    constant_response,
    correlation,
    effective_share,
    log_map,
    mean_correlation,
    participation,
    radius,
    spectrum,
    squares,
    tap_filters,
    whitened,
    whitening_matrix,
)
from segdeconv.analysis.spectra import FLOOR
from segdeconv.report import raster
from segdeconv.report.figures import Line, draw_lines
from segdeconv.report.template import environment, percent
from segdeconv.whitening import inverse_root

Inspection = Mapping[str, Any]

FORMAT = 1
"""Of inspect.json; a file of another format is not drawn."""

PICTURE_STEPS = 15
"""Newton-Schulz steps of the whitening that is drawn beside the layer's own: those of the first
layer in the released networks."""

DECADES = 4
"""Of the logarithmic picture of a receptive field."""


def layer_numbers(statistics: LayerStatistics) -> dict[str, Any]:
    """One row of the table: a layer in numbers.

    "block" is of the blocks that the layer whitens (a plain layer: would whiten by default), with
    eps on the diagonal; "patch" of columns of a whole patch, over the borders of blocks.
    """
    blocks, calibration = statistics.view.blocks, statistics.calibration
    block: dict[str, Any] = {
        "columns": blocks.size,
        "blocks": blocks.num,
        "rows": blocks.rows(calibration.samples),
        "before": _moment_numbers(calibration.covariance),
    }
    patch: dict[str, Any] = {
        "columns": blocks.num * blocks.size,
        "columns_seen": len(statistics.columns),
        "samples": statistics.before.samples,
        "before": _moment_numbers(statistics.before.covariance),
    }
    if statistics.whitens:
        root, made = statistics.running[1], _whitened(statistics)
        block |= {
            "after": _moment_numbers(root @ calibration.covariance @ root),
            "n_iter": statistics.view.settings.n_iter,
            "gain": float(made.gain.mean()),
            "deviation": float(made.deviation.mean()),
        }
        patch["after"] = _moment_numbers(statistics.after.covariance)
    return {
        "kind": type(statistics.layer).__name__,
        "channels": statistics.channels,
        "kernel_size": list(statistics.kernel_size),
        "zeros": statistics.zeros / statistics.entries,
        "block": block,
        "patch": patch,
    }


def _whitened(statistics: LayerStatistics) -> Whitened:
    root = statistics.running[1]
    return whitened(statistics.calibration.covariance, root, statistics.view.settings.n_iter)


def _moment_numbers(covariances: Tensor) -> dict[str, float]:
    """Of (M, D, D): the worst condition, and means of the rest."""
    spectra = [spectrum(each) for each in covariances]
    return {
        "condition": max(map(condition, spectra)),
        "effective": fmean(map(effective_share, spectra)),
        "correlation": fmean(mean_correlation(correlation(each)) for each in covariances),
    }


def layer_details(statistics: LayerStatistics) -> dict[str, Any]:
    """What the figures of one layer are drawn from: spectra, gains, pictures of correlations."""
    stages = {"before": statistics.before}
    if statistics.whitens:
        stages["after"] = statistics.after
    details: dict[str, Any] = {
        name: {
            "spectrum": _rounded(spectrum(moments.covariance)),
            "picture": raster.signed(correlation(moments.covariance[0])),
        }
        for name, moments in stages.items()
    }
    if statistics.whitens:
        made = _whitened(statistics)
        details["gain"] = {name: _rounded(value) for name, value in vars(made).items()}
        if statistics.view.settings.structure == "kronecker":  # two roots, of other spectra
            del details["gain"]["truncated"]
    return details


def first_layer(statistics: LayerStatistics) -> dict[str, Any]:
    """The filters of a network's first layer: its own, and those of its whole input patch."""
    channels, kernel_size = statistics.channels, statistics.kernel_size
    blocks = statistics.view.blocks
    drawn: dict[str, Any] = {"channels": channels, "kernel_size": list(kernel_size)}
    if statistics.whitens:
        matrix = whitening_matrix(statistics.running[1], blocks)
        drawn["own"] = _filter_pictures(tap_filters(matrix, channels, kernel_size))
        drawn["own"] |= {"blocks": blocks.num, "n_iter": statistics.view.settings.n_iter}
    if len(statistics.columns) == blocks.num * blocks.size:  # all of the patch was seen
        covariance = statistics.before.covariance[0]
        root = inverse_root(covariance + FLOOR * torch.eye(len(covariance)).to(covariance), 15)
        drawn["whole"] = _filter_pictures(tap_filters(root, channels, kernel_size))
        drawn["whole"] |= {"n_iter": PICTURE_STEPS}
    return drawn


def _filter_pictures(filters: Tensor) -> dict[str, Any]:
    """Pictures and numbers of filters (C, h, w, C, h, w)."""
    centre = centre_filters(filters)
    channels, _, height, width = centre.shape
    own = torch.stack([centre[channel, channel] for channel in range(channels)])
    profile = own[:, height // 2] / own[:, height // 2, width // 2, None]
    return {
        "centre": raster.filters(centre[None]),
        "all": [raster.filters(filters[channel]) for channel in range(channels)],
        "profile": _rounded(profile.mean(0)),
        "constant_response": _rounded(constant_response(centre)),
    }


def field_record(target: str, field: Tensor, images: int, step: str) -> dict[str, Any]:
    """A receptive field in numbers and pictures.

    Args:
        target: Whose field it is.
        field: (H, W).
        images: How many it is the mean of.
        step: Size of the target's map, in words.
    """
    largest = field.max()
    decades = (1 + (field / largest).clamp_min(1e-30).log10() / DECADES).clamp_min(0)
    readings = {
        name: {
            "squares": [[share, *square] for share, square in zip(THRESHOLDS, found, strict=True)],
            "radius": radius(each),
            "participation": participation(each),
        }
        for name, each in {"raw": field, "log": log_map(field)}.items()
        for found in [squares(each)]
    }
    return {
        "target": target,
        "images": images,
        "map": step,
        "size": list(field.shape),
        "pictures": {"raw": raster.signed(field / largest), "log": raster.signed(decades)},
        **readings,
    }


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.5g}") for value in values.flatten().tolist()]


def figure_at(row: Mapping[str, Any] | None, path: Sequence[str]) -> float | None:
    """What stands below these keys of a layer's row, if it is there."""
    found: Any = row
    for key in path:
        found = (found or {}).get(key)
    return None if found is None else float(found)


@dataclass(frozen=True)
class Column:
    """One figure of each layer.

    Attributes:
        title: In the page.
        short: In the text table.
        path: Keys that lead to it in a layer's row.
        style: How it is written: "number", "share" or "count".
        arm: "own" or "twin".
    """

    title: str
    short: str
    path: tuple[str, ...]
    style: str = "number"
    arm: str = "own"

    def text(self, row: Mapping[str, Any]) -> str:
        """The figure as it is written."""
        value = figure_at(row, self.path)
        if value is None:
            return "\N{EN DASH}"
        if self.style == "share":
            return percent(value)
        return f"{value:,.0f}" if self.style == "count" else number(value)


COLUMNS = (
    Column("columns D of a block", "D", ("block", "columns"), "count"),
    Column("rows", "rows", ("block", "rows"), "count"),
    Column("condition of the block", "cond", ("block", "before", "condition")),
    Column("after", "after", ("block", "after", "condition")),
    Column("correlation in the block", "corr", ("block", "before", "correlation")),
    Column("after", "after", ("block", "after", "correlation")),
    Column("mean gain", "gain", ("block", "gain")),
    Column("deviation after", "dev", ("block", "deviation")),
    Column("correlation in the patch", "patch", ("patch", "before", "correlation")),
    Column("after", "after", ("patch", "after", "correlation")),
    Column("directions of the patch, %", "dirs%", ("patch", "before", "effective"), "share"),
    Column("after, %", "after", ("patch", "after", "effective"), "share"),
    Column("zeros, %", "zeros%", ("zeros",), "share"),
)
OF_TWINS = ("cond", "patch", "dirs%", "zeros%")
"""Columns that a twin has beside them: of what its kernels multiply."""


def number(value: float) -> str:
    """Three digits; large ones as 1.2e4."""
    if value >= 1e4:
        digits, power = f"{value:.1e}".split("e")
        return f"{digits}e{int(power)}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def columns_of(data: Inspection) -> list[Column]:
    """The figures that a run's layers have, and those of the twin."""
    own = [
        c
        for c in COLUMNS
        if any(figure_at(row, c.path) is not None for row in data["layers"].values())
    ]
    if not data["twin"]:
        return own
    stage = last_stage(data["twin"])
    path = {c.short: tuple(stage if k == "before" else k for k in c.path) for c in COLUMNS}
    twins = [c for c in COLUMNS if c.short in OF_TWINS]
    return own + [
        replace(c, title=f"{c.title}, twin", short=f"t:{c.short}", path=path[c.short], arm="twin")
        for c in twins
    ]


def whitens(data: Inspection) -> bool:
    """Whether layers of the run whiten."""
    return any("after" in row["patch"] for row in data["layers"].values())


def last_stage(data: Inspection) -> str:
    """Name of the moments of what the kernels multiply."""
    return "after" if whitens(data) else "before"


def layer_table(data: Inspection) -> list[list[str]]:
    """Names and figures of all layers, in the order in which the network calls them."""
    columns, twin = columns_of(data), (data["twin"] or {}).get("layers", {})
    return [
        [name, *(c.text(row if c.arm == "own" else twin.get(name, {})) for c in columns)]
        for name, row in data["layers"].items()
    ]


def text_table(data: Inspection) -> str:
    """`layer_table` as aligned text, with its heading."""
    rows = [["layer", *(column.short for column in columns_of(data))], *layer_table(data)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def tiles(data: Inspection) -> list[tuple[str, str]]:
    """The run in a handful of figures."""
    rows = list(data["layers"].values())
    stages = ["before", "after"] if whitens(data) else ["before"]
    shown = []
    for label, scope, key, middle in (
        ("condition, median", "block", "condition", median),
        ("correlation in the block", "block", "correlation", fmean),
        ("correlation in the patch", "patch", "correlation", fmean),
    ):
        figures = [
            number(middle([row[scope].get(stage, row[scope]["before"])[key] for row in rows]))
            for stage in stages
        ]
        shown.append((label, " \N{RIGHTWARDS ARROW} ".join(figures)))
    if rows[1:]:
        zeros = fmean(row["zeros"] for row in rows[1:])
        shown.append(("zeros behind the first layer", f"{percent(zeros)} %"))
    if data["fields"]:
        shown.append(("receptive field, radius", f"{data['fields'][0]['raw']['radius']:.0f} px"))
    return shown


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


def usable(data: Inspection) -> bool:
    """Whether a run's inspect.json is there and of the format that is drawn here."""
    return data.get("format") == FORMAT


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


def in_report(data: Inspection) -> Markup:
    """The inspection as a section of a report."""
    return Markup('<section id="inspection">\n<h2>Inspection</h2>\n{}\n</section>').format(
        section(data)
    )


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
    first, lines = data["first_layer"] or {}, []
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
