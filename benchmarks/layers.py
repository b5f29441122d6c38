"""Time one layer, forward and backward: the literal algorithm, ours, and convolution + batch norm.

Every shape is a layer of a network that people train.  All variants of a shape run in turn in one
process, and every quotient is taken round by round, so a busy machine disturbs both of its sides.

    literal    the algorithm written down as published, on the autograd tape (benchmarks/literal.py)
    released   `Deconv2d(preset="released")`: the same function of input, weight and state
    default    `Deconv2d` as it comes
    batchnorm  `nn.Conv2d` and `nn.BatchNorm2d`
    plain      `nn.Conv2d` alone: literal / plain is what free statistics would reach
    evaluation of `Deconv2d` and of `nn.Conv2d`, forward only

With --amp the statistics of the literal layer are in 16 bits too; those of `Deconv2d` never are.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _common import (
    PRECISIONS,
    add_machine_options,
    autocast,
    decaying_matrices,
    environment,
    interleaved,
    keep_freed_memory,
    matching,
    milliseconds,
    plot_ratios,
    ratio,
    result_path,
    spread,
    timing_parser,
    with_range,
    write_result,
)
from literal import LiteralDeconv2d
from torch import Tensor, nn

from segdeconv.operators.deconv import Deconv2d
from segdeconv.tables import markdown_table
from segdeconv.whitening import inverse_root

EXAMPLES = """\
examples:
  python benchmarks/layers.py                           every shape, about ten minutes on one core
  python benchmarks/layers.py --quick                   one shape of each kind, under a minute
  python benchmarks/layers.py --only '*stem*' 'aspp*'   some shapes
  python benchmarks/layers.py --roots                   the inverse roots alone
  python benchmarks/layers.py --device cuda --amp bf16 --batch-times 8
"""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One layer and its input.

    Attributes:
        channels: Inputs and outputs of the layer.
        batch: Images.
        size: Side of the square input map.
        kernel: Side of the kernel.
        stride: Of the layer.
        dilation: Of the layer; the padding keeps the map's size, stride apart.
        groups: Of the layer.
        image: The input is data: it needs no gradient.
        options: Whitening options of all variants.
        quick: Whether the quick run has it.
    """

    channels: tuple[int, int]
    batch: int
    size: int
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    image: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    quick: bool = False

    @property
    def geometry(self) -> dict[str, int]:
        """Arguments of the layer behind its channels."""
        return {
            "kernel_size": self.kernel,
            "stride": self.stride,
            "padding": self.dilation * (self.kernel // 2),
            "dilation": self.dilation,
            "groups": self.groups,
        }

    def input(self, generator: torch.Generator, setup: "Setup") -> Tensor:
        """A correlated map; clipped at zero as behind a ReLU, unless it is an image."""
        shape = (self.batch, self.channels[0], self.size + 2, self.size + 2)
        x = 3 * F.avg_pool2d(torch.randn(shape, generator=generator), 3, 1)
        x = x.to(setup.device, setup.amp or torch.float32)
        return x if self.image else x.relu_().requires_grad_()


@dataclass(frozen=True)
class Setup:
    """How a layer is run.

    Attributes:
        seconds: To spend on a shape.
        seed: Of inputs and weights.
        device: "cpu" or "cuda".
        amp: Precision of autocast and of the input, None for float32.
    """

    seconds: float
    seed: int
    device: str = "cpu"
    amp: torch.dtype | None = None


MANY_STEPS = {"n_iter": 15}
SHAPES = {
    # CIFAR, ResNet-18 and ResNet-50
    "cifar stem 3x3": Shape(channels=(3, 64), batch=128, size=32, image=True, quick=True),
    "cifar 64, 32x32": Shape(channels=(64, 64), batch=32, size=32, quick=True),
    "cifar 64 to 128, s2": Shape(channels=(64, 128), batch=64, size=32, stride=2),
    "cifar 128, 16x16": Shape(channels=(128, 128), batch=64, size=16),
    "cifar 128 to 256, s2": Shape(channels=(128, 256), batch=64, size=16, stride=2),
    "cifar 256, 8x8": Shape(channels=(256, 256), batch=64, size=8),
    "cifar 512, 4x4": Shape(channels=(512, 512), batch=64, size=4),
    "cifar shortcut 64 to 128, s2": Shape(
        channels=(64, 128), batch=128, size=32, kernel=1, stride=2
    ),
    "cifar shortcut 256 to 512, s2": Shape(
        channels=(256, 512), batch=128, size=8, kernel=1, stride=2
    ),
    "cifar 1x1 64 to 256": Shape(channels=(64, 256), batch=32, size=32, kernel=1),
    "cifar 1x1 1024 to 256": Shape(channels=(1024, 256), batch=64, size=8, kernel=1, quick=True),
    "cifar 1x1 2048 to 512": Shape(channels=(2048, 512), batch=64, size=4, kernel=1),
    "cifar 3x3 64, block 16": Shape(channels=(64, 64), batch=64, size=32, options={"block": 16}),
    # ImageNet
    "imagenet stem, 5 steps": Shape(
        channels=(3, 64), batch=4, size=224, kernel=7, stride=2, image=True
    ),
    "imagenet stem, 15 steps": Shape(
        channels=(3, 64), batch=4, size=224, kernel=7, stride=2, image=True, options=MANY_STEPS
    ),
    "imagenet stem with input gradient, 5 steps": Shape(
        channels=(3, 64), batch=4, size=224, kernel=7, stride=2
    ),
    "imagenet stem with input gradient, 15 steps": Shape(
        channels=(3, 64), batch=4, size=224, kernel=7, stride=2, options=MANY_STEPS, quick=True
    ),
    "imagenet stem 3x3, 15 steps": Shape(
        channels=(3, 32), batch=4, size=224, stride=2, image=True, options=MANY_STEPS
    ),
    "imagenet 64, 56x56": Shape(channels=(64, 64), batch=8, size=56),
    "imagenet 128, 28x28": Shape(channels=(128, 128), batch=8, size=28),
    "imagenet 256, 14x14": Shape(channels=(256, 256), batch=8, size=14),
    "imagenet 512, 7x7": Shape(channels=(512, 512), batch=8, size=7),
    "imagenet 256 to 512, s2": Shape(channels=(256, 512), batch=8, size=14, stride=2),
    "imagenet 1x1 64, 56x56": Shape(channels=(64, 64), batch=8, size=56, kernel=1),
    "imagenet 1x1 256 to 64, 56x56": Shape(channels=(256, 64), batch=8, size=56, kernel=1),
    "imagenet 1x1 512 to 2048, 7x7": Shape(channels=(512, 2048), batch=8, size=7, kernel=1),
    "imagenet 1x1 2048 to 512, 7x7": Shape(channels=(2048, 512), batch=8, size=7, kernel=1),
    "imagenet shortcut 256 to 512, s2": Shape(
        channels=(256, 512), batch=8, size=56, kernel=1, stride=2
    ),
    # Depthwise and grouped: MobileNetV2, ResNeXt-50 32x4d
    "depthwise 32, 112x112": Shape(channels=(32, 32), batch=4, size=112, groups=32),
    "depthwise 144, s2": Shape(channels=(144, 144), batch=8, size=56, stride=2, groups=144),
    "depthwise 576, 14x14": Shape(channels=(576, 576), batch=8, size=14, groups=576, quick=True),
    "depthwise 960, 7x7": Shape(channels=(960, 960), batch=8, size=7, groups=960),
    "depthwise 144, 1 step": Shape(
        channels=(144, 144), batch=8, size=56, groups=144, options={"n_iter": 1}
    ),
    "grouped 32x4d, 56x56": Shape(channels=(128, 128), batch=4, size=56, groups=32, quick=True),
    "grouped 32x4d, 3 steps": Shape(
        channels=(256, 256), batch=8, size=28, groups=32, options={"n_iter": 3}
    ),
    "grouped 32x32d, 7x7": Shape(channels=(1024, 1024), batch=8, size=7, groups=32),
    # Cityscapes: DeepLabV3-ResNet-50 on crops of 768 or (ASPP) 528 pixels
    "street stem, 15 steps": Shape(
        channels=(3, 64), batch=1, size=768, kernel=7, stride=2, image=True, options=MANY_STEPS
    ),
    "street 64, 192x192": Shape(channels=(64, 64), batch=1, size=192),
    "street 128, 96x96": Shape(channels=(128, 128), batch=1, size=96),
    "street 256, 96x96, dilation 2": Shape(channels=(256, 256), batch=1, size=96, dilation=2),
    "street 512, 48x48, dilation 4": Shape(channels=(512, 512), batch=1, size=48, dilation=4),
    "street 1x1 512 to 128, 96x96": Shape(channels=(512, 128), batch=1, size=96, kernel=1),
    "street 1x1 256 to 1024, 96x96": Shape(channels=(256, 1024), batch=1, size=96, kernel=1),
    "aspp 1x1 2048 to 256": Shape(channels=(2048, 256), batch=1, size=33, kernel=1),
    "aspp dilation 12": Shape(channels=(2048, 256), batch=1, size=33, dilation=12, quick=True),
    "aspp dilation 24": Shape(channels=(2048, 256), batch=1, size=33, dilation=24),
    "aspp dilation 36": Shape(channels=(2048, 256), batch=1, size=33, dilation=36),
    "aspp pooled branch": Shape(channels=(2048, 256), batch=8, size=1, kernel=1),
    "squeeze 512 to 32, pooled": Shape(channels=(512, 32), batch=128, size=1, kernel=1),
    "street head 1x1 256 to 19": Shape(
        channels=(256, 19), batch=1, size=96, kernel=1, options={"block": 256}
    ),
    "street decoder, depthwise 304": Shape(channels=(304, 304), batch=1, size=96, groups=304),
}

TINY = {
    "tiny 3x3": Shape(channels=(8, 8), batch=2, size=8, quick=True),
    "tiny 1x1": Shape(channels=(8, 4), batch=2, size=8, kernel=1, quick=True),
}


def variants(shape: Shape) -> dict[str, nn.Module]:
    """The layers that are compared; literal and released share their initial parameters."""
    literal = LiteralDeconv2d(*shape.channels, **shape.geometry, **shape.options)
    released = Deconv2d(*shape.channels, **shape.geometry, preset="released", **shape.options)
    released.load_state_dict({**released.state_dict(), **literal.state_dict()})
    without_bias = nn.Conv2d(*shape.channels, **shape.geometry, bias=False)
    return {
        "literal": literal,
        "released": released,
        "default": Deconv2d(*shape.channels, **shape.geometry, **shape.options),
        "batchnorm": nn.Sequential(without_bias, nn.BatchNorm2d(shape.channels[1])),
        "plain": nn.Conv2d(*shape.channels, **shape.geometry),
    }


def training_step(layer: nn.Module, x: Tensor, grad: Tensor, setup: Setup) -> Callable[[], None]:
    """Forward and backward, gradients for input and parameters, none kept."""
    wanted = [*layer.parameters()] + ([x] if x.requires_grad else [])

    def step() -> None:
        with autocast(setup.device, setup.amp):
            y = layer(x)
        torch.autograd.grad(y, wanted, grad)

    return step


def evaluation(layer: nn.Module, x: Tensor, setup: Setup) -> Callable[[], None]:
    """A forward pass of a layer in evaluation mode."""
    layer.eval()

    @torch.no_grad()
    def forward() -> None:
        with autocast(setup.device, setup.amp):
            layer(x)

    return forward


def measure(shape: Shape, setup: Setup) -> dict[str, Any]:
    """Timings of all variants on one shape and the quotients between them."""
    torch.manual_seed(setup.seed)
    x = shape.input(torch.Generator().manual_seed(setup.seed), setup)
    layers = {name: layer.to(setup.device) for name, layer in variants(shape).items()}
    with autocast(setup.device, setup.amp):
        grad = torch.randn_like(layers["batchnorm"](x))
    steps = {name: training_step(layer, x, grad, setup) for name, layer in layers.items()}
    times = interleaved(steps, setup.seconds, device=setup.device)
    compared = {name: layers[name] for name in ("plain", "default")}
    forwards = {name: evaluation(layer, x, setup) for name, layer in compared.items()}
    eval_times = interleaved(forwards, setup.seconds / 4, min_rounds=11, device=setup.device)
    return {
        **asdict(shape),
        "training": {name: spread(values) for name, values in times.items()},
        "forward": {name: spread(values) for name, values in eval_times.items()},
        "literal / released": ratio(times["literal"], times["released"]),
        "literal / default": ratio(times["literal"], times["default"]),
        "literal / batchnorm": ratio(times["literal"], times["batchnorm"]),
        "literal / plain": ratio(times["literal"], times["plain"]),
        "default / batchnorm": ratio(times["default"], times["batchnorm"]),
        "evaluation": ratio(eval_times["default"], eval_times["plain"]),
    }


QUOTIENTS = (
    "literal / released",
    "literal / default",
    "literal / plain",
    "literal / batchnorm",
    "default / batchnorm",
    "evaluation",
)


def layer_table(rows: dict[str, dict[str, Any]]) -> str:
    """Milliseconds and quotients per shape, and the quotients' geometric means."""

    def line(name: str, row: dict[str, Any]) -> list[str]:
        training = [milliseconds(timing) for timing in row["training"].values()]
        first, *others = (row[quotient] for quotient in QUOTIENTS)
        quotients = [f"{values['median']:.2f}" for values in others]
        return [name, *training, with_range(first, ".2f"), *quotients]

    header = ["layer", "literal", "released", "default", "conv + BN", "plain", *QUOTIENTS]
    medians = ([row[quotient]["median"] for row in rows.values()] for quotient in QUOTIENTS)
    means = [f"{statistics.geometric_mean(values):.2f}" for values in medians]
    lines = [line(name, row) for name, row in rows.items()]
    return markdown_table(header, [*lines, ["geometric mean", *[""] * 5, *means]])


LAYER_NOTES = """\
# One layer, forward and backward

Milliseconds per training step (medians), and quotients taken round by round (median; for the first
also minimum and maximum).  "literal" is the algorithm as published, recorded by autograd;
"released" is the same function by `Deconv2d(preset="released")`; "default" is `Deconv2d` as it
comes; "plain" is `nn.Conv2d` alone, so literal / plain is what statistics that cost nothing would
reach; "evaluation" is the default's forward pass in evaluation over that of `nn.Conv2d`.  Batch and
map sizes are in the JSON file beside this one."""


def run_layers(shapes: dict[str, Shape], setup: Setup) -> Any:
    """Measure the shapes, printing each as it comes; returns (rows, text)."""
    rows = {}
    for name, shape in shapes.items():
        rows[name] = row = measure(shape, setup)
        figures = "  ".join(f"{q} {row[q]['median']:.2f}" for q in QUOTIENTS)
        print(f"{name:45s} {figures}", flush=True)
    verdicts = "\n".join(slower_than_literal(rows, variant) for variant in ("released", "default"))
    return rows, f"{LAYER_NOTES}\n\n{layer_table(rows)}\n\n{verdicts}"


def slower_than_literal(rows: dict[str, dict[str, Any]], variant: str) -> str:
    """Which shapes are, in a line."""
    slower = [name for name, row in rows.items() if row[f"literal / {variant}"]["median"] < 1]
    names = ", ".join(slower) or "none"
    return f"- Slower than literal, {variant}: {names} of {len(rows)} shapes."


def plot_layers(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """Bars of three of the quotients, a panel each."""
    shown = ("literal / default", "literal / released", "default / batchnorm")
    bars = {quotient: {name: row[quotient] for name, row in rows.items()} for quotient in shown}
    plot_ratios(bars, "quotient of times", path)


ROOT_SIZES = (9, 27, 36, 64, 96, 144, 147, 192, 256, 576)
ROOT_BATCHES = (1, 8, 32)
ROOT_STEPS = (5, 15)
MOST_WORK = 4e8  # batch x size**3; beyond it one call takes many seconds and the answer is clear
ROOT_NOTES = f"""\
# Inverse roots, forward and backward

Milliseconds (medians) for a batch of matrices with the spectrum 1/i.  Both backends compute the
same truncated function and its exact gradient; 15 steps run in float64 inside.  "literal" is the
published iteration on the autograd tape, float32 throughout.  Batches that take many seconds, from
{MOST_WORK:.0e} = batch x size^3, are left out."""


def run_roots(seconds: float, seed: int, sizes: Sequence[int]) -> Any:
    """Time the backends of the inverse root over sizes, batches and steps; returns (rows, text)."""
    rows = []
    for n_iter in ROOT_STEPS:
        for batch in ROOT_BATCHES:
            for size in (size for size in sizes if batch * size**3 <= MOST_WORK):
                rows.append(measure_root(size, batch, n_iter, seconds, seed))
                print(*root_line(rows[-1]), sep="  ", flush=True)
    header = ["steps, batch, size", "newton_schulz", "eigh", "literal", "newton_schulz / eigh"]
    return rows, f"{ROOT_NOTES}\n\n{markdown_table(header, map(root_line, rows))}"


def measure_root(size: int, batch: int, n_iter: int, seconds: float, seed: int) -> dict[str, Any]:
    """Forward and backward of one batch of roots by each backend."""
    torch.manual_seed(seed)
    matrix = decaying_matrices(batch, size).requires_grad_()
    grad = torch.randn_like(matrix)
    literal = LiteralDeconv2d(1, 1, 1, n_iter=n_iter)._inverse_root

    def step(root: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(root(matrix), matrix, grad)

    times = interleaved(
        {
            "newton_schulz": step(lambda a: inverse_root(a, n_iter, "newton_schulz")),
            "eigh": step(lambda a: inverse_root(a, n_iter, "eigh")),
            "literal": step(lambda a: literal(a, torch.eye(size))),
        },
        seconds,
        min_rounds=3,
    )
    return {
        "n_iter": n_iter,
        "batch": batch,
        "size": size,
        "seconds": {name: spread(values) for name, values in times.items()},
        "newton_schulz / eigh": ratio(times["newton_schulz"], times["eigh"]),
    }


def root_line(row: dict[str, Any]) -> list[str]:
    """One line of the table of roots."""
    figures = [milliseconds(timing) for timing in row["seconds"].values()]
    key = f"{row['n_iter']}, {row['batch']}, {row['size']}"
    return [key, *figures, f"{row['newton_schulz / eigh']['median']:.2f}"]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = timing_parser(__doc__, EXAMPLES, seconds=6)
    parser.add_argument("--quick", action="store_true", help="one shape of each kind")
    parser.add_argument(
        "--only", nargs="+", metavar="GLOB", help="shapes of that name; --list shows them"
    )
    parser.add_argument("--list", action="store_true", help="print the shapes' names and stop")
    parser.add_argument("--roots", action="store_true", help="time the inverse roots instead")
    add_machine_options(parser)
    parser.add_argument("--amp", default="none", choices=PRECISIONS, help="autocast (none)")
    parser.add_argument(
        "--batch-times",
        type=int,
        default=1,
        help="multiply the batches, which suit a CPU, for a GPU by 8 or so (1)",
    )
    options = parser.parse_args(arguments)
    if options.roots and options.device != "cpu":
        parser.error(
            "--roots times the processor; benchmarks/kernels.py times inverse roots on a GPU"
        )
    return options


def chosen(options: argparse.Namespace, shapes: dict[str, Shape]) -> list[str]:
    """Names of the shapes to run."""
    names = [name for name in shapes if shapes[name].quick or not options.quick]
    return matching(options.only, names, "shape", "--list shows the names")


def main() -> None:
    """Run what the command line asks for."""
    options = parse()
    shapes = TINY if options.tiny else SHAPES
    names = chosen(options, shapes)
    if options.list:
        print(*names, sep="\n")
        return
    torch.set_num_threads(options.threads)
    kept = keep_freed_memory()
    if options.roots:
        rows, text = run_roots(options.seconds, options.seed, (9,) if options.tiny else ROOT_SIZES)
    else:
        setup = Setup(options.seconds, options.seed, options.device, PRECISIONS[options.amp])
        times = options.batch_times
        chosen_shapes = {n: replace(shapes[n], batch=shapes[n].batch * times) for n in names}
        rows, text = run_layers(chosen_shapes, setup)
    print(f"\n{text}")
    whole = not (options.quick or options.only or options.tiny)
    kind = "roots" if options.roots else "layers"
    kind += "" if options.device == "cpu" else f"-{options.device}-{options.amp}"
    out = result_path(options, kind, whole)
    if out:
        facts = environment(options.seed) | {"freed memory is kept": kept}
        if not options.roots:
            plot_layers(rows, out.with_suffix(".png"))
            text = f"{text}\n\n![quotients of times]({out.name}.png)"
        write_result(out, {"environment": facts, "rows": rows}, text)


if __name__ == "__main__":
    main()
