"""Trained networks as folders in the layout of the Hugging Face Hub: to publish, to load again.

    folder/
        config.json          arguments that build the network; what it was trained on; its scores
        model.safetensors    its weights, whitening statistics included, so that training can go on
        README.md            the model card

Such a folder holds data only: it says by name what is built, and nothing in it is executed.
Nothing is downloaded for the name of a folder; the Hub is asked when the name says so: "hf-hub:…".
"""

import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from huggingface_hub import EvalResult, ModelCard, ModelCardData, ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import nn

from segdeconv.models.weights import WeightsReport, plain_tensors, read_weights
from segdeconv.registry import suggest
from segdeconv.surgery import SurgeryReport

if TYPE_CHECKING:
    from segdeconv.models.classification import ClassificationModel
    from segdeconv.models.segmentation import SegmentationModel

FORMAT = "segdeconv model"
EXPORTED = "segdeconv network"  # folded, of `segdeconv.export.export_network`
HUB = "hf-hub:"  # as timm spells it
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"

_KEYS = ("format", "segdeconv", "task", "model", "about")
_OF_EXPORTED = ("formats", "argmax", "normalize", "size")
_CREATORS = {  # task -> what builds its models
    "segmentation": "create_model",
    "classification": "create_classifier",
}
_SCORES = {  # key of scores -> what the Hub calls it, what a reader calls it
    "miou": ("mean_iou", "mean IoU"),
    "mean_accuracy": ("mean_accuracy", "mean accuracy of the classes"),
    "pixel_accuracy": ("accuracy", "accuracy of all pixels"),
    "top1": ("accuracy", "top-1 accuracy"),
    "top5": ("top_5_accuracy", "top-5 accuracy"),
}


@dataclass
class About:
    """What there is to know of trained weights besides the arguments that build their network.

    All of it goes into config.json and the model card, and comes back from there.

    Attributes:
        name: Of the model, for people.
        dataset: What it was trained on.
        mean: Of each channel of its images, of values in 0 to 1.
        std: Standard deviation of each channel.
        crop_size: Height and width of the images of the training.
        resize: Height and width that whole images were resized to before; None: as they are.
        classes: Of each class its "name", and for pictures its "colour" [red, green, blue] and its
            "id" in label files.
        recipe: Name of a part of the training -> its settings.
        scores: "split" and scores in 0 to 1 ("miou", "pixel_accuracy", "top1", …), "class_iou" by
            name of class.
        environment: Name -> version or hardware.
    """

    name: str = ""
    dataset: str = ""
    mean: list[float] | None = None
    std: list[float] | None = None
    crop_size: list[int] | None = None
    resize: list[int] | None = None
    classes: list[dict[str, Any]] = field(default_factory=list)
    recipe: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)


class Pretrained(ModelHubMixin, library_name="segdeconv"):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` of models.

    Attributes:
        about: What is written into config.json and the model card besides the network.
    """

    task = ""
    about: About
    config: dict[str, Any]
    surgery_report: SurgeryReport
    weights_report: WeightsReport | None

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        *,
        config: None = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write config.json, model.safetensors and, if there is none, README.md.

        Layers stay as they are, whitening statistics included: who loads it can train on, or
        `segdeconv.fold` it.  What is known of the training is in the attribute ``about``.

        Args:
            save_directory: Folder; the three files in it are replaced, but a README.md of yours.
            config: For `push_to_hub`, which hands it on; the model's own config is written.
            repo_id: On the Hub, for ``push_to_hub``; default: the folder's name.
            push_to_hub: Upload it too, see `push_to_hub`.
            model_card_kwargs: {"license": "…"} for the first lines of the card.
            **push_to_hub_kwargs: For `push_to_hub`.

        Returns:
            Address on the Hub, if it was uploaded.

        Raises:
            ValueError: The model is not what its config builds, so nothing could load it again.
        """
        if config is not None:
            raise ValueError("config= is not taken; what is written is the model's own config")
        folder = Path(save_directory)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file; name a folder to save the model in")
        self._check_config()
        return super().save_pretrained(
            folder,
            repo_id=repo_id,
            push_to_hub=push_to_hub,
            model_card_kwargs=model_card_kwargs,
            **push_to_hub_kwargs,
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        content = {
            "format": FORMAT,
            "segdeconv": import_module("segdeconv").__version__,
            "task": self.task,
            "model": self.config,
            "about": asdict(self.about),
        }
        plain = plain_tensors(cast(nn.Module, self).state_dict())
        part = save_directory / f".{WEIGHTS}.part"
        save_file(plain, part, metadata={"format": "pt"})
        part.replace(save_directory / WEIGHTS)
        (save_directory / CONFIG).write_text(json.dumps(content, indent=2) + "\n")

    def _check_config(self) -> None:
        """Refuse a model whose layers are not those of a new one with the same config."""
        own, other = (
            {key: value.shape for key, value in cast(nn.Module, model).state_dict().items()}
            for model in (self, build_model(self.task, self.config))
        )
        wrong = [key for key in {**own, **other} if own.get(key) != other.get(key)]
        if wrong:
            raise ValueError(
                f"the model is no longer what its config builds (first difference: {wrong[0]}): "
                "save it before it is folded; of one that was grafted or converted by hand, set "
                "operator and operator_options in model.config first"
            )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **hub_options: Any) -> Self:
        """As `segdeconv.from_pretrained`, for this kind of model.

        Raises:
            ValueError: The folder holds another kind of model, or none.
        """
        model = from_pretrained(pretrained_model_name_or_path, **hub_options)
        if not isinstance(model, cls):
            raise ValueError(
                f"{pretrained_model_name_or_path} holds a model for {model.task}, no "
                f"{cls.__name__}; load it with segdeconv.from_pretrained"
            )
        return model

    def generate_model_card(self, *, license: str | None = None) -> ModelCard:
        """The model card, from ``config``, ``about`` and the reports.

        Args:
            license: Of the weights, such as "apache-2.0"; None leaves it open.
        """
        about, name = self.about, self.about.name or self._default_name()
        scores = {
            key: value
            for key, value in about.scores.items()
            if key in _SCORES and value is not None
        }
        results = [
            EvalResult(
                task_type=f"image-{self.task}",
                dataset_type=about.dataset,
                dataset_name=about.dataset,
                dataset_split=about.scores.get("split"),
                metric_type=_SCORES[key][0],
                metric_name=_SCORES[key][1],
                metric_value=round(value, 4),
            )
            for key, value in scores.items()
            if about.dataset
        ]
        data = ModelCardData(
            license=license,
            library_name="segdeconv",
            pipeline_tag=f"image-{self.task}",
            tags=["segdeconv", "pytorch", f"image-{self.task}", self.config["operator"]],
            datasets=[about.dataset] if about.dataset else None,
            metrics=list(dict.fromkeys(_SCORES[key][0] for key in scores)) or None,
            model_name=name,
            eval_results=results or None,
        )
        card: ModelCard = ModelCard.from_template(
            data,
            template_path=str(Path(__file__).with_name("model_card.md")),
            name=name,
            licence=license,
            task=self.task,
            config=self.config,
            about=about,
            scores={_SCORES[key][1]: value for key, value in scores.items()},
            surgery=str(self.surgery_report),
            parameters=sum(p.numel() for p in cast(nn.Module, self).parameters()) / 1e6,
            version=import_module("segdeconv").__version__,
        )
        return card

    def _default_name(self) -> str:
        parts = [self.config.get(key) for key in ("arch", "encoder", "name", "operator")]
        return "_".join(part for part in parts if part)


# ------------------------------------------------------------------------------------------- load


def from_pretrained(
    source: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> "SegmentationModel | ClassificationModel":
    """A trained model out of a folder, or from the Hugging Face Hub.

        >>> model = segdeconv.from_pretrained("my_model")
        >>> model = segdeconv.from_pretrained("hf-hub:owner/model")

    Args:
        source: Folder that `save_pretrained` or tools/export.py wrote; or "hf-hub:owner/model".
        revision: Branch, tag or commit on the Hub.
        cache_dir: Where downloads go; None: the usual place of huggingface_hub.
        token: Of the Hub, for models that are not public.
        force_download: Download again what is there already.
        local_files_only: Take what was downloaded before, and ask nobody.

    Returns:
        The model in evaluation mode, with ``about`` and ``weights_report``.

    Raises:
        ValueError: No such folder; files are missing, damaged, or of another version.
    """
    if isinstance(source, str) and source.startswith(HUB):
        options = {"revision": revision, "cache_dir": cache_dir, "token": token}
        options |= {"force_download": force_download, "local_files_only": local_files_only}
        folder = _download(source.removeprefix(HUB), options)
    else:
        folder = Path(source)
        if not folder.is_dir():
            raise ValueError(_no_folder(source))
    content = read_config(folder)
    model = build_model(content["task"], content["model"], folder)
    state = read_weights(folder / WEIGHTS)
    own = model.state_dict()
    wrong = [k for k in {**own, **state} if k not in own or k not in state]
    wrong += [k for k in own if k in state and own[k].shape != state[k].shape]
    if wrong:
        raise ValueError(
            f"{folder / WEIGHTS} does not fit {folder / CONFIG}: {len(wrong)} tensors are missing, "
            f"unexpected or of another shape (first: {wrong[0]}); the files belong to two models"
        )
    model.load_state_dict(state)
    model.weights_report = WeightsReport(str(source), "model", len(state), {}, ())
    model.about = About(**content["about"])
    return model.eval()


def _no_folder(source: str | Path) -> str:
    text = str(source)
    hint = "tools/export.py RUN --what pretrained writes one"
    if isinstance(source, str) and text.count("/") == 1 and not text.startswith((".", "/", "~")):
        hint = f"for a download from the Hugging Face Hub write {HUB + text!r}"
    return f"no folder {text}; {hint}"


def _download(repo: str, options: Mapping[str, Any]) -> Path:
    """Local folder with the files of a model on the Hub."""
    try:
        return Path(snapshot_download(repo, allow_patterns=[CONFIG, WEIGHTS, CARD], **options))
    except HFValidationError as error:
        raise ValueError(f"{HUB}{repo}: expected {HUB}owner/model") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{HUB}{repo} cannot be downloaded: {reason}") from error


def format_of(folder: Path) -> str | None:
    """What config.json says that a folder holds; None if there is none."""
    try:
        content = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError):
        return None
    return content.get("format") if isinstance(content, dict) else None


def is_pretrained(folder: Path) -> bool:
    """Whether a folder says that it holds a model of `save_pretrained`."""
    return format_of(folder) == FORMAT


def is_exported(folder: Path) -> bool:
    """Whether a folder says that it holds a folded network."""
    return format_of(folder) == EXPORTED


def read_config(folder: Path, exported: bool = False) -> dict[str, Any]:
    """What config.json says: "task", "model" (arguments) and "about".

    Args:
        folder: One of `save_pretrained`.
        exported: Take a folder of a folded network, too.

    Raises:
        ValueError: It is missing, damaged, of something else or of another version.
    """
    path = folder / CONFIG
    content = _read_json(path, (FORMAT, EXPORTED) if exported else (FORMAT,))
    about = content.get("about", {})
    version = content.get("segdeconv")
    more = _OF_EXPORTED if content["format"] == EXPORTED else ()
    _check_keys(content, _KEYS + more, path, version)
    lacking = [key for key in ("task", "model") if key not in content]
    if lacking or content["task"] not in _CREATORS:
        what = f"has no {lacking[0]!r}" if lacking else f"names the task {content['task']!r}"
        raise ValueError(f"{path} {what}; expected task, one of {', '.join(_CREATORS)}, and model")
    for name, part in (("model", content["model"]), ("about", about)):
        if not isinstance(part, dict):
            raise ValueError(f"{path} holds {part!r} under {name!r}; expected names and values")
    _check_keys(about, [item.name for item in fields(About)], path, version)
    return {**content, "about": about}


def _read_json(path: Path, formats: tuple[str, ...]) -> dict[str, Any]:
    """What the file of a model's folder of one of some formats holds, whatever keys that are.

    Raises:
        ValueError: It is missing, damaged, or of something else.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(
            f"{path.parent} holds no model: it has no {CONFIG}; `save_pretrained` and "
            "tools/export.py RUN --what pretrained write such folders"
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({' '.join(str(error).split())})") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found not in formats:
        hint = {
            "segdeconv encoder": "an encoder's; give the folder as weights= of create_model, or as "
            "--model.weights of tools/train.py",
            EXPORTED: "a folded network's; load it with segdeconv.export.load_network",
        }.get(str(found), "not of this library")
        raise ValueError(f"{path} is {hint}")
    return cast(dict[str, Any], content)


def _check_keys(
    content: Mapping[str, Any], known: "list[str] | tuple[str, ...]", path: Path, version: Any
) -> None:
    for key in content:
        if key not in known:
            own = import_module("segdeconv").__version__
            other = version not in (None, own)
            advice = (
                f"it was written by segdeconv {version}, and this is {own}: install that one"
                if other
                else suggest(key, known, f"known: {', '.join(known)}")
            )
            raise ValueError(f"{path} holds the unknown key {key!r}; {advice}")


def build_model(
    task: str,
    config: Mapping[str, Any],
    folder: Path | None = None,
    weights: Path | None = None,
) -> "SegmentationModel | ClassificationModel":
    """A new model with these arguments.

    Args:
        task: "segmentation" or "classification".
        config: Arguments of its `create_model` or `create_classifier`, without weights.
        folder: Whose config.json they come from, for messages.
        weights: Where it starts from.

    Raises:
        ValueError: They are not those of a model.
    """
    # the models inherit from the class above, so what builds them can only be looked up later
    create = getattr(import_module("segdeconv.models"), _CREATORS[task])
    where = f"{folder / CONFIG}: " if folder else ""
    parameters = inspect.signature(create).parameters
    needed = [
        name for name, p in parameters.items() if p.default is p.empty and p.kind != p.VAR_KEYWORD
    ]
    lacking = [name for name in needed if name not in config]
    free = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    unknown = [name for name in config if name not in parameters and not free]
    if lacking or unknown or "weights" in config:
        what = f"no {lacking[0]!r}" if lacking else f"the key {(unknown or ['weights'])[0]!r}"
        raise ValueError(f"{where}{what} among the arguments of the model")
    try:
        return cast("SegmentationModel | ClassificationModel", create(**config, weights=weights))
    except (ValueError, TypeError, AttributeError) as error:  # numbers in place of names, …
        raise ValueError(f"{where}{error}") from error
