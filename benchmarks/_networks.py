"""Whole networks for the benchmarks: how each is built, its usual batch, options and result files.

Every network is built with batch norms; what is measured is what surgery makes of it.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
import torchvision
from _common import (
    add_machine_options,
    matching,
    plot_ratios,
    timing_parser,
    write_result,
)
from torch import Tensor, nn

from segdeconv.models import create_model


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network with batch norms and what it is fed.

    Attributes:
        build: Makes it, with random weights.
        classes: Of its logits.
        batch: Images.
        size: Their height and width.
        dense: Whether there are logits for every pixel.
    """

    build: Callable[[], nn.Module]
    classes: int
    batch: int
    size: tuple[int, int]
    dense: bool = False

    def images(self, seed: int) -> Tensor:
        """(N, 3, H, W), smooth enough that neighbouring pixels correlate."""
        generator = torch.Generator().manual_seed(seed)
        height, width = self.size
        noise = torch.randn(self.batch, 3, height + 2, width + 2, generator=generator)
        return 3 * F.avg_pool2d(noise, 3, 1)

    def heading(self, name: str) -> str:
        """Of the network's figures."""
        height, width = self.size
        return f"## {name}, {self.batch} x 3 x {height} x {width}"

    def targets(self, seed: int) -> Tensor:
        """Random classes, (N,) or (N, H, W)."""
        shape = (self.batch, *self.size) if self.dense else (self.batch,)
        return torch.randint(self.classes, shape, generator=torch.Generator().manual_seed(seed + 1))


def resnet18_cifar() -> nn.Module:
    """A ResNet-18 of timm for small images: 3x3 stem of stride 1, no pooling behind it."""
    model: nn.Module = timm.create_model("resnet18", num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def segmentation(arch: str, encoder: str, num_classes: int) -> nn.Module:
    """One of `segdeconv.models.ARCHITECTURES`."""
    return create_model(arch, encoder, num_classes, operator="batchnorm")


def tiny_classifier() -> nn.Module:
    """Two convolutions."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


TINY = {"tiny": Network(build=tiny_classifier, classes=4, batch=4, size=(12, 12))}


def networks(device: str) -> dict[str, Network]:
    """The networks by name; a processor gets smaller batches of the large ones."""
    gpu = device != "cpu"
    return {
        "resnet18-cifar": Network(build=resnet18_cifar, classes=10, batch=128, size=(32, 32)),
        "resnet50-imagenet": Network(
            build=partial(torchvision.models.resnet50, weights=None),
            classes=1000,
            batch=64 if gpu else 8,
            size=(224, 224),
        ),
        "unet-resnet18": Network(  # as configs/camvid/unet_resnet18_cpu_*.yaml
            build=partial(segmentation, "unet", "resnet18", 11),
            classes=11,
            batch=8,
            size=(176, 240),
            dense=True,
        ),
        "deeplabv3-resnet50": Network(
            build=partial(segmentation, "torchvision_deeplabv3", "resnet50", 19),
            classes=19,
            batch=8 if gpu else 2,
            size=(768, 768) if gpu else (192, 192),
            dense=True,
        ),
    }


def network_parser(
    description: str | None, examples: str, seconds: float
) -> argparse.ArgumentParser:
    """A parser with options that say which networks run, on what, and for how long."""
    parser = timing_parser(description, examples, seconds)
    parser.add_argument("--only", nargs="+", metavar="GLOB", help="networks of that name")
    parser.add_argument("--batch", type=int, help="images; default: the network's own")
    parser.add_argument(
        "--size", type=int, nargs="+", metavar="PIXELS", help="side, or height and width, of images"
    )
    add_machine_options(parser)
    parser.add_argument("--channels-last", action="store_true", help="memory format of the maps")
    return parser


def chosen_networks(options: argparse.Namespace) -> dict[str, Network]:
    """The networks that the command line asks for, with its batch and size."""
    known = TINY if options.tiny else networks(options.device)
    changes: dict[str, Any] = {}
    if options.batch:
        changes["batch"] = options.batch
    if options.size:
        changes["size"] = (options.size[0], options.size[-1])
    names = matching(options.only, known, "network")
    return {name: replace(known[name], **changes) for name in names}


def is_whole(options: argparse.Namespace) -> bool:
    """Whether nothing was left out or made smaller, so that the result deserves a dated file."""
    return not (options.only or options.tiny or options.batch or options.size)


def memory_format(channels_last: bool) -> torch.memory_format:
    """Of maps and kernels."""
    return torch.channels_last if channels_last else torch.contiguous_format


def measure_networks(
    chosen: Mapping[str, Network],
    measure: Callable[[Network], dict[str, Any]],
    parts: Callable[[dict[str, Any]], Sequence[str]],
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Figures of each network, and the same for reading, printed as they come."""
    rows, sections = {}, []
    for name, network in chosen.items():
        rows[name] = measure(network)
        sections.append("\n\n".join([network.heading(name), *parts(rows[name])]))
        print(f"{sections[-1]}\n", flush=True)
    return rows, sections


def write_networks(
    out: Path,
    facts: Mapping[str, Any],
    rows: Mapping[str, dict[str, Any]],
    text: Sequence[str],
    bars: Mapping[str, Mapping[str, Mapping[str, float]]],
    label: str,
) -> None:
    """Write figures, text and a picture of quotients."""
    text = [*text, f"![{label}]({out.name}.png)"]
    write_result(out, {"environment": facts, "networks": rows}, "\n\n".join(text))
    plot_ratios(bars, label, out.with_suffix(".png"))
