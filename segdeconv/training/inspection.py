"""Inspect the network of a run: run it on some validation images and see what goes into its layers.

What is found is drawn by `segdeconv.report.inspection`; the mathematics is in `segdeconv.analysis`.
"""

import json
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jsonargparse import Namespace
from torch import Tensor
from torchvision.transforms.functional import center_crop
from tqdm import tqdm

from segdeconv.analysis import (
    MAX_COLUMNS,
    MAX_PATCHES,
    last_map,
    mean_map,
    observing,
    receptive_field,
    unobserved,
)
from segdeconv.data.arrays import ImageArrays
from segdeconv.data.check import spread_over
from segdeconv.data.shards import Shards
from segdeconv.models import ClassificationModel, SegmentationModel
from segdeconv.registry import suggest
from segdeconv.report.findings import field_record, first_layer, layer_details, layer_numbers
from segdeconv.report.inspection import FORMAT, put_into, render_inspection, section
from segdeconv.training.base_data import RunData
from segdeconv.training.cli import ConfigParser
from segdeconv.training.evaluation import (
    checkpoint_path,
    load_classifier,
    load_network,
    pick_device,
)
from segdeconv.training.loading import SeededSamples, make_loader
from segdeconv.training.ranges import check_ranges
from segdeconv.training.run_folder import write_new

Model = SegmentationModel | ClassificationModel

LAYERS = 4
"""Shown in detail if none are named."""

LARGEST_FIELD = 513
"""Pixels of a side of the images whose receptive field is taken; larger ones are cut out."""


def inspect_run(parser: ConfigParser, config: Namespace, folder: Path) -> dict[str, Any]:
    """What whitening does in the network that ``config`` describes, with weights out of ``folder``.

    Args:
        parser: What read the configuration.
        config: A run's configuration, with images, layers, checkpoint, device and against.
        folder: The run's folder.

    Returns:
        What inspect.json holds.

    Raises:
        ValueError: If weights, data, layers or the twin do not fit.
    """
    check_ranges("", {"images": config.images}, images="1 or more")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device, built = pick_device(config.device), _built(parser, config)
    twin = _open_twin(parser, config, folder) if config.against else None

    def look(objects: Namespace, where: Path, checkpoint: str, **options: Any) -> dict[str, Any]:
        network = _load(objects, where, checkpoint, device)
        about = {"run": where.resolve().name, **_weights(where, checkpoint)}
        return about | inspect_network(network, built.data, config.images, device, **options)

    own = look(built, folder, config.checkpoint, patterns=config.layers)
    other = None
    if twin:
        checkpoint = config.checkpoint if config.checkpoint in ("best", "last") else "best"
        other = look(*twin, checkpoint, only=list(own["details"]), label="twin ")
    return {"format": FORMAT, **own, "twin": other}


def _built(parser: ConfigParser, config: Namespace) -> Namespace:
    """The objects of a configuration; nothing is compiled, as hooks look into the layers."""
    config.model.compile = config.model.channels_last = False
    return parser.instantiate(config)


def _open_twin(parser: ConfigParser, config: Namespace, beside: Path) -> tuple[Namespace, Path]:
    """The twin's objects and folder.

    Raises:
        ValueError: If it is no run, the run itself, or not one of the same images.
    """
    folder, twin = parser.open_run(config.against, ["--output_dir", config.output_dir])
    if twin.task != config.task:
        raise ValueError(
            f"--against {folder} is a run of task {twin.task}, and {beside} one of {config.task}; "
            "name a run of the same data set"
        )
    if folder.resolve() == beside.resolve():
        raise ValueError(f"--against {folder} is the run itself; name another run")
    twin.data = config.data.clone()
    own = parser.read_run(folder).data
    keys = [key for key in ("dataset", "mean", "std") if own[key] != config.data[key]]
    if keys:
        raise ValueError(
            f"{folder} is a run on other images (data.{keys[0]} is {own[keys[0]]}, and not "
            f"{config.data[keys[0]]}); --against wants a run of the same data set"
        )
    return _built(parser, twin), folder


def _load(built: Namespace, folder: Path, checkpoint: str, device: torch.device) -> Model:
    path = checkpoint_path(folder, checkpoint)
    network: Model
    if built.task == "classification":
        network = load_classifier(built, path)
    else:
        network = load_network(built.model, built.data.label_set, path)
    return network.requires_grad_(False).to(device)


def _weights(folder: Path, checkpoint: str) -> dict[str, Any]:
    """Which weights, in words."""
    path, known = checkpoint_path(folder, checkpoint), folder / "metrics.json"
    scores = json.loads(known.read_text()).get(checkpoint) if known.is_file() else None
    after = f", after {scores['epoch']:g} epochs" if scores else ""
    step = scores["step"] if scores else None
    return {"weights": f"{path.name}{after}", "checkpoint": checkpoint, "step": step}


def inspect_network(
    network: Model,
    data: RunData,
    images: int,
    device: torch.device,
    patterns: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
    label: str = "",
) -> dict[str, Any]:
    """One run's part of inspect.json.

    Args:
        network: In evaluation mode, without gradients for its parameters.
        data: Where the images come from.
        images: How many.
        device: Where the network is.
        patterns: Globs of the layers to show in detail; None: some, evenly spread.
        only: Names of these layers in place of globs; it need not have them.
        label: Before the name of the progress bars.
    """
    seen = 0
    with observing(network) as called, torch.no_grad():
        for batch in _progress(some_batches(data, images), f"{label}layers"):
            network(batch.to(device))
            seen += len(batch)
    names = list(called)
    if not names:
        raise ValueError(
            "the network calls no convolution or linear layer that could be inspected; those of "
            "torch itself and whitening ones can"
        )
    chosen = [name for name in only or choose_layers(names, patterns) if name in called]
    return {
        "seen": f"{seen} images of {data.splits['val']}, {_which(data)}",
        "caps": {"columns": MAX_COLUMNS, "patches": MAX_PATCHES},
        "layers": {name: layer_numbers(each) for name, each in called.items()},
        "details": {name: layer_details(called[name]) for name in chosen},
        "first_layer": {"name": names[0], **first_layer(called[names[0]])},
        "left_out": unobserved(network, called),
        **_fields(network, data, images, device, label),
    }


def choose_layers(names: Sequence[str], patterns: Sequence[str] | None) -> list[str]:
    """Names that match one of the globs, in their order; without globs some, evenly spread.

    Raises:
        ValueError: If a glob matches none.
    """
    if patterns is None:
        return [names[place] for place in spread_over(len(names), LAYERS)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            rest = suggest(pattern, names, f"the first is {names[0]!r}, the last {names[-1]!r}")
            raise ValueError(f"--layers {pattern} matches no layer; {rest}")
    return [name for name in names if any(fnmatchcase(name, each) for each in patterns)]


def _which(data: RunData) -> str:
    return "the first" if isinstance(data.val_set, Shards) else "evenly spread"


def some_batches(data: RunData, count: int) -> Iterator[Tensor]:
    """Batches of about so many validation images, evenly spread; of shards the first ones."""
    samples: Any = data.val_set
    if isinstance(samples, Shards):
        batches: Any = data.val_dataloader(count)
    else:
        chosen, size = spread_over(len(samples), count), data.val_batch_size
        whole = isinstance(samples, ImageArrays)  # asked for batches, and not for samples
        starts = range(0, len(chosen), size)
        asked = [(chosen[start : start + size], None) for start in starts]
        batches = make_loader(
            samples if whole else SeededSamples(samples),
            asked if whole else [(index, 0) for index in chosen],
            None if whole else size,
            data.num_workers,
            False,
        )
    return (batch["image"] for batch in batches)


def _progress(batches: Iterator[Tensor], label: str) -> Iterator[Tensor]:
    return iter(tqdm(batches, desc=label, unit="batch", disable=None))


def _fields(
    network: Model, data: RunData, images: int, device: torch.device, label: str
) -> dict[str, Any]:
    """Effective receptive fields of the encoder's last feature and of the logits."""
    encoder = last_map(network, network.encoder)
    targets: dict[str, Any] = {"last feature map": encoder}
    if isinstance(network, SegmentationModel):
        targets = {"encoder's last feature": encoder, "logits": network}
    batches = [to_odd_size(batch) for batch in some_batches(data, images)]
    maps: dict[str, list[Tensor]] = {target: [] for target in targets}
    for batch in _progress(iter(batches), f"{label}receptive field"):
        for image in batch.to(device)[:, None]:
            for target, features in targets.items():
                maps[target].append(receptive_field(features, image))
    fields, missing = [], []
    for target, found in maps.items():
        field, count = mean_map(found)
        if field is None:
            missing.append(f"{target}: no image gives it a gradient, so it has no field.")
        else:
            with torch.no_grad():
                size = targets[target](batches[0][:1].to(device)).shape[-2:]
            fields.append(field_record(target, field, count, "{} x {}".format(*size)))
    return {"fields": fields, "no_fields": missing}


def to_odd_size(images: Tensor) -> Tensor:
    """Images of the nearest sides 2 d m + 1, cut to `LARGEST_FIELD` and then resized.

    Then the middle of a map of stride d or less lies above the middle of the image.
    """
    height, width = (min(side, LARGEST_FIELD) for side in images.shape[-2:])
    cut = center_crop(images, [height, width])
    period = 64 if min(height, width) > 64 else 16
    size = [max(1, round((side - 1) / period)) * period + 1 for side in (height, width)]
    return F.interpolate(cut, size, mode="bilinear", align_corners=False, antialias=True)


def write_inspection(found: dict[str, Any], page: Path, report: Path | None) -> list[str]:
    """Write page and JSON, and put the section into a report.

    Args:
        found: What `inspect_run` gave.
        page: The page; its JSON lies beside it.
        report: Report of the run, which need not be there; None: none is to change.

    Returns:
        What was written, a line each.
    """
    numbers, content = page.with_suffix(".json"), section(found)
    write_new(numbers, json.dumps(found, indent=1) + "\n")
    write_new(page, render_inspection(found, content))
    lines = [f"numbers: {numbers}", f"page: {page}"]
    if report and report.is_file():
        whole = put_into(report.read_text(), found, content)
        if whole is None:
            lines.append(f"{report} is of an earlier version and stays as it is")
        else:
            write_new(report, whole)
            lines.append(f"report: {report}, section Inspection")
    return lines
