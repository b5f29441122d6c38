"""From a run to what is worth knowing of its weights; from a published folder to a run's options.

A folder of `save_pretrained` stands in for a run: tools/predict.py, eval.py and export.py take one.
"""

import json
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from segdeconv.data import DATASETS
from segdeconv.data.labels import Label, LabelSet
from segdeconv.models.pretrained import About, is_pretrained, read_config

# what the card tells of a configuration
_DATA = "batch_size resize val_resize crop_size scale shorter_side flip max_class_ratio photometric"
_TRAINER = "max_epochs max_steps precision accumulate_grad_batches gradient_clip_val"
_MODEL = ("arch", "encoder", "operator", "operator_options", "in_channels", "aux_head")


def about_run(config: Namespace, folder: Path, label_set: LabelSet) -> About:
    """What config.yaml, metrics.json and environment.json of a run say, for config.json and card.

    Nothing of where things lie on this machine is in it.

    Args:
        config: The run's configuration, with ``checkpoint``: "best", "last" or a file, whose scores
            are not known.
        folder: The run's folder, or one of `save_pretrained`, which knows all this.
        label_set: Its classes.
    """
    if is_pretrained(folder):
        return About(**read_config(folder)["about"])
    data = config.data
    return About(
        name=folder.resolve().name,
        dataset=data.dataset,
        mean=list(data.mean),
        std=list(data.std),
        crop_size=list(data.crop_size) if data.crop_size else None,
        resize=list(data.val_resize or data.resize or ()) or None,
        classes=[
            {"name": label.name, "colour": list(label.colour), "id": label.id}
            for label in label_set.classes
        ],
        recipe=_recipe(config),
        scores=_scores(folder, config),
        environment=_environment(folder),
    )


def _recipe(config: Namespace) -> dict[str, Any]:
    """Settings that are set, by part of the training."""
    parts = {name: config[name].as_dict() for name in ("optimizer", "schedule", "loss")}
    parts["data"] = {key: config.data[key] for key in _DATA.split()}
    parts["training"] = {key: config.trainer[key] for key in _TRAINER.split()}
    parts["training"] |= {"seed": config.seed, "ema_decay": config.ema_decay}
    given = {
        part: {key: value for key, value in settings.items() if value not in (None, {}, [], -1)}
        for part, settings in parts.items()
    }
    recipe: dict[str, Any] = json.loads(json.dumps(given))  # as config.json gives it back
    return recipe


def _scores(folder: Path, config: Namespace) -> dict[str, Any]:
    scores = _read(folder / "metrics.json").get(config.checkpoint) or {}
    kept = {key: value for key, value in scores.items() if key not in ("confusion", "step")}
    return {"split": config.data.val_split, **kept} if kept else {}


def _environment(folder: Path) -> dict[str, Any]:
    found = _read(folder / "environment.json")
    about = {key: found.get(key) for key in ("commit", "python", "processor", "cuda")}
    about["gpus"] = ", ".join(found.get("gpus", ()))
    about = {key: value for key, value in about.items() if value}
    return {**about, **found.get("versions", {})}


def _read(path: Path) -> dict[str, Any]:
    """A file of the run; {} if it has none, as before its first validation.

    Raises:
        ValueError: It is damaged.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); move it away to go on without") from error
    return content


def run_arguments(folder: Path) -> list[str]:
    """The command line that describes a run, or a folder of `save_pretrained` as if it were one.

    Raises:
        ValueError: The folder holds an image classifier, or is damaged.
    """
    if (folder / "config.yaml").is_file():
        return ["--config", str(folder / "config.yaml")]
    content = read_config(folder)
    if content["task"] != "segmentation":
        raise ValueError(
            f"{folder} holds an image classifier, which this tool does not take; "
            "load it in Python with segdeconv.from_pretrained"
        )
    about, arguments = About(**content["about"]), dict(content["model"])
    arguments.pop("num_classes", None)
    model = {key: arguments.pop(key) for key in _MODEL if key in arguments}
    model["arch_options"] = arguments
    data: dict[str, Any] = {"mean": about.mean, "std": about.std, "crop_size": about.crop_size}
    data["resize"] = about.resize
    options = [f"--data.{key}={json.dumps(value)}" for key, value in data.items() if value]
    if about.dataset in DATASETS:
        options.append(f"--data.dataset={about.dataset}")
    return ["--model", json.dumps(model), *options]


def labels_of(folder: Path) -> LabelSet | None:
    """The classes that a folder of `save_pretrained` names; None if it names none.

    Raises:
        ValueError: They are not those of its network.
    """
    content = read_config(folder)
    about, count = About(**content["about"]), content["model"].get("num_classes")
    if not about.classes:
        return None
    try:
        labels = tuple(
            Label(entry.get("id", number), entry["name"], number, tuple(entry["colour"]))
            for number, entry in enumerate(about.classes)
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / 'config.json'} has classes without name or colour; give --palette"
        ) from error
    if len(labels) != count:
        raise ValueError(
            f"{folder / 'config.json'} names {len(labels)} classes of a network of {count}"
        )
    return LabelSet(about.dataset or folder.name, labels)
