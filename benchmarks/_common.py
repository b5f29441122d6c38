"""What the benchmarks share: where a number was measured, timing, command lines, result files."""

import argparse
import ctypes
import fnmatch
import json
import math
import os
import platform
import random
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import segdeconv

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MIN_SECONDS = 0.005  # of one timing: shorter calls are repeated within it
PRECISIONS = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # of --amp


def environment(seed: int | None = None) -> dict[str, Any]:
    """Hardware, versions, commit, command and seed: what it takes to judge or repeat a number."""
    from_checkout = Path(segdeconv.__file__).is_relative_to(ROOT)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": COMMIT,
        "segdeconv": f"{segdeconv.__version__} ({'checkout' if from_checkout else 'installed'})",
        "command": shlex.join(["python", _script(), *sys.argv[1:]]),
        "seed": seed,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "blas": "MKL" if torch.backends.mkl.is_available() else "no MKL",
    }


def _script() -> str:
    path = Path(sys.argv[0]).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def _commit() -> str:
    """Commit of the checkout, marked when the package or the benchmarks differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "segdeconv", "benchmarks/*.py")
    return (git("rev-parse", "HEAD") or "unknown") + (" with changes" if changed else "")


COMMIT = _commit()  # at once: what is committed while a benchmark runs is not what it measures


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)


def keep_freed_memory() -> bool:
    """Tell glibc not to hand freed buffers back, as a GPU's caching allocator does not either.

    Without this, buffers of some megabytes are returned and faulted in anew within each step, or
    not, depending on the order of allocations: the same copy then takes 5 or 19 ms.

    Returns:
        Whether the C library knows the setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    return bool(mallopt and mallopt(trim_threshold, 2**31 - 1) and mallopt(mmap_max, 0))


def clock(device: str) -> Callable[[], float]:
    """Processor time on one thread, which others on the machine disturb little; else wall time.

    On a GPU its queue is empty whenever the clock is read.
    """
    if device != "cpu":
        return _finished_at
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def _finished_at() -> float:
    """Wall time once the GPU has done all that was asked of it."""
    torch.cuda.synchronize()
    return time.perf_counter()


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    seconds: float,
    *,
    min_rounds: int = 5,
    max_rounds: int = 40,
    device: str = "cpu",
) -> dict[str, list[float]]:
    """Time all ``calls`` in turn, round after round, so that a busy machine hurts them alike.

    The order changes from round to round: what a call leaves in the caches helps or hurts the next.

    Args:
        calls: What to time, by name.
        seconds: Time to spend; ``min_rounds`` are made in any case.
        min_rounds: Rounds at least.
        max_rounds: Rounds at most.
        device: Where the calls run, for `clock`.

    Returns:
        Seconds per call, one entry per round; entries of the same place belong together.
    """
    now = clock(device)
    repeats = {}
    for name, call in calls.items():
        call()
        start = now()
        call()
        repeats[name] = max(1, math.ceil(MIN_SECONDS / max(now() - start, 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    shuffled = random.Random(0)
    end = time.perf_counter() + seconds
    for done in range(max_rounds):
        if done >= min_rounds and time.perf_counter() > end:
            break
        for name in shuffled.sample(list(calls), len(calls)):
            start = now()
            for _ in range(repeats[name]):
                calls[name]()
            times[name].append((now() - start) / repeats[name])
    return times


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, extremes and number of timings."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "rounds": len(values),
    }


def ratio(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """Spread of the quotient of two interleaved timings, round by round."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


def autocast(device: str, dtype: torch.dtype | None) -> torch.autocast:
    """Mixed precision, or none."""
    return torch.autocast(device, dtype, enabled=dtype is not None)


def draw_cityscapes(
    folder: str, split: str, count: int, seed: int, size: tuple[int, int], workers: int
) -> None:
    """Write so many drawn scenes of (height, width) in the Cityscapes layout."""
    # here, as it loads what loads triton, which benchmarks/kernels.py sets up first
    from segdeconv.data.synthetic.files import plan_jobs, write_all

    for _ in write_all(plan_jobs(Path(folder), {split: count}, seed, size), workers):
        pass


def decaying_matrices(batch: int, size: int) -> Tensor:
    """Symmetric matrices (batch, size, size) with the spectrum 1/i, as covariances fall off."""
    basis = torch.linalg.qr(torch.randn(batch, size, size)).Q
    matrices = (basis / torch.arange(1, size + 1)) @ basis.mT
    return 0.5 * (matrices + matrices.mT)


# ------------------------------------------------------------------------------------ command line


def timing_parser(
    description: str | None, examples: str, seconds: float
) -> argparse.ArgumentParser:
    """A parser with the options of every script that times calls in turn."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tiny", action="store_true", help="tiny rows, to see that it runs")
    parser.add_argument(
        "--seconds",
        type=float,
        default=seconds,
        help=f"to spend on the timings of a row, a few rounds at least ({seconds:g})",
    )
    parser.add_argument("--seed", type=int, default=0, help="of inputs and weights (0)")
    parser.add_argument(
        "--out",
        type=Path,
        help="result files without ending; default: a dated name in benchmarks/results for a "
        "full run, none for a partial one",
    )
    return parser


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """What the calls run on."""
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="(cpu)")
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch; 1 (default) times by processor time"
    )


def matching(
    globs: Sequence[str] | None, names: Iterable[str], kind: str, hint: str | None = None
) -> list[str]:
    """The names that some glob matches, all without globs; one sentence if there are none."""
    names = list(names)
    chosen = [n for n in names if any(fnmatch.fnmatchcase(n, glob) for glob in globs or ["*"])]
    if not chosen:
        told = hint or f"there are {', '.join(names)}"
        raise SystemExit(f"no {kind} matches {' '.join(globs or ['*'])}; {told}")
    return chosen


def result_path(options: argparse.Namespace, kind: str, whole: bool) -> Path | None:
    """Result files without ending: as asked for, else dated if nothing was left out."""
    return options.out or (RESULTS / f"{kind}-{datetime.now(UTC):%Y-%m-%d}" if whole else None)


# ----------------------------------------------------------------------------------------- results


def milliseconds(timing: Mapping[str, float]) -> str:
    """Median of a `spread` of seconds."""
    return f"{timing['median'] * 1e3:.3g}"


def with_range(values: Mapping[str, float], form: str, scale: float = 1) -> str:
    """A `spread` as "median (minimum-maximum)"."""
    median, least, most = (format(scale * values[key], form) for key in ("median", "min", "max"))
    return f"{median} ({least}-{most})"


def plot_ratios(
    rows: Mapping[str, Mapping[str, Mapping[str, float]]], label: str, path: Path
) -> None:
    """Bars of quotients, a panel for each outer name; the lines reach from minimum to maximum."""
    from matplotlib.figure import Figure  # needs no display, as pyplot may

    most = max(len(bars) for bars in rows.values())
    figure = Figure(figsize=(4.5 * len(rows), max(3.6, 0.2 * most)), layout="constrained")
    axes = figure.subplots(1, len(rows), squeeze=False)[0]
    for axis, (title, bars) in zip(axes, rows.items(), strict=True):
        medians = [bar["median"] for bar in bars.values()]
        below = [bar["median"] - bar["min"] for bar in bars.values()]
        above = [bar["max"] - bar["median"] for bar in bars.values()]
        axis.barh(list(bars), medians, xerr=(below, above), color="#0072b2", ecolor="#555555")
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set(title=title, xlabel=label)
        axis.invert_yaxis()
        axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=150)


def write_result(out: Path, record: Mapping[str, Any], text: str) -> None:
    """Write ``out``.json with the figures and ``out``.md with the same for reading."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    facts = "\n".join(f"- {name}: {value}" for name, value in record["environment"].items())
    out.with_suffix(".md").write_text(f"{text}\n\n## Where this was measured\n\n{facts}\n")
    print(f"wrote {out.with_suffix('.json')} and {out.with_suffix('.md')}")
