"""Local weight files into models, with an account of every key.

A file may hold a whole model of ours, a network of smp or torchvision, or an image classifier with
the model's encoder; keys may carry the prefixes of trainers ("module.", "network.", ...).  All the
pairings of a part of the file with a part of the model are compared by name and shape, and the one
with most in common is taken, if it is complete.  Parts that the model does not have, such as a
classifier's `fc`, are dropped and named; one key too few or too many is an error.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import segmentation_models_pytorch as smp
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from segdeconv.operators import operator_layers

if TYPE_CHECKING:
    from segdeconv.models.classification import ClassificationModel
    from segdeconv.models.segmentation import SegmentationModel

    AnyModel: TypeAlias = SegmentationModel | ClassificationModel

State = Mapping[str, Tensor]

_CONTAINERS = ("averaged_weights", "state_dict", "model_state_dict", "model")
_PREFIXES = {"module", "model", "network", "_orig_mod", "encoder", "backbone", "features"}
_OPTIONAL = ("num_batches_tracked", "running_weight", "counter")  # older files lack them

GRAFT = (
    "to keep its function, graft it: with tools/graft.py, or load it with operator 'batchnorm' and "
    "use segdeconv.graft"
)


@dataclass(frozen=True)
class WeightsReport:
    """What was loaded from where, and what was not.

    Attributes:
        path: The file.
        part: "model", "network" (the library's) or "encoder".
        loaded: Number of tensors.
        dropped: Part of the file that the model does not have -> its number of tensors.
        fresh: Parts of the model that the file does not hold.
        before_surgery: Whether they are a plain network's, loaded before the operator changed it.
        norms_lost: Whether it then lost batch norms, and with them the function it was trained to.
    """

    path: str
    part: str
    loaded: int
    dropped: dict[str, int]
    fresh: tuple[str, ...]
    before_surgery: bool = False
    norms_lost: bool = False

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        text = f"{self.path}: {self.loaded} tensors into the {self.part}"
        if self.norms_lost:
            text = (
                f"the operator took the batch norms of {self.path}, and with them the function "
                f"that it was trained to; {GRAFT}\n{text}"
            )
        if self.dropped:
            parts = ", ".join(f"{name} ({count})" for name, count in self.dropped.items())
            text += f"; not used: {parts}"
        if self.fresh:
            text += f"; not in the file: {', '.join(self.fresh)}"
        if self.before_surgery:
            text += "; of a plain network, which the operator then changed: see the surgery report"
        return text


def load_weights(model: "AnyModel", path: str | Path) -> WeightsReport:
    """Load a local file into a model that is already built and converted.

    Raises:
        ValueError: The file cannot be read, or does not fit.
    """
    state = read_weights(path)
    fit = best_fit(model, state)
    if not fit.complete:
        if has_statistics(model) and not is_whitened(state):
            build = "create_model" if "arch" in model.config else "create_classifier"
            raise ValueError(
                f"{path} holds no whitening statistics, so it is a plain network's; give it to "
                f"{build} as weights=, which loads it before the surgery; {GRAFT}"
            )
        raise ValueError(fit.refusal(model, state, str(path)))
    return fit.load(model, state, str(path))


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a torch file without anything that could be executed.

    The folder of an export, or of a run, stands for the weights in it.

    Raises:
        ValueError: No such file, or not one of these.
    """
    if not isinstance(path, str | Path):
        raise ValueError(f"weights={path!r}: expected the path of a local file")
    file = Path(path)
    if "://" in str(path):
        raise ValueError(f"weights={path}: expected a local file; nothing is downloaded")
    if file.is_dir():  # an export, or a run
        exported = file / "model.safetensors"
        file = exported if exported.exists() else file / "weights.safetensors"
    if not file.is_file():
        raise ValueError(f"no weights file {path}")
    try:
        file.open("rb").close()  # safetensors says "no such file" of one it may not read
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch's reader raises what it stumbles over, an IndexError too
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}); expected a .safetensors file or a "
            f"state dict saved by torch, which may hold nothing but tensors"
        ) from error
    for name in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    tensors = content.items() if isinstance(content, Mapping) else ()
    state = {key: value for key, value in tensors if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"{path} holds no tensors; expected the state dict of a network")
    return state


def plain_tensors(state: State) -> dict[str, Tensor]:
    """Copies that safetensors takes: it refuses shared memory, and channels_last layouts."""
    return {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}


def is_whitened(state: State) -> bool:
    """Whether tensors come from a network with whitening layers."""
    return any(key.endswith("running_deconv") for key in state)


def has_statistics(model: nn.Module) -> bool:
    """Whether a model has whitening layers."""
    return any(isinstance(module, operator_layers()) for module in model.modules())


# -------------------------------------------------------------------------------------- matching


@dataclass
class Fit:
    """A part of a file compared with a part of a model.

    Attributes:
        part: "model", "network" or "encoder".
        pairs: Key of the model -> key of the file, same name and shape.
        missing: Keys of the part that the file lacks.
        unexpected: Keys of the file, in parts that the model has, that fit nowhere.
        misfits: Key of the model -> (shape in the file, shape in the model).
        dropped: Part of the file that the model does not have -> its number of tensors.
    """

    part: str
    pairs: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misfits: dict[str, tuple[torch.Size, torch.Size]] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def problems(self) -> int:
        """Number of keys that do not fit."""
        return len(self.missing) + len(self.unexpected) + len(self.misfits)

    @property
    def names_fit(self) -> bool:
        """Whether the file and the part have the same keys, shapes aside."""
        return not self.missing and not self.unexpected

    @property
    def complete(self) -> bool:
        """Whether the file gives the part all it needs and nothing else."""
        return bool(self.pairs) and not self.problems

    def load(self, model: "AnyModel", state: State, path: str) -> WeightsReport:
        """Load the pairs."""
        assert self.complete
        chosen = {ours: state[theirs] for ours, theirs in self.pairs.items()}
        model.load_state_dict(chosen, strict=False)  # what is missing was looked at above
        rest = [key for key in model.state_dict() if not key.endswith(_OPTIONAL)]
        fresh = dict.fromkeys(_part_of(key) for key in rest if key not in self.pairs)
        return WeightsReport(path, self.part, len(self.pairs), dict(self.dropped), tuple(fresh))

    def refusal(self, model: "AnyModel", state: State, path: str) -> str:
        """Why the file does not fit, in one sentence."""
        config = model.config
        encoder = config["encoder"] if "encoder" in config else config["name"]
        whole = f"{config['arch']} with encoder {encoder}" if "arch" in config else encoder
        what = encoder if self.part == "encoder" else whole
        if is_whitened(state) and not has_statistics(model):
            return (
                f"{path} holds whitening statistics, but the model has none: its operator is "
                f"{config['operator']!r}; use 'deconv'"
            )
        if self.misfits and self.problems == len(self.misfits):
            return f"{path} does not fit {what}: {self._misfit(config)}"
        counts = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": list(self.misfits),
        }
        first = next((keys[0] for keys in counts.values() if keys), next(iter(state)))
        found = [f"{len(keys)} {how}" for how, keys in counts.items() if keys]
        text = ", ".join(found).replace(" ", " keys ", 1) or "no key in common"
        guess = _looks_like(encoder, state)
        looks = f"; it looks like a {guess}" if guess and guess != encoder else ""
        return f"{path} does not fit {what}: {text} (first: {first}){looks}"

    def _misfit(self, config: Mapping[str, Any]) -> str:
        """What is wrong when all names fit and some shapes do not."""
        key, (theirs, ours) = next(iter(self.misfits.items()))
        shapes = f"{key} is {tuple(theirs)} in the file and {tuple(ours)} in the model"
        if all(s[0] != o[0] == config["num_classes"] for s, o in self.misfits.values()):
            return f"it was made for {theirs[0]} classes, the model has num_classes={ours[0]}"
        same_but_channels = len(ours) == 4 and ours[:1] + ours[2:] == theirs[:1] + theirs[2:]
        if len(self.misfits) == 1 and same_but_channels:
            return f"it was made for {theirs[1]} channels, the model has in_channels={ours[1]}"
        layers = {misfit.rsplit(".", 1)[0] for misfit in self.misfits}
        if len(layers) == 1 and ours[:2] == theirs[:2] and ours[2:] != theirs[2:]:
            return (
                f"{shapes}; classifiers for small images have another stem: train one with "
                "small_input=False (--model.small_input false), whose encoder fits"
            )
        if any("running_" in key for key in self.misfits):
            return f"{shapes}; operator_options such as block and grouping must be the same"
        return shapes


def best_fit(model: "AnyModel", state: State) -> Fit:
    """The pairing of a part of the file with a part of the model that has most in common.

    Names count before shapes: with the same decoder for another number of classes it is the whole
    network that does not fit, with another decoder it is the encoder that does.
    """
    return max(_fits(model, state), key=lambda fit: (fit.names_fit, len(fit.pairs), fit.complete))


def _fits(model: "AnyModel", state: State) -> Iterator[Fit]:
    """All pairings; the larger part of the model first."""
    whole = model.state_dict()
    encoder = next(name for name, part in model.named_modules() if part is model.encoder)
    targets = {"": "model", "network.": "network"}
    targets.setdefault(f"{encoder}.", "encoder")  # a library's classifier is its own encoder
    if isinstance(model.encoder, smp.encoders.TimmUniversalEncoder):
        targets[f"{encoder}.model."] = "encoder"  # timm's names, without smp's wrapper
    for target, part in targets.items():
        ours = {k.removeprefix(target): k for k in whole if k.startswith(target)}
        for prefix in _prefixes(state):
            theirs = {_modern(k.removeprefix(prefix)): k for k in state if k.startswith(prefix)}
            yield _compare(part, ours, theirs, whole, state)


def _prefixes(state: State) -> list[str]:
    """Every way to cut known wrappers off the front of the keys."""
    found = {""}
    for key in state:
        path = ""
        for name in key.split("."):
            if name not in _PREFIXES:
                break
            path += f"{name}."
            found.add(path)
    return sorted(found, key=len)


def _compare(
    part: str, ours: Mapping[str, str], theirs: Mapping[str, str], whole: State, state: State
) -> Fit:
    """Compare two parts by name and shape.

    Args:
        part: Name of the model's part.
        ours: Key within the part -> key of the model.
        theirs: Key within the part -> key of the file.
        whole: State dict of the model.
        state: Tensors of the file.
    """
    fit = Fit(part)
    by_letters = {_letters(name): key for name, key in theirs.items()}
    used = set()
    for name, key in ours.items():
        other = theirs.get(name) or by_letters.get(_letters(name))
        if other is None:
            if not name.endswith(_OPTIONAL):
                fit.missing.append(key)
            continue
        used.add(other)
        if state[other].shape == whole[key].shape:
            fit.pairs[key] = other
        else:
            fit.misfits[key] = (state[other].shape, whole[key].shape)
    parts = {name.split(".")[0] for name in ours}
    places = {key: name for name, key in theirs.items()}
    for key in (key for key in state if key not in used):
        names = places.get(key, key).split(".")
        known = names[0] in parts or _letters(".".join(names[:2])) in parts
        if key in places and known:
            fit.unexpected.append(key)
        else:
            fit.dropped[names[0]] += 1
    return fit


def _letters(name: str) -> str:
    """Spelling that timm's feature networks share with its classifiers: stages_0 is stages.0."""
    return name.replace(".", "_")


def _modern(name: str) -> str:
    """Spelling of torchvision's old DenseNet files brought up to date: norm.1 is norm1."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2.", name)


def _part_of(key: str) -> str:
    """Name of the part of a model for reports: "aux_head", "network.decoder", ..."""
    return ".".join(key.split(".")[: 2 if key.startswith("network.") else 1])


def _looks_like(encoder: str, state: State) -> str | None:
    """The encoder of the same family that fits a file exactly, if there is one."""
    entries = smp.encoders.encoders
    if encoder not in entries:
        return None
    family = [n for n, e in entries.items() if e["encoder"] is entries[encoder]["encoder"]]
    shapes = [
        {k.removeprefix(prefix): v.shape for k, v in state.items() if k.startswith(prefix)}
        for prefix in _prefixes(state)
    ]
    fitting = {}
    for name in family:
        with torch.device("meta"):
            candidate = smp.encoders.get_encoder(name, weights=None)
        own = {k: v.shape for k, v in candidate.state_dict().items() if not k.endswith(_OPTIONAL)}
        if any(own.items() <= shape.items() for shape in shapes):
            fitting[str(name)] = len(own)
    return max(fitting, key=lambda name: fitting[name], default=None)
