"""What a run's folder says, read from its files; whatever is missing is left out."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from segdeconv.metrics import ClassificationScores, Scores, SegmentationScores

KINDS: tuple[type[Scores], ...] = (SegmentationScores, ClassificationScores)


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder holds it.

    Attributes:
        name: Of the folder.
        config: Content of config.yaml.
        config_text: Its text.
        rows: metrics.csv, a dictionary per validation; NaN where nothing was measured.
        metrics: metrics.json: "best" and "last" scores.
        surgery: surgery.json.
        surgery_text: surgery.txt.
        environment: environment.json.
        inspection: inspect.json.
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    rows: Sequence[dict[str, float]] = ()
    metrics: dict[str, Any] = field(default_factory=dict)
    surgery: dict[str, Any] = field(default_factory=dict)
    surgery_text: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    inspection: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> type[Scores]:
        """Which scores it has."""
        return kind_of(self.rows[-1] if self.rows else self.best)

    @property
    def main(self) -> str:
        """Name of the main score, such as "miou"."""
        return next(iter(self.kind.FIGURES))

    def column(self, name: str) -> list[float]:
        """One column of metrics.csv; NaN where it is not there."""
        return [row.get(name, math.nan) for row in self.rows]

    @property
    def seconds(self) -> list[float]:
        """Seconds of training up to each validation."""
        return list(accumulate(self.column("seconds")))

    @property
    def best(self) -> dict[str, Any]:
        """Scores of the best validation; {} if there was none."""
        return self.metrics.get("best") or {}


def kind_of(scores: Mapping[str, Any]) -> type[Scores]:
    """Which kind of scores these are; segmentation's if nothing says so."""
    return next((kind for kind in KINDS if next(iter(kind.FIGURES)) in scores), KINDS[0])


def validation_limit(trainer: Mapping[str, Any]) -> int | float | None:
    """How much a run validates: batches, or a share of the set; None is all of it.

    Args:
        trainer: The configuration of Lightning's trainer, to which 1 is a batch and 1.0 everything.
    """
    limit: int | float | None = trainer.get("limit_val_batches")
    return None if limit == 1 and isinstance(limit, float) else limit


def read_run(folder: Path) -> RunRecord:
    """Read a run's folder.

    Raises:
        ValueError: It is none, or a file in it is damaged.
    """
    text = _text(folder / "config.yaml")
    if not text:
        raise ValueError(f"{folder} is not the folder of a run: it has no config.yaml")
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(
            f"{folder / 'config.yaml'} is damaged ({' '.join(str(error).split())})"
        ) from error
    return RunRecord(
        name=folder.resolve().name,
        config=config if isinstance(config, dict) else {},
        config_text=text,
        rows=_rows(folder / "metrics.csv"),
        metrics=_json(folder / "metrics.json"),
        surgery=_json(folder / "surgery.json"),
        surgery_text=_text(folder / "surgery.txt").rstrip(),
        environment=_json(folder / "environment.json"),
        inspection=_json(folder / "inspect.json"),
    )


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(_text(path) or "{}")
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    return content


def _rows(path: Path) -> list[dict[str, float]]:
    try:
        rows = csv.DictReader(io.StringIO(_text(path)))
        return [{key: float(value or "nan") for key, value in row.items()} for row in rows]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error
