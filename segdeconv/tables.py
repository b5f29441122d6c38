"""Figures of several runs, and tables of them, as text."""

import statistics
from collections.abc import Iterable, Sequence


def mean_and_stdev(values: Sequence[float]) -> tuple[float, float | None]:
    """Of runs with several seeds; one run has no deviation."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def percent(mean: float, stdev: float | None, sign: str = "") -> str:
    """A share in per cent, with its deviation over several runs; sign "+" for a difference."""
    return f"{100 * mean:{sign}.2f}" + (f" ± {100 * stdev:.2f}" if stdev is not None else "")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are figures."""
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
