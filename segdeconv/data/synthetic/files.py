"""Drawn scenes as files in the Cityscapes layout.

For a scene of seed S and index I in a split::

    OUT/leftImg8bit/SPLIT/streets/streets_S_I_leftImg8bit.png
    OUT/gtFine/SPLIT/streets/streets_S_I_gtFine_labelIds.png
    OUT/gtFine/SPLIT/streets/streets_S_I_gtFine_instanceIds.png

Instance files are those of Cityscapes, 16 bit: 1000 times the label id and a number for each
person, rider, vehicle and cycle, the label id for all else.  Scenes of "test" come without their
labels, as in Cityscapes: their label files hold the car's bonnet and the picture's borders only.
"""

import multiprocessing
import shutil
import signal
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from segdeconv.data.labels import CITYSCAPES
from segdeconv.data.synthetic.canvas import Label
from segdeconv.data.synthetic.dataset import SyntheticStreets
from segdeconv.data.synthetic.scene import SPLITS, draw_canvas

CITY = "streets"
TOLD_APART = [label.id for label in CITYSCAPES.labels if label.has_instances]


@dataclass(frozen=True)
class Job:
    """One scene to write below ``out``; the rest as in `draw_scene`."""

    out: Path
    name: str
    seed: int
    index: int
    size: tuple[int, int]
    split: str

    @property
    def image(self) -> Path:
        """Where its image belongs."""
        folder = self.out / "leftImg8bit" / self.split / CITY
        return folder / f"{self.name}_leftImg8bit.png"

    @property
    def labels(self) -> Path:
        """Where its label ids belong."""
        return self._truth("labelIds")

    @property
    def instances(self) -> Path:
        """Where its instance ids belong."""
        return self._truth("instanceIds")

    def _truth(self, kind: str) -> Path:
        return self.out / "gtFine" / self.split / CITY / f"{self.name}_gtFine_{kind}.png"


def plan_jobs(out: Path, counts: Mapping[str, int], seed: int, size: Sequence[int]) -> list[Job]:
    """Every scene to write; splits with a count of 0 are left out.

    Raises:
        ValueError: A count, the seed or the size makes no data set.
    """
    return [
        Job(out, name, seed, index, scenes.size, split)
        for split, count in counts.items()
        if count
        for scenes in [SyntheticStreets(split, count, seed, size)]
        for index, name in enumerate(scenes.names)
    ]


def prepare_folder(out: Path, overwrite: bool = False) -> None:
    """Make the folder ready: with ``overwrite``, remove earlier scenes, and nothing else.

    Raises:
        ValueError: It is a file, or holds something and ``overwrite`` is not set.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise ValueError(
            f"{out} is not empty; name another folder, or say --overwrite to replace the synthetic "
            f"scenes in it"
        )
    for kind in ("leftImg8bit", "gtFine"):
        for split in SPLITS:
            if (folder := out / kind / split / CITY).is_dir():
                shutil.rmtree(folder)


def write_all(jobs: Sequence[Job], workers: int) -> Generator[None, None, None]:
    """Write scenes in any order, yielding once for each; 0 workers write in this process.

    Stopped early (closed, or by an exception), it leaves whole files only.
    """
    folders = {path.parent for job in jobs for path in (job.image, job.labels)}
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    if workers == 0:
        yield from map(write_scene, jobs)
        return
    # Spawned: a forked child of a process with running threads (OpenCV's, torch's) can hang.
    # Ctrl-C is for the main process, which then ends the workers.  They inherit that it is ignored:
    # one that still imports its modules when it comes would print a traceback.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        pool = multiprocessing.get_context("spawn").Pool(workers, _start_worker)
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        yield from pool.imap_unordered(write_scene, jobs, chunksize=4)
    finally:
        pool.terminate()
        pool.join()
        for part in (part for folder in folders for part in folder.glob(".*.part")):
            part.unlink()


def _start_worker() -> None:
    """One thread per process."""
    cv2.setNumThreads(0)


def write_scene(job: Job) -> None:
    """Draw a scene, write its labels, then its image: no image is ever without labels."""
    image, canvas = draw_canvas(job.seed, job.index, job.size, job.split)
    labels = canvas.labels()
    if job.split == "test":
        labels[labels > Label.OUT_OF_ROI] = Label.UNLABELED
    else:
        _write_png(job.instances, canvas.instances(TOLD_APART))
    _write_png(job.labels, labels)
    _write_png(job.image, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


def _write_png(path: Path, pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    """Write a PNG whole or not at all; three channels are blue, green, red."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
