"""From a run to what is worth knowing of its weights; from a published folder to a run's options.

A folder of `save_pretrained` stands in for a run: tools/predict.py, eval.py and export.py take one;
the first two take a folder of a folded network, too.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from segdeconv.data import CLASSIFICATION_DATASETS, DATASETS
from segdeconv.data.labels import Label, LabelSet
from segdeconv.models.pretrained import About, is_exported, is_pretrained, read_config
from segdeconv.report.records import validation_limit
from segdeconv.training.base_task import Classes

# what the card tells of a configuration
_DATA = (
    "batch_size resize val_resize crop_size scale shorter_side flip max_class_ratio photometric "
    "padding auto_augment"
)
_TRAINER = (
    "max_epochs max_steps limit_train_batches limit_val_batches precision accumulate_grad_batches "
    "gradient_clip_val"
)
# arguments that a configuration's group "model" names itself; further ones are arch_options
_MODEL = {
    "segmentation": ("arch", "encoder", "operator", "operator_options", "in_channels", "aux_head"),
    "classification": ("name", "operator", "operator_options", "small_input"),
}
_SETS = {"segmentation": DATASETS, "classification": CLASSIFICATION_DATASETS}

PART = ", the first "  # between the name of a split and how much of it was validated

Normalization = tuple[Sequence[float], Sequence[float]]


def about_run(
    config: Namespace, folder: Path, classes: Classes, normalization: Normalization
) -> About:
    """What config.yaml, metrics.json and environment.json of a run say, for config.json and card.

    Nothing of where things lie on this machine is in it.

    Args:
        config: The run's configuration, with ``checkpoint``: "best", "last" or a file, whose scores
            are not known.
        folder: The run's folder, or one of `save_pretrained` or of a folded network, which knows
            all this.
        classes: Its classes.
        normalization: Mean and standard deviation of its images.
    """
    if is_pretrained(folder) or is_exported(folder):
        return About(**read_config(folder, exported=True)["about"])
    data, (mean, std) = config.data, normalization
    height_and_width: dict[str, list[int] | None] = {"crop_size": None, "resize": None}
    if isinstance(classes, LabelSet):
        named = [
            {"name": label.name, "colour": list(label.colour), "id": label.id}
            for label in classes.classes
        ]
        resize = data.val_resize or data.resize
        height_and_width["crop_size"] = list(data.crop_size) if data.crop_size else None
        height_and_width["resize"] = list(resize) if resize else None
    else:  # photographs are cut out as squares
        named = [{"name": name} for name in classes.class_names]
        height_and_width["crop_size"] = [data.crop_size] * 2 if data.crop_size else None
    return About(
        name=folder.resolve().name,
        dataset=data.dataset,
        mean=list(mean),
        std=list(std),
        **height_and_width,
        classes=named,
        recipe=_recipe(config),
        scores=_scores(folder, config),
        environment=_environment(folder),
    )


def _recipe(config: Namespace) -> dict[str, Any]:
    """Settings that are set, by part of the training."""
    parts = {name: config[name].as_dict() for name in ("optimizer", "schedule", "loss")}
    parts["data"] = {key: config.data.get(key) for key in _DATA.split()}
    parts["training"] = {key: config.trainer[key] for key in _TRAINER.split()}
    parts["training"] |= {"seed": config.seed, "ema_decay": config.ema_decay}
    if config.model.weights is not None:  # without the folders above
        parts["training"]["start_weights"] = "/".join(Path(config.model.weights).parts[-2:])
    given = {
        part: {key: value for key, value in settings.items() if value not in (None, {}, [], -1)}
        for part, settings in parts.items()
    }
    recipe: dict[str, Any] = json.loads(json.dumps(given))  # as config.json gives it back
    return recipe


def _scores(folder: Path, config: Namespace) -> dict[str, Any]:
    scores = _read(folder / "metrics.json").get(config.checkpoint) or {}
    kept = {key: value for key, value in scores.items() if key not in ("confusion", "step")}
    return {"split": validated(config), **kept} if kept else {}


def validated(config: Namespace) -> str:
    """What a run's scores are of: the split, and how much of it."""
    limit = validation_limit(config.trainer)
    if limit is None:
        return str(config.data.val_split)
    part = f"{limit} batches" if isinstance(limit, int) else f"{100 * limit:g} %"
    return f"{config.data.val_split}{PART}{part}"


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
    """The command line that describes a run, or a published or exported folder as if it were one.

    Raises:
        ValueError: The folder is damaged.
    """
    if (folder / "config.yaml").is_file():
        return ["--config", str(folder / "config.yaml")]
    content = read_config(folder, exported=True)
    task, about, arguments = content["task"], About(**content["about"]), dict(content["model"])
    model = {key: arguments.pop(key) for key in _MODEL[task] if key in arguments}
    size: Any = about.crop_size
    if task == "segmentation":
        arguments.pop("num_classes", None)
        model["arch_options"] = arguments
    elif size:
        size = size[0]
    data = {"mean": about.mean, "std": about.std, "crop_size": size, "resize": about.resize}
    options = [f"--data.{key}={json.dumps(value)}" for key, value in data.items() if value]
    if about.dataset in _SETS[task]:
        options.append(f"--data.dataset={about.dataset}")
    if about.scores.get("split"):
        options.append(f"--data.val_split={about.scores['split'].split(PART)[0]}")
    return [f"--task={task}", "--model", json.dumps(model), *options]


def labels_of(folder: Path) -> LabelSet | None:
    """The classes that a published or exported folder names; None if it names none.

    Raises:
        ValueError: They are not those of its network.
    """
    content = read_config(folder, exported=True)
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
