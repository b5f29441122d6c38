r"""Train two configs that differ in the operator alone, tune both alike, and compare them.

Each config is trained at every learning rate with the first seed; the rate with the best final
mIoU is then trained with the other seeds. Finished runs are kept: an interrupted comparison goes on
where it stopped, and a run that was cut off is resumed.

    python benchmarks/twins.py configs/camvid/unet_resnet18_cpu_deconv.yaml \
        configs/camvid/unet_resnet18_cpu_batchnorm.yaml --lr 0.03 0.1 0.3 --seeds 0 1 2 \
        --name camvid-unet-resnet18-cpu -- --trainer.max_epochs 8

The learning rate is chosen on the same validation set that is reported, for both twins alike, so
the figures flatter both a little.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _common import RESULTS, ROOT, environment, write_result

from segdeconv.tables import markdown_table, mean_and_stdev, percent
from segdeconv.training import grid
from segdeconv.training.grid import curve


@dataclass(frozen=True)
class Job(grid.Job):
    """One run: a config at a learning rate with a seed."""

    config: Path
    lr: float
    seed: int

    @classmethod
    def of(cls, config: Path, lr: float, seed: int, options: argparse.Namespace) -> "Job":
        """The run with what stands behind ``--``."""
        folder = options.runs / options.name / f"{config.stem}-lr{lr:g}-seed{seed}"
        given = {"--config": config, "--optimizer.lr": lr, "--seed": seed}
        arguments = [str(item) for pair in given.items() for item in pair]
        return cls(folder, (*arguments, *options.overrides), config, lr, seed)


def main() -> None:
    """Run what is missing, compare, write JSON, table and curves."""
    arguments = parse()
    configs, rates, seeds = arguments.configs, arguments.lr, arguments.seeds

    def job(config: Path, lr: float, seed: int) -> Job:
        return Job.of(config, lr, seed, arguments)

    first = [job(config, lr, seeds[0]) for config in configs for lr in rates]
    train_all(first, arguments.jobs)
    best = {
        config: max(rates, key=lambda lr: final(job(config, lr, seeds[0]))) for config in configs
    }
    more = [job(config, best[config], seed) for seed in seeds[1:] for config in configs]
    train_all(more, arguments.jobs)
    jobs = {config: [job(config, best[config], seed) for seed in seeds] for config in configs}
    record = {
        "environment": environment(),
        "overrides": arguments.overrides,
        "timed": not arguments.untimed and arguments.jobs == 1,
        "tuning": [{"config": job.config.stem, "lr": job.lr, "miou": final(job)} for job in first],
        "twins": [summary(config, jobs[config]) for config in configs],
    }
    out = RESULTS / arguments.name
    write_result(out, record, text(arguments.name, record))
    plot(record["twins"], out.with_suffix(".png"), record["timed"])


def parse() -> argparse.Namespace:
    """Command line; everything behind ``--`` goes to tools/train.py."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", type=Path, nargs=2, help="the twins")
    parser.add_argument("--lr", type=float, nargs="+", required=True, help="rates to try")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="the first one tunes")
    parser.add_argument("--name", required=True, help="of the result files")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of the runs")
    parser.add_argument(
        "--untimed", action="store_true", help="report no times: the machine had other work"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at the same time; with more than one --untimed"
    )
    own, overrides = sys.argv[1:], []
    if "--" in own:
        own, overrides = own[: own.index("--")], own[own.index("--") + 1 :]
    arguments = parser.parse_args(own)
    arguments.overrides = overrides
    return arguments


def train_all(jobs: list[Job], parallel: int) -> None:
    """Train what is not finished, ``parallel`` at a time; stop at the first failure."""

    def said(job: Job) -> None:
        print(f"{job.folder.name}: {job.failure or f'mIoU {100 * final(job):.2f}'}", flush=True)

    try:
        grid.Grid(ROOT / "tools" / "train.py", parallel, folder=ROOT).train(jobs, said)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    if lost := [job.folder.name for job in jobs if job.failure]:
        raise SystemExit(f"{', '.join(lost)} diverged, see the log beside the folder")


def final(job: Job) -> float:
    """MIoU of the last validation (not of the best one, which would favour the noisier twin)."""
    miou: float = json.loads((job.folder / "metrics.json").read_text())["last"]["miou"]
    return miou


def summary(config: Path, jobs: list[Job]) -> dict[str, Any]:
    """Figures of one twin over its seeds."""
    last = [json.loads((job.folder / "metrics.json").read_text())["last"] for job in jobs]
    mious = [scores["miou"] for scores in last]
    mean, stdev = mean_and_stdev(mious)
    return {
        "config": config.stem,
        "lr": jobs[0].lr,
        "seeds": [job.seed for job in jobs],
        "miou": mious,
        "miou_mean": mean,
        "miou_stdev": stdev,
        "pixel_accuracy": statistics.mean(scores["pixel_accuracy"] for scores in last),
        "class_iou": {
            name: _mean_of_some(scores["class_iou"][name] for scores in last)
            for name in last[0]["class_iou"]
        },
        "curves": [curve(job.folder, "miou") for job in jobs],
    }


def _mean_of_some(values: Iterable[float | None]) -> float | None:
    """Of those that there are: a class that is neither in truth nor prediction has no IoU."""
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def text(name: str, record: dict[str, Any]) -> str:
    """The comparison for reading."""
    twins = record["twins"]
    rows = [
        [
            twin["config"],
            f"{twin['lr']:g}",
            str(len(twin["seeds"])),
            percent(twin["miou_mean"], twin["miou_stdev"]),
            f"{100 * twin['pixel_accuracy']:.2f}",
            f"{statistics.mean(c['seconds'][-1] for c in twin['curves']):.0f}"
            if record["timed"]
            else "not measured",
        ]
        for twin in twins
    ]
    head = ["config", "lr", "seeds", "mIoU % (last epoch)", "pixel accuracy %", "training s"]
    classes = [
        [name, *(_class_cell(twin["class_iou"][name]) for twin in twins)]
        for name in twins[0]["class_iou"]
    ]
    epochs = [
        [f"{epoch:g}", *(_mean_at(twin, i) for twin in twins)]
        for i, epoch in enumerate(twins[0]["curves"][0]["epoch"])
    ]
    tuning = [
        [run["config"], f"{run['lr']:g}", f"{100 * run['miou']:.2f}"] for run in record["tuning"]
    ]
    names = [twin["config"] for twin in twins]
    return "\n\n".join(
        [
            f"# {name}",
            markdown_table(head, rows),
            f"![curves]({name}.png)",
            "## mIoU after each epoch, mean over seeds, %",
            markdown_table(["epoch", *names], epochs),
            "## IoU of each class, %",
            markdown_table(["class", *names], classes),
            "## Learning rates tried, first seed, %",
            markdown_table(["config", "lr", "mIoU"], tuning),
        ]
    )


def _class_cell(iou: float | None) -> str:
    return "-" if iou is None else f"{100 * iou:.1f}"


def _mean_at(twin: dict[str, Any], index: int) -> str:
    return f"{100 * statistics.mean(curve['miou'][index] for curve in twin['curves']):.2f}"


def plot(twins: list[dict[str, Any]], path: Path, timed: bool) -> None:
    """MIoU against epochs and, where times mean something, against training time."""
    from matplotlib.figure import Figure

    panels = 2 if timed else 1
    figure = Figure(figsize=(4.5 * panels, 3.6), layout="constrained")
    axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    for twin, colour in zip(twins, ("#0072b2", "#d55e00"), strict=True):
        for index, one in enumerate(twin["curves"]):
            label = f"{twin['config']}, lr {twin['lr']:g}" if index == 0 else None
            mious = [100 * miou for miou in one["miou"]]
            horizontal = [one["epoch"], [seconds / 60 for seconds in one["seconds"]]]
            for axis, values in zip(axes, horizontal, strict=False):
                axis.plot(values, mious, color=colour, marker="o", ms=3, label=label)
    for axis, label in zip(axes, ("epoch", "minutes of training"), strict=False):
        axis.set(xlabel=label)
    axes[0].set(ylabel="validation mIoU, %")
    axes[0].legend(frameon=False, fontsize=8)
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
