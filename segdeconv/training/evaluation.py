"""Evaluate the network of a run: its config says what it is, its weights are numbers only."""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from tqdm import tqdm

from segdeconv.data.labels import LabelSet
from segdeconv.export import FORMATS
from segdeconv.export import load_network as load_exported
from segdeconv.inference import Model, OnnxModel, Prediction, evaluate
from segdeconv.models import ClassificationModel, SegmentationModel
from segdeconv.models.pretrained import WEIGHTS, is_exported, is_pretrained
from segdeconv.report import Evaluation, Observer
from segdeconv.training.base_task import Network
from segdeconv.training.classification import ClassificationTask, build_classifier
from segdeconv.training.classification_data import ClassificationData
from segdeconv.training.cli import ConfigParser
from segdeconv.training.data_module import SegmentationData
from segdeconv.training.prediction_files import (
    about_files_alone,
    can_be_scored,
    compare_officially,
    predictions_folder,
)
from segdeconv.training.prediction_options import prediction_of, short_name
from segdeconv.training.ranges import check_ranges
from segdeconv.training.reporting import (
    classified,
    look,
    observer_of,
    only_warning,
    peak_memory,
)
from segdeconv.training.run_folder import check_fit, environment, read_weights
from segdeconv.training.task import NetworkOptions, build_network


def evaluate_run(
    parser: ConfigParser, config: Namespace, folder: Path, rank: int = 0
) -> tuple[str, dict[str, Any], Evaluation | None]:
    """Score the network that ``config`` describes, with weights out of ``folder``.

    In several processes each takes its share of the images, and all of them get all scores.

    Args:
        parser: What read the configuration.
        config: A run's configuration, with checkpoint, split, limit, device, save_predictions,
            official, report ("none" if none is wanted) and the options of
            `segdeconv.training.prediction_options`.
        folder: The run's folder.
        rank: Number of this process; the first one shows progress.

    Returns:
        A table to print, everything as JSON types, and what a report shows, of the first process.
        Of a split without labels there are files of predictions, and neither scores nor a report.

    Raises:
        ValueError: If weights or data do not fit the configuration.
    """
    check_ranges("", {"limit": config.limit}, limit="1 or more")
    if config.task == "classification":
        return _evaluate_classifier(parser, config, folder, rank)
    with predictions_folder(config, rank) as predictions:
        return _evaluate_segmentation(parser, config, folder, rank, predictions)


def _evaluate_segmentation(
    parser: ConfigParser, config: Namespace, folder: Path, rank: int, predictions: Path | None
) -> tuple[str, dict[str, Any], Evaluation | None]:
    """`evaluate_run` of a segmentation network, with a folder for files if they are wanted."""
    settings = prediction_of(config)
    config.data.val_split = config.split or config.data.val_split
    built = parser.instantiate(config)
    data: SegmentationData = built.data
    images = min(config.limit or len(data.val_set), len(data.val_set))
    scorable = can_be_scored(config, data.val_set, images)
    config.report = config.report if scorable else "none"
    device = pick_device(config.device)
    network, path = open_network(config, built, data.label_set, folder, device)
    observer = Observer(data.label_set.num_classes, data.val_set.ignore_index)
    observed = config.report != "none"
    started = time.monotonic()
    scores = evaluate(
        network,
        tqdm(
            data.val_dataloader(images),
            desc=config.data.val_split,
            unit="batch",
            disable=rank > 0 or None,
        ),
        data.label_set,
        device,
        predictions,
        settings,
        observer if observed else None,
    )
    facts = _speed(images, started)
    record = _about(config, folder, path, images, settings, device)
    record |= {"resize": data.val_resize, "predictions": config.save_predictions}
    if not scorable:
        return about_files_alone(config), record, None
    record |= scores.to_dict(data.label_set.class_names)
    table, evaluation = scores.table(data.label_set.class_names), None
    if observed:
        observer.gather()
    if config.official and predictions and rank == 0:
        record["official"], text = compare_officially(scores, data.val_set, images, predictions)
        table += f"\n\n{text}"
    if observed and rank == 0:
        seen = f"all {images} images of {record['split']}"
        with only_warning():
            evaluation = look(observer, network, data, device, seen, facts, record, settings)
    return table, record, evaluation


def _speed(images: int, started: float) -> dict[str, str]:
    """How fast an evaluation was, in words."""
    rate = images / (time.monotonic() - started)
    return {"evaluation": f"{rate:.3g} images/s, loading included", **peak_memory()}


def _about(
    config: Namespace,
    folder: Path,
    path: Path,
    images: int,
    settings: Prediction,
    device: torch.device,
) -> dict[str, Any]:
    """What was evaluated, and how."""
    about = environment(config.seed)
    return {
        "run": str(folder),
        "weights": str(path),
        "split": config.data.val_split,
        "images": images,
        "mode": str(settings),
        "precision": settings.precision,
        "device": str(device),
        "commit": about["commit"],
        "versions": about["versions"],
    }


@torch.inference_mode()
def _evaluate_classifier(
    parser: ConfigParser, config: Namespace, folder: Path, rank: int
) -> tuple[str, dict[str, Any], Evaluation]:
    """`evaluate_run` of a classifier: images as in validation, one forward each."""
    settings = prediction_of(config)
    for_segmentation = config.save_predictions or config.official or config.onnx
    if replace(settings, precision="float32") != Prediction() or for_segmentation:
        raise ValueError(
            "windows, scales, mirror images, saved predictions, --official and --onnx are for "
            "segmentation; of a classifier only --split, --limit, --checkpoint, --device and "
            "--precision can be said"
        )
    config.data.val_split = config.split or config.data.val_split
    built = parser.instantiate(config)
    data: ClassificationData = built.data
    device = pick_device(config.device)
    classifier, path = _open_classifier(config, built, folder)
    task = ClassificationTask(classifier, data.label_set).eval().to(device)
    images = min(config.limit or len(data.val_set), len(data.val_set))
    batches, observer = data.val_dataloader(images), observer_of(data)
    started = time.monotonic()
    half = settings.precision != "float32"
    dtype = getattr(torch, settings.precision) if half else None
    with torch.autocast(device.type, dtype, enabled=half):
        for batch in tqdm(
            batches, desc=config.data.val_split, unit="batch", disable=rank > 0 or None
        ):
            labels = batch["label"].to(device)
            logits = task(batch["image"].to(device)).float()
            task.score_logits(logits, labels)
            if config.report != "none":
                observer(batch["name"], batch["image"], logits, labels)
    task.cpu()  # processes add up their counts in main memory
    scores = task.compute_scores()
    record = _about(config, folder, path, images, settings, device)
    record |= {"loss": float(task.val_loss.compute()), **scores.to_dict(data.label_set.class_names)}
    observer.gather()
    which = f"all {images} images of {record['split']}"
    evaluation = classified(observer, which, _speed(images, started), record)
    return scores.table(data.label_set.class_names), record, evaluation


def _open_classifier(
    config: Namespace, built: Namespace, folder: Path
) -> tuple[ClassificationModel, Path]:
    """`open_network` of a classifier, which is never an ONNX file."""
    if is_folded(folder, config.checkpoint):
        model, weights = load_exported(folder), folder / FORMATS["safetensors"]
        assert isinstance(model, ClassificationModel)
        check_classes(model.config["num_classes"], built.data.label_set, weights)
        return model, weights
    path = checkpoint_path(folder, config.checkpoint)
    return load_classifier(built, path), path


def open_network(
    config: Namespace, built: Namespace, label_set: LabelSet, folder: Path, device: torch.device
) -> tuple[Model, Path]:
    """What segments the images of an evaluation or a prediction, and the file that it comes from.

    Args:
        config: With checkpoint and onnx.
        built: The objects that the configuration describes.
        label_set: Classes of the data.
        folder: Of a run, of `save_pretrained`, or of a folded network, of which the weights are
            taken before the ONNX file.
        device: Where it is to run.

    Raises:
        ValueError: There is no such file, or it does not fit.
    """
    onnx = Path(config.onnx) if config.onnx else None
    if is_folded(folder, config.checkpoint) and onnx is None:
        weights = folder / FORMATS["safetensors"]
        if weights.is_file():
            network = load_exported(folder)
            check_classes(network.config["num_classes"], label_set, weights)
            return network.to(device), weights
        onnx = folder / FORMATS["onnx"]
    if onnx is not None:
        model = OnnxModel(onnx, device)
        check_classes(model.num_classes, label_set, model.path)
        return model, model.path
    path = checkpoint_path(folder, config.checkpoint)
    return load_network(built.model, label_set, path).to(device), path


def is_folded(folder: Path, checkpoint: str) -> bool:
    """Whether a folder holds a folded network, and nothing else of it is asked for.

    Raises:
        ValueError: A checkpoint is, and it has none.
    """
    if is_exported(folder) and checkpoint != "best":
        raise ValueError(
            f"{folder} holds a folded network and no checkpoints; leave --checkpoint out"
        )
    return is_exported(folder)


def check_classes(found: int | None, label_set: LabelSet, path: Path) -> None:
    """Whether a network has as many classes as the labels that it is held against.

    Args:
        found: Its number of classes; None: not known.
        label_set: Classes of the data.
        path: Its file.

    Raises:
        ValueError: It has another number.
    """
    if found not in (None, label_set.num_classes):
        raise ValueError(
            f"{path} gives {found} classes, and the data's label set {label_set.name!r} has "
            f"{label_set.num_classes}; take data, or a network, with the same classes"
        )


def load_network(options: NetworkOptions, label_set: LabelSet, path: Path) -> SegmentationModel:
    """The network of a run in evaluation mode, with the weights in ``path``.

    Raises:
        ValueError: If they are those of another network, or cannot be read.
    """
    # what training started from is in the run's weights
    return with_weights(build_network(replace(options, weights=None), label_set), path)


def load_classifier(built: Namespace, path: Path) -> ClassificationModel:
    """The classifier of a run in evaluation mode, with the weights in ``path``.

    Raises:
        ValueError: If they are those of another network, or cannot be read; the data, which say
            how many classes and channels there are, are not there.
    """
    data: ClassificationData = built.data
    options = replace(built.model, weights=None)
    return with_weights(build_classifier(options, data.label_set, data.val_set.channels), path)


def with_weights(network: Network, path: Path) -> Network:
    """The network in evaluation mode, with the weights in ``path``.

    Raises:
        ValueError: If they are those of another network, or cannot be read.
    """
    weights = read_weights(path)
    check_fit(network, weights, path)
    network.load_state_dict(weights)
    return network.eval()


def checkpoint_path(folder: Path, checkpoint: str) -> Path:
    """File that "best", "last" or a path stands for.

    Raises:
        ValueError: The folder holds a folded network, which has no checkpoints.
    """
    if is_exported(folder):
        raise ValueError(
            f"{folder} holds a folded network, to run and not to change; name the run it came from"
        )
    if checkpoint == "best":
        return folder / (WEIGHTS if is_pretrained(folder) else "weights.safetensors")
    return folder / "checkpoints" / "last.ckpt" if checkpoint == "last" else Path(checkpoint)


def result_name(record: dict[str, Any], config: Namespace, own: Namespace) -> str:
    """Name of the file of an evaluation; what is not the run's own validation has its own.

    Args:
        record: What `evaluate_run` gave.
        config: The configuration of the evaluation.
        own: The run's configuration.
    """
    name = f"eval_{record['split']}_{Path(config.checkpoint).stem}"
    if config.limit:
        name += f"_first{record['images']}"
    mode = short_name(prediction_of(config))
    name += "_onnx" if config.onnx else ""
    name += f"_{mode}" if mode else ""
    size = record.get("resize")  # a classifier's images have always the size of its validation
    if config.task == "segmentation" and size != (own.data.val_resize or own.data.resize):
        name += "_{}x{}".format(*size) if size else "_full_size"
    return f"{name}.json"


def pick_device(name: str) -> torch.device:
    """The device called ``name``; "auto" takes a GPU if there is one, each process its own.

    Raises:
        ValueError: If there is no such device.
    """
    if name == "auto":
        count = torch.cuda.device_count()
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device(f"cuda:{local_rank % count}" if count else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # a device without numbers, "meta", has none
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"no device {name!r} here ({reason}); try --device cpu") from error
    return device
