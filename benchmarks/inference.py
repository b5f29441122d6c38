"""Time evaluation of whole networks: as trained, folded, and folded under ONNX Runtime.

A folded network of network deconvolution is one of plain convolutions, just as a batch-norm network
whose norms were folded into its convolutions: they should take the same time.

    batchnorm         the network as its authors made it
    batchnorm folded  its norms merged into the convolutions, by torch's own `fuse_conv_bn_eval`
    deconv            `segdeconv.convert(network)`
    deconv folded     `segdeconv.fold` of it
    ... onnx          the folded network, exported and run by ONNX Runtime (without --no-onnx)

All run in turn in one process and every quotient is taken round by round.  Statistics come from
three training passes; each folded network is compared with the unfolded one and with itself in
float64, and each exported one with the folded.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from _common import (
    environment,
    interleaved,
    keep_freed_memory,
    ratio,
    result_path,
    spread,
    with_range,
)
from _networks import (
    Network,
    chosen_networks,
    is_whole,
    measure_networks,
    memory_format,
    network_parser,
    write_networks,
)
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from segdeconv.surgery import convert, fold
from segdeconv.tables import markdown_table

EXAMPLES = """\
examples:
  python benchmarks/inference.py                           every network
  python benchmarks/inference.py --only resnet18-cifar --batch 1
  python benchmarks/inference.py --device cuda --channels-last --no-onnx
"""
QUOTIENTS = (
    ("deconv folded", "batchnorm folded"),
    ("deconv onnx", "batchnorm onnx"),
    ("deconv", "batchnorm"),
)
SAME_FUNCTION = (
    ("batchnorm folded", "batchnorm"),
    ("deconv folded", "deconv"),
    ("batchnorm onnx", "batchnorm folded"),
    ("deconv onnx", "deconv folded"),
    ("batchnorm folded", "batchnorm folded, float64"),
    ("deconv folded", "deconv folded, float64"),
)
GOAL = 0.02  # how far the time of a folded network may be from its twin's


# ---------------------------------------------------------------------------------------- networks


def trained(
    network: Network, operator: str, images: Tensor, options: argparse.Namespace
) -> nn.Module:
    """The network after a few training passes over one batch, in evaluation mode."""
    torch.manual_seed(options.seed)
    model = network.build()
    convert(model, operator)
    model.to(options.device).to(memory_format=memory_format(options.channels_last))
    with torch.no_grad():
        for _ in range(3):
            model.train()(images)
    return model.eval()


def fold_batchnorm(model: nn.Module, images: Tensor) -> tuple[nn.Module, int]:
    """A copy with every batch norm that directly follows a convolution merged into it.

    Returns:
        The network in evaluation mode, and the number of batch norms that are left.
    """
    model = copy.deepcopy(model).eval()
    for conv_name, norm_name in conv_norm_pairs(model, images).items():
        conv = cast(nn.Conv2d, model.get_submodule(conv_name))
        norm = cast(nn.BatchNorm2d, model.get_submodule(norm_name))
        model.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm), strict=True)
        model.set_submodule(norm_name, nn.Identity(), strict=True)
    return model, sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def conv_norm_pairs(model: nn.Module, images: Tensor) -> dict[str, str]:
    """Names of convolutions whose output goes into a batch norm, and of those norms.

    Found by running the network: tracers cannot follow the control flow of every one.
    """
    made_by: dict[int, str] = {}  # address of the tensor object -> convolution
    alive, pairs = [], {}

    def after_conv(name: str, _module: nn.Module, _args: Any, output: Tensor) -> None:
        made_by[id(output)] = name
        alive.append(output)  # so that no other tensor gets its address

    def before_norm(name: str, _module: nn.Module, args: tuple[Tensor]) -> None:
        if id(args[0]) in made_by:
            pairs[made_by[id(args[0])]] = name

    handles = []
    for name, module in model.named_modules():
        if type(module) is nn.Conv2d:
            handles.append(module.register_forward_hook(partial(after_conv, name)))
        elif type(module) is nn.BatchNorm2d:
            handles.append(module.register_forward_pre_hook(partial(before_norm, name)))
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return pairs


# ------------------------------------------------------------------------------------------ measure


def forward(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    """An evaluation pass."""

    @torch.inference_mode()
    def run() -> Tensor:
        output: Tensor = model(images)
        return output

    return run


def onnx_forward(model: nn.Module, images: Tensor, threads: int) -> Callable[[], Tensor]:
    """An evaluation pass of the exported network by ONNX Runtime, on the processor."""
    import onnxruntime

    images = images.contiguous()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(model, (images,), path, dynamo=True, verbose=False)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def onnx_version() -> str:
    """Of ONNX Runtime, which --no-onnx goes without."""
    import onnxruntime

    return onnxruntime.__version__


def measure(network: Network, options: argparse.Namespace) -> dict[str, Any]:
    """Timings of one network, their quotients, and how far apart the outputs are."""
    images = network.images(options.seed).to(options.device)
    images = images.contiguous(memory_format=memory_format(options.channels_last))
    batchnorm, deconv = (trained(network, n, images, options) for n in ("batchnorm", "deconv"))
    folded_batchnorm, norms_left = fold_batchnorm(batchnorm, images)
    folded_deconv = fold(deconv)
    runs = {
        "batchnorm": forward(batchnorm, images),
        "batchnorm folded": forward(folded_batchnorm, images),
        "deconv": forward(deconv, images),
        "deconv folded": forward(folded_deconv, images),
    }
    if options.onnx:
        runs["batchnorm onnx"] = onnx_forward(folded_batchnorm, images, options.threads)
        runs["deconv onnx"] = onnx_forward(folded_deconv, images, options.threads)
    times = interleaved(runs, options.seconds, min_rounds=7, max_rounds=400, device=options.device)
    return {
        "seconds": {name: spread(values) for name, values in times.items()},
        "quotients": {
            f"{over} / {under}": ratio(times[over], times[under])
            for over, under in QUOTIENTS
            if over in times
        },
        "differences": differences(
            runs
            | {
                "batchnorm folded, float64": in_float64(folded_batchnorm, images),
                "deconv folded, float64": in_float64(folded_deconv, images),
            }
        ),
        "batch norms left": norms_left,
    }


def in_float64(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    """An evaluation pass whose rounding does not count."""
    return forward(copy.deepcopy(model).double(), images.double())


def differences(runs: Mapping[str, Callable[[], Tensor]]) -> dict[str, float]:
    """Largest difference between outputs that should be equal, over the largest output."""
    outputs = {name: run().cpu() for name, run in runs.items()}
    return {
        f"{name} - {other}": relative_difference(outputs[name], outputs[other])
        for name, other in SAME_FUNCTION
        if name in outputs
    }


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest absolute value."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


# ------------------------------------------------------------------------------------------ results


NOTES = f"""\
# Evaluation

Milliseconds per batch: medians (minimum - maximum over the rounds).  Quotients are taken round by
round; the goal for the folded networks is 1.00 ± {GOAL:.2f}.  Differences are between outputs, the
largest over the largest value; the one to float64 is what rounding alone does to the network.
What the rows mean: `python benchmarks/inference.py --help`."""


def parts(row: Mapping[str, Any]) -> list[str]:
    """Figures of one network for reading."""
    times = [[name, with_range(values, ".4g", 1e3)] for name, values in row["seconds"].items()]
    quotients = [[pair, with_range(values, ".3f")] for pair, values in row["quotients"].items()]
    distances = [[pair, f"{value:.1e}"] for pair, value in row["differences"].items()]
    tables = [
        markdown_table(["network", "ms"], times),
        markdown_table(["quotient of times", "median (min-max)"], quotients),
        markdown_table(["outputs compared", "relative difference"], distances),
    ]
    left = row["batch norms left"]
    return [*tables, f"{left} batch norms follow no convolution and stayed."] if left else tables


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = network_parser(__doc__, EXAMPLES, seconds=60)
    parser.add_argument(
        "--no-onnx", dest="onnx", action="store_false", help="leave ONNX Runtime out"
    )
    options = parser.parse_args(arguments)
    if options.onnx and options.device != "cpu":
        parser.error("ONNX Runtime is timed on the processor only; add --no-onnx")
    if options.onnx and not find_spec("onnxruntime"):
        parser.error("ONNX Runtime is not installed; pip install '.[export]' or add --no-onnx")
    return options


def main() -> None:
    """Run what the command line asks for."""
    options = parse()
    torch.set_num_threads(options.threads)
    kept = keep_freed_memory()
    rows, sections = measure_networks(
        chosen_networks(options), partial(measure, options=options), parts
    )
    out = result_path(options, f"inference-{options.device}", is_whole(options))
    if out:
        facts = environment(options.seed) | {
            "freed memory is kept": kept,
            "onnxruntime": onnx_version() if options.onnx else None,
            "channels last": options.channels_last,
        }
        bars = {name: row["quotients"] for name, row in rows.items()}
        write_networks(out, facts, rows, [NOTES, *sections], bars, "quotient of times")


if __name__ == "__main__":
    main()
