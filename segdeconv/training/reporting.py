"""Reports at the end of a training and of an evaluation; a report that fails is no failed run."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from segdeconv.data.labels import LabelSet
from segdeconv.data.shards import Shards
from segdeconv.inference import WHOLE, Model, Prediction, predict, predict_with_confidence
from segdeconv.report import (
    ClassificationObserver,
    Evaluation,
    Example,
    Observer,
    RunRecord,
    choose,
    make_example,
    read_run,
    render_report,
)
from segdeconv.training.base_data import RunData
from segdeconv.training.classification_data import ClassificationData
from segdeconv.training.data_module import SegmentationData
from segdeconv.training.loading import SeededSamples, make_loader
from segdeconv.training.mistakes import sentence
from segdeconv.training.run_folder import read_weights, write_new

EXAMPLES = 12
# Of a training's report, whose scores of the whole set are known already.
IMAGES, SECONDS = 100, 60.0


@contextmanager
def only_warning() -> Iterator[None]:
    """Say what kept a report from being written, and go on."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        reason = "stopped" if isinstance(error, KeyboardInterrupt) else sentence(error)
        print(f"warning: no report was written: {reason}", file=sys.stderr)


def write_report(path: Path, folder: Path, evaluation: Evaluation | None) -> None:
    """Write the report of a run's folder, or of a published one, as HTML."""
    is_run = (folder / "config.yaml").is_file()
    run = read_run(folder) if is_run else RunRecord(folder.resolve().name)
    write_new(path, render_report(run, evaluation))


def report_training(folder: Path, network: nn.Module, data: RunData, device: torch.device) -> None:
    """Write report.html of a finished run, with examples of what its best weights see.

    Args:
        folder: The run's folder.
        network: Its network, which is given the run's weights.
        data: Its data.
        device: Where to run it.
    """
    with only_warning():
        network.load_state_dict(read_weights(folder / "weights.safetensors"))
        network.eval().to(device)
        # not through __call__: a compiled network would be compiled anew for sizes and batches
        evaluation = None
        if isinstance(data, SegmentationData):
            evaluation = _look_at_some(network.forward, data, device)
        elif isinstance(data, ClassificationData):
            evaluation = _classify_some(network.forward, data, device)
        write_report(folder / "report.html", folder, evaluation)
        print(f"report: {folder / 'report.html'}")


def _look_at_some(model: Model, data: SegmentationData, device: torch.device) -> Evaluation:
    """What a model sees of some validation images, drawn at random."""
    samples = data.val_set
    # any beginning of a random order is a fair sample, wherever the time is up
    order = np.random.default_rng(0).permutation(len(samples))[:IMAGES].tolist()
    loader = make_loader(
        SeededSamples(samples),
        [(index, 0) for index in order],
        data.val_batch_size,
        data.num_workers,
        False,
    )
    observer = Observer(samples.label_set.num_classes, samples.ignore_index)
    seen, started = 0, time.monotonic()
    for batch in loader:
        size = tuple(batch["mask"].shape[-2:])
        both = predict_with_confidence(model, batch["image"], size, WHOLE, device)
        observer(batch["name"], both[0].cpu(), both[1].cpu(), batch["mask"])
        seen += len(batch["name"])
        if time.monotonic() - started > SECONDS:
            break
    which, facts = _seen(seen, started, data)
    return look(observer, model, data, device, which, facts)


def _seen(count: int, started: float, data: RunData) -> tuple[str, dict[str, str]]:
    """Which validation images were seen, and how fast, in words."""
    seconds, total = time.monotonic() - started, len(data.val_set)
    which = f"{count} of {total} images of {data.splits['val']}"
    which += ", the first ones" if isinstance(data.val_set, Shards) else ", drawn at random"
    if count == total:
        which = f"all {total} images of {data.splits['val']}"
    facts = {"evaluation": f"{count / seconds:.3g} images/s, {which}, loading included"}
    return which, {**facts, **peak_memory()}


@torch.no_grad()
def _classify_some(model: Model, data: ClassificationData, device: torch.device) -> Evaluation:
    """What a classifier says of validation images in a random order, for a minute at most."""
    samples, observer = data.val_set, observer_of(data)
    if isinstance(samples, Shards):
        batches = data.val_dataloader()
    else:
        order = np.random.default_rng(0).permutation(len(samples))
        batches = data.val_batches(order.tolist())
    seen, started = 0, time.monotonic()
    for batch in batches:
        observer(batch["name"], batch["image"], model(batch["image"].to(device)), batch["label"])
        seen += len(batch["label"])
        if time.monotonic() - started > SECONDS:
            break
    which, facts = _seen(seen, started, data)
    return classified(observer, which, facts)


def observer_of(data: ClassificationData) -> ClassificationObserver:
    """What watches a classifier of these data."""
    return ClassificationObserver(data.label_set.class_names, *data.mean_and_std(), EXAMPLES)


def classified(
    observer: ClassificationObserver,
    seen: str,
    facts: Mapping[str, str],
    record: Mapping[str, Any] | None = None,
) -> Evaluation:
    """What a report shows of the evaluation of a classifier; arguments as those of `look`."""
    examples = {
        "Wrong, the surest first": observer.wrong,
        "Right, the surest first": observer.right,
    }
    return Evaluation(
        record or {}, observer.calibration, seen=seen, facts=facts, classified=examples
    )


def look(
    observer: Observer,
    model: Model,
    data: SegmentationData,
    device: torch.device,
    seen: str,
    facts: Mapping[str, str],
    record: Mapping[str, Any] | None = None,
    settings: Prediction = WHOLE,
) -> Evaluation:
    """What a report shows of an evaluation; predicts its examples again, to draw them.

    Args:
        observer: What was counted.
        model: Maps images to logits, on ``device``.
        data: Where the images come from.
        device: Where to predict.
        seen: Which images were counted, in words.
        facts: Speed and memory, in words.
        record: Scores and facts by name; None: the run's own.
        settings: How each image is predicted.
    """
    label_set: LabelSet = data.val_set.label_set
    return Evaluation(
        record or {},
        observer.calibration if observer.images else None,
        list(_examples(observer, model, data, device, settings)),
        seen,
        label_set.colours,
        label_set.ignore_index,
        facts,
    )


def _examples(
    observer: Observer,
    model: Model,
    data: SegmentationData,
    device: torch.device,
    settings: Prediction,
) -> Iterator[Example]:
    samples, transform = data.val_set, data.eval_transform()
    numbers = {name: number for number, name in enumerate(samples.names)}
    for rank, name in choose(observer.images, EXAMPLES):
        image, truth = samples.load(numbers[name])
        normalised = transform(image=image, mask=truth)["image"]
        classes = predict(model, normalised[None], truth.shape, settings, device)[0]
        prediction = np.asarray(classes.to("cpu", torch.uint8))
        yield make_example(name, observer.images[name], rank, image, truth, prediction)


def peak_memory() -> dict[str, str]:
    """The most memory that this process had so far, in words."""
    found = {}
    if find_spec("resource"):  # not on Windows
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
        found["peak main memory"] = f"{peak:.2f} GiB (this process, without its loaders)"
    if torch.cuda.is_available():
        found["peak GPU memory"] = f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB"
    return found
