"""Time, memory and operator calls of one training step of whole networks, against batch norm.

A step is forward, loss, backward and an SGD update.  All variants of a network share its initial
parameters and run in turn in one process; every quotient is taken round by round against the
batch-norm twin, so a busy machine disturbs both of its sides.

    batchnorm  the network as its authors made it
    groupnorm  group norms in place of the batch norms
    default    `segdeconv.convert(network)`
    block64    the same with the released block size
    released   `segdeconv.convert(network, preset="released")`
    literal    the algorithm written down as published, on the autograd tape (benchmarks/literal.py)

`--variant` adds more.  Besides times there are

    peak       most bytes that torch's allocator held at once: parameters, gradients, momentum,
               activations and temporaries of building the network and of two steps
    saved      bytes that the forward keeps for the backward, each storage once, parameters and
               buffers apart
    operators  calls of aten operators in the first step, without torch.compile, views apart
    resident   most memory that a fresh process of one thread took from the system, workspaces of
               oneDNN and BLAS included (--resident)
    launches   calls of the CUDA driver that start kernels or graphs, and the kernels that ran
               (GPU only)
"""

import argparse
import ast
import gc
import math
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from _common import (
    PRECISIONS,
    autocast,
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
from literal import LiteralDeconv2d
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from segdeconv.surgery import convert, swap_modules
from segdeconv.tables import markdown_table

EXAMPLES = """\
examples:
  python benchmarks/train_step.py --only resnet18-cifar        about ten minutes on one core
  python benchmarks/train_step.py --only resnet18-cifar --skip literal released --seconds 300 \\
      --variant stride5:sampling_stride=5 block32:block=32     compare knobs
  python benchmarks/train_step.py --only unet-resnet18 --profile default
  python benchmarks/train_step.py --device cuda --amp bf16 --channels-last --cuda-graph
"""
TWIN = "batchnorm"
MEMORY = {"peak_bytes": "peak", "saved_bytes": "saved", "resident_bytes": "resident"}
COUNTS = ("operators", "launches", "kernels")


# ---------------------------------------------------------------------------------------- variants


@dataclass(frozen=True)
class Variant:
    """What is done to a network: an operator of `segdeconv.convert`, or "literal"."""

    operator: str = "deconv"
    options: dict[str, Any] = field(default_factory=dict)

    def apply(self, model: nn.Module) -> list[str]:
        """Change the network in place; return the convolutions that "literal" could not take."""
        if self.operator == "literal":
            return make_literal(model)
        convert(model, self.operator, **self.options)
        return []


VARIANTS = {
    TWIN: Variant("batchnorm"),
    "groupnorm": Variant("groupnorm"),
    "default": Variant(),
    "block64": Variant(options={"block": 64}),
    "released": Variant(options={"preset": "released"}),
    "literal": Variant("literal"),
}


def make_literal(model: nn.Module) -> list[str]:
    """Give every convolution that it can take to the literal layer; return the names of the others.

    Those stay plain convolutions without a norm.
    """
    convert(model, "none")  # norms out, biases in
    swap_modules(model, lambda _, m: fits_literal(m), lambda _, m: literal_layer(m))
    return [name for name, m in model.named_modules() if isinstance(m, nn.modules.conv._ConvNd)]


def fits_literal(module: nn.Module) -> bool:
    """Whether this is a plain convolution with zero padding and the same numbers both ways."""
    if type(module) is not nn.Conv2d or module.padding_mode != "zeros":
        return False
    numbers = (module.kernel_size, module.stride, module.padding, module.dilation)
    return all(isinstance(pair, tuple) and pair[0] == pair[1] for pair in numbers)


def literal_layer(conv: nn.Module) -> nn.Module:
    """The literal layer with the parameters of a convolution."""
    assert isinstance(conv, nn.Conv2d) and isinstance(conv.padding, tuple)
    geometry = (conv.kernel_size[0], conv.stride[0], conv.padding[0], conv.dilation[0])
    layer = LiteralDeconv2d(conv.in_channels, conv.out_channels, *geometry, conv.groups)
    layer.weight = cast(nn.Parameter, conv.weight)
    if conv.bias is not None:
        layer.bias = cast(nn.Parameter, conv.bias)
    return layer


def parse_variant(text: str) -> tuple[str, Variant]:
    """NAME:key=value,... as a name and a variant."""
    name, colon, given = text.partition(":")
    pairs = [pair.partition("=") for pair in given.split(",") if pair]
    if not (name and colon) or any(not equals for _, equals, _ in pairs):
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME:key=value,key=value")
    options = {key: _value(value) for key, _, value in pairs}
    return name, Variant(options.pop("operator", "deconv"), options)


def _value(text: str) -> Any:
    """A Python literal, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


# -------------------------------------------------------------------------------------------- step


@dataclass(frozen=True)
class Setup:
    """How the steps run, see the command line."""

    device: str = "cpu"
    amp: str = "none"
    channels_last: bool = False
    compile: bool = False
    cuda_graph: bool = False
    seed: int = 0


class TrainingStep:
    """One training step of a network, again and again on the same batch.

    Attributes:
        loss: Of the last step.
        untaken: Convolutions that the variant could not take.
    """

    def __init__(self, network: Network, variant: Variant, setup: Setup) -> None:
        torch.manual_seed(setup.seed)
        model = network.build()
        self.untaken = variant.apply(model)
        layout = memory_format(setup.channels_last)
        self.model = model.train().to(setup.device).to(memory_format=layout)
        self.images = network.images(setup.seed).to(setup.device).contiguous(memory_format=layout)
        self.targets = network.targets(setup.seed).to(setup.device)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4
        )
        self.scaler = torch.amp.GradScaler(setup.device, enabled=setup.amp == "fp16")
        self.setup = setup
        self.forward: Callable[[Tensor], Tensor] = self.model
        self.run: Callable[[], object] = self.update
        self.loss = torch.tensor(torch.nan)

    def __call__(self) -> None:
        """Make one step."""
        self.run()

    def update(self) -> None:
        """Forward, loss, backward and update, operator by operator."""
        self.optimizer.zero_grad()
        with autocast(self.setup.device, PRECISIONS[self.setup.amp]):
            loss = F.cross_entropy(self.forward(self.images), self.targets)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.loss = loss.detach()

    def compile(self) -> None:
        """Let torch.compile have the network, if the setup says so; the first step compiles."""
        if self.setup.compile:
            self.forward = torch.compile(self.model)

    def capture(self, pool: Any) -> None:
        """Record the whole step as a CUDA graph, if the setup says so.

        Args:
            pool: Memory that several graphs share: what one leaves there, no other reads.
        """
        if not self.setup.cuda_graph:
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # capture needs a warm step off the default stream
            for _ in range(3):
                self.update()
        torch.cuda.current_stream().wait_stream(side)
        self.optimizer.zero_grad()  # gradients must be born within the graph's pool
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            self.update()
        self.run = graph.replay


# -------------------------------------------------------------------------------- costs of a step


class OperatorCalls(TorchDispatchMode):
    """Counts the aten operators that are called within the block and compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count and call."""
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Adds up what forwards within the block keep for their backward, each storage once."""

    def __init__(self, model: nn.Module) -> None:
        # Addresses identify storages: what is saved stays alive until the backward begins.
        self.state = {t.untyped_storage().data_ptr() for t in model.state_dict().values()}
        self.sizes: dict[int, int] = {}
        super().__init__(self._pack, lambda saved: saved)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.state:
            self.sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would be a cycle, and never be freed


class PeakMemory:
    """Most bytes that torch's allocator held at once in the block, over those at its start."""

    def __init__(self, device: str) -> None:
        self.on_gpu, self.bytes = device != "cpu", 0
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)

    def __enter__(self) -> "PeakMemory":
        gc.collect()  # freed later, a rest of the last variant would count against this one's
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            self._profile.start()
        return self

    def forget(self) -> None:
        """On a GPU, count from here on; what is held now counts."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()

    def __exit__(self, *_: object) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()
            self.bytes = torch.cuda.max_memory_allocated() - self._before
            return
        self._profile.stop()
        events = cast(Any, self._profile.profiler).kineto_results.events()
        changes = [event.nbytes() for event in events if event.name() == "[memory]"]
        self.bytes = max(accumulate(changes, initial=0))


def inspect(
    network: Network, variant: Variant, setup: Setup, pool: Any
) -> tuple[TrainingStep, dict[str, Any]]:
    """A step that is ready to be timed, and its figures that need no clock."""
    with PeakMemory(setup.device) as peak:
        step = TrainingStep(network, variant, setup)
        saved, calls = SavedBytes(step.model), OperatorCalls()
        with saved, calls:
            step()
        step.compile()
        step()  # now with momentum
        if setup.compile:
            peak.forget()  # what the compiler took to try out kernels
            step()
    first_loss = step.loss.item()
    step.capture(pool)
    return step, {
        **asdict(variant),
        "untaken": step.untaken,
        "peak_bytes": peak.bytes,
        "saved_bytes": sum(saved.sizes.values()),
        "operators": calls.count,
        "first_loss": first_loss,  # after as many steps in every variant, unlike the last one
        **(launches(step) if setup.device != "cpu" else {}),
    }


def launches(step: TrainingStep) -> dict[str, int]:
    """Calls of the driver that start kernels or graphs in a step, and the kernels that ran."""
    step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
        step()
        torch.cuda.synchronize()
    events = record.events() or []
    calls = [e for e in events if e.name.startswith("cu") and "Launch" in e.name]
    # Spans with names, such as the optimizer's step, are events too; torch's totals leave them out.
    on_gpu = [e for e in events if e.device_type.name == "CUDA" and not e.is_user_annotation]
    kernels = [e for e in on_gpu if not e.name.startswith(("Memcpy", "Memset"))]
    return {"launches": len(calls), "kernels": len(kernels)}


def resident_bytes(network: Network, variant: Variant, setup: Setup) -> int:
    """Most memory that a fresh process takes from the system for building and two steps.

    Unlike the allocator's peak this has the workspaces of oneDNN and BLAS, and fragmentation.
    """
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as pool:
        return pool.submit(_resident_growth, network, variant, setup).result()


def _resident_growth(network: Network, variant: Variant, setup: Setup) -> int:
    torch.set_num_threads(1)
    before = _most_resident()
    step = TrainingStep(network, variant, setup)
    step()
    step()
    return _most_resident() - before


def _most_resident() -> int:
    """Peak of this process, from Linux; ru_maxrss would begin at the size of the parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
    return 1024 * int(kib)


# ----------------------------------------------------------------------------------------- results


def measure(
    network: Network,
    variants: Mapping[str, Variant],
    setup: Setup,
    seconds: float,
    resident: bool = False,
) -> dict[str, dict[str, Any]]:
    """Figures of all variants of one network, quotients to the batch-norm twin with them."""
    pool = torch.cuda.graph_pool_handle() if setup.cuda_graph else None
    steps, rows = {}, {}
    for name, variant in variants.items():
        steps[name], rows[name] = inspect(network, variant, setup, pool)
        if resident:
            rows[name]["resident_bytes"] = resident_bytes(network, variant, setup)
    times = interleaved(steps, seconds, min_rounds=3, max_rounds=200, device=setup.device)
    for name, row in rows.items():
        row["seconds"] = spread(times[name])
        row["time / batchnorm"] = ratio(times[name], times[TWIN])
        for figure in MEMORY:
            if figure in row:
                row[f"{figure} / batchnorm"] = row[figure] / rows[TWIN][figure]
        row["last_loss"] = steps[name].loss.item()
    return rows


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Figures of one network for reading."""

    def line(name: str, row: Mapping[str, Any]) -> list[str]:
        cells = [name, with_range(row["seconds"], ".4g", 1e3)]
        cells.append(with_range(row["time / batchnorm"], ".2f"))
        for figure in MEMORY:
            if figure in row:
                quotient = row[f"{figure} / batchnorm"]
                cells.append(f"{row[figure] / 2**20:.4g} ({quotient:.2f})")
        return cells + [str(row[count]) for count in COUNTS if count in row]

    some = next(iter(rows.values()))
    header = ["variant", "ms", "time / BN"]
    header += [f"{name}, MiB (/ BN)" for figure, name in MEMORY.items() if figure in some]
    header += [count for count in COUNTS if count in some]
    return markdown_table(header, [line(name, row) for name, row in rows.items()])


NOTES = """\
# One training step

Forward, loss, backward and SGD update.  Times are medians (minimum - maximum over the rounds),
quotients are taken round by round against the batch-norm network.  What the columns mean:
`python benchmarks/train_step.py --help`."""


def remarks(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a reader of the table must know."""
    lines = []
    for name, row in rows.items():
        if not math.isfinite(row["last_loss"]):
            lines.append(f"{name} diverged, so its time is not that of training.")
        if row["untaken"]:
            lines.append(f"{name} left these plain: {', '.join(row['untaken'])}.")
    return lines


def print_profile(network: Network, variant: Variant, setup: Setup) -> None:
    """The operators of one step that take most time, after two steps for warming up."""
    step = TrainingStep(network, variant, setup)
    step.compile()
    step()
    step()
    on_gpu = setup.device != "cpu"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=activities, record_shapes=True) as record:
        step()
    key = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    averages = record.key_averages(group_by_input_shape=True)
    print(averages.table(sort_by=key, row_limit=40, max_name_column_width=50))
    print(record.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=50))


# ------------------------------------------------------------------------------------ command line


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = network_parser(__doc__, EXAMPLES, seconds=120)
    parser.add_argument(
        "--variant",
        nargs="+",
        action="extend",
        default=[],
        type=parse_variant,
        metavar="NAME:key=value,...",
        help="further variants: options of `segdeconv.convert`, and operator=NAME (deconv)",
    )
    parser.add_argument(
        "--skip", nargs="+", default=[], choices=[v for v in VARIANTS if v != TWIN], metavar="NAME"
    )
    parser.add_argument("--amp", choices=PRECISIONS, default="none", help="autocast (none)")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network")
    parser.add_argument("--cuda-graph", action="store_true", help="replay the step as one graph")
    parser.add_argument(
        "--resident", action="store_true", help="also the memory of a fresh process per variant"
    )
    parser.add_argument(
        "--profile", metavar="VARIANT", help="print where its time goes, and measure nothing else"
    )
    options = parser.parse_args(arguments)
    if options.cuda_graph and (options.device == "cpu" or options.amp == "fp16"):
        parser.error(
            "--cuda-graph goes with --device cuda and with --amp bf16 or none: "
            "with fp16 the host decides on every step whether it counts"
        )
    if options.resident and (options.device != "cpu" or options.tiny or options.compile):
        parser.error(
            "--resident goes with --device cpu and networks that fill memory, not --tiny, "
            "and without --compile"
        )
    return options


def chosen_variants(options: argparse.Namespace) -> dict[str, Variant]:
    """The variants that the command line asks for."""
    known = {name: variant for name, variant in VARIANTS.items() if name not in options.skip}
    known.update(options.variant)
    if options.profile and options.profile not in known:
        raise SystemExit(f"no variant is called {options.profile!r}; there are {', '.join(known)}")
    return known


def main() -> None:
    """Run what the command line asks for."""
    options = parse()
    names = ("device", "amp", "channels_last", "compile", "cuda_graph", "seed")
    setup = Setup(**{name: getattr(options, name) for name in names})
    variants = chosen_variants(options)
    torch.set_num_threads(options.threads)
    kept = keep_freed_memory()
    chosen = chosen_networks(options)
    if options.profile:
        for network in chosen.values():
            print_profile(network, variants[options.profile], setup)
        return
    rows, sections = measure_networks(
        chosen,
        lambda network: measure(network, variants, setup, options.seconds, options.resident),
        lambda row: [table(row), *remarks(row)],
    )
    whole = is_whole(options) and not options.skip
    out = result_path(options, f"train_step-{options.device}", whole)
    if out:
        facts = environment(options.seed) | {"freed memory is kept": kept, "setup": asdict(setup)}
        bars = {
            name: {variant: figures["time / batchnorm"] for variant, figures in row.items()}
            for name, row in rows.items()
        }
        write_networks(out, facts, rows, [NOTES, *sections], bars, "time of a step / batch norm")


if __name__ == "__main__":
    main()
