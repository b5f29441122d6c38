r"""What each whitening option costs and what it does to accuracy: CIFAR-10, a small VGG, one loop.

Every candidate is trained by the same recipe from the same seeds, with a plain linear classifier;
the first four batches of CIFAR-10 train, the fifth validates, the test set is not touched.  A
finished run is kept in ``--runs`` and not repeated, so an interrupted study goes on where it
stopped; with --no-training candidates may have fewer seeds than others, see their column.  The cost
is the time of forward and backward, without the update, over the batch-norm twin's, round by round.

    python benchmarks/pareto.py --epochs 3 --images 20000 --seeds 0
    python benchmarks/pareto.py --epochs 10 --seeds 0 1 2 --only batchnorm released default
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _common import (
    COMMIT,
    ROOT,
    add_machine_options,
    clock,
    environment,
    interleaved,
    keep_freed_memory,
    matching,
    ratio,
    write_result,
)
from torch import Tensor, nn

from segdeconv import convert
from segdeconv.tables import markdown_table, mean_and_stdev, percent

BASE = {"block": 16, "max_rows": 0, "grouping": "interleaved", "share": "both"}
CHANNELS = BASE | {"grouping": "channel"}
CANDIDATES: dict[str, dict[str, Any] | None] = {
    "batchnorm": None,
    "released": {"preset": "released"},
    "default": {},
    "block 8": BASE | {"block": 8},
    "block 16": BASE,
    "block 32": BASE | {"block": 32},
    "block 64": BASE | {"block": 64},
    "rows 64": BASE | {"max_rows": 64},
    "rows 32": BASE | {"max_rows": 32},
    "rows 16": BASE | {"max_rows": 16},
    "rows 8": BASE | {"max_rows": 8},
    "channel blocks, one root": CHANNELS,
    "channel blocks, a root each": CHANNELS | {"share": "none"},
    "channel blocks, own means": CHANNELS | {"share": "root"},
    "kronecker": CHANNELS | {"structure": "kronecker"},
    "kronecker, block 64": CHANNELS | {"structure": "kronecker", "block": 64},
    "constant statistics": BASE | {"detach": True},
    "every 4 steps": BASE | {"update_every": 4},
    "every 10 steps": BASE | {"update_every": 10},
    "3 steps of Newton-Schulz": BASE | {"n_iter": 3},
    "7 steps of Newton-Schulz": BASE | {"n_iter": 7},
    "fitted polynomial": BASE | {"backend": "fitted"},
    "coarse polynomial": BASE | {"backend": "fitted_qq"},
    "block 8, rows 32": BASE | {"block": 8, "max_rows": 32},
    "rows 32, constant statistics": BASE | {"max_rows": 32, "detach": True},
}
"""Options of the whitening layers by name, all spelled out; None keeps batch norm."""


def network(name: str, width: int) -> nn.Module:
    """Six 3x3 convolutions with batch norms, converted as ``name`` says."""
    channels = [3, width, 2 * width, 4 * width, 4 * width, 4 * width, 8 * width]
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(pairwise(channels)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        layers += [nn.MaxPool2d(2)] if index in (0, 1, 3) else []
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 10)]
    net = nn.Sequential(*layers)
    options = CANDIDATES[name]
    if options is not None:
        convert(net, "deconv", **options)
    return net


def cifar(root: Path, images: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (N, 3, 32, 32) in -1..1 and labels, to train by and the last 10 000 to judge by."""
    from torchvision.datasets import CIFAR10

    class TrainingHalf(CIFAR10):
        """Asks neither for the test set, which this study must not see, nor for checksums."""

        def _check_integrity(self) -> bool:
            return (Path(self.root) / self.base_folder / "data_batch_5").exists()

    try:
        whole = TrainingHalf(str(root), train=True, download=False)
    except RuntimeError as error:
        raise SystemExit(
            f"no CIFAR-10 in {root}; give --data the folder that holds cifar-10-batches-py"
        ) from error
    x = torch.from_numpy(whole.data).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    y = torch.tensor(whole.targets)
    return x[: min(images, 40000)], y[: min(images, 40000)], x[40000:], y[40000:]


def noise(batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two batches to train by and 500 images to judge by, without anything to learn in them."""
    generator = torch.Generator().manual_seed(0)
    training, images = 2 * batch, 2 * batch + 500
    x = torch.randn(images, 3, 32, 32, generator=generator)
    y = torch.randint(10, (images,), generator=generator)
    return x[:training], y[:training], x[training:], y[training:]


def batches(
    x: Tensor, y: Tensor, size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch: shuffled, flipped, shifted by up to 4 pixels; a last short batch is left out."""
    order = torch.randperm(len(x), generator=generator)
    for start in range(0, len(x) - size + 1, size):
        chosen = order[start : start + size]
        flip = torch.rand(size, generator=generator) < 0.5
        images = torch.where(flip[:, None, None, None], x[chosen].flip(3), x[chosen])
        top, left = torch.randint(0, 9, (2, size), generator=generator).tolist()
        images = F.pad(images, (4, 4, 4, 4))
        shifted = [
            im[:, a : a + 32, b : b + 32] for im, a, b in zip(images, top, left, strict=True)
        ]
        yield torch.stack(shifted), y[chosen]


def train(
    name: str, seed: int, data: tuple[Tensor, ...], options: argparse.Namespace
) -> dict[str, Any]:
    """Train one candidate; accuracy after each epoch."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = network(name, options.width).to(options.device)
    optimizer = torch.optim.SGD(
        net.parameters(), options.lr, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    steps = options.epochs * (len(data[0]) // options.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    now, seconds, curve, losses = clock(options.device), 0.0, [], []
    for _ in range(options.epochs):
        start, total = now(), torch.zeros((), device=options.device)
        for x, y in batches(data[0], data[1], options.batch, generator):
            loss = F.cross_entropy(net.train()(x.to(options.device)), y.to(options.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        losses.append(float(total) / (steps / options.epochs))
        seconds += now() - start
        curve.append(accuracy(net, data[2], data[3], options.device))
    return {"name": name, "seed": seed, "accuracy": curve, "loss": losses, "seconds": seconds}


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor, device: str) -> float:
    """Share of right answers in evaluation mode."""
    net.eval()
    right = [
        (net(images.to(device)).argmax(1).cpu() == labels).sum()
        for images, labels in zip(x.split(500), y.split(500), strict=True)
    ]
    return float(sum(right)) / len(y)


def step_times(names: Sequence[str], options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Time of forward and backward over the batch-norm twin's, all in turn."""
    x, y = (part[: options.batch].to(options.device) for part in noise(options.batch)[:2])

    def step(name: str) -> Callable[[], object]:
        net = network(name, options.width).to(options.device)
        parameters = list(net.parameters())
        return lambda: torch.autograd.grad(F.cross_entropy(net(x), y), parameters)

    steps = {name: step(name) for name in dict.fromkeys(["batchnorm", *names])}
    times = interleaved(steps, options.seconds, device=options.device)
    return {name: ratio(times[name], times["batchnorm"]) for name in names}


def recipe_name(options: argparse.Namespace) -> str:
    """Folder of the runs that can be compared."""
    images = "noise" if options.tiny else f"n{options.images}"
    return f"w{options.width}-{images}-b{options.batch}-e{options.epochs}-lr{options.lr:g}"


def trained(names: Sequence[str], options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Runs of each candidate over the seeds; what is missing is trained and kept."""
    data: tuple[Tensor, ...] = ()
    if not options.no_training:
        data = noise(options.batch) if options.tiny else cifar(options.data, options.images)
    folder = options.runs / recipe_name(options)
    folder.mkdir(parents=True, exist_ok=True)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for seed in options.seeds:
        for name in names:
            path = folder / f"{name.replace(' ', '_').replace(',', '')}-seed{seed}.json"
            if not is_kept(path, CANDIDATES[name]):
                if options.no_training:
                    continue
                run = train(name, seed, data, options)
                run["commit"], run["options"] = COMMIT, CANDIDATES[name]
                path.with_suffix(".part").write_text(json.dumps(run))
                path.with_suffix(".part").rename(path)
            runs[name].append(json.loads(path.read_text()))
            last = runs[name][-1]
            figures = " ".join(f"{100 * a:.2f}" for a in last["accuracy"])
            print(f"{name:30s} seed {seed}  {figures}  {last['seconds']:.0f} s", flush=True)
    return runs


def is_kept(path: Path, options: dict[str, Any] | None) -> bool:
    """Whether a run with these options is there; says so of one with others."""
    if not path.exists():
        return False
    found = json.loads(path.read_text())["options"]
    if found != options:
        print(f"{path.name} was trained with {found}, now it would be {options}: left out")
    return bool(found == options)


def validated(row: dict[str, Any], epoch: int) -> tuple[float, float | None]:
    """Mean accuracy after an epoch, and its deviation over several runs."""
    return mean_and_stdev([run["accuracy"][epoch] for run in row["runs"]])


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Cost and accuracy of each candidate."""
    lines = [
        [
            row["name"],
            f"{row['step']['median']:.2f}",
            percent(*validated(row, 0)),
            percent(*validated(row, -1)),
            str(len(row["runs"])),
        ]
        for row in rows
    ]
    header = ["candidate", "step / batch norm", "epoch 1, %", "last epoch, %", "seeds"]
    return markdown_table(header, lines)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy against the cost of a step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        mean, stdev = validated(row, -1)
        where = (row["step"]["median"], 100 * mean)
        axes.errorbar(*where, 100 * stdev if stdev is not None else None, marker="o", capsize=3)
        axes.annotate(row["name"], where, xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.set(xlabel="time of a step / batch norm's", ylabel="validation accuracy, %", xscale="log")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=40000, help="of the first four batches")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", default=["*"], metavar="GLOB", help="candidates")
    parser.add_argument("--width", type=int, default=32, help="channels of the first layer (32)")
    parser.add_argument("--lr", type=float, default=0.1, help="peak learning rate (0.1)")
    parser.add_argument("--batch", type=int, default=128)
    add_machine_options(parser)
    parser.add_argument("--seconds", type=float, default=60.0, help="to spend on timing steps")
    parser.add_argument("--tiny", action="store_true", help="noise as data, to see that it runs")
    parser.add_argument("--no-training", action="store_true", help="tabulate the runs there are")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="has cifar-10-batches-py")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "pareto")
    parser.add_argument("--out", type=Path, help="result files without ending")
    return parser.parse_args(arguments)


def main() -> None:
    """Train what is missing, time the steps, write JSON, table and picture."""
    options = parse()
    torch.set_num_threads(options.threads)
    kept = keep_freed_memory()
    runs = trained(matching(options.only, CANDIDATES, "candidate"), options)
    names = [name for name in runs if runs[name]]
    times = step_times(names, options)
    rows = [{"name": n, "options": CANDIDATES[n], "step": times[n], "runs": runs[n]} for n in names]
    places = ("out", "runs", "data")
    recipe = {key: str(value) for key, value in vars(options).items() if key not in places}
    figures = table(rows)
    print(figures)
    if options.out:
        text = f"# Cost and accuracy of the whitening options\n\n{__doc__}\n{figures}"
        facts = environment() | {"freed memory is kept": kept}
        record = {"environment": facts, "recipe": recipe, "rows": rows}
        write_result(options.out, record, text)
        plot(rows, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
