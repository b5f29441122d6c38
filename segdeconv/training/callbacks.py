"""Small things around a training step: its seed, a check of its loss, a wish to stop."""

import math
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from segdeconv.training.data_module import mix_seeds


class RunStopped(Exception):
    """The user asked the run to stop; its last checkpoint is saved."""


class StopRequest:
    """Whether the user has asked to stop (Ctrl-C, or a scheduler's SIGTERM)."""

    def __init__(self) -> None:
        self.made = False

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


class FiniteLoss(Callback):
    """End a run whose loss is no longer a number, at the next step that is logged."""

    def on_train_batch_end(
        self, trainer: Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss; not at each step, as that would wait for the device."""
        due = trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if due and not math.isfinite(outputs["loss"].item()):
            raise ValueError(
                f"the loss is {outputs['loss'].item()} at step {trainer.global_step}; lower "
                "optimizer.lr, or set schedule.warmup_steps or trainer.gradient_clip_val"
            )
