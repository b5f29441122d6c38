"""One calling convention for the networks of smp and torchvision: images in, logits out."""

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation import LRASPP
from torchvision.models.segmentation.fcn import FCNHead

from segdeconv.models.checks import check_images
from segdeconv.models.pretrained import About, Pretrained
from segdeconv.models.weights import WeightsReport
from segdeconv.surgery import SurgeryReport


class SegmentationOutput(NamedTuple):
    """Logits of the network and of its auxiliary head, both (N, num_classes, H, W)."""

    logits: Tensor
    aux: Tensor


class SegmentationModel(nn.Module, Pretrained):
    """A segmentation network that takes images of any size.

    (N, in_channels, H, W) -> logits (N, num_classes, H, W).  In training, with an auxiliary head,
    a `SegmentationOutput` of both logits; the auxiliary head helps the encoder to learn and is not
    run in evaluation.

    Images are padded on the right and at the bottom to a multiple of ``divisor``, at least to
    ``min_size``, and the logits are cropped.  The border is repeated outwards: the network and its
    statistics see a plausible continuation of the image, not a black or grey bar, and the pixel
    grid stays where it was.

    Attributes:
        network: The library's own network.
        aux_head: (N, C, h, w) features -> logits at their size, or None.
        divisor: What the network needs height and width to be a multiple of.
        min_size: The least height and width that the network takes.
        config: Arguments of `segdeconv.models.create_model` that build this model again; JSON-able.
        surgery_report: What the operator did.
        weights_report: What was loaded, or None.
        about: What `save_pretrained` is to say of the training.
    """

    task = "segmentation"
    surgery_report: SurgeryReport
    weights_report: WeightsReport | None = None

    def __init__(
        self,
        network: nn.Module,
        config: dict[str, Any],
        aux_head: nn.Module | None = None,
        divisor: int = 1,
        min_size: int = 1,
    ) -> None:
        super().__init__()
        self.network = network
        self.aux_head = aux_head
        self.config = config
        self.about = About()
        self.divisor = divisor
        self.min_size = min_size
        self._encoder_frozen = False

    def forward(self, images: Tensor) -> Tensor | SegmentationOutput:
        """(N, in_channels, H, W) -> (N, num_classes, H, W).

        Raises:
            ValueError: If images are not a batch, or have other channels.
        """
        check_images(images, self.config["in_channels"])
        height, width = images.shape[-2:]
        below, right = (self._missing(size) for size in (height, width))
        if below or right:
            images = F.pad(images, (0, right, 0, below), mode="replicate")
        logits, aux = self._logits(images)
        logits = _resized(logits, images)[..., :height, :width]
        if aux is None:
            return logits
        return SegmentationOutput(logits, _resized(aux, images)[..., :height, :width])

    def _missing(self, size: int) -> int:
        """Pixels to pad a side of this length by."""
        return max(-size % self.divisor, self.min_size - size)

    def _logits(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits of network and auxiliary head, each at a size of its own."""
        raise NotImplementedError

    @property
    def encoder(self) -> nn.Module:
        """The part that is named by ``encoder``."""
        raise NotImplementedError

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the encoder."""
        return self.encoder.parameters()

    def aux_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the auxiliary head; none if there is none."""
        return iter(()) if self.aux_head is None else self.aux_head.parameters()

    def freeze_encoder(self) -> None:
        """Keep weights and statistics of the encoder as they are, through `train` too.

        smp's own method leaves the encoder in training mode after `eval`: drop-path stays random,
        and whitening layers would use and move batch statistics.
        """
        self._set_encoder_frozen(True)

    def unfreeze_encoder(self) -> None:
        """Let the encoder learn again."""
        self._set_encoder_frozen(False)

    def _set_encoder_frozen(self, frozen: bool) -> None:
        self._encoder_frozen = frozen
        self.encoder.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> "SegmentationModel":
        """As `nn.Module.train`, but a frozen encoder stays in evaluation."""
        super().train(mode)
        if self._encoder_frozen:
            self.encoder.eval()
        return self


class SmpModel(SegmentationModel):
    """A network of segmentation_models_pytorch."""

    @property
    def encoder(self) -> nn.Module:
        """Smp's encoder."""
        return cast(nn.Module, self.network.encoder)

    def _logits(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.aux_head is None or not self.training:
            return self.network(images), None
        features = self.encoder(images)
        decoder = cast(nn.Module, self.network.decoder)
        head = cast(nn.Module, self.network.segmentation_head)
        return head(decoder(features)), self.aux_head(features[_AUX_FEATURE])


class TorchvisionModel(SegmentationModel):
    """A network of torchvision, whose parts are called one by one.

    Its own forward gives a dictionary, and runs the auxiliary head in evaluation too.
    """

    @property
    def encoder(self) -> nn.Module:
        """Torchvision's backbone."""
        return cast(nn.Module, self.network.backbone)

    def _logits(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        features = self.encoder(images)
        classifier = cast(nn.Module, self.network.classifier)
        logits = classifier(features if isinstance(self.network, LRASPP) else features["out"])
        if self.aux_head is None or not self.training:
            return logits, None
        return logits, self.aux_head(features["aux"])


_AUX_FEATURE = 4  # third stage of a ResNet, stride 16 before dilation; 0 is the image


def wrap(network: nn.Module, config: dict[str, Any]) -> SegmentationModel:
    """The network behind the one calling convention, with its auxiliary head if asked for.

    Raises:
        ValueError: The network has no place for an auxiliary head, or takes one image size only.
    """
    if hasattr(network, "backbone"):
        aux_head = network._modules.pop("aux_classifier", None)
        if config["aux_head"] and aux_head is None:
            raise ValueError(_no_aux(config))
        return TorchvisionModel(network, config, aux_head)
    aux_head = _aux_head(network, config) if config["aux_head"] else None
    return SmpModel(network, config, aux_head, *find_sizes(network, config))


def _aux_head(network: nn.Module, config: dict[str, Any]) -> nn.Module:
    """Torchvision's FCN head on the third stage, as in mmsegmentation."""
    channels = cast(Any, network.encoder).out_channels
    if config["arch"] == "dpt" or len(channels) <= _AUX_FEATURE:
        raise ValueError(_no_aux(config))
    return cast(nn.Module, FCNHead(channels[_AUX_FEATURE], config["num_classes"]))


def _no_aux(config: dict[str, Any]) -> str:
    return (
        f"{config['arch']!r} with encoder {config['encoder']!r} has no features for an auxiliary "
        f"head; leave aux_head=False, or use an encoder of four stages in another architecture"
    )


def find_sizes(network: nn.Module, config: dict[str, Any]) -> tuple[int, int]:
    """Divisor and least size of the images that a network takes.

    The divisor is the least of 1, 8, 16, 32, 64 whose odd multiples work; both are tried out on the
    meta device, shapes only (0.05 s a try; 0.4 s for hrnet).  smp knows its own needs, not those of
    timm's encoders: its U-Net says that it takes any size, and fails with tu-hrnet_w18 below a
    multiple of 32.  PAN's pyramid fails below 128 pixels.

    Raises:
        ValueError: The network works at none of these sizes.
    """
    failure: Exception | None = None
    for divisor in (1, 8, 16, 32, 64):
        height, width = ((-(-size // divisor) | 1) * divisor for size in (257, 289))
        failure = _failure(network, config["in_channels"], height, width)
        if failure is None:
            break
    if failure is not None:
        reason = str(failure).split("\n")[0].rstrip(".")
        raise ValueError(
            f"{config['arch']!r} with encoder {config['encoder']!r} and these options does not run "
            f"on images of free size ({reason}); an encoder with a size of its own may be freed by "
            f"dynamic_img_size=True (vision transformers) or strict_img_size=False (Swin)"
        )
    sizes = [size for size in (32, 64, 128) if size % divisor == 0]
    works = (s for s in sizes if _failure(network, config["in_channels"], s, s) is None)
    return divisor, next(works, 256)


def _failure(network: nn.Module, channels: int, height: int, width: int) -> Exception | None:
    """What a network raises on two images of this size, if anything."""
    tensors = (*network.named_parameters(), *network.named_buffers())
    state = {name: tensor.to("meta") for name, tensor in tensors}
    images = torch.empty(2, channels, height, width, device="meta")
    try:
        with torch.no_grad():
            torch.func.functional_call(network, state, (images,))
    except Exception as error:  # whatever the host's layers raise on a size that does not fit
        return error
    return None


def _resized(logits: Tensor, images: Tensor) -> Tensor:
    """Logits at the size of the images."""
    if logits.shape[-2:] == images.shape[-2:]:
        return logits
    return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)
