"""The official Cityscapes figures: cityscapesScripts' own evaluation of files, beside ours.

The script (`evalPixelLevelSemanticLabeling`, cityscapesScripts 2.3) is a program that people run by
itself: it ends the process where something is wrong, and calls ``np.in1d``, which NumPy 2.4 has no
longer. Here it is called as a function, of the pairs of files that it is given, and neither its
settings nor NumPy are changed when it is done.

Beside the IoU of classes and categories it tells the iIoU: the same, with each pixel of a person or
vehicle weighted by the average size of its class over the size of its instance, so that small ones
count as much as large ones. That needs ``..._instanceIds.png`` beside the truth.
"""

import copy
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segdeconv.data.cityscapes import Cityscapes
from segdeconv.data.labels import CITYSCAPES
from segdeconv.metrics import SegmentationScores, json_number, json_numbers, percent

SCRIPT = "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling"
LABELS = "_labelIds.png"


@dataclass(frozen=True)
class OfficialScores:
    """What cityscapesScripts says; ratios lie in 0 to 1, NaN where nothing was there to score.

    Attributes:
        version: Of cityscapesScripts.
        class_iou: IoU of each class that is evaluated.
        miou: Its mean over the classes that have one.
        category_iou: IoU of each category that is evaluated.
        mean_category_iou: Its mean over the categories that have one.
        class_iiou: iIoU of each class that has instances; {} where it is left out.
        mean_iiou: Its mean over the classes that have one.
        category_iiou: iIoU of each category that has instances only; {} where it is left out.
        mean_category_iiou: Its mean over the categories that have one.
        left_out: Why there is no iIoU; "" where there is.
    """

    version: str
    class_iou: dict[str, float]
    miou: float
    category_iou: dict[str, float]
    mean_category_iou: float
    class_iiou: dict[str, float] = field(default_factory=dict)
    mean_iiou: float = math.nan
    category_iiou: dict[str, float] = field(default_factory=dict)
    mean_category_iiou: float = math.nan
    left_out: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types, under the names of `SegmentationScores` and these."""
        content: dict[str, Any] = {"script": f"cityscapesScripts {self.version}"}
        for name in ("miou", "mean_category_iou", "mean_iiou", "mean_category_iiou"):
            content[name] = json_number(getattr(self, name))
        for name in ("class_iou", "category_iou", "class_iiou", "category_iiou"):
            scores = getattr(self, name)
            content[name] = json_numbers(scores, scores.values())
        return content | ({"iiou_left_out": self.left_out} if self.left_out else {})


def check_official(samples: Any, count: int) -> None:
    """Look whether the script can score predictions of samples, before they are made.

    Args:
        samples: A data set.
        count: How many of its samples, from the first on.

    Raises:
        ValueError: They are not files in the Cityscapes layout with label ids, or the script is not
            installed.
    """
    if not isinstance(samples, Cityscapes):
        raise ValueError(
            f"--official reads files in the Cityscapes layout, and this is {type(samples).__name__}"
            "; it is for data.dataset cityscapes, the scores of all others are in the table"
        )
    others = [path for path in samples.label_paths[:count] if not _holds_ids(path)]
    if others:
        raise ValueError(
            f"--official reads ...{LABELS}, and {len(others)} of {count} images have none (first: "
            f"{others[0] or samples.names[0]}); files of train ids are of no use to it"
        )
    _script()


def _holds_ids(path: Path | None) -> bool:
    return path is not None and path.name.endswith(LABELS)


def _script() -> Any:
    """The script's module, which reads its environment when it is loaded."""
    try:
        return import_module(SCRIPT)
    except ImportError as error:
        raise ValueError(
            "--official needs cityscapesScripts, which is not installed; pip install "
            "cityscapesscripts, or this package with its extra `official`"
        ) from error


def official_scores(
    truths: Sequence[Path],
    predictions: Sequence[Path],
    watch: Callable[[], object] = lambda: None,
) -> OfficialScores:
    """Let cityscapesScripts score files of predictions.

    Args:
        truths: Files of label ids, ``..._labelIds.png``.
        predictions: The file of label ids that was predicted for each of them.
        watch: Called for each pair, when its turn has come.

    Raises:
        ValueError: The script is not installed, files are missing, or it refuses them.
    """
    if missing := [path for path in predictions if not path.is_file()]:
        raise ValueError(
            f"{len(missing)} of {len(predictions)} predictions are not there (first: {missing[0]});"
            " processes on several machines need a folder that all of them see"
        )
    script, left_out = _script(), _why_no_iiou(truths)
    settings = copy.copy(script.args)
    settings.quiet, settings.JSONOutput, settings.evalPixelAccuracy = True, False, False
    settings.evalInstLevelScore = not left_out
    found = _run(script, [str(p) for p in truths], _Watched(map(str, predictions), watch), settings)
    categories = dict.fromkeys(CITYSCAPES.categories or ())
    scores: dict[str, Any] = {
        "class_iou": _of(found["classScores"], CITYSCAPES.class_names),
        "miou": float(found["averageScoreClasses"]),
        "category_iou": _of(found["categoryScores"], categories),
        "mean_category_iou": float(found["averageScoreCategories"]),
    }
    if not left_out:
        weighted = script.generateInstanceStats(settings)
        scores |= {
            "class_iiou": _of(found["classInstScores"], weighted["classes"]),
            "mean_iiou": float(found["averageScoreInstClasses"]),
            "category_iiou": _of(found["categoryInstScores"], weighted["categories"]),
            "mean_category_iiou": float(found["averageScoreInstCategories"]),
        }
    return OfficialScores(version("cityscapesscripts"), **scores, left_out=left_out)


def _of(scores: Mapping[str, Any], names: Iterable[str]) -> dict[str, float]:
    return {name: float(scores[name]) for name in names}


def _why_no_iiou(truths: Sequence[Path]) -> str:
    # the script makes the names in this way, folders included
    files = [Path(str(path).replace("labelIds", "instanceIds")) for path in truths]
    missing = [path for path in files if not path.is_file()]
    if not missing:
        return ""
    return f"{len(missing)} of {len(files)} images have no instance file (first: {missing[0]})"


def _run(script: Any, truths: list[str], predictions: list[str], settings: Any) -> dict[str, Any]:
    """What ``evaluateImgLists`` gives; where it would end the process, a ``ValueError``."""
    said = io.StringIO()
    try:
        with redirect_stdout(said), _in1d():
            found: dict[str, Any] = script.evaluateImgLists(predictions, truths, settings)
    except SystemExit:
        reason = " ".join(said.getvalue().split()).removeprefix("ERROR: ")
        raise ValueError(f"cityscapesScripts refuses the files: {reason}") from None
    return found


@contextmanager
def _in1d() -> Iterator[None]:
    """Within this, NumPy has ``in1d`` as it had before 2.4; it was `numpy.isin` for flat arrays."""
    names = vars(np)
    before = names.get("in1d")
    names["in1d"] = np.isin
    try:
        yield
    finally:
        if before is None:
            del names["in1d"]
        else:
            names["in1d"] = before


class _Watched(list[str]):
    """A list that tells when one of its items is looked up."""

    def __init__(self, items: Any, watch: Callable[[], object]) -> None:
        super().__init__(items)
        self._watch = watch

    def __getitem__(self, index: Any) -> Any:
        self._watch()
        return super().__getitem__(index)


class Row(NamedTuple):
    """A figure from both sides, and its iIoU; NaN where there is none."""

    name: str
    ours: float
    official: float
    iiou: float

    @property
    def difference(self) -> float:
        """Of both; 1, the largest that can be, where only one of them has a score."""
        if math.isnan(self.ours) or math.isnan(self.official):
            return float(math.isnan(self.ours) != math.isnan(self.official))
        return abs(self.ours - self.official)


@dataclass(frozen=True)
class Comparison:
    """Our scores and the official ones, side by side.

    Args:
        ours: Of the same predictions, with the classes of Cityscapes.
        official: What cityscapesScripts says.
    """

    ours: SegmentationScores
    official: OfficialScores

    @property
    def classes(self) -> list[Row]:
        """A row for each class, then their mean."""
        ours = zip(CITYSCAPES.class_names, self.ours.class_iou.tolist(), strict=True)
        iiou, theirs = self.official.class_iiou, self.official
        rows = [Row(n, iou, theirs.class_iou[n], iiou.get(n, math.nan)) for n, iou in ours]
        return [*rows, Row("mean of classes", self.ours.miou, theirs.miou, theirs.mean_iiou)]

    @property
    def categories(self) -> list[Row]:
        """A row for each category, then their mean."""
        ours = self.ours.category_iou.items()
        iiou, theirs = self.official.category_iiou, self.official
        rows = [Row(n, iou, theirs.category_iou[n], iiou.get(n, math.nan)) for n, iou in ours]
        means = (self.ours.mean_category_iou, theirs.mean_category_iou, theirs.mean_category_iiou)
        return [*rows, Row("mean of categories", *means)]

    @property
    def largest(self) -> Row:
        """The row in which both differ most."""
        return max([*self.classes, *self.categories], key=lambda row: row.difference)

    def to_dict(self) -> dict[str, Any]:
        """The official scores as JSON types, and how much ours differ at most."""
        return {**self.official.to_dict(), "largest_difference": self.largest.difference}

    def __str__(self) -> str:
        width = max(len(row.name) for row in (*self.classes, *self.categories))
        rule = "-" * (width + 30)
        lines = [f"cityscapesScripts {self.official.version}, on the files of predictions"]
        for title, rows in (("class", self.classes), ("category", self.categories)):
            lines += [f"{title:<{width}}  {'IoU':>8}  {'official':>8}  {'iIoU':>8}", rule]
            shown = ["  ".join([f"{row.name:<{width}}", *map(percent, row[1:])]) for row in rows]
            lines += [*shown[:-1], rule, shown[-1], ""]
        largest = self.largest
        where = f" ({largest.name})" if largest.difference else ""
        lines += [f"largest difference of IoU and official: {largest.difference:.1e}{where}"]
        if self.official.left_out:
            lines += [f"iIoU is left out: {self.official.left_out}"]
        return "\n".join(lines)
