"""The data doctor: look at every sample of a data set, and say what is wrong with the whole.

Every image and label map is decoded once, in as many processes as there are cores; what is looked
at beside that costs little.  What is known of a sample is `segdeconv.data.check.Examined`, so the
quick check before training and the doctor find the same things.  `doctor_text` shows the report.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from segdeconv.data.check import (
    KINDS,
    Counts,
    Examined,
    examine,
    spread_over,
    untransformed,
)
from segdeconv.data.labels import Colour, LabelSet
from segdeconv.data.pairs import Unpaired
from segdeconv.data.workers import init_worker

WEIGHTS = {
    "enet": "1 / ln(1.02 + p), p: share of the labelled pixels; Paszke et al., ENet, "
    "arXiv:1606.02147",
    "median_frequency": "median of f / f, f: pixels of the class over pixels of the images that "
    "have it; Eigen and Fergus, arXiv:1411.4734; 1 for a class without a pixel",
}
"""Class weights that are suggested: their formulas and sources."""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong in a split.

    Args:
        kind: One of `segdeconv.data.check.KINDS`.
        split: The split, or two of them.
        items: Files, classes or whatever it is found in.
        sentence: What is wrong with the first of them, or with all, and what to do.
    """

    kind: str
    split: str
    items: tuple[str, ...]
    sentence: str = ""

    @property
    def is_error(self) -> bool:
        """Whether training cannot work with it, or its scores would mean nothing."""
        return KINDS[self.kind].is_error


@dataclass
class SplitSummary:
    """What all samples of a split are together.

    Args:
        label_set: Classes of the data set.
        samples: Number of samples in the split.
        looked_at: Number of those that were examined.
        sizes: Number of images of each width and height.
        counts: Pixels of each train id, (256,).
        images_with: Images in which each train id appears, (256,).
        pixels_beside: Labelled and ignored pixels of those images, (256,).
    """

    label_set: LabelSet
    samples: int
    looked_at: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    counts: Counts = field(default_factory=lambda: np.zeros(256, np.int64))
    images_with: Counts = field(default_factory=lambda: np.zeros(256, np.int64))
    pixels_beside: Counts = field(default_factory=lambda: np.zeros(256, np.int64))
    files_of: dict[tuple[Any, ...], list[str]] = field(default_factory=dict)
    problems: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    _colours: dict[int, dict[Colour, str]] = field(default_factory=lambda: defaultdict(dict))
    _moments: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, 3)))
    _pixels: int = 0

    def add(self, look: Examined) -> None:
        """Count one sample in."""
        self.looked_at += 1
        for problem in look.problems:
            self.problems[problem.kind].append(problem)
        if look.size is not None and look.mean is not None and look.std is not None:
            pixels = look.size[0] * look.size[1]
            self.sizes[look.size] += 1
            self._pixels += pixels
            self._moments += pixels * np.stack([look.mean, look.std**2 + look.mean**2])
            assert look.fingerprint is not None
            self.files_of.setdefault(look.fingerprint, []).append(look.file)
        if look.counts is not None:
            self.counts += look.counts
            self.images_with += look.counts > 0
            self.pixels_beside += np.where(look.counts > 0, look.counts.sum(), 0)
        for value, colour in look.colours.items():
            self._colours[value].setdefault(colour, look.file)

    @property
    def class_counts(self) -> Counts:
        """Pixels of each class, (C,)."""
        return self.counts[: self.label_set.num_classes]

    @property
    def class_shares(self) -> NDArray[np.float64]:
        """Share of each class in the pixels that belong to one, (C,)."""
        return np.asarray(self.class_counts / max(1, self.class_counts.sum()))

    @property
    def class_images(self) -> Counts:
        """Images in which each class appears, (C,)."""
        return self.images_with[: self.label_set.num_classes]

    @property
    def ignore_share(self) -> float:
        """Share of the pixels of label maps that is not scored."""
        return float(self.counts[self.label_set.ignore_index] / max(1, self.counts.sum()))

    @property
    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Of each channel, over all pixels, of values in 0 to 1."""
        mean, square = self._moments / max(1, self._pixels) / 255
        std = np.sqrt(np.maximum(0, square / 255 - mean**2))
        return mean.tolist(), std.tolist()

    def findings(self, split: str) -> Iterator[Finding]:
        """What is wrong in this split."""
        unlabelled = not self.class_counts.any()
        for kind, problems in self.problems.items():
            # a test split whose labels are kept back has masks of nothing but ignored ids
            if kind == "one-value-mask" and unlabelled and split == "test":
                continue
            files = tuple(problem.file for problem in problems)
            yield Finding(kind, split, files, problems[0].sentence)
        again = [" = ".join(files) for files in self.files_of.values() if len(files) > 1]
        if again:
            yield Finding("duplicate-in-split", split, tuple(again), "their pixels are equal")
        yield from self._palette_findings(split)
        if unlabelled:
            if split != "test" and self.counts.any():
                name = self.label_set.name
                yield Finding("no-labels", split, (), f"every pixel is ignored in {name}")
            return
        if self.ignore_share > 0.5:
            yield Finding("mostly-ignored", split, (), f"{percent(self.ignore_share)} are")
        absent = np.flatnonzero(self.class_counts == 0)
        if absent.size:
            names = tuple(self.label_set.class_names[number] for number in absent)
            yield Finding("absent-class", split, names, "they cannot be learnt or scored here")

    def _palette_findings(self, split: str) -> Iterator[Finding]:
        mixed = [
            f"{value} is " + " and ".join(f"{c} in {file}" for c, file in list(files.items())[:2])
            for value, files in sorted(self._colours.items())
            if len(files) > 1
        ]
        if mixed:
            advice = "indices are read, not colours: see that they mean the same in every file"
            yield Finding("palettes", split, tuple(mixed), advice)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types."""
        mean, std = self.mean_and_std
        rows = zip(
            self.label_set.class_names,
            self.class_counts.tolist(),
            self.class_shares.tolist(),
            self.class_images.tolist(),
            strict=True,
        )
        keys = ("name", "pixels", "share", "images")
        return {
            "samples": self.samples,
            "looked_at": self.looked_at,
            "sizes": {f"{w}x{h}": number for (w, h), number in self.sizes.most_common()},
            "ignore_share": self.ignore_share,
            "mean": mean,
            "std": std,
            "classes": [dict(zip(keys, row, strict=True)) for row in rows],
        }


@dataclass(frozen=True)
class DataReport:
    """What the doctor has to say.

    Args:
        label_set: Classes of the data set.
        splits: What is in each split, in the order in which they were asked for.
        findings: What is wrong, errors first.
    """

    label_set: LabelSet
    splits: Mapping[str, SplitSummary]
    findings: Sequence[Finding]

    @property
    def errors(self) -> int:
        """Findings that are errors."""
        return sum(finding.is_error for finding in self.findings)

    @property
    def class_weights(self) -> dict[str, list[float]]:
        """Weights of the classes by `WEIGHTS`, from the first split; empty without labels."""
        first = next(iter(self.splits.values()))
        if not first.class_counts.any():
            return {}
        beside = first.pixels_beside[: self.label_set.num_classes]
        weights = enet_weights(first.class_counts), median_weights(first.class_counts, beside)
        return {name: each.tolist() for name, each in zip(WEIGHTS, weights, strict=True)}

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types."""
        return {
            "label_set": self.label_set.name,
            "splits": {split: summary.to_dict() for split, summary in self.splits.items()},
            "class_weights": {
                name: {"formula": WEIGHTS[name], "split": next(iter(self.splits)), "weights": each}
                for name, each in self.class_weights.items()
            },
            "findings": [
                {
                    "level": "error" if finding.is_error else "warning",
                    "kind": finding.kind,
                    "title": KINDS[finding.kind].title,
                    "split": finding.split,
                    "count": len(finding.items),
                    "items": list(finding.items),
                    "sentence": finding.sentence,
                }
                for finding in self.findings
            ],
            "errors": self.errors,
            "warnings": len(self.findings) - self.errors,
        }


def enet_weights(counts: Counts) -> NDArray[np.float64]:
    """1 / ln(1.02 + p), p the share of a class in the pixels of all; between 1.4 and 50.5.

    Paszke et al., "ENet", arXiv:1606.02147.
    """
    return np.asarray(1 / np.log(1.02 + counts / counts.sum()))


def median_weights(counts: Counts, beside: Counts) -> NDArray[np.float64]:
    """Median frequency over frequency; 1 for a class without a pixel.

    Eigen and Fergus, arXiv:1411.4734; a class's frequency is over the images that
    have it.

    Args:
        counts: Pixels of each class, (C,).
        beside: Pixels of all images in which the class appears, (C,).
    """
    there = counts > 0
    frequency = counts[there] / beside[there]
    weights = np.ones(len(counts))
    weights[there] = np.median(frequency) / frequency
    return weights


def check_splits(
    open_split: Callable[[str, list[Unpaired]], Any],
    splits: Sequence[str],
    workers: int,
    limit: int | None = None,
    progress: Callable[[Iterable[Examined], int, str], Iterable[Examined]] | None = None,
) -> DataReport:
    """Look at all samples of some splits.

    Args:
        open_split: Gives a split, and notes in the list what has no counterpart.
        splits: The splits by name; class weights are those of the first that can be opened.
        workers: Processes that read; 0: this one does.
        limit: Samples of each split that are read, spread over it; None: all.
        progress: Wraps what is gone through, given its length and the split's name.

    Raises:
        ValueError: No split can be opened, or has samples.
    """
    summaries: dict[str, SplitSummary] = {}
    findings: list[Finding] = []
    for split in splits:
        unpaired: list[Unpaired] = []
        try:
            dataset = open_split(split, unpaired)
        except ValueError as error:
            findings.append(Finding("split", split, (), str(error)))
            continue
        findings += [Finding(each.kind, split, each.files, each.message) for each in unpaired]
        summary = SplitSummary(dataset.label_set, len(dataset))
        indices = spread_over(len(dataset), limit or len(dataset))
        looks: Iterable[Examined] = look_at(dataset, indices, workers)
        for look in progress(looks, len(indices), split) if progress else looks:
            summary.add(look)
        summaries[split] = summary
        findings += summary.findings(split)
    if not summaries:
        raise ValueError(findings[0].sentence)
    findings += _shared_images(summaries)
    findings.sort(key=lambda finding: not finding.is_error)  # stable: the order of the splits stays
    return DataReport(next(iter(summaries.values())).label_set, summaries, findings)


class _Looks(Dataset[Examined]):
    """What `examine` says of each sample, for a loader."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = untransformed(dataset)

    def __getitem__(self, index: int) -> Examined:
        return examine(self.dataset, index)


def look_at(dataset: Any, indices: Sequence[int], workers: int) -> Iterable[Examined]:
    """`examine` the samples, in their order, with so many processes."""
    return DataLoader(
        _Looks(dataset),
        batch_size=None,
        sampler=indices,
        num_workers=min(workers, len(indices)),
        collate_fn=_as_it_is,
        worker_init_fn=init_worker,
        generator=torch.Generator(),  # its own: a loader draws a seed from the global one
    )


def _as_it_is(look: Any) -> Any:
    return look


def _shared_images(summaries: Mapping[str, SplitSummary]) -> Iterator[Finding]:
    """Images that two splits have in common."""
    names = list(summaries)
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            files, others = summaries[one].files_of, summaries[other].files_of
            both = [f"{files[key][0]} = {others[key][0]}" for key in files if key in others]
            if both:
                sentence = "their pixels are equal, so scores would be better than the network"
                where = f"{one} and {other}"
                yield Finding("duplicate-between-splits", where, tuple(both), sentence)


def percent(share: float) -> str:
    """A share for reading, small ones too."""
    return f"{100 * share:.3g} %" if share < 0.0995 else f"{100 * share:.1f} %"
