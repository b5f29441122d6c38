"""Time the Triton kernels on a GPU against the PyTorch code that computes the same.

All variants of a row run in turn in one process, forward and backward, and quotients are taken
round by round.  Both sides of the moments copy the gradient of the map that they add to in place,
which draws their quotient towards 1.

    roots      `inverse_root` of batches of small matrices: products, the closest fitted
               polynomial (not quite the same function), one kernel
    moments    mean and covariance of the patches a layer samples: gathered columns and `bmm` in
               float32 (torch) or in the map's 16 bits (torch16), or read from the map by the kernel
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from _common import (
    decaying_matrices,
    environment,
    interleaved,
    milliseconds,
    ratio,
    result_path,
    spread,
    timing_parser,
    with_range,
    write_result,
)
from torch import Tensor

from segdeconv.tables import markdown_table
from segdeconv.whitening import Blocks, PatchGrid, inverse_root, sampled_moments

EXAMPLES = """\
examples:
  python benchmarks/kernels.py              every row, some minutes on a GPU
  python benchmarks/kernels.py --tiny       two rows; without a GPU in Triton's interpreter
"""

ROOTS = [(size, batch) for size in (9, 16, 27, 36, 64) for batch in (1, 8, 32, 512)]
STEPS = 5


@dataclass(frozen=True)
class Layer:
    """The input of a 3x3 or 1x1 layer and the blocks of 64 channels it falls into.

    Attributes:
        batch: Images.
        channels: Of the map.
        size: Side of the square map.
        kernel: Side of the kernel.
        dilation: Between its taps.
        dtype: Of the map; the statistics are float32.
    """

    batch: int
    channels: int
    size: int
    kernel: int = 3
    dilation: int = 1
    dtype: str = "bfloat16"


MOMENTS = {
    "cifar 64, 32x32": Layer(128, 64, 32),
    "cifar 512, 4x4": Layer(128, 512, 4),
    "cifar 64, 32x32, float32": Layer(128, 64, 32, dtype="float32"),
    "street 64, 192x192": Layer(8, 64, 192),
    "street 1x1 256, 192x192": Layer(8, 256, 192, kernel=1),
    "street 256, 96x96, dilation 2": Layer(8, 256, 96, dilation=2),
    "street 512, 96x96, dilation 4": Layer(8, 512, 96, dilation=4),
    "street ASPP 2048, dilation 12": Layer(8, 2048, 96, dilation=12),
}
TINY = {"tiny": Layer(2, 4, 9, dtype="float32")}


def root_calls(size: int, batch: int, device: str) -> dict[str, Callable[[], object]]:
    """Forward and backward of one batch with the spectrum 1/i, by each backend."""
    matrix = decaying_matrices(batch, size).to(device).requires_grad_()
    grad = torch.randn_like(matrix)

    def step(backend: Any) -> Callable[[], object]:
        return lambda: torch.autograd.grad(inverse_root(matrix, STEPS, backend), matrix, grad)

    return {backend: step(backend) for backend in ("newton_schulz", "fitted", "triton")}


def moments_calls(layer: Layer, device: str) -> dict[str, Callable[[], object]]:
    """Forward and backward of the statistics, by PyTorch and by the kernels."""
    from segdeconv.whitening.kernels import patch_moments  # chooses interpreter or compiler

    side, reach = layer.kernel, layer.dilation * (layer.kernel // 2)
    num = -(-layer.channels // 64)
    grid = PatchGrid((side, side), (3, 3), (reach, reach), (layer.dilation, layer.dilation))
    blocks = Blocks(num, layer.channels * side * side // num, interleaved=True)
    shape = layer.batch, layer.channels, layer.size, layer.size
    x = torch.randn(shape, device=device, dtype=getattr(torch, layer.dtype))
    x = x.to(memory_format=torch.channels_last).relu_().requires_grad_()
    shift = torch.full((1, blocks.size), 0.4, device=device)  # about the mean, as a layer has it
    grads = [torch.randn_like(x), *(torch.randn(s, device=device) for s in _shapes(blocks))]

    def step(moments: Callable[[], tuple[Tensor, ...]]) -> Callable[[], object]:
        # A copy, as the gradient of the map is added to in place.
        return lambda: torch.autograd.grad(moments(), x, [grads[0].clone(), *grads[1:]])

    return {
        "torch": step(lambda: sampled_moments(x, grid, blocks, 1e-5, torch.float32)),
        "torch16": step(lambda: sampled_moments(x, grid, blocks, 1e-5, torch.float32, "input")),
        "triton": step(lambda: patch_moments(x, grid, blocks, 1e-5, shift)),
    }


def _shapes(blocks: Blocks) -> list[tuple[int, ...]]:
    """Of mean and covariance."""
    size = blocks.size
    return [(blocks.num_means, size), (blocks.num_roots, size, size)]


def measure(
    calls: Mapping[str, Callable[[], object]], reference: str, seconds: float, device: str
) -> dict[str, Any]:
    """Timings, quotients of the reference by the others, on a GPU each call's peak of memory."""
    times = interleaved(calls, seconds, device=device)
    row: dict[str, Any] = {"seconds": {name: spread(values) for name, values in times.items()}}
    for name in times.keys() - {reference}:
        row[f"{reference} / {name}"] = ratio(times[reference], times[name])
    if device == "cuda":
        row["peak_mib"] = {name: _peak_mib(call) for name, call in calls.items()}
    return row


def _peak_mib(call: Callable[[], object]) -> float:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def table(rows: Mapping[str, dict[str, Any]], reference: str) -> str:
    """Milliseconds and quotients, and memory where it was measured."""
    first = next(iter(rows.values()))
    names, memory = list(first["seconds"]), list(first.get("peak_mib", ()))
    quotients = [f"{reference} / {name}" for name in names if name != reference]
    header = ["", *names, *quotients, *(f"{name}, MiB" for name in memory)]

    def line(label: str, row: dict[str, Any]) -> list[str]:
        times = [milliseconds(row["seconds"][name]) for name in names]
        peaks = [f"{row['peak_mib'][name]:.0f}" for name in memory]
        return [label, *times, *(with_range(row[name], ".2f") for name in quotients), *peaks]

    return markdown_table(header, [line(label, row) for label, row in rows.items()])


def main() -> None:
    """Run what the command line asks for."""
    options = timing_parser(__doc__, EXAMPLES, seconds=3).parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        if not options.tiny:
            raise SystemExit("no GPU is here to time the kernels on; --tiny interprets two rows")
        os.environ["TRITON_INTERPRET"] = "1"
    torch.manual_seed(options.seed)
    record: dict[str, Any] = {"environment": environment(options.seed), "steps": STEPS}
    roots, moments = {}, {}
    for size, batch in [(9, 2)] if options.tiny else ROOTS:
        calls = root_calls(size, batch, device)
        roots[f"{batch} x {size}"] = measure(calls, "newton_schulz", options.seconds, device)
    for name, layer in (TINY if options.tiny else MOMENTS).items():
        calls = moments_calls(layer, device)
        row = measure(calls, "torch", options.seconds, device)
        moments[name] = asdict(layer) | row
    record |= {"roots": roots, "moments": moments}
    text = (
        "# Triton kernels\n\nMilliseconds, forward and backward (medians).\n\n"
        f"## Roots, batch x size, {STEPS} steps\n\n{table(roots, 'newton_schulz')}\n\n"
        f"## Moments of patches\n\n{table(moments, 'torch')}"
    )
    print(text)
    out = result_path(options, "kernels", whole=not options.tiny)
    if out:
        write_result(out, record, text)


if __name__ == "__main__":
    main()
