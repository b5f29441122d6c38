r"""Images per second of the loaders of small images, against the training step of small networks.

The step is forward, backward and update of a batch on random images in memory; the loader's figure
is that of one process that does nothing else, over the augmented batches of an epoch.  A loader
process beside the training keeps a network fed if its figure is the higher one.  "one by one" is
what torchvision's data set and transforms give, each image a call.

    python benchmarks/loading.py
    python benchmarks/loading.py --device cuda --amp bf16
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _common import (
    PRECISIONS,
    add_machine_options,
    autocast,
    environment,
    interleaved,
    keep_freed_memory,
    matching,
    result_path,
    spread,
    timing_parser,
    write_result,
)
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from segdeconv.data.arrays import ArrayTransform, ImageArrays
from segdeconv.data.classes import ClassNames
from segdeconv.models import create_classifier
from segdeconv.tables import markdown_table
from segdeconv.training.loading import TrainBatches, make_loader

BATCH = 128
LOADERS = ("batches", "one by one")
NETWORKS = ("resnet18", "vgg16", "tu-test_resnet")


def main() -> None:
    """Time the loaders and the steps in turn, write JSON and a table."""
    parser = timing_parser(__doc__, "", seconds=60)
    add_machine_options(parser)
    parser.add_argument("--amp", default="none", choices=list(PRECISIONS), help="(none)")
    parser.add_argument("--only", nargs="+", metavar="GLOB", help="loaders and networks")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    kept = keep_freed_memory()
    names = matching(options.only, [*LOADERS, *NETWORKS], "loader or network")
    if options.tiny:
        names = [name for name in names if name not in ("resnet18", "vgg16")]
    precision = PRECISIONS[options.amp]
    calls = {name: call(name, options.device, precision) for name in names}
    times = interleaved(calls, options.seconds, min_rounds=3, device=options.device)
    rows = {name: spread([BATCH / seconds for seconds in times[name]]) for name in names}
    text = markdown_table(
        ["what", "images per second: median", "min", "max", "rounds"],
        [
            [name, *(f"{row[key]:.0f}" for key in ("median", "min", "max", "rounds"))]
            for name, row in rows.items()
        ],
    )
    print(text)
    out: Path | None = result_path(options, "loading", not (options.only or options.tiny))
    if out:
        facts = environment(options.seed) | {"device": options.device, "freed memory is kept": kept}
        record: dict[str, Any] = {
            "environment": facts,
            "amp": options.amp,
            "batch": BATCH,
            "rows": rows,
        }
        about = "\n".join(str(__doc__).splitlines()[:6])
        write_result(out, record, f"# Loading small images\n\n{about}\n\n{text}")


def call(name: str, device: str, precision: torch.dtype | None) -> Callable[[], object]:
    """What takes the time of one batch."""
    if name in LOADERS:
        stream = batches() if name == "batches" else one_by_one()
        return lambda: next(stream)
    return step(name, device, precision)


def images() -> tuple[Tensor, Tensor]:
    """As many as CIFAR's training set has, uint8, and labels."""
    return torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8), torch.arange(50_000) % 10


def batches() -> Iterator[dict[str, Tensor]]:
    """Batches of the training loader, for ever."""
    transform = ArrayTransform((0.5,) * 3, (0.2,) * 3, padding=4, flip=0.5)
    samples = ImageArrays(*images(), ClassNames("ten", tuple("abcdefghij")), transform, "memory")
    while True:
        yield from make_loader(samples, TrainBatches(len(samples), BATCH, 0), None, 0, False)


def one_by_one() -> Iterator[list[Any]]:
    """Batches of single images through torchvision's transforms, for ever."""
    pixels, labels = images()
    arrays = pixels.permute(0, 2, 3, 1).numpy()
    transform = v2.Compose(
        [
            v2.RandomCrop(32, 4),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.5,) * 3, (0.2,) * 3),
        ]
    )

    class Samples(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
        def __len__(self) -> int:
            return len(arrays)

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            return transform(Image.fromarray(np.asarray(arrays[index]))), labels[index]

    while True:
        yield from torch.utils.data.DataLoader(Samples(), BATCH, shuffle=True, drop_last=True)


def step(name: str, device: str, precision: torch.dtype | None) -> Callable[[], object]:
    """A training step of a network with batch norms, the cheaper twin."""
    network: nn.Module = create_classifier(name, 10, "batchnorm").to(device)
    x = torch.randn(BATCH, 3, 32, 32, device=device)
    y = torch.randint(10, (BATCH,), device=device)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)

    def run() -> None:
        with autocast(device, precision):
            loss = F.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


if __name__ == "__main__":
    sys.exit(main())
