"""Several runs side by side: what differs between them, their curves, classes and speed.

Runs whose configurations differ in the seed alone are one group; mean and spread are over its
seeds. Differences are to a reference: the best of the batch-norm groups, so that what is compared
with it is not flattered by a bad rate of its; without one, the first group.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from segdeconv.report.figures import Line, draw_differences, draw_lines
from segdeconv.report.records import RunRecord
from segdeconv.report.template import environment, percent

# What does not change what is computed (rounding aside), or is the seed.
ASIDE = {
    *("seed", "name", "output_dir", "threads", "check_data", "write_report", "save_every_n_steps"),
    *("data.root", "data.seed", "data.num_workers", "data.val_batch_size", "model.compile"),
    *("model.channels_last", "trainer.accelerator", "trainer.devices", "trainer.num_nodes"),
    *("trainer.strategy", "trainer.log_every_n_steps"),
}
MOST_WORDS = 4  # that tell groups apart; with more of them, the name of a run says it better
MOST_CLASSES = 60  # more rows are no figure any more


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, apart from the seed.

    Attributes:
        label: What makes it another than the other groups.
        runs: One or more.
    """

    label: str
    runs: Sequence[RunRecord]

    @property
    def epochs(self) -> list[float]:
        """Epochs that all runs were validated after."""
        common = set.intersection(*(set(run.column("epoch")) for run in self.runs))
        return sorted(common)

    @property
    def times(self) -> list[float]:
        """Seconds of training up to each of these epochs, a mean over the runs."""
        return [
            fmean(run.seconds[run.column("epoch").index(epoch)] for run in self.runs)
            for epoch in self.epochs
        ]

    def at(self, epoch: float, column: str) -> list[float]:
        """One score of each run after ``epoch``."""
        return [
            row.get(column, math.nan)
            for run in self.runs
            for row in run.rows
            if row["epoch"] == epoch
        ]

    def best(self, name: str) -> list[float]:
        """One score of each run's best validation."""
        return [_number(run.best.get(name)) for run in self.runs]

    def best_of_class(self, figure: str, name: str) -> list[float]:
        """The score of a class at each run's best validation."""
        return [_number((run.best.get(figure) or {}).get(name)) for run in self.runs]


def render_comparison(runs: Sequence[RunRecord]) -> str:
    """The page of several runs.

    Raises:
        ValueError: There is nothing to compare: a run without a validation, tasks that differ.
    """
    check_comparable(runs)
    main = runs[0].main
    ordered = reference_first(group_runs(runs), main)
    differences = class_differences(ordered)
    return (
        environment()
        .get_template("comparison.html")
        .render(
            groups=ordered,
            common=common_settings(runs),
            figure=runs[0].kind.FIGURES[main],
            rows=[_summary(group, ordered[0], main) for group in ordered],
            curves=_curves(ordered, main, runs[0].kind.FIGURES[main]),
            differences=differences,
            difference_figure=_difference_figure(ordered, differences),
            several_groups=len(ordered) > 1,
        )
    )


def check_comparable(runs: Sequence[RunRecord]) -> None:
    """Look whether runs can stand side by side.

    Raises:
        ValueError: A run without a validation, tasks that differ.
    """
    for run in runs:
        if not run.rows or not run.best:
            raise ValueError(f"{run.name} has no validation yet; leave it out")
    kinds = {run.main for run in runs}
    if len(kinds) > 1:
        raise ValueError(f"runs of one task can be compared, and these have {', '.join(kinds)}")


def reference_first(groups: Sequence[Group], main: str) -> list[Group]:
    """The groups behind the one that they are compared with, which has the best main score."""
    plain = [group for group in groups if _operator(group.runs[0]) == "batchnorm"]
    candidates = plain or groups[:1]
    reference = max(candidates, key=lambda group: mean_and_spread(group.best(main))[0])
    return [reference, *(group for group in groups if group is not reference)]


def group_runs(runs: Sequence[RunRecord]) -> list[Group]:
    """Runs of one configuration together, in the order in which they were given."""
    settings = {id(run): flatten(run.config) for run in runs}
    kept = {id(run): {k: v for k, v in settings[id(run)].items() if k not in ASIDE} for run in runs}
    together: list[list[RunRecord]] = []
    for run in runs:
        for group in together:
            if kept[id(group[0])] == kept[id(run)]:
                group.append(run)
                break
        else:
            together.append([run])
    firsts = [kept[id(group[0])] for group in together]
    keys = dict.fromkeys(key for settings in firsts for key in settings)
    differing = [key for key in keys if len({repr(f.get(key)) for f in firsts}) > 1]
    labels = [
        _label(first, differing, group[0]) for first, group in zip(firsts, together, strict=True)
    ]
    return [Group(label, group) for label, group in zip(labels, together, strict=True)]


def _label(settings: Mapping[str, Any], differing: Sequence[str], run: RunRecord) -> str:
    """The settings that differ; the operator's own options say nothing beside its name."""
    if not differing:
        return _operator(run) or run.name
    operator = [str(settings["model.operator"])] if "model.operator" in differing else []
    rest = [key for key in differing if key != "model.operator"]
    if operator:
        rest = [key for key in rest if not key.startswith("model.operator_options")]
    if len(operator) + len(rest) > MOST_WORDS:
        return run.name
    return ", ".join([*operator, *(f"{key.split('.')[-1]} {settings.get(key)}" for key in rest)])


def _operator(run: RunRecord) -> str:
    return str((run.config.get("model") or {}).get("operator", ""))


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def common_settings(runs: Sequence[RunRecord]) -> dict[str, str]:
    """What all runs share of the things that one asks first."""
    flat = [flatten(run.config) for run in runs]
    asked = [
        *("data.dataset", "model.arch", "model.encoder", "model.name", "optimizer.name"),
        *("optimizer.lr", "data.batch_size", "data.crop_size", "trainer.max_epochs"),
    ]
    values = {key: {repr(settings.get(key)) for settings in flat} for key in asked}
    return {
        key: str(flat[0][key])
        for key in asked
        if len(values[key]) == 1 and flat[0].get(key) is not None
    }


def mean_and_spread(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard deviation; NaN where there is no or one number."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return math.nan, math.nan
    return fmean(known), stdev(known) if len(known) > 1 else math.nan


def with_spread(values: Sequence[float]) -> str:
    """Mean and standard deviation in percent."""
    mean, spread = mean_and_spread(values)
    return percent(mean) if math.isnan(spread) else f"{percent(mean)} ± {percent(spread)}"


def _summary(group: Group, reference: Group, main: str) -> dict[str, str]:
    """One row of the table: figures of a group."""
    seeds = ", ".join(str(run.config.get("seed", "?")) for run in group.runs)
    goal = math.inf if group is reference else mean_and_spread(reference.best(main))[0]
    rates = [fmean(run.column("images_per_second")) for run in group.runs]
    return {
        "group": group.label,
        "seeds": seeds,
        "best": with_spread(group.best(main)),
        "last": with_spread([run.rows[-1].get(main, math.nan) for run in group.runs]),
        "epochs to the reference": _reached(group, main, goal, "epoch"),
        "seconds to the reference": _reached(group, main, goal, "seconds"),
        "images/s": f"{fmean(rates):.3g}",
        "minutes": f"{fmean(run.seconds[-1] for run in group.runs) / 60:.3g}",
    }


def _reached(group: Group, main: str, goal: float, axis: str) -> str:
    """How far training was when each run first had the reference's best score, as a mean."""
    if goal == math.inf:
        return percent(None)
    found = []
    for run in group.runs:
        places = run.seconds if axis == "seconds" else run.column(axis)
        hits = (p for p, score in zip(places, run.column(main), strict=True) if score >= goal)
        first = next(hits, None)
        if first is None:
            return "not all"
        found.append(first)
    return f"{fmean(found):.3g}"


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _curves(groups: Sequence[Group], main: str, label: str) -> list[tuple[str, Any]]:
    """Score and losses of all groups, against epochs and against seconds."""
    drawn = []
    for column, what, share in ((main, label, True), ("val_loss", "validation loss", False)):
        for axis in ("epochs", "seconds of training"):
            lines = []
            for number, group in enumerate(groups):
                lines += _lines(group, number, column, axis)
            figure = draw_lines(
                lines, axis, what, percent=share, name=f"{column}-{axis.split()[0]}"
            )
            drawn.append((f"{what} against {axis}", figure))
    return drawn


def _lines(group: Group, number: int, column: str, axis: str) -> list[Line]:
    """The mean of a group over its seeds, in front of each run."""
    by_epoch = axis == "epochs"
    single = [
        Line(
            "",
            run.column("epoch") if by_epoch else run.seconds,
            run.column(column),
            number,
            faint=True,
        )
        for run in group.runs
    ]
    if len(group.runs) == 1:
        return [Line(group.label, single[0].x, single[0].y, number)]
    mean = Line(
        f"{group.label} (mean of {len(group.runs)})",
        group.epochs if by_epoch else group.times,
        [mean_and_spread(group.at(epoch, column))[0] for epoch in group.epochs],
        number,
    )
    return [*single, mean]


def class_differences(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Of each class: name, each group's scores in words, and its distance from the reference.

    The spread is one standard deviation of the difference of two single runs; NaN where a group
    has one run only.
    """
    reference, *others = groups
    figure = reference.runs[0].kind.CLASS_FIGURE[0]
    names = list(reference.runs[0].best.get(figure) or {})
    rows = []
    for name in names:
        own = mean_and_spread(reference.best_of_class(figure, name))
        row = {"name": name, "scores": [], "differences": []}
        for group in groups:
            row["scores"].append(with_spread(group.best_of_class(figure, name)))
        for group in others:
            mean, spread = mean_and_spread(group.best_of_class(figure, name))
            row["differences"].append((mean - own[0], math.hypot(spread, own[1])))
        rows.append(row)
    return rows


def _difference_figure(groups: Sequence[Group], rows: Sequence[Mapping[str, Any]]) -> Any:
    reference, *others = groups
    if not others or not rows or len(rows) > MOST_CLASSES:
        return None
    drawn = [
        (
            group.label,
            [row["differences"][number][0] for row in rows],
            [row["differences"][number][1] for row in rows],
        )
        for number, group in enumerate(others)
    ]
    figure = groups[0].runs[0].kind.CLASS_FIGURE[1].replace("iou", "IoU")
    label = f"{figure}, points above {reference.label}"
    return draw_differences([row["name"] for row in rows], drawn, label)
