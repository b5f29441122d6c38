"""Many runs of tools/train.py: what is missing is trained, what was stopped goes on.

A run has its folder, and beside it `NAME.log` with what it said and `NAME.job.json` with how it was
started. One that has come to its end holds a file `finished`. So a grid can be stopped anywhere.
Nothing here loads torch.
"""

import csv
import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdeconv.training.mistakes import DIVERGED


@dataclass(frozen=True)
class Job:
    """One run.

    Args:
        folder: Where it is kept.
        arguments: Those of tools/train.py that say what it is.
    """

    folder: Path
    arguments: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """Whether it has come to its end."""
        return (self.folder / "finished").exists()

    @property
    def resumable(self) -> bool:
        """Whether it was begun, and can go on."""
        return (self.folder / "checkpoints" / "last.ckpt").exists()

    @property
    def failure(self) -> str | None:
        """Why it diverged, if it has; it is not trained again."""
        failed: str | None = self._recorded().get("failed")
        return failed

    @property
    def record(self) -> Path:
        """The file that says how it was started."""
        return self.folder.with_name(f"{self.folder.name}.job.json")

    @property
    def log(self) -> Path:
        """What it said."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def _recorded(self) -> dict[str, Any]:
        return json.loads(self.record.read_text()) if self.record.exists() else {}

    def check(self) -> None:
        """Look whether what there is of it was started as this job would be.

        Raises:
            ValueError: If it was started with other arguments.
        """
        before = self._recorded().get("arguments")
        if before not in (None, list(self.arguments)):
            changed = [each for each in self.arguments if each not in before]
            raise ValueError(
                f"{self.folder} was trained with other arguments ({' '.join(changed) or 'fewer'} "
                "would be new); keep them, or keep the runs in another folder"
            )

    def note(self, failed: str | None = None) -> None:
        """Write how it was started, and why it failed."""
        content = {"arguments": self.arguments, "failed": failed}
        self.record.write_text(json.dumps(content, indent=1) + "\n")


class Stopped(Exception):
    """A run was stopped from outside, and can go on."""


class Grid:
    """Trains jobs, some at a time, each in a process of its own.

    Args:
        tool: The file tools/train.py.
        parallel: How many at the same time.
        folder: The one to train in, which relative paths of configs start from; None: this one.
    """

    def __init__(self, tool: Path, parallel: int = 1, folder: Path | None = None) -> None:
        self.tool, self.parallel, self.folder = tool, parallel, folder
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopping = False
        self._lock = threading.Lock()

    def train(self, jobs: Iterable[Job], done: Callable[[Job], None] = lambda job: None) -> None:
        """Train what is neither finished nor diverged.

        Args:
            jobs: All runs.
            done: Called with each that ends, in this thread.

        Raises:
            ValueError: A run failed otherwise than by diverging; those beside it are stopped.
            KeyboardInterrupt: As it comes; runs then end after a step, and are saved.
        """
        jobs = list(jobs)
        for job in jobs:
            job.check()
        waiting = [job for job in jobs if not job.finished and job.failure is None]
        pool = ThreadPoolExecutor(self.parallel)
        try:
            futures = {pool.submit(self._train, job): job for job in waiting}
            for future in as_completed(futures):
                future.result()
                done(futures[future])
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            self._end(pool)
            if isinstance(error, Stopped):  # by somebody else than us
                raise KeyboardInterrupt from None
            raise
        pool.shutdown()

    def _end(self, pool: ThreadPoolExecutor) -> None:
        """Ask what runs to stop, and wait for it; asked again, it stops at once."""
        self._stop()
        while True:
            try:
                pool.shutdown(wait=True)
                return
            except KeyboardInterrupt:
                self._stop()

    def _stop(self) -> None:
        with self._lock:
            self._stopping = True
            for process in self._running:
                process.send_signal(signal.SIGTERM)

    def _train(self, job: Job) -> None:
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        if job.folder.exists() and not job.resumable:
            shutil.rmtree(job.folder)  # cut off before anything was saved
        place = job.folder.resolve()
        where = ["--output_dir", str(place.parent), "--name", place.name]
        command = ["--resume", str(place)] if job.resumable else [*job.arguments, *where]
        job.note()
        code = self._run([sys.executable, str(self.tool), *command], job.log)
        if code == 0:
            (job.folder / "finished").touch()
            return
        if self._stopping or code == 130 or code < 0:
            raise Stopped
        sentence = next((s for s in reversed(job.log.read_text().splitlines()) if s.strip()), "")
        if DIVERGED not in sentence:
            raise ValueError(f"{job.folder.name} failed, see {job.log}: {sentence}")
        job.note(sentence.removeprefix("error: "))

    def _run(self, command: Sequence[str], log: Path) -> int:
        with log.open("ab") as file:
            with self._lock:
                if self._stopping:
                    raise Stopped
                # a session of its own: Ctrl-C in the terminal reaches it once, through `_stop`
                process = subprocess.Popen(
                    command, stdout=file, stderr=file, cwd=self.folder, start_new_session=True
                )
                self._running.add(process)
            try:
                return process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)


def curve(folder: Path, figure: str) -> dict[str, list[float]]:
    """Epochs, seconds of training so far (validation apart), and a figure after each validation."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    spent, seconds = 0.0, []
    for row in rows:
        spent += float(row["seconds"])
        seconds.append(round(spent, 1))
    return {
        "epoch": [float(row["epoch"]) for row in rows],
        "seconds": seconds,
        figure: [float(row[figure]) for row in rows],
    }
