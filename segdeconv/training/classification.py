"""A classifier with its loss and scores, as `base_task` wants it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jsonargparse import Namespace
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix
from torchvision.transforms import v2

from segdeconv.metrics import ClassificationScores, classification_scores
from segdeconv.models import create_classifier
from segdeconv.models.classification import ClassificationModel
from segdeconv.training.base_task import Batch, Classes, Task, prepare
from segdeconv.training.classification_data import ClassificationData
from segdeconv.training.optimization import OptimizerOptions, ScheduleOptions
from segdeconv.training.ranges import check_ranges


@dataclass
class ClassifierOptions:
    """The network.

    Args:
        name: Network, by name: one of the paper's ten, such as "resnet18", "vgg16", "densenet121",
            a classifier of torchvision, an encoder of smp, or a model of timm as "tu-<name>".
        operator: What replaces the convolutions or norms: "deconv", "batchnorm" (as built), ….
        operator_options: Options of the operator, for example {"block": 16}.
        small_input: Whether the stem is that for images of about 32 x 32 (stride 1, no pooling).
        num_classes: Number of classes; null takes the data set's.
        in_channels: Channels of the images; null takes the data set's.
        weights: Weights file to start from (safetensors, or a state dict of torch); null: random.
        channels_last: Memory layout of images and weights; faster on GPUs.
        compile: Compile the network with torch.compile.
    """

    name: str = "resnet18"
    operator: str = "deconv"
    operator_options: dict[str, Any] = field(default_factory=dict)
    small_input: bool = True
    num_classes: int | None = None
    in_channels: int | None = None
    weights: str | None = None
    channels_last: bool = False
    compile: bool = False


@dataclass
class ClassificationLossOptions:
    """The loss: cross entropy with labels that may be smoothed or mixed; validation uses neither.

    Args:
        label_smoothing: Share of a label that goes to all classes alike.
        mixup: Mixed images (Zhang et al. 2018): both parameters of the beta distribution that the
            shares are drawn from, such as 0.2; 0: none.
        cutmix: Pieces of other images (Yun et al. 2019), in the same way, such as 1.0. With both
            each step takes one of them at random.
    """

    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        check_ranges(
            "loss", vars(self), label_smoothing="0 to 1", mixup="0 or more", cutmix="0 or more"
        )


def build_classifier(
    options: ClassifierOptions, label_set: Classes, channels: int
) -> ClassificationModel:
    """The network of ``options``, for the classes and channels of the data.

    Raises:
        ValueError: If `num_classes` or `in_channels` is not that of the data.
    """
    classes = label_set.num_classes
    if options.num_classes not in (None, classes):
        raise ValueError(
            f"model.num_classes={options.num_classes}, but {label_set.name} has {classes} "
            "classes; leave model.num_classes out"
        )
    if options.in_channels not in (None, channels):
        raise ValueError(
            f"model.in_channels={options.in_channels}, but images of {label_set.name} have "
            f"{channels}; leave model.in_channels out"
        )
    network = create_classifier(
        options.name,
        num_classes=classes,
        operator=options.operator,
        operator_options=options.operator_options,
        in_channels=channels,
        small_input=options.small_input,
        weights=options.weights,
    )
    return prepare(network, options)


class ClassificationTask(Task):
    """Train and validate a classifier; a batch holds "image" (N, C, H, W) and "label" (N,).

    Args:
        network: Maps images to logits (N, classes).
        label_set: Names of the classes.
        loss: See `ClassificationLossOptions`.
        optimizer: See `OptimizerOptions`.
        schedule: See `ScheduleOptions`.
        channels_last: Whether images go to the network in that memory layout.
    """

    def __init__(
        self,
        network: nn.Module,
        label_set: Classes,
        loss: ClassificationLossOptions | None = None,
        optimizer: OptimizerOptions | None = None,
        schedule: ScheduleOptions | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__(network, label_set, optimizer, schedule, channels_last)
        loss, classes = loss or ClassificationLossOptions(), label_set.num_classes
        self.label_smoothing = loss.label_smoothing
        # torchvision draws from torch's global generator, which `SeedEachStep` seeds
        mixers = {v2.MixUp: loss.mixup, v2.CutMix: loss.cutmix}
        self.mixers = [
            kind(alpha=alpha, num_classes=classes) for kind, alpha in mixers.items() if alpha
        ]
        self.confusion = MulticlassConfusionMatrix(classes, validate_args=False)
        self.top5 = MulticlassAccuracy(
            classes, top_k=min(5, classes), average="micro", validate_args=False
        )

    def batch_loss(self, batch: Batch) -> Tensor:
        """Cross entropy, of mixed images if there are some."""
        images, labels = batch["image"], batch["label"]
        if self.mixers:
            chosen = int(torch.randint(len(self.mixers), ()))
            images, labels = self.mixers[chosen](images, labels)
        return F.cross_entropy(self(images).float(), labels, label_smoothing=self.label_smoothing)

    def score_batch(self, batch: Batch) -> None:
        """Count what was recognised in one batch."""
        self.score_logits(self(batch["image"]).float(), batch["label"])

    def score_logits(self, logits: Tensor, labels: Tensor) -> None:
        """Count what logits (N, classes) say of images with labels (N,)."""
        self.add_val_loss(F.cross_entropy(logits, labels), len(labels))
        self.confusion.update(logits.argmax(1), labels)
        self.top5.update(logits, labels)

    def compute_scores(self) -> ClassificationScores:
        """Scores of the whole set."""
        return classification_scores(self.confusion.compute(), float(self.top5.compute()))

    def counts(self) -> list[Metric]:
        """Confusions, and hits among the five likeliest."""
        return [self.confusion, self.top5]

    def part(self, name: str) -> Iterable[nn.Parameter]:
        """The encoder's parameters are those of all layers but the last; there is no other head."""
        network = self.network
        if name != "encoder" or not isinstance(network, ClassificationModel):
            return []
        head = set(network.get_submodule(network.head_name).parameters())
        return [parameter for parameter in network.parameters() if parameter not in head]


def build_task(built: Namespace) -> ClassificationTask:
    """The network with all that trains it, from the instantiated configuration."""
    data: ClassificationData = built.data
    return ClassificationTask(
        build_classifier(built.model, data.label_set, data.val_set.channels),
        data.label_set,
        built.loss,
        built.optimizer,
        built.schedule,
        built.model.channels_last,
    )
