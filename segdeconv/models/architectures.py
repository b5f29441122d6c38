"""The architectures: the decoders of segmentation_models_pytorch (smp) and torchvision's networks.

Both libraries build the networks; here they get one calling convention, and their silent traps get
one sentence each.  smp takes any keyword for its encoders and ignores what it does not know; it
downloads weights for `encoder_weights=False`; it refuses some pairs with an assertion without text.
torchvision downloads a backbone although `weights=None`, ignores unknown keywords, and builds for
three channels only.  Nothing is ever downloaded here.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, cast

import segmentation_models_pytorch as smp
import timm
from torch import nn
from torchvision.models import segmentation as torchvision_segmentation

from segdeconv.models.checks import check_counts
from segdeconv.models.stems import replace_stem
from segdeconv.registry import Registry, suggest

TRIED_ENCODERS = (
    "resnet50",
    "resnext50_32x4d",
    "se_resnet50",
    "densenet121",
    "efficientnet-b0",
    "mobilenet_v2",
    "vgg16_bn",
    "dpn68",
    "mit_b0",
    "tu-resnet50",
    "tu-regnety_004",
    "tu-convnext_tiny",
    "tu-hrnet_w18",
)
"""Encoders of which every pair with every smp decoder was run (benchmarks/zoo.py)."""

_NOT_DILATED = ("densenet121", "vgg16_bn", "tu-hrnet_w18")  # they pool, or keep all scales at once
_NATIVE = tuple(name for name in TRIED_ENCODERS if not name.startswith("tu-"))


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One row of the table of architectures.

    Attributes:
        summary: Where it comes from and what it is.
        paper: Its source.
        build: (encoder, in_channels, num_classes, aux_head, options) -> the library's network.
        options: Names of the keyword arguments that it takes.
        encoders: Encoders that are known to work, for messages.
        defaults: Options that differ from the library's own, used when none of them is given.
        advice: What else may help an encoder that is refused.
    """

    summary: str
    paper: str
    build: Callable[..., nn.Module]
    options: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    advice: str = ""

    def with_defaults(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """``options``, and the defaults if they are not touched by any of them."""
        untouched = not set(self.defaults) & set(options)
        return {**(self.defaults if untouched else {}), **options}


# -------------------------------------------------------------------------------------------- smp

_RESERVED = {  # keyword of smp -> what to say instead
    "encoder_name": "the encoder is the second argument, encoder=",
    "encoder_weights": "nothing is downloaded; give a local file as weights=",
    "in_channels": "it is an argument of its own",
    "classes": "it is called num_classes",
    "activation": "the model returns logits",
    "aux_params": "smp means an image classifier; an auxiliary segmentation head is aux_head=True",
    # timm's: it unpickles what the file holds, code included
    "checkpoint_path": "give a local file as weights=",
}


def _smp(
    name: str,
    summary: str,
    paper: str,
    refuses: Iterable[str] = (),
    advice: str = "",
    **defaults: Any,
) -> Architecture:
    """Row of an smp decoder."""
    decoder = smp.MODEL_ARCHITECTURES_MAPPING[name]
    parameters = inspect.signature(decoder.__init__).parameters
    options = [p for p in parameters if p not in ("self", "kwargs", *_RESERVED)]
    if "encoder_output_stride" not in options:
        options.append("output_stride")  # undocumented: smp hands it through to the encoder

    def build(
        encoder: str, in_channels: int, num_classes: int, aux_head: bool, options: dict[str, Any]
    ) -> nn.Module:
        network = decoder(
            encoder, encoder_weights=None, in_channels=in_channels, classes=num_classes, **options
        )
        return cast(nn.Module, network)

    return Architecture(
        summary=f"smp: {summary}",
        paper=paper,
        build=build,
        options=tuple(options),
        encoders=tuple(e for e in TRIED_ENCODERS if e not in set(refuses)),
        defaults=defaults,
        advice=advice,
    )


# ------------------------------------------------------------------------------------ torchvision


def _torchvision(prefix: str, encoders: tuple[str, ...], summary: str, paper: str) -> Architecture:
    """Row of a torchvision network."""

    def build(
        encoder: str, in_channels: int, num_classes: int, aux_head: bool, options: dict[str, Any]
    ) -> nn.Module:
        make = getattr(torchvision_segmentation, f"{prefix}_{encoder}")
        aux = {"aux_loss": True} if aux_head else {}
        network: nn.Module = make(
            weights=None, weights_backbone=None, num_classes=num_classes, **aux
        )
        if in_channels != 3:
            take_channels(network, in_channels)
        return network

    return Architecture(
        summary=f"torchvision: {summary}", paper=paper, build=build, encoders=encoders
    )


def take_channels(network: nn.Module, in_channels: int) -> None:
    """Give the first convolution another number of input channels, freshly initialised."""
    replace_stem(network, in_channels)


ARCHITECTURES = Registry[Architecture](
    "architecture",
    unet=_smp("unet", "U-Net", "Ronneberger et al. 2015, arXiv:1505.04597"),
    unetplusplus=_smp(
        "unetplusplus", "UNet++", "Zhou et al. 2018, arXiv:1807.10165", refuses=["mit_b0"]
    ),
    manet=_smp("manet", "MA-Net", "Fan et al. 2020, doi:10.1109/ACCESS.2020.3025372"),
    linknet=_smp(
        "linknet", "LinkNet", "Chaurasia and Culurciello 2017, arXiv:1707.03718", refuses=["mit_b0"]
    ),
    fpn=_smp("fpn", "feature pyramid network", "Kirillov et al. 2019, arXiv:1901.02446"),
    pspnet=_smp(
        "pspnet",
        "PSPNet",
        "Zhao et al. 2017, arXiv:1612.01105",
        refuses=_NOT_DILATED,
        advice="or encoder_depth=3, where smp's own PSPNet stops",
        # The paper's network: four stages at output stride 8.  smp's own default stops after the
        # second stage of a ResNet, at the same stride: layer3 and layer4 are built and never
        # called (29 convolutions of resnet50).
        encoder_depth=5,
        output_stride=8,
    ),
    deeplabv3=_smp(
        "deeplabv3", "DeepLabV3", "Chen et al. 2017, arXiv:1706.05587", refuses=_NOT_DILATED
    ),
    deeplabv3plus=_smp(
        "deeplabv3plus", "DeepLabV3+", "Chen et al. 2018, arXiv:1802.02611", refuses=_NOT_DILATED
    ),
    pan=_smp("pan", "pyramid attention", "Li et al. 2018, arXiv:1805.10180", refuses=_NOT_DILATED),
    upernet=_smp("upernet", "UPerNet", "Xiao et al. 2018, arXiv:1807.10221"),
    segformer=_smp("segformer", "SegFormer's decoder", "Xie et al. 2021, arXiv:2105.15203"),
    dpt=_smp("dpt", "DPT", "Ranftl et al. 2021, arXiv:2103.13413", refuses=_NATIVE),
    fcn=_torchvision("fcn", ("resnet50", "resnet101"), "FCN", "Long et al. 2015, arXiv:1411.4038"),
    # smp has a DeepLabV3 too.  This one dilates as the paper and mmsegmentation do (the first block
    # of a dilated stage keeps the previous dilation), and upsamples without aligned corners.
    torchvision_deeplabv3=_torchvision(
        "deeplabv3",
        ("resnet50", "resnet101", "mobilenet_v3_large"),
        "DeepLabV3",
        "Chen et al. 2017, arXiv:1706.05587",
    ),
    lraspp=_torchvision(
        "lraspp", ("mobilenet_v3_large",), "Lite R-ASPP", "Howard et al. 2019, arXiv:1905.02244"
    ),
)


# ------------------------------------------------------------------------------------------ build


def build_network(
    arch: str,
    encoder: str,
    in_channels: int,
    num_classes: int,
    aux_head: bool,
    options: Mapping[str, Any],
) -> nn.Module:
    """The library's own network, with random weights.

    Raises:
        ValueError: Unknown architecture, encoder or option; a pair that does not go together.
    """
    row = ARCHITECTURES[arch]
    check_counts(num_classes=num_classes, in_channels=in_channels)
    if not isinstance(encoder, str):
        raise ValueError(f"encoder={encoder!r}: expected a name, such as 'resnet50'")
    _check_encoder(arch, row, encoder)
    _check_options(arch, row, encoder, options)
    try:
        return row.build(encoder, in_channels, num_classes, aux_head, row.with_defaults(options))
    except Exception as error:  # the libraries refuse in many ways, one of them an empty assertion
        raise ValueError(_refusal(arch, row, encoder, options, error)) from error


_OUR_WORDS = {
    r"Model depth is (\d+), but you provide `decoder_channels` for (\d+) blocks": (
        r"decoder_channels has \2 numbers and encoder_depth is \1; give a number for each of the "
        r"\1 levels, as decoder_channels, or encoder_depth=\2"
    ),
    r".*depth should be in range \[(\d+), (\d+)\], got .*": (
        r"encoder_depth is \1 to \2 with this encoder"
    ),
    r".* support output stride 8 or 16, got .*": "encoder_output_stride is 8 or 16",
    r".* got an unexpected keyword argument ('\w+')": r"the encoder has no option \1; take it out",
    r"object of type '(\w+)' has no len\(\)": r"it takes a list of numbers where it got the \1",
}
"""What smp and timm say -> what to do about it."""


def _in_our_words(reason: str) -> str:
    for theirs, ours in _OUR_WORDS.items():
        if match := re.fullmatch(theirs, reason):
            return match.expand(ours)
    return reason


def _refusal(
    arch: str, row: Architecture, encoder: str, options: Mapping[str, Any], error: Exception
) -> str:
    """One sentence on an architecture, an encoder and options that do not go together."""
    first = _in_our_words(str(error).strip().split("\n")[0].rstrip(".!"))
    reason = first or "no reason given; most likely it cannot be dilated"
    if options:
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        return f"{arch!r} cannot be built with encoder {encoder!r} and {given}: {reason}"
    advice = f", {row.advice}" if row.advice else ""
    return (
        f"{arch!r} cannot take the encoder {encoder!r} ({reason}); "
        f"use one of {', '.join(row.encoders)}{advice}"
    )


def _check_encoder(arch: str, row: Architecture, encoder: str) -> None:
    """Refuse a name that the library does not have, with the nearest one."""
    if row.summary.startswith("torchvision"):
        if encoder not in row.encoders:
            raise ValueError(
                f"{arch!r} is torchvision's and has no encoder {encoder!r}; "
                f"it takes {', '.join(row.encoders)}"
            )
        return
    native = smp.encoders.get_encoder_names()
    if encoder in native or (encoder.startswith("tu-") and timm.is_model(encoder[3:])):
        return
    known = [*native, *(f"tu-{name}" for name in timm.list_models())]
    same = f"tu-{encoder}"
    rest = suggest(
        encoder,
        [same] if same in known else known,
        f"there are {len(native)} of smp (segmentation_models_pytorch.encoders."
        f"get_encoder_names()) and timm's as 'tu-<name>'",
    )
    raise ValueError(f"unknown encoder {encoder!r}; {rest}")


def _check_options(arch: str, row: Architecture, encoder: str, options: Mapping[str, Any]) -> None:
    """Refuse options that the library would swallow."""
    for name in options:
        if name in row.options:
            continue
        if name in _RESERVED:
            raise ValueError(f"{arch!r} takes no option {name!r}: {_RESERVED[name]}")
        if encoder.startswith("tu-") and not get_close_matches(name, row.options):
            continue  # for timm's model, which refuses what it does not know
        rest = suggest(name, row.options, f"it takes {', '.join(row.options) or 'none'}")
        raise ValueError(f"{arch!r} has no option {name!r}; {rest}")
