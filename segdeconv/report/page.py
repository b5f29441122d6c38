"""The report of a run, of an evaluation, or of both, as one HTML file.

It loads nothing: styles, script, figures and pictures are in it, and a content security policy
forbids the browser to ask for anything.  Every number is one of the run's files, or was counted by
an `Observer`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from segdeconv.data.labels import Colour
from segdeconv.metrics import ClassificationScores
from segdeconv.report.examples import Example
from segdeconv.report.figures import Line, draw_lines, draw_reliability
from segdeconv.report.inspection import LINK, in_report
from segdeconv.report.observation import Calibration, Classified
from segdeconv.report.records import RunRecord, kind_of, validation_limit
from segdeconv.report.template import duration, environment

MOST_CLASSES = 100  # a matrix of more is no longer read


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set, and what was seen of its images.

    Attributes:
        record: Scores and facts by name, as tools/eval.py writes them; {} where the scores of the
            run's best validation are shown.
        calibration: Of all pixels, or images of a classifier, that were seen.
        examples: From the best to the worst.
        seen: Which images calibration and examples come from, in words.
        colours: Red, green and blue of each class.
        ignore_index: Train id of pixels that do not count.
        facts: What else was measured, such as memory, in words.
        classified: Images of a classifier, by a heading that says which.
    """

    record: Mapping[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None
    examples: Sequence[Example] = ()
    seen: str = ""
    colours: Sequence[Colour] = ()
    ignore_index: int = 255
    facts: Mapping[str, str] = field(default_factory=dict)
    classified: Mapping[str, Sequence[Classified]] = field(default_factory=dict)


def render_report(run: RunRecord, evaluation: Evaluation | None = None) -> str:
    """The page of a run, with an evaluation if there is one."""
    shown = evaluation or Evaluation()
    scores = shown.record or run.best
    kind = kind_of(scores)
    is_classifier = bool(shown.classified) or kind is ClassificationScores
    unit = "images" if is_classifier else "pixels"
    classes = class_table(scores, kind.CLASS_FIGURE[0], shown.colours)
    page = environment().get_template("report.html")
    return page.render(
        run=run,
        summary=summary(run),
        scores={
            **{label: scores[key] for key, label in kind.FIGURES.items() if key in scores},
            **official_figures(scores),
        },
        scored=_scored(run, shown),
        curves=curves(run),
        classes=classes,
        class_figure={"iou": "IoU"}.get(kind.CLASS_FIGURE[1], kind.CLASS_FIGURE[1]),
        confusion=confusion_table(scores.get("confusion"), [row["name"] for row in classes]),
        unit=unit,
        evaluation=shown,
        reliability=draw_reliability(shown.calibration, unit) if shown.calibration else None,
        example_data=_example_data(shown, classes),
        speed=speed(run, shown),
        inspection_link=LINK if run.inspection else "",
        inspection=in_report(run.inspection, run.best.get("step")) if run.inspection else "",
    )


def official_figures(scores: Mapping[str, Any]) -> dict[str, float]:
    """What cityscapesScripts said of the same predictions, where it was asked."""
    found = scores.get("official") or {}
    names = {"miou": "official mIoU", "mean_iiou": "official iIoU"}
    return {label: found[key] for key, label in names.items() if found.get(key) is not None}


def summary(run: RunRecord) -> str:
    """What it is, in one line."""
    model, data = (run.config.get(group) or {} for group in ("model", "data"))
    network = " / ".join(str(model[key]) for key in ("arch", "encoder", "name") if model.get(key))
    parts = [network, model.get("operator"), data.get("dataset")]
    parts += [f"seed {run.config['seed']}" if "seed" in run.config else None]
    return ", ".join(str(part) for part in parts if part)


def _scored(run: RunRecord, shown: Evaluation) -> str:
    """Which images and weights the scores are of."""
    record = shown.record
    if record:
        return f"{record['images']} images of {record['split']}, {record['mode']}"
    if not run.best:
        return ""
    split = (run.config.get("data") or {}).get("val_split", "val")
    limit = validation_limit(run.config.get("trainer") or {})
    part = "" if limit is None else f", limit_val_batches {limit}"
    return f"best validation ({split}{part}), after {run.best['epoch']:g} epochs"


def curves(run: RunRecord) -> list[tuple[str, Markup]]:
    """Title and figure of each learning curve; none without a validation."""
    if not run.rows:
        return []
    epochs, seconds = run.column("epoch"), run.seconds
    scores = [
        (label, run.column(key)) for key, label in run.kind.FIGURES.items() if key in run.rows[0]
    ]
    losses = [("training", run.column("train_loss")), ("validation", run.column("val_loss"))]
    drawn = []
    for title, what, lines, share in (
        ("Scores", "score", scores, True),
        ("Loss", "loss", losses, False),
    ):
        for x_label, x in (("epochs", epochs), ("seconds of training", seconds)):
            parts = [Line(label, x, y, number) for number, (label, y) in enumerate(lines)]
            name = f"{what}-{x_label.split()[0]}"
            drawn.append(
                (
                    f"{title} against {x_label}",
                    draw_lines(parts, x_label, what, percent=share, name=name),
                )
            )
    rate = [Line("learning rate", epochs, run.column("lr"))]
    drawn.append(
        ("Learning rate against epochs", draw_lines(rate, "epochs", "learning rate", name="rate"))
    )
    return drawn


def class_table(
    scores: Mapping[str, Any], figure: str, colours: Sequence[Colour]
) -> list[dict[str, Any]]:
    """Name, score, accuracy, share of the labels and colour of each class."""
    of_classes = scores.get(figure) or {}
    counts = [sum(row) for row in scores.get("confusion") or []]
    total = max(1, sum(counts))
    accuracy = scores.get("class_accuracy") or {}
    return [
        {
            "name": name,
            "score": value,
            "accuracy": accuracy.get(name),
            "share": counts[number] / total if counts else None,
            "colour": "rgb({}, {}, {})".format(*colours[number]) if colours else "",
        }
        for number, (name, value) in enumerate(of_classes.items())
    ]


def confusion_table(
    confusion: Sequence[Sequence[int]] | None, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Rows of truth: a name and, of each predicted class, the count and the share of the row."""
    if not confusion or len(names) > MOST_CLASSES:
        return []
    return [
        {
            "name": name,
            "cells": [
                {"name": other, "count": count, "share": count / max(1, sum(row))}
                for other, count in zip(names, row, strict=True)
            ],
        }
        for name, row in zip(names, confusion, strict=True)
    ]


def speed(run: RunRecord, shown: Evaluation) -> dict[str, str]:
    """What was measured of time and memory, in words."""
    facts = {}
    if run.rows:
        rates, seconds = run.column("images_per_second"), run.seconds
        facts["training"] = f"{_median(rates):.3g} images/s (median of {len(rates)} stretches)"
        facts["time of training"] = duration(seconds[-1])
        steps = [after - before for before, after in pairwise([0.0, *run.column("step")])]
        per_step = [s / n for s, n in zip(run.column("seconds"), steps, strict=True) if n > 0]
        if per_step:
            facts["an optimiser step"] = f"{1000 * _median(per_step):.4g} ms (median)"
    return {**facts, **shown.facts}


def _median(values: Iterable[float]) -> float:
    ranked = sorted(value for value in values if not math.isnan(value))
    return ranked[len(ranked) // 2] if ranked else math.nan


def _example_data(shown: Evaluation, classes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the page's script draws from."""
    kept = ("width", "height", "truth", "prediction")
    examples = [asdict(example) for example in shown.examples]
    return {
        "ignore": shown.ignore_index,
        "classes": [
            {"name": row["name"], "colour": list(colour)}
            for row, colour in zip(classes, shown.colours, strict=False)
        ],
        "examples": [{key: example[key] for key in kept} for example in examples],
    }
