"""An exponential moving average of a network's weights and statistics."""

from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from segdeconv.training.base_task import Task


class AveragedWeights(Callback):
    """Exponential moving average of the network's weights and statistics, used in validation.

    Lightning's own callback also averages integers, which truncates (a counter stays at its first
    value), and puts the average in the place of the weights that training goes on from. Here
    floating point tensors are averaged and the rest is copied.

    Args:
        decay: Share of the average that stays at each step; it begins lower,
            min(decay, (1 + step) / (10 + step)), so that a short run is not held by its start.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"ema_decay={decay}: expected a number between 0 and 1, such as 0.999")
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self._seen_step = 0

    def on_fit_start(self, trainer: Trainer, task: Task) -> None:  # type: ignore[override]
        """Begin with the network's weights, where no checkpoint gave an average."""
        live = task.network.state_dict()
        self.average = {
            name: self.average.get(name, value).to(value.device).clone()
            for name, value in live.items()
        }
        self._seen_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, task: Task, *_: Any) -> None:  # type: ignore[override]
        """Average after each optimiser step."""
        if trainer.global_step == self._seen_step:
            return
        self._seen_step = step = trainer.global_step
        live = task.network.state_dict()
        floats = [name for name, value in live.items() if value.is_floating_point()]
        decay = min(self.decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(  # type: ignore[no-untyped-call]
            [self.average[name] for name in floats], [live[name] for name in floats], step
        )
        for name in live.keys() - set(floats):
            self.average[name].copy_(live[name])

    def on_validation_start(self, trainer: Trainer, task: Task) -> None:  # type: ignore[override]
        """Put the average into the network."""
        self._swap(task)

    def on_validation_end(self, trainer: Trainer, task: Task) -> None:  # type: ignore[override]
        """Put the network's own weights back."""
        self._swap(task)

    @torch.no_grad()
    def _swap(self, task: Task) -> None:
        for name, value in task.network.state_dict().items():
            mine = self.average[name].clone()
            self.average[name].copy_(value)
            value.copy_(mine)

    def on_save_checkpoint(self, trainer: Trainer, task: Any, checkpoint: dict[str, Any]) -> None:
        """Keep the average beside the weights."""
        checkpoint["averaged_weights"] = self.average

    def on_load_checkpoint(self, trainer: Trainer, task: Any, checkpoint: dict[str, Any]) -> None:
        """Go on from the kept average."""
        self.average = checkpoint.get("averaged_weights", {})


def weights_of(trainer: Trainer, task: Task) -> dict[str, Tensor]:
    """The weights to keep: the averaged ones if there are, else the network's."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, AveragedWeights):
            return callback.average
    return task.network.state_dict()
