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
from segdeconv.inference import WHOLE, Model, Prediction, predict, predict_with_confidence
from segdeconv.report import (
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
        evaluation = None
        if isinstance(data, SegmentationData):
            network.load_state_dict(read_weights(folder / "weights.safetensors"))
            network.eval().to(device)
            # not through __call__: a compiled network would be compiled anew for sizes and batches
            evaluation = _look_at_some(network.forward, data, device)
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
    seconds = time.monotonic() - started
    which = f"{seen} of {len(samples)} images of {data.splits['val']}, drawn at random"
    facts = {"evaluation": f"{seen / seconds:.3g} images/s, {which}, loading included"}
    return look(observer, model, data, device, which, {**facts, **peak_memory()})


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
