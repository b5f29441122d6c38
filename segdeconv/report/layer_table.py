"""The layers of an inspected network as a table, for a page and as text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from segdeconv.report.template import percent

Inspection = Mapping[str, Any]
"""What inspect.json holds, or its part "twin"."""


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
