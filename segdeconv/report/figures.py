"""Figures as SVG for a page that is light or dark: colours and fonts are the page's.

matplotlib draws them: its SVG is text of some 20 kB a figure that every browser shows without a
script, where an interactive library would add megabytes to each report. A colour is drawn as one
of the marks below, which then become the names of the page's own colours; the names are those of
report.css, whose values are Okabe and Ito's. Lines differ in dash and marker as well.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from segdeconv.report.observation import Calibration

TEXT, GRID = "#00f0f0", "#00f0f1"
SERIES = tuple(f"#00f00{number}" for number in range(6))
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (1, 1)))
FEW_DECADES = 200  # largest over smallest number of a logarithmic axis that has 1, 2 and 5 on it
MOST_INSIDE = 3  # lines whose names find a free corner
MARKERS = ("o", "s", "^", "D", "v", "P")
_NAMES = {TEXT: "currentColor", GRID: "var(--grid)"}
_NAMES |= {mark: f"var(--series{number})" for number, mark in enumerate(SERIES)}

_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: the page's font, to be searched and read aloud
    "text.parse_math": False,  # a dollar in a class's name is a dollar
    "svg.hashsalt": "segdeconv",  # the same figure gives the same file
    "font.size": 9,
    "text.color": TEXT,
    "axes.edgecolor": GRID,
    "axes.labelcolor": TEXT,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "grid.color": GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.markersize": 3.5,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Line:
    """One line of a figure.

    Attributes:
        label: Of the legend.
        x: Places.
        y: Values; NaN leaves a gap.
        style: Number of its colour, dash and marker.
        faint: Drawn thin and without a place in the legend.
        dots: Only the places, without the line between them.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: int = 0
    faint: bool = False
    dots: bool = False


def draw_lines(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    percent: bool = False,
    name: str = "",
    logarithmic: str = "",
) -> Markup:
    """Lines over a common axis.

    Args:
        lines: At least one; those with a label come into a legend if there are several.
        x_label: Of the axis across.
        y_label: Of the axis up.
        percent: Values are shares, 0 to 1.
        name: For those who cannot see it; the id of each line begins with it.
        logarithmic: Axes with a logarithmic scale, "", "y" or "xy".
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _axes()
        for number, line in enumerate(lines):
            _draw(axes, line, f"{name}-{number}")
        axes.set(xlabel=x_label, ylabel=y_label)
        if "x" not in logarithmic:
            whole = x_label in ("epochs", "layer", "direction")
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=whole))
        for axis in logarithmic:
            if any(value > 0 for line in lines for value in getattr(line, axis)):
                _make_logarithmic(axes, axis)
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        named = [line for line in lines if not line.faint]
        _legend(figure, axes, [line.label for line in named])
        about = "; ".join(f"{line.label}: last {line.y[-1]:.4g}" for line in named if len(line.y))
        return _svg(figure, f"{y_label} against {x_label}. {about}")


def draw_reliability(calibration: Calibration, unit: str) -> Markup:
    """Accuracy against confidence, with the share of pixels (or images: the unit) below."""
    curve = calibration.curve()
    confidence, accuracy, share = zip(*curve, strict=True)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.4, 4.0), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        top.plot([0, 1], [0, 1], color=TEXT, linestyle=":", linewidth=1, label="as sure as right")
        line = Line("this network", confidence, accuracy)
        _draw(top, line, "reliability-0")
        top.set(ylabel="right", xlim=(0, 1), ylim=(0, 1))
        top.legend(loc="upper left")
        bottom.bar(confidence, share, width=0.045, color=SERIES[0])
        bottom.set(xlabel="confidence", ylabel=unit)
        for axis in (top.xaxis, top.yaxis, bottom.yaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=None))
        return _svg(
            figure, f"Share that is right against confidence; error {calibration.error:.4f}"
        )


def draw_differences(
    names: Sequence[str], groups: Sequence[tuple[str, Sequence[float], Sequence[float]]], label: str
) -> Markup:
    """One row per class: how far each group lies from a reference, with its spread.

    Args:
        names: Of the rows.
        groups: Label, difference of each row, spread of each row (NaN draws none).
        label: Of the axis across; differences are shares.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.8, 0.8 + 0.26 * len(names)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=TEXT, linewidth=1)
        for number, (group, values, spreads) in enumerate(groups):
            style = (number + 1) % len(SERIES)
            shift = 0.16 * (number - (len(groups) - 1) / 2)
            rows = [row + shift for row in range(len(names))]
            axes.hlines(
                rows,
                [v - s for v, s in zip(values, spreads, strict=True)],
                [v + s for v, s in zip(values, spreads, strict=True)],
                color=SERIES[style],
                linewidth=1.5,
            )
            (dots,) = axes.plot(
                values, rows, MARKERS[style], color=SERIES[style], markersize=5, label=group
            )
            dots.set_gid(f"difference-{number}")
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel(label)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=None, symbol=""))
        _legend(figure, axes, [group for group, _, _ in groups], MOST_INSIDE + 1)
        return _svg(figure, f"{label}, by class")


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.8, 3.0), layout="constrained")
    return figure, figure.subplots()


def _make_logarithmic(axes: Axes, name: str) -> None:
    axes.set(**{f"{name}scale": "log"})
    axis: Any = getattr(axes, f"{name}axis")
    low, high = axis.get_view_interval()
    # one decade may hold a single power of ten, or none
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < FEW_DECADES else (1,)))
    # matplotlib's own labels are formulas, which nothing here sets
    axis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
    axis.set_minor_locator(NullLocator())


def _power(value: float) -> str:
    """A number on a logarithmic axis: 0.01, 200, 2e5."""
    return (
        f"{value:g}" if 1e-4 < value < 1e5 else f"{value:.0e}".replace("+0", "").replace("-0", "-")
    )


def _legend(figure: Figure, axes: Axes, labels: Sequence[str], count: int = 0) -> None:
    """Names of lines: in a free corner if they are few, else above the axes.

    Args:
        figure: Gets higher by what stands above the axes.
        axes: Where the lines are.
        labels: Their names; a single one needs no legend.
        count: Taken for their number, to have them above.
    """
    if len(labels) < 2:
        return
    if max(count, len(labels)) <= MOST_INSIDE:
        axes.legend(loc="best", handlelength=3)
        return
    columns = 2 if max(map(len, labels)) <= 24 else 1  # characters, of a figure's width
    figure.set_figheight(figure.get_figheight() + 0.19 * -(-len(labels) // columns))
    figure.legend(loc="outside upper left", ncols=columns, handlelength=3)


def _draw(axes: Axes, line: Line, gid: str) -> None:
    style = line.style % len(SERIES)
    (drawn,) = axes.plot(
        line.x,
        line.y,
        color=SERIES[style],
        linestyle="" if line.dots else DASHES[style],
        clip_on=False,
        markevery=max(1, len(line.x) // (80 if line.dots else 20)),
        marker="" if line.faint else MARKERS[style],
        linewidth=0.7 if line.faint else 1.6,
        alpha=0.55 if line.faint else 1,
        label="_" if line.faint else line.label,
    )
    drawn.set_gid(gid)


def _svg(figure: Figure, about: str) -> Markup:
    """The figure as an element of a page, in the page's colours, as wide as there is room."""
    content = io.StringIO()
    figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    text = content.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    # several figures share a page: ids that matplotlib only counts up would stand there twice
    text = re.sub(r' id="[A-Za-z.]\w*?(?:\.axis)?_\d+"', "", text)
    width, height = (float(number) * 72 for number in figure.get_size_inches())
    frame = (
        f'<svg role="img" aria-label="{escape(about)}" viewBox="0 0 {width:g} {height:g}" '
        f'style="max-width: {1.5 * width:g}px">'
    )
    text = re.sub(r"<svg[^>]*>", lambda _: frame, text, count=1)
    text = re.sub(r" font-family: [^;\"]*;", "", text)
    for mark, name in _NAMES.items():
        text = text.replace(mark, name)
    return Markup(text)  # matplotlib escapes what it writes
