"""Small things around a training step: its seed, a check of its loss, a wish to stop."""

import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from segdeconv.training.loading import mix_seeds
from segdeconv.training.mistakes import DIVERGED


class StopRequest:
    """Whether the user has asked to stop (Ctrl-C, or a scheduler's SIGTERM)."""

    def __init__(self) -> None:
        self.made = False
        self._process = os.getpid()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within this, the first signal is a request and the second one ends the program."""
        signals = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._receive) for number in signals]
        try:
            yield
        finally:
            for number, handler in zip(signals, before, strict=True):
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a loader's process, forked a moment ago: not its business
        if self.made:
            raise KeyboardInterrupt
        self.made = True
        print("\nstopping after this step (again: stop at once, unsaved)", file=sys.stderr)


def epochs_trained(trainer: Trainer) -> int | float:
    """Epochs that training has gone through, a fraction in mid-epoch."""
    batches = trainer.fit_loop.epoch_loop.batch_progress.total.ready
    epochs = round(batches / trainer.num_training_batches, 3)
    return int(epochs) if epochs == int(epochs) else epochs


class SeedEachStep(Callback):
    """Seed torch from (seed, step, process), so that dropout repeats in a resumed run."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Seed the step that begins."""
        step = trainer.fit_loop.epoch_loop.total_batch_idx
        torch.manual_seed(mix_seeds(self.seed, step, trainer.global_rank))


def check_finite(loss: float, task: nn.Module, step: int) -> None:
    """Look whether training still makes sense.

    Args:
        loss: Of the latest step or validation.
        task: What is trained.
        step: Number of the step, for the message.

    Raises:
        ValueError: If the loss or a weight is not a finite number.
    """
    finite = math.isfinite(loss)
    if finite and all(weight.isfinite().all() for weight in task.parameters()):
        return
    what = f"the loss is {loss}" if not finite else "a weight is no finite number"
    raise ValueError(
        f"{what} at step {step}; {DIVERGED}: lower optimizer.lr, or set "
        "schedule.warmup_steps or trainer.gradient_clip_val, and look at data.mean and data.std"
    )


class FiniteLoss(Callback):
    """End a run whose loss is no longer a number, before any of it is saved.

    Looked at in steps that are logged, as it waits for the device, and in each validation.
    """

    def on_train_batch_end(
        self, trainer: Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss; not at each step, as that would wait for the device."""
        due = trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if due:
            check_finite(outputs["loss"].item(), task, trainer.global_step)

    def on_validation_end(self, trainer: Trainer, task: Any) -> None:
        """Look at the loss of a whole validation."""
        if task.scores is not None and not trainer.sanity_checking:
            check_finite(float(trainer.callback_metrics["val/loss"]), task, trainer.global_step)

    def on_train_end(self, trainer: Trainer, task: Any) -> None:
        """Without validations, look at the mean loss of all steps."""
        if trainer.limit_val_batches == 0:
            check_finite(float(task.train_loss.compute()), task, trainer.global_step)
