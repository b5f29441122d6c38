"""A segmentation network with its loss, metric and optimiser, as Lightning wants it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from segdeconv.data.labels import LabelSet
from segdeconv.inference import resize_logits
from segdeconv.losses import SegmentationLoss
from segdeconv.metrics import SegmentationScores, scores_from_confusion
from segdeconv.models import SegmentationModel, create_model
from segdeconv.training.optimization import (
    OptimizerOptions,
    ScheduleOptions,
    make_optimizer,
    make_schedule,
    parameter_groups,
)
from segdeconv.training.ranges import check_ranges, check_weights

Batch = Mapping[str, Any]


@dataclass
class NetworkOptions:
    """The network.

    Args:
        arch: Decoder or whole network, by name: "unet", "deeplabv3plus", "pspnet", "fcn", …
        encoder: Encoder, by name: "resnet50", "tu-convnext_tiny", …
        operator: What replaces the convolutions or norms: "deconv", "batchnorm" (as built), ….
        operator_options: Options of the operator, for example {"block": 16}.
        num_classes: Number of classes; null takes the data set's.
        in_channels: Channels of the images.
        aux_head: Add an auxiliary head on the encoder's second deepest features. Its loss helps
            the encoder learn; the head is not used after training.
        weights: Weights file to start from (safetensors, or a state dict of torch); null: random.
        arch_options: Further arguments of the architecture.
        freeze_encoder: Keep the encoder's weights and statistics as they are.
        channels_last: Memory layout of images and weights; faster on GPUs.
        compile: Compile the network with torch.compile, anew for each size of images.
    """

    arch: str = "deeplabv3plus"
    encoder: str = "resnet50"
    operator: str = "deconv"
    operator_options: dict[str, Any] = field(default_factory=dict)
    num_classes: int | None = None
    in_channels: int = 3
    aux_head: bool = False
    weights: str | None = None
    arch_options: dict[str, Any] = field(default_factory=dict)
    freeze_encoder: bool = False
    channels_last: bool = False
    compile: bool = False


@dataclass
class LossOptions:
    """The loss.

    Args:
        terms: Weight of each loss by name: cross_entropy, ohem, dice, lovasz.
        options: Options of a loss by its name: {"ohem": {"min_kept": 5000}}.
        class_weights: Weight of each class in every loss; null: all alike.
        aux_weight: Weight of the auxiliary head's loss.
    """

    terms: dict[str, float] = field(default_factory=lambda: {"cross_entropy": 1.0})
    options: dict[str, dict[str, float]] = field(default_factory=dict)
    class_weights: list[float] | None = None
    aux_weight: float = 0.4

    def __post_init__(self) -> None:
        check_weights("loss.terms", self.terms)
        check_weights("loss.class_weights", self.class_weights)
        check_ranges("loss", vars(self), aux_weight="0 or more")


def build_network(options: NetworkOptions, label_set: LabelSet) -> SegmentationModel:
    """The network of ``options``, with as many outputs as the label set has classes.

    Raises:
        ValueError: If `num_classes` or `in_channels` is not that of the data.
    """
    if options.in_channels != 3:
        raise ValueError(
            f"model.in_channels={options.in_channels}, but images are read as 3 channels; leave "
            "model.in_channels out"
        )
    classes = label_set.num_classes
    if options.num_classes not in (None, classes):
        raise ValueError(
            f"model.num_classes={options.num_classes}, but the data set's label set "
            f"{label_set.name!r} has {classes} classes; leave model.num_classes out"
        )
    network = create_model(
        options.arch,
        encoder=options.encoder,
        num_classes=classes,
        operator=options.operator,
        operator_options=options.operator_options,
        in_channels=options.in_channels,
        aux_head=options.aux_head,
        weights=options.weights,
        **options.arch_options,
    )
    # without a gradient, weight decay would shrink them and DistributedDataParallel would refuse
    for name in network.surgery_report.uncalled:
        network.get_submodule(name).requires_grad_(False)
    if options.freeze_encoder:
        network.freeze_encoder()
    if options.channels_last:
        network.to(memory_format=torch.channels_last)
    if options.compile:
        # For one size at a time, as with symbolic ones the choice of patches becomes algebra: three
        # small layers compiled in 132 instead of 34 s.
        network.compile(dynamic=False)
    return network


class SegmentationTask(LightningModule):
    """Train and validate a segmentation network.

    A batch holds "image" (N, 3, H, W) and "mask" (N, h, w) of classes or `ignore_index`. In
    validation the mask keeps its original size, and the logits are resized to it.

    Args:
        network: Maps images to logits; in training it may give (logits, auxiliary logits).
        label_set: Names and categories of the classes.
        loss: See `LossOptions`.
        optimizer: See `OptimizerOptions`.
        schedule: See `ScheduleOptions`.
        channels_last: Whether images go to the network in that memory layout.
    """

    def __init__(
        self,
        network: nn.Module,
        label_set: LabelSet,
        loss: LossOptions | None = None,
        optimizer: OptimizerOptions | None = None,
        schedule: ScheduleOptions | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        loss = loss or LossOptions()
        self.network = network
        self.label_set = label_set
        self.aux_weight = loss.aux_weight
        self.loss = SegmentationLoss(
            loss.terms, label_set.ignore_index, loss.class_weights, loss.options
        )
        self.optimizer_options = optimizer or OptimizerOptions()
        self.schedule_options = schedule or ScheduleOptions()
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.confusion = MulticlassConfusionMatrix(
            label_set.num_classes, ignore_index=label_set.ignore_index, validate_args=False
        )
        self.train_loss = MeanMetric(nan_strategy="disable")
        self.train_loss.persistent(True)  # a run resumed in mid-epoch has the mean of all of it
        self.val_loss = MeanMetric(nan_strategy="disable")
        self.scores: SegmentationScores | None = None
        """Of the latest validation; None while one runs, and after one that was broken off."""
        self.broken_off = False
        """Set while a validation runs that is not to be finished."""

    @property
    def lr(self) -> float:
        """Learning rate of the first parameter group, now."""
        return float(self.trainer.optimizers[0].param_groups[0]["lr"])

    def forward(self, images: Tensor) -> Any:
        """What the network says of images (N, 3, H, W)."""
        return self.network(images.contiguous(memory_format=self.layout))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        outputs = self(batch["image"])
        logits, aux = outputs if isinstance(outputs, tuple) else (outputs, None)
        loss = self.loss(logits, batch["mask"])
        if aux is not None:
            loss = loss + self.aux_weight * self.loss(aux, batch["mask"])
        self.train_loss.update(loss.detach())
        self.log_dict({"train/loss": loss.detach(), "train/lr": self.lr}, batch_size=len(logits))
        return loss  # type: ignore[no-any-return]

    def on_validation_start(self) -> None:
        """Forget the scores of the validation before."""
        self.scores, self.broken_off = None, False

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the confusions of one batch, at the size of its labels."""
        mask = batch["mask"]
        logits = resize_logits(self(batch["image"]), mask.shape[-2:])
        self.val_loss.update(self.loss(logits, mask), weight=len(mask))
        self.confusion.update(logits.argmax(1), mask)

    def on_validation_epoch_end(self) -> None:
        """Scores of the whole set, from one confusion matrix summed over all processes."""
        if not self.broken_off:
            self._score()
        for metric in (self.confusion, self.val_loss):
            metric.reset()

    def _score(self) -> None:
        self.scores = scores_from_confusion(self.confusion.compute(), self.label_set.categories)
        logged: dict[str, Any] = {
            "val/loss": self.val_loss.compute(),
            "val/miou": self.scores.miou,
            "val/mean_accuracy": self.scores.mean_accuracy,
            "val/pixel_accuracy": self.scores.pixel_accuracy,
        }
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
            encoder=_parameters(self.network, "encoder"),
            aux_head=_parameters(self.network, "aux_head"),
        )
        optimizer = make_optimizer(groups, self.optimizer_options)
        total = self.trainer.estimated_stepping_batches
        schedule = make_schedule(optimizer, self.schedule_options, total)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def _parameters(network: nn.Module, part: str) -> Iterable[nn.Parameter]:
    module = getattr(network, part, None)
    return module.parameters() if isinstance(module, nn.Module) else ()
