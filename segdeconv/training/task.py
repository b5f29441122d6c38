"""A segmentation network with its loss and scores, as `base_task` wants it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from jsonargparse import Namespace
from torch import Tensor, nn
from torchmetrics import Metric

from segdeconv.data.labels import LabelSet
from segdeconv.inference import largest, resize_logits
from segdeconv.losses import SegmentationLoss
from segdeconv.metrics import ConfusionMatrix, SegmentationScores, scores_from_confusion
from segdeconv.models import SegmentationModel, create_model
from segdeconv.training.base_task import Batch, Task, prepare
from segdeconv.training.data_module import SegmentationData
from segdeconv.training.optimization import OptimizerOptions, ScheduleOptions
from segdeconv.training.ranges import check_ranges, check_weights


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
    if options.freeze_encoder:
        network.freeze_encoder()
    return prepare(network, options)


class SegmentationTask(Task):
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
        super().__init__(network, label_set, optimizer, schedule, channels_last)
        loss = loss or LossOptions()
        self.categories = label_set.categories
        self.aux_weight = loss.aux_weight
        self.loss = SegmentationLoss(
            loss.terms, label_set.ignore_index, loss.class_weights, loss.options
        )
        self.confusion = ConfusionMatrix(label_set.num_classes, label_set.ignore_index)

    def batch_loss(self, batch: Batch) -> Tensor:
        """Loss of the logits, and of the auxiliary ones if there are some."""
        outputs = self(batch["image"])
        logits, aux = outputs if isinstance(outputs, tuple) else (outputs, None)
        loss = self.loss(logits, batch["mask"])
        if aux is not None:
            loss = loss + self.aux_weight * self.loss(aux, batch["mask"])
        return loss  # type: ignore[no-any-return]

    def score_batch(self, batch: Batch) -> None:
        """Count the confusions of one batch, at the size of its labels."""
        mask = batch["mask"]
        logits = resize_logits(self(batch["image"]), mask.shape[-2:])
        self.add_val_loss(self.loss(logits, mask), len(mask))
        self.confusion.update(largest(logits)[1], mask)

    def compute_scores(self) -> SegmentationScores:
        """Scores of the whole set, from one confusion matrix."""
        return scores_from_confusion(self.confusion.compute(), self.categories)

    def counts(self) -> list[Metric]:
        """The confusion matrix."""
        return [self.confusion]

    def part(self, name: str) -> Iterable[nn.Parameter]:
        """Parameters of the encoder or of the auxiliary head, if the network has one."""
        module = getattr(self.network, name, None)
        return module.parameters() if isinstance(module, nn.Module) else ()


def build_task(built: Namespace) -> SegmentationTask:
    """The network with all that trains it, from the instantiated configuration."""
    data: SegmentationData = built.data
    return SegmentationTask(
        build_network(built.model, data.label_set),
        data.label_set,
        built.loss,
        built.optimizer,
        built.schedule,
        built.model.channels_last,
    )
