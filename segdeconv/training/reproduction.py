"""The experiments of the network-deconvolution paper: network x operator x epochs x seed.

Every run is one of tools/train.py with the paper's recipe, the operators alike; what came out
stands beside the published figures. Nothing here loads torch before it must.
"""

import json
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdeconv.registry import suggest
from segdeconv.tables import markdown_table, mean_and_stdev, percent
from segdeconv.training.grid import Job, curve

TEN = (
    *("vgg16", "resnet18", "preact_resnet18", "densenet121", "resnext29_32x4d"),
    *("mobilenet_v2", "dpn92", "pnasnet_a", "senet18", "efficientnet_b0"),
)


@dataclass(frozen=True)
class Study:
    """What the paper does with a data set.

    Args:
        recipe: Config of a run, without network and operator.
        networks: All of them.
        epochs: Lengths of the runs.
        test: Split that the paper judges by.
    """

    recipe: str
    networks: tuple[str, ...]
    epochs: tuple[int, ...]
    test: str = "test"


STUDIES = {
    "cifar10": Study("configs/cifar10/recipes/paper.yaml", TEN, (1, 20, 100)),
    "cifar100": Study("configs/cifar100/recipes/paper.yaml", TEN, (1, 20, 100)),
    "mnist": Study("configs/mnist/recipes/short.yaml", ("resnet18", "vgg16"), (1, 5)),
    "fashion_mnist": Study(
        "configs/fashion_mnist/recipes/short.yaml", ("resnet18", "vgg16"), (1, 5)
    ),
    "imagenet": Study(
        "configs/imagenet/recipes/paper.yaml", ("vgg11_bn", "resnet18", "densenet121"), (90,), "val"
    ),
}


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Args:
        network: Its name.
        operator: Row of `segdeconv.operators.OPERATORS`, or "released": the paper's own settings.
        epochs: Its length.
        seed: Of weights, order and augmentations.
    """

    network: str
    operator: str
    epochs: int
    seed: int

    @property
    def name(self) -> str:
        """Of the run's folder."""
        return f"{self.network}_{self.operator}_{self.epochs}ep_seed{self.seed}".replace("/", "-")

    def arguments(self, study: Study, holdout: bool, more: Sequence[str]) -> tuple[str, ...]:
        """Those of tools/train.py."""
        given: dict[str, Any] = {"model.name": self.network, **_operator(self)}
        given |= {"trainer.max_epochs": self.epochs, "seed": self.seed}
        if holdout:
            given |= {"data.train_split": "fit", "data.val_split": "holdout"}
        options = [item for key, value in given.items() for item in (f"--{key}", str(value))]
        return ("--config", study.recipe, *options, *more)


def _operator(cell: Cell) -> dict[str, str]:
    if cell.operator != "released":
        return {"model.operator": cell.operator}
    from segdeconv.models import CLASSIFIERS

    options: dict[str, Any] = {"preset": "released"}
    if cell.network in CLASSIFIERS:
        by_name = {name: _plain(each) for name, each in CLASSIFIERS[cell.network].released.items()}
        options |= {"options_by_name": by_name} if by_name else {}
    return {"model.operator": "deconv", "model.operator_options": json.dumps(options)}


def _plain(options: Any) -> Any:
    return dict(options) if isinstance(options, Mapping) else options


def cells(
    networks: Sequence[str], operators: Sequence[str], epochs: Sequence[int], seeds: int
) -> list[Cell]:
    """All runs, the shorter ones first, operators of one network side by side."""
    return [
        Cell(network, operator, length, seed)
        for length in sorted(epochs)
        for seed in range(seeds)
        for network in networks
        for operator in operators
    ]


def check_names(
    networks: Sequence[str], operators: Sequence[str], arguments: Sequence[str]
) -> None:
    """Look at what runs are made of, before the first of them is.

    Args:
        networks: Their names.
        operators: Rows of `segdeconv.operators.OPERATORS`, or "released".
        arguments: Those of tools/train.py for one of the runs.

    Raises:
        ValueError: No such network or operator, or a key that does not exist.
    """
    from segdeconv.models.classification import check_name
    from segdeconv.operators import OPERATORS
    from segdeconv.training.cli import ConfigParser

    small_input = ConfigParser().read(arguments).model.small_input
    for network in networks:
        check_name(network, small_input)
    known = [*OPERATORS, "released"]
    for operator in operators:
        if operator not in known:
            rest = suggest(operator, known, f"known: {', '.join(known)}")
            raise ValueError(f"unknown operator {operator!r}; {rest}")


def result(cell: Cell, job: Job, judged_by: str, root: Path) -> dict[str, Any]:
    """What a run that has ended gave, as JSON types; paths are those from the checkout at root."""
    arguments = [argument.removeprefix(f"{root}/") for argument in job.arguments]
    about = {**vars(cell), "split": judged_by, "arguments": arguments}
    if job.failure is not None:
        return {**about, "diverged": job.failure}
    made = json.loads((job.folder / "environment.json").read_text())
    scores = json.loads((job.folder / "metrics.json").read_text())
    kept = ("commit", "versions", "processor", "cores", "gpus")
    return {
        **about,
        "top1": scores["last"]["top1"],
        "top5": scores["last"]["top5"],
        "best_top1": scores["best"]["top1"],
        "curve": curve(job.folder, "top1"),
        "environment": {name: made[name] for name in kept},
    }


def remaining_seconds(cell: Cell, results: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds that a run will take, after those of the same network and operator that have ended.

    Of another operator of the same network, where there is no other; None where there is none.
    """
    same = [each for each in results if each["network"] == cell.network and "curve" in each]
    alike = [each for each in same if each["operator"] == cell.operator] or same
    if not alike:
        return None
    each = [float(run["curve"]["seconds"][-1]) / run["epochs"] for run in alike]
    return float(cell.epochs * statistics.mean(each))


# ------------------------------------------------------------------------------------------- report


def table(
    dataset: str, results: Sequence[Mapping[str, Any]], published: Mapping[str, Any]
) -> Iterator[str]:
    """Parts of the report: for each length what was measured, beside what is published."""
    for epochs in sorted({each["epochs"] for each in results}):
        runs = [each for each in results if each["epochs"] == epochs]
        yield f"## {dataset}, {epochs} epoch{'s' if epochs > 1 else ''}: top-1, %"
        operators = list(dict.fromkeys(each["operator"] for each in runs))
        others = [name for name in operators if name != "batchnorm"]
        sources = [s for s in ("paper", "reproduction") if dataset in published[s]]
        head = ["network", *operators, *(f"{name} - batchnorm" for name in others)]
        head += [f"{source}: {what}" for source in sources for what in ("BN", "ND", "ND - BN")]
        rows = [
            [
                network,
                *(_cell(_of(runs, network, operator)) for operator in operators),
                *(_gap(_of(runs, network, o), _of(runs, network, "batchnorm")) for o in others),
                *(
                    figure
                    for s in sources
                    for figure in _published(published[s], dataset, network, epochs)
                ),
            ]
            for network in dict.fromkeys(each["network"] for each in runs)
        ]
        yield markdown_table(head, rows)
    diverged = [each for each in results if "diverged" in each]
    if diverged:
        yield "## Diverged"
        yield "\n".join(f"- {Cell(**_key(run)).name}: {run['diverged']}" for run in diverged)


def _key(run: Mapping[str, Any]) -> dict[str, Any]:
    return {name: run[name] for name in ("network", "operator", "epochs", "seed")}


def _of(runs: Sequence[Mapping[str, Any]], network: str, operator: str) -> list[Mapping[str, Any]]:
    return [run for run in runs if (run["network"], run["operator"]) == (network, operator)]


def _cell(runs: Sequence[Mapping[str, Any]]) -> str:
    """Last epoch's accuracy over the seeds, the best epoch's, and how many of them diverged."""
    ended = [run for run in runs if "top1" in run]
    lost = f", {len(runs) - len(ended)} of {len(runs)} diverged" if len(ended) < len(runs) else ""
    if not ended:
        return "diverged" if runs else "-"
    best = statistics.mean(run["best_top1"] for run in ended)
    return (
        f"{percent(*mean_and_stdev([run['top1'] for run in ended]))} (best {100 * best:.2f}{lost})"
    )


def _gap(runs: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]]) -> str:
    """Difference of the means over the seeds that both have ended."""
    ours, theirs = (
        {run["seed"]: run["top1"] for run in each if "top1" in run} for each in (runs, base)
    )
    both = sorted(ours.keys() & theirs.keys())
    if not both:
        return "-"
    return percent(*mean_and_stdev([ours[seed] - theirs[seed] for seed in both]), sign="+")


def _published(
    source: Mapping[str, Any], dataset: str, network: str, epochs: int
) -> tuple[str, str, str]:
    figures = source[dataset].get(network, {}).get(str(epochs))
    if figures is None:
        return "-", "-", "-"
    batchnorm, deconv = figures
    return f"{batchnorm:.2f}", f"{deconv:.2f}", f"{deconv - batchnorm:+.2f}"


def report(
    dataset: str,
    judged_by: str,
    results: Sequence[Mapping[str, Any]],
    published: Mapping[str, Any],
    more: Sequence[str],
    note: str = "",
) -> str:
    """The whole report for reading."""
    about = [
        f"# {dataset}: the operators under one recipe, judged by the split {judged_by}",
        "Accuracy after the last epoch, mean ± standard deviation over seeds; in brackets the mean "
        "of the best epochs, which is what the paper reports of its test set. Differences are "
        "between runs of the same seed.",
    ]
    about += [f"Changed from the recipe: `{' '.join(more)}`."] if more else []
    about += [note] if note else []
    named = [s for s in ("paper", "reproduction") if dataset in published[s]]
    sources = "\n".join(f"- {name}: {published[name]['source']}" for name in named)
    parts = [*about, *table(dataset, results, published), *([sources] if sources else [])]
    return "\n\n".join([*parts, "## Where this was measured", places(results)]) + "\n"


def places(results: Sequence[Mapping[str, Any]]) -> str:
    """A line for each hardware, commit and version of torch that runs were trained with."""
    counts = Counter(_place(run["environment"]) for run in results if "environment" in run)
    return "\n".join(f"- {number} runs: {place}" for place, number in counts.items())


def _place(environment: Mapping[str, Any]) -> str:
    gpus = ", ".join(environment["gpus"] or ()) or "no GPU"
    torch = (environment["versions"] or {}).get("torch")
    cores, processor = environment["cores"], environment["processor"]
    return f"{processor}, {cores} cores, {gpus}, torch {torch}, commit {environment['commit']}"


def plot(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Accuracy against epochs and against seconds of training, a row for each network and length.

    Raises:
        ImportError: Without matplotlib.
    """
    from matplotlib.figure import Figure

    ended = [run for run in results if "curve" in run]
    rows = list(dict.fromkeys((run["network"], run["epochs"]) for run in ended))
    figure = Figure(figsize=(9, 2.8 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 2, squeeze=False, sharey="row")
    operators = list(dict.fromkeys(run["operator"] for run in ended))
    for (network, epochs), (left, right) in zip(rows, axes, strict=True):
        for run in ended:
            if (run["network"], run["epochs"]) != (network, epochs):
                continue
            number = operators.index(run["operator"])
            style: dict[str, Any] = {"color": f"C{number}", "marker": "o", "ms": 3}
            style["label"] = run["operator"] if run["seed"] == 0 else None
            top1 = [100 * value for value in run["curve"]["top1"]]
            left.plot(run["curve"]["epoch"], top1, **style)
            right.plot(run["curve"]["seconds"], top1, **style)
        left.set(xlabel="epoch", ylabel="top-1, %", title=f"{network}, {epochs} epochs")
        right.set(xlabel="seconds of training")
        left.legend(frameon=False, fontsize=8)
        for axis in (left, right):
            axis.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
