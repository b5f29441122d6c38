"""Look at a folder of predictions for Cityscapes before it is uploaded.

A prediction is an 8 bit grey PNG of label ids (7 to 33 for the classes that are evaluated, not
train ids), of the size of its image, whose name begins with ``<city>_<sequence>_<frame>``; there is
one for each image of the split, in any sub-folders.  cityscapesScripts itself finds little of what
can be wrong: train ids give a low score, ids above 33 end it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from segdeconv.data.check import Counts, count_ids
from segdeconv.data.cityscapes import Cityscapes
from segdeconv.data.labels import CITYSCAPES
from segdeconv.data.readers import read_labels

SIZE = (2048, 1024)
"""Width and height of all images of Cityscapes."""

Progress = Callable[[Sequence[str]], Iterable[str]]
Sizes = Counter[tuple[int, int]]


@dataclass
class Submission:
    """What a folder of predictions holds.

    Attributes:
        images: Number of images that predictions are wanted for.
        predictions: Number of those that have exactly one, which can be read.
        sizes: Number of predictions of each width and height.
        counts: Pixels of each value, (256,).
        problems: What would be refused, or scored wrongly; a sentence each.
        remarks: What is allowed, but hardly meant; a sentence each.
    """

    images: int
    predictions: int = 0
    sizes: Sizes = field(default_factory=Counter)
    counts: Counts = field(default_factory=lambda: np.zeros(256, np.int64))
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        sizes = ", ".join(f"{n} of {w} x {h}" for (w, h), n in self.sizes.most_common(5))
        found = np.flatnonzero(self.counts).tolist()
        names = {label.id: label.name for label in CITYSCAPES.labels}
        values = ", ".join(f"{value} ({names.get(value, 'no label id')})" for value in found)
        lines = [f"{self.predictions} predictions for {self.images} images"]
        lines += [f"width x height: {sizes}", f"values: {values}"] if self.predictions else []
        return "\n".join(lines)


def check_submission(folder: Path, samples: Cityscapes, watch: Progress = list) -> Submission:
    """Look at every file of a folder of predictions.

    Args:
        folder: Holds them, in any sub-folders.
        samples: The images that they are for.
        watch: Gives the names back that it is given, and shows how far their reading is.

    Raises:
        ValueError: It is no folder.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; name the one that holds the predictions")
    found = Submission(len(samples))
    files = _by_image(folder)
    images = dict(zip(samples.names, samples.image_paths, strict=True))
    found.problems += _wrong_names(files, images, folder)
    faults: dict[str, list[str]] = {}
    strange: list[Path] = []
    for name in watch([name for name in images if len(files.get(name, ())) == 1]):
        (path,) = files[name]
        try:
            counts = _look(path, images[name], found.sizes, faults)
        except ValueError as error:
            faults.setdefault("cannot be used", []).append(str(error))
            continue
        found.predictions += 1
        found.counts += counts
        if counts[CITYSCAPES.is_unknown > 0].any():
            strange.append(path)
    found.problems += [
        f"{len(sentences)} predictions {what} (first: {sentences[0]})"
        for what, sentences in faults.items()
    ]
    _judge_values(found, strange)
    return found


def _by_image(folder: Path) -> dict[str, list[Path]]:
    """The PNGs below ``folder`` by the three parts of their name that say which image is meant."""
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("[!.]*.png")):
        files.setdefault("_".join(path.stem.split("_")[:3]), []).append(path)
    return files


def _wrong_names(files: dict[str, list[Path]], images: dict[str, Path], folder: Path) -> list[str]:
    missing = [name for name in images if name not in files]
    double = [name for name in images if len(files.get(name, ())) > 1]
    stray = [paths[0] for name, paths in files.items() if name not in images]
    problems = []
    if missing:
        problems.append(
            f"{len(missing)} of {len(images)} images have no prediction (first: no "
            f"{missing[0]}*.png in {folder})"
        )
    if double:
        both = " and ".join(str(path) for path in files[double[0]][:2])
        problems.append(f"{len(double)} images have more than one prediction (first: {both})")
    if stray:
        problems.append(
            f"{len(stray)} PNGs belong to no image of this split (first: {stray[0]}); names begin "
            "with <city>_<sequence>_<frame>"
        )
    return problems


def _look(path: Path, image: Path, sizes: Sizes, faults: dict[str, list[str]]) -> Counts:
    """Pixels of each value of one prediction; its size is counted, and what is wrong is noted.

    Raises:
        ValueError: It cannot be read, or holds colours.
    """
    ids = read_labels(path)
    with Image.open(path) as file, Image.open(image) as original:
        if (file.format, file.mode) != ("PNG", "L"):
            sentence = f"{path} is {file.format} of mode {file.mode}"
            faults.setdefault("are no PNGs of 8 bit grey, mode L", []).append(sentence)
        sizes[file.size] += 1
        if file.size != original.size:
            (width, height), (right, high) = file.size, original.size
            sentence = f"{path} has {width} x {height} pixels, its image {right} x {high}"
            faults.setdefault("are of another size than their image", []).append(sentence)
        elif file.size != SIZE:
            sentence = f"{path} has {file.width} x {file.height} pixels, as its image here"
            what = "are not of {} x {} pixels, as Cityscapes' own images are".format(*SIZE)
            faults.setdefault(what, []).append(sentence)
    return count_ids(ids)


def _judge_values(found: Submission, strange: Sequence[Path]) -> None:
    """Note what all predictions together say; the values of one alone may be either kind of id."""
    values = set(np.flatnonzero(found.counts).tolist())
    beside = values - set(CITYSCAPES.train_to_id.tolist())
    if beside and values <= set(CITYSCAPES.as_train_ids().ids):
        found.problems.append(
            "the files hold train ids (0 to 18), not label ids: road is 7 in a submission, not 0; "
            "tools/eval.py --save-predictions and tools/predict.py --write ids write label ids"
        )
    elif strange:
        unknown = sorted(value for value in beside if CITYSCAPES.is_unknown[value])
        found.problems.append(
            f"{len(strange)} predictions hold values that are no label ids, 0 to 33 (first: "
            f"{strange[0]}; values: {', '.join(map(str, unknown[:10]))})"
        )
    elif beside:
        share = found.counts[sorted(beside)].sum() / found.counts.sum()
        found.remarks.append(
            f"{100 * share:.2g} % of the pixels hold ids that are not evaluated "
            f"({', '.join(map(str, sorted(beside)))}); each of them counts as a miss"
        )
