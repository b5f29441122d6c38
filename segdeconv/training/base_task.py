"""What training has in common whatever the task: optimiser, schedule, a round of validation.

`segdeconv.training.task` segments, `segdeconv.training.classification` classifies; each adds its
loss and its scores.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchmetrics import MeanMetric, Metric

from segdeconv.metrics import Scores
from segdeconv.training.optimization import (
    OptimizerOptions,
    ScheduleOptions,
    make_optimizer,
    make_schedule,
    parameter_groups,
)

Batch = Mapping[str, Any]
Network = TypeVar("Network", bound=nn.Module)


class Classes(Protocol):
    """Names of the classes of a data set."""

    @property
    def name(self) -> str:
        """Of the set, for messages."""

    @property
    def num_classes(self) -> int:
        """How many there are."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the network's outputs."""


class Layout(Protocol):
    """Options of every network that say how it is run."""

    channels_last: bool
    compile: bool


def prepare(network: Network, options: Layout) -> Network:
    """A network of `segdeconv.models`, ready to be trained, in place."""
    # without a gradient, weight decay would shrink them and DistributedDataParallel would refuse
    for name in network.surgery_report.uncalled:  # type: ignore[union-attr]
        network.get_submodule(name).requires_grad_(False)
    if options.channels_last:
        network.to(memory_format=torch.channels_last)
    if options.compile:
        # For one size at a time, as with symbolic ones the choice of patches becomes algebra: three
        # small layers compiled in 132 instead of 34 s.
        network.compile(dynamic=False)
    return network


class Task(LightningModule):
    """Train and validate a network; a batch holds "image" and what it is compared with.

    Args:
        network: Maps images to logits.
        label_set: Names of the classes.
        optimizer: See `OptimizerOptions`.
        schedule: See `ScheduleOptions`.
        channels_last: Whether images go to the network in that memory layout.
    """

    def __init__(
        self,
        network: nn.Module,
        label_set: Classes,
        optimizer: OptimizerOptions | None = None,
        schedule: ScheduleOptions | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.label_set = label_set
        self.optimizer_options = optimizer or OptimizerOptions()
        self.schedule_options = schedule or ScheduleOptions()
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.train_loss = MeanMetric(nan_strategy="disable")
        self.train_loss.persistent(True)  # a run resumed in mid-epoch has the mean of all of it
        self.val_loss = MeanMetric(nan_strategy="disable")
        self.scores: Scores | None = None
        """Of the latest validation; None while one runs, and after one that was broken off."""
        self.broken_off = False
        """Set while a validation runs that is not to be finished."""

    @abstractmethod
    def batch_loss(self, batch: Batch) -> Tensor:
        """Loss of one training batch."""

    @abstractmethod
    def score_batch(self, batch: Batch) -> None:
        """Add one validation batch to `val_loss` and to the counts that the scores come from."""

    @abstractmethod
    def compute_scores(self) -> Scores:
        """Scores of all batches, summed over all processes."""

    @abstractmethod
    def counts(self) -> list[Metric]:
        """What `score_batch` adds to, `val_loss` aside."""

    @abstractmethod
    def part(self, name: str) -> Iterable[nn.Parameter]:
        """Parameters of the "encoder" or of the "aux_head"."""

    def add_val_loss(self, loss: Tensor, images: int) -> None:
        """Count the mean loss of a batch of so many images."""
        # as many values: with nan_strategy "disable", MeanMetric leaves out its argument `weight`
        self.val_loss.update(loss.expand(images))

    @property
    def lr(self) -> float:
        """Learning rate of the first parameter group, now."""
        return float(self.trainer.optimizers[0].param_groups[0]["lr"])

    def forward(self, images: Tensor) -> Any:
        """What the network says of images (N, C, H, W)."""
        return self.network(images.contiguous(memory_format=self.layout))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        loss = self.batch_loss(batch)
        self.train_loss.update(loss.detach())
        logged: dict[str, Any] = {"train/loss": loss.detach(), "train/lr": self.lr}
        self.log_dict(logged, batch_size=len(batch["image"]))
        return loss

    def on_validation_start(self) -> None:
        """Forget the scores of the validation before; judge by the first process's statistics."""
        self.scores, self.broken_off = None, False
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for buffer in self.network.buffers():
                torch.distributed.broadcast(buffer, 0)
        self._sync_in_forward(False)

    def on_validation_end(self) -> None:
        """Training goes on as before."""
        self._sync_in_forward(True)

    def _sync_in_forward(self, wanted: bool) -> None:
        """Whether DistributedDataParallel sends buffers around in each forward.

        In validation processes have different numbers of batches, and one would wait for ever.
        """
        wrapped = self.trainer.strategy.model
        if isinstance(wrapped, DistributedDataParallel):
            wrapped.require_forward_param_sync = wanted

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count one batch."""
        self.score_batch(batch)

    def on_validation_epoch_end(self) -> None:
        """Scores of the whole set."""
        if not self.broken_off:
            self._score()
        for metric in (*self.counts(), self.val_loss):
            metric.reset()

    def _score(self) -> None:
        self.scores = self.compute_scores()
        logged: dict[str, Any] = {"val/loss": self.val_loss.compute()}
        logged |= {f"val/{name}": getattr(self.scores, name) for name in self.scores.FIGURES}
        if self.train_loss.weight > 0:
            logged["train/mean_loss"] = self.train_loss.compute()
        self.log_dict(logged, batch_size=1)
        if not self.trainer.sanity_checking:
            self.train_loss.reset()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimiser, and a schedule that moves with every optimiser step."""
        groups = parameter_groups(
            self.network,
            self.optimizer_options,
            encoder=self.part("encoder"),
            aux_head=self.part("aux_head"),
        )
        optimizer = make_optimizer(groups, self.optimizer_options)
        total = self.trainer.estimated_stepping_batches
        schedule = make_schedule(optimizer, self.schedule_options, total)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }
