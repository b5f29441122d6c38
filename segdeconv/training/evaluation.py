"""Evaluate the network of a run: its config says what it is, its weights are numbers only."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from tqdm import tqdm

from segdeconv.data.labels import LabelSet
from segdeconv.inference import evaluate
from segdeconv.models import SegmentationModel
from segdeconv.models.pretrained import WEIGHTS, is_pretrained
from segdeconv.training.cli import ConfigParser
from segdeconv.training.data_module import SegmentationData
from segdeconv.training.prediction_options import prediction_of, short_name
from segdeconv.training.processes import wait_for_all
from segdeconv.training.ranges import check_ranges
from segdeconv.training.run_folder import check_fit, check_writable, environment, read_weights
from segdeconv.training.task import NetworkOptions, build_network


def evaluate_run(
    parser: ConfigParser, config: Namespace, folder: Path, rank: int = 0
) -> tuple[str, dict[str, Any]]:
    """Score the network that ``config`` describes, with weights out of ``folder``.

    In several processes each takes its share of the images, and all of them get all scores.

    Args:
        parser: What read the configuration.
        config: A run's configuration, with checkpoint, split, limit, device, save_predictions and
            the options of `segdeconv.training.prediction_options`.
        folder: The run's folder.
        rank: Number of this process; the first one shows progress.

    Returns:
        A table to print, and everything as JSON types.

    Raises:
        ValueError: If weights or data do not fit the configuration.
    """
    check_ranges("", {"limit": config.limit}, limit="1 or more")
    if config.save_predictions:
        check_empty(Path(config.save_predictions))
        check_writable(Path(config.save_predictions), folder=True)
        wait_for_all()  # before one of the processes writes into it
    settings = prediction_of(config)
    config.data.val_split = config.split or config.data.val_split
    built = parser.instantiate(config)
    data: SegmentationData = built.data
    device = pick_device(config.device)
    path = checkpoint_path(folder, config.checkpoint)
    network = load_network(built.model, data.label_set, path).to(device)
    images = min(config.limit or len(data.val_set), len(data.val_set))
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
        Path(config.save_predictions) if config.save_predictions else None,
        settings,
    )
    about = environment(config.seed)
    record = {
        "run": str(folder),
        "weights": str(path),
        "split": config.data.val_split,
        "images": images,
        "mode": str(settings),
        "resize": data.val_resize,
        "precision": settings.precision,
        "device": str(device),
        "commit": about["commit"],
        "versions": about["versions"],
        **scores.to_dict(data.label_set.class_names),
    }
    return scores.table(data.label_set.class_names), record


def load_network(options: NetworkOptions, label_set: LabelSet, path: Path) -> SegmentationModel:
    """The network of a run in evaluation mode, with the weights in ``path``.

    Raises:
        ValueError: If they are those of another network, or cannot be read.
    """
    # what training started from is in the run's weights
    network = build_network(replace(options, weights=None), label_set)
    weights = read_weights(path)
    check_fit(network, weights, path)
    network.load_state_dict(weights)
    return network.eval()


def checkpoint_path(folder: Path, checkpoint: str) -> Path:
    """File that "best", "last" or a path stands for."""
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
    name += f"_{mode}" if mode else ""
    size = record["resize"]
    if size != (own.data.val_resize or own.data.resize):
        name += "_{}x{}".format(*size) if size else "_full_size"
    return f"{name}.json"


def check_empty(folder: Path) -> None:
    """Predictions go into a folder of their own, where they replace nothing.

    Raises:
        ValueError: If something is in it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"--save-predictions {folder}: the folder is not empty, and nothing is overwritten; "
            "give a new one"
        )


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
