"""One progress bar over the whole run, and a line per validation."""

import sys
import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, Trainer
from tqdm import tqdm

from segdeconv.metrics import main_figure
from segdeconv.training.base_task import Task
from segdeconv.training.callbacks import epochs_trained


class Progress(Callback):
    """Show epoch, loss, learning rate, images per second and the time to the end.

    In a terminal this is a bar; in a log file, a line after the first step and then in times that
    double from a second up to ``seconds_per_line``, so that a short run says something too.

    Args:
        seconds_per_line: Longest time between two lines where there is no terminal.
    """

    def __init__(self, seconds_per_line: float = 30.0) -> None:
        self.terminal = sys.stderr.isatty()
        self.longest = 0.5 if self.terminal else seconds_per_line
        self.interval = min(1.0, self.longest)
        self.best = 0.0

    def state_dict(self) -> dict[str, float]:
        """The best main figure so far, such as the mIoU."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """The best one of the run's earlier part."""
        self.best = state_dict["best"]

    def on_train_start(self, trainer: Trainer, task: Any) -> None:
        """Open the bar."""
        self._total = trainer.estimated_stepping_batches
        self._first_step = trainer.global_step
        self._begin = self._last = time.monotonic()
        self._images = 0
        self.bar = tqdm(
            total=self._total,
            initial=trainer.global_step,
            dynamic_ncols=True,
            disable=not (self.terminal and trainer.is_global_zero),
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}  {desc}",
        )

    def on_train_batch_end(
        self, trainer: Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, and refresh when it is time: reading the loss waits for the device."""
        self._images += len(batch["image"]) * trainer.world_size
        now = time.monotonic()
        done = trainer.global_step - self._first_step
        is_first = done == 1 and self._last == self._begin
        due = is_first or now - self._last >= self.interval
        if not due or not trainer.is_global_zero:
            return
        self.interval = min(2 * self.interval, self.longest)
        speed = self._images / (now - self._last)
        self._last, self._images = now, 0
        left = (now - self._begin) / max(1, done) * (self._total - trainer.global_step)
        text = (
            f"epoch {trainer.current_epoch + 1}  loss {outputs['loss'].item():.3f}  "
            f"lr {task.lr:.3g}  {speed:.1f} images/s  "
            f"ETA {timedelta(seconds=round(left))}"
        )
        if self.terminal:
            self.bar.n = trainer.global_step
            self.bar.set_description_str(text)
        else:
            print(f"step {trainer.global_step}/{self._total}  {text}", flush=True)

    def on_validation_start(self, trainer: Trainer, task: Any) -> None:
        """Open the validation's own bar."""
        if trainer.sanity_checking:
            return
        self._val_bar = tqdm(
            total=trainer.num_val_batches[0],
            desc="validation",
            leave=False,
            dynamic_ncols=True,
            disable=not (self.terminal and trainer.is_global_zero),
        )

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Move the validation's bar."""
        if not trainer.sanity_checking:
            self._val_bar.update()

    def on_validation_end(self, trainer: Trainer, task: Task) -> None:  # type: ignore[override]
        """Say what came out."""
        if trainer.sanity_checking:
            return
        self._val_bar.close()
        self._last, self._images = time.monotonic(), 0
        if task.scores is None or not trainer.is_global_zero:
            return
        figures = {name: getattr(task.scores, name) for name in task.scores.SHOWN}
        main = main_figure(task.scores)
        self.best = max(self.best, figures[main])
        said = [f"{task.scores.FIGURES[name]} {100 * value:.2f}" for name, value in figures.items()]
        said[0] += f" (best {100 * self.best:.2f})"
        tqdm.write(  # not the bar's: a finished run that is only validated has none
            f"epoch {epochs_trained(trainer)}  step {trainer.global_step}  {'  '.join(said)}  "
            f"val loss {float(trainer.callback_metrics['val/loss']):.3f}"
        )

    def on_train_end(self, trainer: Trainer, task: Any) -> None:
        """Leave the bar at its end."""
        self.bar.n = trainer.global_step
        self.bar.close()

    def on_exception(self, trainer: Trainer, task: Any, exception: BaseException) -> None:
        """Leave the line of the bar before a message is printed."""
        if hasattr(self, "bar"):
            self.bar.close()
