"""The data doctor's report as tables and lists."""

from collections import Counter
from collections.abc import Sequence
from itertools import chain

from segdeconv.data.check import KINDS
from segdeconv.data.doctor import WEIGHTS, DataReport, Finding, percent


def report_text(report: DataReport, show: int = 5) -> str:
    """The report as tables and lists.

    Args:
        report: What to show.
        show: Files that are named for each finding.
    """
    parts = [_split_table(report), _class_table(report)]
    if report.class_weights:
        notes = [f"{name}: {WEIGHTS[name]}" for name in report.class_weights]
        parts.append("\n".join([f"class weights, from {next(iter(report.splits))}", *notes]))
    parts += [_finding_text(finding, show) for finding in report.findings]
    return "\n\n".join(parts)


def _split_table(report: DataReport) -> str:
    summaries = report.splits.values()
    rows = [
        [f"{report.label_set.name}, {report.label_set.num_classes} classes", *report.splits],
        ["samples", *(str(s.samples) for s in summaries)],
        ["looked at", *(str(s.looked_at) for s in summaries)],
        ["sizes", *(_sizes(s.sizes) for s in summaries)],
        [
            "ignored pixels",
            *(percent(s.ignore_share) if s.counts.any() else "none" for s in summaries),
        ],
    ]
    for number, name in enumerate(("mean", "std")):
        values = (s.mean_and_std[number] for s in summaries)
        rows.append([name, *(" ".join(f"{value:.3f}" for value in each) for each in values)])
    return _aligned(rows)


def _sizes(sizes: Counter[tuple[int, int]]) -> str:
    if not sizes:
        return "none"
    if len(sizes) == 1:
        return "{}x{}".format(*next(iter(sizes)))
    widths, heights = zip(*sizes, strict=True)
    least, most = (min(widths), min(heights)), (max(widths), max(heights))
    return "{} sizes, {}x{} to {}x{}".format(len(sizes), *least, *most)


def _class_table(report: DataReport) -> str:
    header = ["class", *chain(*([f"{split} share", "images"] for split in report.splits))]
    weights = report.class_weights
    rows = [[*header, *weights]]
    for number, name in enumerate(report.label_set.class_names):
        row = [name]
        for summary in report.splits.values():
            row += [percent(summary.class_shares[number]), str(summary.class_images[number])]
        rows.append([*row, *(f"{each[number]:.3f}" for each in weights.values())])
    return _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _finding_text(finding: Finding, show: int) -> str:
    level = "error" if finding.is_error else "warning"
    number = f"{len(finding.items)} " if finding.items else ""
    lines = [f"{level}, {finding.split}: {number}{KINDS[finding.kind].title}"]
    if finding.sentence:
        lines.append(f"  {finding.sentence}")
    lines += [f"    {item}" for item in finding.items[:show]]
    if len(finding.items) > show:
        lines.append(f"    … and {len(finding.items) - show} more")
    return "\n".join(lines)
