"""The experiments of the network-deconvolution paper: python tools/reproduce.py cifar10."""

import argparse
import json
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from segdeconv.training.grid import Grid, Job
from segdeconv.training.mistakes import RunStopped, UsageError, loading, run_tool
from segdeconv.training.reproduction import (
    STUDIES,
    Cell,
    cells,
    check_names,
    plot,
    remaining_seconds,
    report,
    result,
)

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = """\
A run is one of tools/train.py with the paper's recipe. Finished runs are kept, with a JSON each;
Ctrl-C saves those that are training, and the same command goes on. What diverges is reported.
Options behind -- go to tools/train.py.

  python tools/reproduce.py cifar10 --epochs 1 20 100 --seeds 3
  python tools/reproduce.py cifar10 --networks resnet18 vgg16 --epochs 20 --holdout
  python tools/reproduce.py cifar10 --dry-run
  python tools/reproduce.py imagenet --networks resnet18 -- --data.root /data/imagenet
"""


def main(arguments: list[str]) -> None:
    """Parse, train what is missing, report."""
    options, more = parse(arguments)
    with loading():
        from segdeconv.training.run_folder import write_whole

    study = STUDIES[options.dataset]
    judged_by = "holdout" if options.holdout else study.test
    folder = options.runs / f"{options.dataset}-{judged_by}"
    jobs: dict[Cell, Job] = {}
    chosen = (options.networks or study.networks, options.operators, options.epochs or study.epochs)
    for cell in cells(*chosen, options.seeds):
        arguments_of = cell.arguments(study, options.holdout, more)
        arguments_of = ("--config", str(ROOT / arguments_of[1]), *arguments_of[2:])
        jobs[cell] = Job(folder / cell.name, arguments_of)
    with loading():
        check_names(*chosen[:2], next(iter(jobs.values())).arguments)

    def collect() -> list[dict[str, Any]]:
        ended = [cell for cell, job in jobs.items() if job.finished or job.failure is not None]
        return [result(cell, jobs[cell], judged_by, ROOT) for cell in ended]

    if options.dry_run:
        list_runs(jobs, collect())
        return
    by_job = {job: cell for cell, job in jobs.items()}

    def keep(job: Job) -> None:
        found = result(by_job[job], job, judged_by, ROOT)
        write_whole(folder / "results" / f"{job.folder.name}.json", json.dumps(found, indent=1))
        figure = f"top-1 {100 * found['top1']:.2f} %" if "top1" in found else found["diverged"]
        print(f"{job.folder.name}: {figure}", flush=True)

    (folder / "results").mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        Grid(ROOT / "tools" / "train.py", options.jobs).train(jobs.values(), keep)
    except KeyboardInterrupt:
        raise RunStopped(f"what is finished is in {folder}; the same command goes on") from None
    results = collect()
    published = json.loads((ROOT / "benchmarks" / "published.json").read_text())
    out = options.out or folder / "report"
    text = report(options.dataset, judged_by, results, published, more, options.note)
    write_whole(out.with_suffix(".json"), json.dumps(results, indent=1) + "\n")
    try:
        plot(results, out.with_suffix(".png"))
        text += f"\n![curves]({out.name}.png)\n"
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)
    write_whole(out.with_suffix(".md"), text)
    print(f"\n{text}\nwritten to {out.with_suffix('.md')}, .json and .png")


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options, and what stands behind ``--``."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(
        prog="python tools/reproduce.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
    )
    add = parser.add_argument
    add("dataset", choices=list(STUDIES))
    add("--networks", nargs="+", help="default: the paper's")
    add("--operators", nargs="+", default=["batchnorm", "deconv"], help="also: released, …")
    add("--epochs", type=int, nargs="+", help="lengths of the runs; default: the paper's")
    add("--seeds", type=int, default=1, help="number of seeds, from 0 on (1)")
    judged = parser.add_mutually_exclusive_group()
    judged.add_argument("--test", action="store_true", help="judge by the test set, as the paper")
    judged.add_argument("--holdout", action="store_true", help="by training images held out")
    add("--jobs", type=int, default=1, help="runs at the same time (1)")
    add("--runs", type=Path, default=Path("runs/reproduce"), help="folder of all runs")
    add("--out", type=Path, help="files of the report without ending; default: beside the runs")
    add("--note", default="", help="a sentence for the report, such as what else the machine did")
    add("--dry-run", action="store_true", help="list the runs and the time they will take")
    try:
        options = parser.parse_args(arguments[:end])
    except argparse.ArgumentError as error:
        raise UsageError(str(error)) from error
    numbers = {"seeds": [options.seeds], "jobs": [options.jobs], "epochs": options.epochs or []}
    for name, values in numbers.items():
        if any(value < 1 for value in values):
            raise UsageError(f"--{name} {min(values)}: expected 1 or more")
    return options, arguments[end + 1 :]


def list_runs(jobs: dict[Cell, Job], results: list[dict[str, Any]]) -> None:
    """Say what there is and what is missing, with the time it takes."""
    total, unknown = 0.0, 0
    for cell, job in jobs.items():
        state = "diverged" if job.failure else "to be resumed" if job.resumable else "to be trained"
        seconds = remaining_seconds(cell, results)
        if job.finished or job.failure:
            state = "finished" if job.finished else state
        else:
            total, unknown = total + (seconds or 0), unknown + (seconds is None)
            state += f", about {timedelta(seconds=round(seconds))}" if seconds else ", time unknown"
        print(f"{cell.name:50s} {state}")
    parts = [f"{len(jobs)} runs"]
    if total or not unknown:
        parts.append(f"what is missing takes about {timedelta(seconds=round(total))}")
    if unknown:
        parts.append(f"the time of {unknown} is known once a run of the same network has ended")
    print("; ".join(parts))


if __name__ == "__main__":
    sys.exit(run_tool(main))
