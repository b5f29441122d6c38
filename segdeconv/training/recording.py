"""Keep what a run brings forth: its states, its best weights, its tables of scores."""

import csv
import io
import json
import math
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint

from segdeconv.metrics import main_figure
from segdeconv.training.averaging import weights_of
from segdeconv.training.base_task import Task
from segdeconv.training.callbacks import StopRequest, check_finite, epochs_trained
from segdeconv.training.mistakes import RunStopped
from segdeconv.training.run_folder import save_weights, write_whole


class SaveRun(Checkpoint):
    """Keep the last and the best state, the best weights, and the tables of scores.

    Args:
        folder: The run's folder.
        stop: The user's request to stop, obeyed between two steps.
        every_n_steps: Also save the last state each so many optimiser steps; 0: at validations.
    """

    def __init__(self, folder: Path, stop: StopRequest, every_n_steps: int = 0) -> None:
        self.folder, self.stop, self.every_n_steps = folder, stop, every_n_steps
        self.best: dict[str, Any] | None = None
        self.recorded_step = -1
        """Optimiser step of the latest validation that was recorded."""
        self.validation_due = False
        """Whether a validation belongs to the step at hand and is not recorded yet."""
        self.began = False
        """Whether this process has trained a step."""
        self._epochs: int | float = 0
        self._catching_up = False
        self._restart_clock()

    def state_dict(self) -> dict[str, Any]:
        """The best scores so far, and how far training and validations are."""
        names = ("best", "recorded_step", "validation_due")
        return {"epochs": self._epochs, **{name: getattr(self, name) for name in names}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` said of the run's earlier part."""
        self.best, self._epochs = state_dict["best"], state_dict["epochs"]
        self.recorded_step = state_dict["recorded_step"]
        self.validation_due = state_dict["validation_due"]

    def on_train_start(self, trainer: Trainer, task: Any) -> None:
        """Drop rows of the table that will be written again; make up for a missed validation."""
        self._restart_clock()
        path = self.folder / "metrics.csv"
        if trainer.is_global_zero and path.exists():
            rows = list(csv.DictReader(io.StringIO(path.read_text())))
            end = trainer.global_step - self.validation_due
            write_whole(path, _csv([row for row in rows if int(row["step"]) <= end]))
        if self.validation_due:
            self._catch_up(trainer)

    def _catch_up(self, trainer: Trainer) -> None:
        """Validate, as Lightning does behind a step."""
        loop = trainer.fit_loop.epoch_loop.val_loop
        loop.restarting = False
        self._catching_up = trainer.validating = True
        loop.run()
        trainer.training = True
        # else Lightning takes the epoch for one that is through, and leaves the next one out
        loop._has_run = False
        self._catching_up = False

    def on_train_batch_end(
        self, trainer: Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop if asked; save if it is time."""
        self._images += len(batch["image"]) * trainer.world_size
        self._epochs, self.began = epochs_trained(trainer), True
        fit_loop = trainer.fit_loop
        assert fit_loop._data_fetcher is not None
        self.validation_due = fit_loop.epoch_loop._should_check_val_fx(fit_loop._data_fetcher)
        # between two optimiser steps only: gradients under accumulation are not in a checkpoint
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        stop = self._stop_everywhere(trainer)
        if stop or (self.every_n_steps and trainer.global_step % self.every_n_steps == 0):
            check_finite(outputs["loss"].item(), task, trainer.global_step)
            self._save_last(trainer)
        if stop:
            raise RunStopped

    def on_validation_batch_start(self, trainer: Trainer, task: Task, *_: Any) -> None:  # type: ignore[override]
        """Break off the validation if asked to stop (Lightning ends its loop on StopIteration)."""
        if self.stop.made and trainer.world_size == 1:
            task.broken_off = True
            raise StopIteration

    def on_validation_start(self, trainer: Trainer, task: Any) -> None:
        """Note how fast training was."""
        self._seconds = time.monotonic() - self._started

    def on_validation_end(self, trainer: Trainer, task: Task) -> None:  # type: ignore[override]
        """Write the scores, and the states that go with them."""
        if trainer.sanity_checking:
            return
        if task.scores is None:
            self._save_last(trainer)
            raise RunStopped
        self.recorded_step, self.validation_due = trainer.global_step, False
        record: dict[str, Any] = {"epoch": epochs_trained(trainer), "step": trainer.global_step}
        record |= task.scores.to_dict(task.label_set.class_names)
        main = main_figure(task.scores)
        # None where nothing in the set has a label
        improved = self.best is None or (record[main] or 0.0) > (self.best[main] or 0.0)
        if improved:
            self.best = record
        # The last state goes last: whatever fails before it is done again by a resumed run.
        if trainer.is_global_zero:
            self._write_tables(trainer, task, record)
        if improved:
            trainer.save_checkpoint(self.folder / "checkpoints" / "best.ckpt")
            self._save_weights(trainer, task)
        self._save_last(trainer)
        self._restart_clock()
        if self._stop_everywhere(trainer):
            raise RunStopped

    def on_train_end(self, trainer: Trainer, task: Task) -> None:  # type: ignore[override]
        """Without validations, what training ended with is what there is to keep."""
        if trainer.limit_val_batches == 0:
            self._save_weights(trainer, task)
        if trainer.limit_val_batches == 0 or not self.began:  # after a validation made up for
            self._save_last(trainer)

    def _save_weights(self, trainer: Trainer, task: Task) -> None:
        if trainer.is_global_zero:
            save_weights(self.folder / "weights.safetensors", weights_of(trainer, task))

    def _save_last(self, trainer: Trainer) -> None:
        # While it catches up, Lightning's loops are between two steps, and no place to go on from;
        # the checkpoint that the run was resumed from still is.
        if self._catching_up:
            return
        trainer.save_checkpoint(self.folder / "checkpoints" / "last.ckpt")

    def _stop_everywhere(self, trainer: Trainer) -> bool:
        """Whether any process was asked to stop; all must agree, or they wait for one another."""
        return trainer.strategy.reduce_boolean_decision(self.stop.made, all=False)

    def _restart_clock(self) -> None:
        self._started, self._images = time.monotonic(), 0

    def _write_tables(self, trainer: Trainer, task: Task, record: dict[str, Any]) -> None:
        scores = {"best": self.best, "last": record}
        write_whole(self.folder / "metrics.json", json.dumps(scores, indent=1) + "\n")
        path = self.folder / "metrics.csv"
        before = path.read_text() if path.exists() else ""
        write_whole(path, before + _csv([self._row(trainer, task, record)], header=not before))

    def _row(self, trainer: Trainer, task: Task, record: dict[str, Any]) -> dict[str, Any]:
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        assert task.scores is not None
        of_classes, column = task.scores.CLASS_FIGURE
        return {
            "epoch": record["epoch"],
            "step": record["step"],
            "lr": task.lr,
            "train_loss": logged.get("train/mean_loss", math.nan),
            "val_loss": logged["val/loss"],
            **{name: record[name] for name in task.scores.FIGURES},
            "images_per_second": round(self._images / max(self._seconds, 1e-9), 2),
            "seconds": round(self._seconds, 1),
            **{f"{column}/{name}": value for name, value in record[of_classes].items()},
        }


def _csv(rows: list[dict[str, Any]], header: bool = True) -> str:
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()
