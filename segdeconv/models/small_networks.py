"""The ten networks of the network-deconvolution paper, as it trained them on 32 x 32 images.

VGG-11, which the paper trains on ImageNet only, is there in the form of its VGG-16: the cheapest of
them all.

Ye et al., "Network Deconvolution", ICLR 2020, arXiv:1905.11926.  Each is built once, in plain torch
layers with batch norms; `segdeconv.surgery.convert` makes the other forms.  ResNet-18, DenseNet-121
and ResNeXt-29 are torchvision's classes with another stem, VGG-16 is its feature layers.  The
others differ from every library's network of the name in widths, strides, shortcuts or the order of
norms, and are written here.

As in the paper's code every layer starts from torch's own initialisation.  On whitened input that
is a good deal smaller than the libraries' (variance 1 / (3 fan_in) instead of 2 / fan_out), so a
library's network starts elsewhere than the one here.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck
from torchvision.models.vgg import cfgs as vgg_layers
from torchvision.models.vgg import make_layers

from segdeconv.models.stems import replace_stem
from segdeconv.registry import Registry

EARLY_POOLS = ("maxpool", "pool0", "pool")
"""Names of the pooling right behind the stem: ResNets, DenseNets, timm's stems."""


class PooledClassifier(nn.Module):
    """Features (N, C, h, w), their mean over the image, one linear layer: (N, num_classes)."""

    def __init__(self, features: nn.Module, channels: int, num_classes: int) -> None:
        super().__init__()
        self.features = features
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, num_classes)."""
        return cast(Tensor, self.classifier(self.features(images).mean((2, 3))))


def stages(**parts: nn.Module) -> nn.Sequential:
    """Modules one behind the other, by name."""
    return nn.Sequential(OrderedDict(parts))


def conv(inputs: int, outputs: int, size: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps the image's size but for the stride, for a norm to follow."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


def conv_norm(
    inputs: int, outputs: int, size: int = 1, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """A convolution and its batch norm."""
    return nn.Sequential(conv(inputs, outputs, size, stride, groups), nn.BatchNorm2d(outputs))


def stem(in_channels: int, channels: int) -> nn.Sequential:
    """The first layer: 3 x 3, stride 1."""
    return nn.Sequential(*conv_norm(in_channels, channels, 3), nn.ReLU())


class SqueezeExcitation(nn.Module):
    """Scales every channel by 0 to 1, from the means of all (Hu et al. 2018, arXiv:1709.01507)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // reduction, 1)
        self.expand = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> the same."""
        means = x.mean((2, 3), keepdim=True)
        return cast(Tensor, x * self.expand(self.reduce(means).relu()).sigmoid())


# ------------------------------------------------------------------- torchvision's, small stem


def take_small_input(network: nn.Module, in_channels: int, kernel_size: int = 3) -> None:
    """Give a network a stem of stride 1 and take out the pooling behind it, in place.

    Args:
        network: Its first convolution must be the stem.
        in_channels: Channels of the images.
        kernel_size: Height and width of the new kernel.
    """
    geometry = {"kernel_size": kernel_size, "stride": 1, "padding": kernel_size // 2}
    replace_stem(network, in_channels, **geometry)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.MaxPool2d) and name.split(".")[-1] in EARLY_POOLS:
            network.set_submodule(name, nn.Identity(), strict=True)


def _vgg(layout: str, in_channels: int, num_classes: int) -> nn.Module:
    features = make_layers(vgg_layers[layout], batch_norm=True)
    for layer in features:
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True  # five times: 28 x 28 would end as nothing; 32 x 32 is the same
    take_small_input(features, in_channels)
    return PooledClassifier(features, 512, num_classes)


def _resnet18(in_channels: int, num_classes: int) -> nn.Module:
    network: nn.Module = torchvision.models.resnet18(weights=None, num_classes=num_classes)
    take_small_input(network, in_channels)
    return network


def _resnext29(in_channels: int, num_classes: int) -> nn.Module:
    """Three stages of the four, and a stem of 1 x 1."""
    network: Any = torchvision.models.ResNet(Bottleneck, [3, 3, 3, 1], groups=32, width_per_group=4)
    network.layer4 = nn.Identity()
    network.fc = nn.Linear(1024, num_classes)
    take_small_input(network, in_channels, kernel_size=1)
    return cast(nn.Module, network)


def _densenet121(in_channels: int, num_classes: int) -> nn.Module:
    """Neither norm nor activation behind the stem: every dense layer begins with its own."""
    network: Any = torchvision.models.densenet121(weights=None, num_classes=num_classes)
    take_small_input(network, in_channels)
    network.features.norm0 = nn.Identity()
    network.features.relu0 = nn.Identity()
    return cast(nn.Module, network)


# ------------------------------------------------------------------------------ pre-activation


class PreActBlock(nn.Module):
    """Norm and activation before each convolution; a projected shortcut shares the first norm.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        stride: Of the first convolution.
        squeeze: Scale the channels before the shortcut is added.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, squeeze: bool) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv(inputs, outputs, 3, stride)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv(outputs, outputs, 3)
        self.gate = SqueezeExcitation(outputs) if squeeze else nn.Identity()
        self.shortcut = None if inputs == outputs else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) -> (N, outputs, h / stride, w / stride)."""
        active = self.norm1(x).relu()
        shortcut = x if self.shortcut is None else self.shortcut(active)
        y = self.conv2(self.norm2(self.conv1(active)).relu())
        return cast(Tensor, self.gate(y) + shortcut)


def _preact18(first: nn.Module, num_classes: int, squeeze: bool) -> nn.Module:
    """Four stages of two blocks; nothing between the last of them and the mean."""
    parts, inputs = {"stem": first}, 64
    for number, outputs in enumerate((64, 128, 256, 512), 1):
        stride = 1 if number == 1 else 2
        parts[f"stage{number}"] = nn.Sequential(
            PreActBlock(inputs, outputs, stride, squeeze), PreActBlock(outputs, outputs, 1, squeeze)
        )
        inputs = outputs
    return PooledClassifier(stages(**parts), 512, num_classes)


def _preact_resnet18(in_channels: int, num_classes: int) -> nn.Module:
    return _preact18(conv(in_channels, 64, 3), num_classes, squeeze=False)


def _senet18(in_channels: int, num_classes: int) -> nn.Module:
    return _preact18(stem(in_channels, 64), num_classes, squeeze=True)


# -------------------------------------------------------------------------- inverted residuals


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; the shortcut is projected where widths differ.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        expansion: Width between, in multiples of ``inputs``.
        stride: Of the depthwise convolution; only blocks of stride 1 have a shortcut.
        squeeze: Scale the channels at the end.  A block of stride 2 then adds its output to
            the scaled one, as the paper's code does, so that it scales by 1 to 2.
    """

    def __init__(
        self, inputs: int, outputs: int, expansion: int, stride: int, squeeze: bool
    ) -> None:
        super().__init__()
        width = expansion * inputs
        self.stride = stride
        self.expand = conv_norm(inputs, width)
        self.depthwise = conv_norm(width, width, 3, stride, groups=width)
        self.project = conv_norm(width, outputs)
        self.gate = SqueezeExcitation(outputs) if squeeze else None
        projected = stride == 1 and inputs != outputs
        self.shortcut = conv_norm(inputs, outputs) if projected else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) -> (N, outputs, h / stride, w / stride)."""
        y = self.project(self.depthwise(self.expand(x).relu()).relu())
        scaled = y if self.gate is None else self.gate(y)
        if self.stride == 1:
            return cast(Tensor, scaled + self.shortcut(x))
        return cast(Tensor, scaled if self.gate is None else scaled + y)


# (expansion, channels, blocks, stride of the first block)
_MOBILENET_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_EFFICIENTNET_B0 = (
    (1, 16, 1, 2),
    (6, 24, 2, 1),
    (6, 40, 2, 2),
    (6, 80, 3, 2),
    (6, 112, 3, 1),
    (6, 192, 4, 2),
    (6, 320, 1, 2),
)


def _widths(table: Iterable[tuple[int, int, int, int]]) -> Iterator[tuple[int, int, int, int]]:
    """Inputs, outputs, expansion and stride of every block."""
    inputs = 32
    for expansion, outputs, count, first in table:
        for stride in (first, *(count - 1) * (1,)):
            yield inputs, outputs, expansion, stride
            inputs = outputs


def _inverted_residuals(table: Iterable[tuple[int, int, int, int]], squeeze: bool) -> nn.Sequential:
    return nn.Sequential(*(InvertedResidual(*widths, squeeze) for widths in _widths(table)))


def _mobilenet_v2(in_channels: int, num_classes: int) -> nn.Module:
    features = stages(
        stem=stem(in_channels, 32),
        blocks=_inverted_residuals(_MOBILENET_V2, squeeze=False),
        last=nn.Sequential(*conv_norm(320, 1280), nn.ReLU()),
    )
    return PooledClassifier(features, 1280, num_classes)


def _efficientnet_b0(in_channels: int, num_classes: int) -> nn.Module:
    """All kernels 3 x 3, ReLU, squeeze at the end of the block, no convolution behind the last."""
    blocks = _inverted_residuals(_EFFICIENTNET_B0, squeeze=True)
    return PooledClassifier(stages(stem=stem(in_channels, 32), blocks=blocks), 320, num_classes)


# ----------------------------------------------------------------------------------- dual paths


class DualPathBlock(nn.Module):
    """The first channels are added to the input's, as in a ResNet, the rest appended to them.

    Args:
        inputs: Channels in.
        width: Channels of the grouped convolution.
        residual: Channels that are added.
        dense: Channels that are appended.
        stride: Of the grouped convolution.
        first: Project the input, as the first block of a stage does.
    """

    def __init__(
        self, inputs: int, width: int, residual: int, dense: int, stride: int, first: bool
    ) -> None:
        super().__init__()
        self.residual = residual
        self.body = nn.Sequential(
            *conv_norm(inputs, width),
            nn.ReLU(),
            *conv_norm(width, width, 3, stride, groups=32),
            nn.ReLU(),
            *conv_norm(width, residual + dense),
        )
        outputs = residual + dense
        self.shortcut = conv_norm(inputs, outputs, 1, stride) if first else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) -> (N, channels + dense, h / stride, w / stride)."""
        old, new = self.shortcut(x), self.body(x)
        path = slice(0, self.residual)
        rest = slice(self.residual, None)
        return torch.cat([old[:, path] + new[:, path], old[:, rest], new[:, rest]], 1).relu()


def _dpn92(in_channels: int, num_classes: int) -> nn.Module:
    parts, inputs = {"stem": stem(in_channels, 64)}, 64
    widths, residuals = (96, 192, 384, 768), (256, 512, 1024, 2048)
    for number, count in enumerate((3, 4, 20, 3)):
        width, residual, dense = widths[number], residuals[number], (16, 32, 24, 128)[number]
        stage = nn.Sequential()
        for block in range(count):
            stride = 2 if number and not block else 1
            stage.append(DualPathBlock(inputs, width, residual, dense, stride, first=not block))
            inputs = residual + (block + 2) * dense
        parts[f"stage{number + 1}"] = stage
    return PooledClassifier(stages(**parts), inputs, num_classes)


# ------------------------------------------------------------------------------------- cells


class PoolingCell(nn.Module):
    """A 7 x 7 convolution of each channel plus a max pool.

    Args:
        inputs: Channels in.
        outputs: Channels out; differ from ``inputs`` with stride 2, where the pool is projected.
        stride: Of both.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depthwise = conv_norm(inputs, outputs, 7, stride, groups=inputs)
        self.pool = nn.MaxPool2d(3, stride, 1)
        self.match = conv_norm(inputs, outputs) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) -> (N, outputs, h / stride, w / stride)."""
        return cast(Tensor, (self.depthwise(x) + self.match(self.pool(x))).relu())


def _pnasnet_a(in_channels: int, num_classes: int) -> nn.Module:
    """Three times six cells, and one of stride 2 between."""
    parts: dict[str, nn.Module] = {"stem": stem(in_channels, 44)}
    for number, channels in enumerate((44, 88, 176), 1):
        if number > 1:
            parts[f"down{number - 1}"] = PoolingCell(channels // 2, channels, 2)
        cells = [PoolingCell(channels, channels, 1) for _ in range(6)]
        parts[f"stage{number}"] = nn.Sequential(*cells)
    return PooledClassifier(stages(**parts), 176, num_classes)


# ------------------------------------------------------------------------------------- table


@dataclass(frozen=True, kw_only=True)
class SmallNetwork:
    """One row of the table of networks for 32 x 32 images.

    Attributes:
        summary: What it is and where it differs from the libraries'.
        paper: Its source.
        build: (in_channels, num_classes) -> the network with batch norms.
        large: Torchvision's name of it for large images, if there is one.
        released: Options by name (see `segdeconv.surgery.convert`) with which the paper's code
            departs from its usual block 64 and five steps.
    """

    summary: str
    paper: str
    build: Callable[[int, int], nn.Module]
    large: str = ""
    released: Mapping[str, Any] = field(default_factory=dict)

    def build_afresh(self, in_channels: int, num_classes: int) -> nn.Module:
        """The network, every layer with torch's own initialisation."""
        network = self.build(in_channels, num_classes)
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.reset_parameters()
        return network


def _stem_steps(n_iter: int, name: str = "network.features.stem.0") -> dict[str, Any]:
    return {name: {"n_iter": n_iter, "freeze": True}}


def _mobilenet_steps() -> dict[str, Any]:
    """One step in depthwise and projecting layers, the latter with the block's width in."""
    blocks = "network.features.blocks"
    options: dict[str, Any] = {f"{blocks}.*.depthwise.0": {"n_iter": 1}}
    for number, (inputs, *_) in enumerate(_widths(_MOBILENET_V2)):
        options[f"{blocks}.{number}.project.0"] = {"n_iter": 1, "block": inputs}
    return options


CLASSIFIERS = Registry[SmallNetwork](
    "small network",
    vgg16=SmallNetwork(
        summary="13 convolutions of torchvision's vgg16_bn, one linear layer",
        paper="Simonyan and Zisserman 2015, arXiv:1409.1556",
        build=partial(_vgg, "D"),
        large="vgg16_bn",
        released=_stem_steps(15, "network.features.0"),
    ),
    vgg11=SmallNetwork(
        summary="8 convolutions of torchvision's vgg11_bn, one linear layer",
        paper="Simonyan and Zisserman 2015, arXiv:1409.1556",
        build=partial(_vgg, "A"),
        large="vgg11_bn",
        released=_stem_steps(15, "network.features.0"),
    ),
    resnet18=SmallNetwork(
        summary="torchvision's",
        paper="He et al. 2016, arXiv:1512.03385",
        build=_resnet18,
        large="resnet18",
    ),
    preact_resnet18=SmallNetwork(
        summary="norms before the convolutions, none at the end",
        paper="He et al. 2016, arXiv:1603.05027",
        build=_preact_resnet18,
        released=_stem_steps(10, "network.features.stem"),
    ),
    densenet121=SmallNetwork(
        summary="torchvision's, without norm and activation behind the stem",
        paper="Huang et al. 2017, arXiv:1608.06993",
        build=_densenet121,
        large="densenet121",
    ),
    resnext29_32x4d=SmallNetwork(
        summary="torchvision's blocks, three stages, a stem of 1 x 1",
        paper="Xie et al. 2017, arXiv:1611.05431",
        build=_resnext29,
        released=_stem_steps(10, "network.conv1") | {"network.layer*.conv2": {"n_iter": 3}},
    ),
    mobilenet_v2=SmallNetwork(
        summary="projected shortcuts, ReLU, stride 2 three times",
        paper="Sandler et al. 2018, arXiv:1801.04381",
        build=_mobilenet_v2,
        large="mobilenet_v2",
        released=_stem_steps(10) | _mobilenet_steps(),
    ),
    dpn92=SmallNetwork(
        summary="norms after the convolutions",
        paper="Chen et al. 2017, arXiv:1707.01629",
        build=_dpn92,
        released=_stem_steps(10),
    ),
    pnasnet_a=SmallNetwork(
        summary="19 cells of one 7 x 7 depthwise convolution and one max pool",
        paper="after Liu et al. 2018, arXiv:1712.00559",
        build=_pnasnet_a,
        released=_stem_steps(10),
    ),
    senet18=SmallNetwork(
        summary="preact_resnet18 with squeeze and excitation",
        paper="Hu et al. 2018, arXiv:1709.01507",
        build=_senet18,
        released=_stem_steps(10),
    ),
    efficientnet_b0=SmallNetwork(
        summary="depthwise kernels of 3 x 3, ReLU, squeeze at the end of the block",
        paper="after Tan and Le 2019, arXiv:1905.11946",
        build=_efficientnet_b0,
        large="efficientnet_b0",
        # In the paper's code the blocks keep their batch norms whatever the operator.
        released=_stem_steps(10) | {"network.features.blocks.*": False},
    ),
)
