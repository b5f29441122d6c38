"""Whole networks for the benchmarks: how each is built, its usual batch, and the options for both.

Every network is built with batch norms; what is measured is what surgery makes of it.
"""

import argparse
import fnmatch
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
import torchvision
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


def add_network_options(parser: argparse.ArgumentParser, seconds: float) -> None:
    """Options that say which networks run, on what, and for how long."""
    parser.add_argument("--only", nargs="+", metavar="GLOB", help="networks of that name")
    parser.add_argument("--tiny", action="store_true", help="a tiny network, to see that it runs")
    parser.add_argument("--batch", type=int, help="images; default: the network's own")
    parser.add_argument(
        "--size", type=int, nargs="+", metavar="PIXELS", help="side, or height and width, of images"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--channels-last", action="store_true", help="memory format of the maps")
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch; 1 (default) times by processor time"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=seconds,
        help=f"to spend on the timings of a network, a few rounds at least ({seconds:g})",
    )
    parser.add_argument("--seed", type=int, default=0, help="of inputs and weights (0)")
    parser.add_argument(
        "--out", type=Path, help="result files without ending; default: none for a partial run"
    )


def chosen_networks(options: argparse.Namespace) -> dict[str, Network]:
    """The networks that the command line asks for, with its batch and size."""
    known = TINY if options.tiny else networks(options.device)
    globs = options.only or ["*"]
    names = [name for name in known if any(fnmatch.fnmatch(name, glob) for glob in globs)]
    if not names:
        raise SystemExit(f"no network matches {' '.join(globs)}; there are {', '.join(known)}")
    changes: dict[str, object] = {}
    if options.batch:
        changes["batch"] = options.batch
    if options.size:
        changes["size"] = (options.size[0], options.size[-1])
    return {name: replace(known[name], **changes) for name in names}  # type: ignore[arg-type]


def is_whole(options: argparse.Namespace) -> bool:
    """Whether nothing was left out or made smaller, so that the result deserves a dated file."""
    return not (options.only or options.tiny or options.batch or options.size)
