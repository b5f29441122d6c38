"""A trained encoder under the names of the library that it comes from."""

import copy
from pathlib import Path
from typing import Any, cast

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from segdeconv.export.comparison import AnyModel, Check, compare, difference, probe, tensors
from segdeconv.export.files import ENCODER, FORMATS, Normalization, new_folder, save, write_config
from segdeconv.models import CLASSIFIERS, ClassificationModel, SegmentationModel
from segdeconv.models.classification import EncoderClassifier
from segdeconv.models.pretrained import build_model
from segdeconv.operators import operator_layers
from segdeconv.surgery import fold

State = dict[str, Tensor]


def export_encoder(
    model: AnyModel,
    folder: Path,
    *,
    folded: bool = True,
    normalization: Normalization | None = None,
    overwrite: bool = False,
) -> Check:
    """Write the encoder of a model as safetensors and config.json.

    Args:
        model: Any mode, on any device; of a classifier everything but the last layer is written.
        folder: New or empty folder.
        folded: Plain convolutions under the keys of the library's own encoder; False: the layers as
            they are, to go on training with the same operator.
        normalization: Mean and standard deviation of the images, for config.json.
        overwrite: Replace an earlier export.

    Raises:
        ValueError: The folder is taken; the encoder has no such form; what was written differs.
    """
    model = copy.deepcopy(model).cpu().eval()
    with new_folder(folder, overwrite) as part:
        names = _Names(model)
        state = _folded_state(model) if folded else dict(model.encoder.state_dict())
        head = _head_in_encoder(model)
        kept = {key: value for key, value in state.items() if not (head and key.startswith(head))}
        save({names.upstream(key): value for key, value in kept.items()}, part)
        config = _plain_config(model) if folded else model.config
        about = {"library": names.library, "encoder": names.name, "folded": folded}
        about |= {"task": model.task, "model": config}
        if normalization:
            about |= dict(zip(("mean", "std"), map(list, normalization), strict=True))
        write_config(part, ENCODER, about)
        check = _check(model, config, part, names, folded)
    return check


def _check(
    model: AnyModel, config: dict[str, Any], part: Path, names: "_Names", folded: bool
) -> Check:
    """Load what was written, and compare its features with the model's."""
    again = build_model(model.task, config, weights=part).eval()
    report = again.weights_report
    assert report is not None
    if isinstance(model, SegmentationModel) and report.part != "encoder":
        raise ValueError(f"the encoder {names.name!r} was not found again in what was written")
    if isinstance(model, ClassificationModel):  # whose last layer is in no file, and is lent
        trained = (fold(model) if folded else model).get_submodule(model.head_name)
        again.get_submodule(model.head_name).load_state_dict(trained.state_dict())
    images = probe(model)
    with torch.no_grad():
        found, expected = (tensors(net.encoder(images)) for net in (again, model))
        exact = tensors(model.double().encoder(images.double()))
    note = f"{report.loaded} tensors with the names of {names.library}'s {names.name}"
    rounding = [difference(*pair) for pair in zip(expected, exact, strict=True)]
    return compare(FORMATS["safetensors"], found, expected, rounding, note)


def _plain_config(model: AnyModel) -> dict[str, Any]:
    plain = {**model.config, "operator": "batchnorm", "operator_options": {}}
    return plain | ({"aux_head": False} if isinstance(model, SegmentationModel) else {})


def _head_in_encoder(model: AnyModel) -> str:
    """Start of the keys of a classifier's last layer, where its encoder has one; else empty."""
    if isinstance(model, SegmentationModel) or isinstance(model.network, EncoderClassifier):
        return ""
    return model.head_name.removeprefix("network.") + "."


class _Names:
    """Names of an encoder's parts within the library that it comes from."""

    def __init__(self, model: AnyModel) -> None:
        self.library, self.prefix = "segmentation_models_pytorch", ""
        self.spellings: dict[str, str] = {}
        if isinstance(model, SegmentationModel):
            self._of_segmentation(model)
        else:
            self._of_classifier(model)

    def _of_segmentation(self, model: SegmentationModel) -> None:
        encoder = model.config["encoder"]
        self.name = encoder.removeprefix("tu-")
        if hasattr(model.network, "backbone"):
            self.library = "torchvision"
            self.prefix = "features." if encoder.startswith("mobilenet") else ""
        elif encoder != self.name:
            self.library = "timm"
            with torch.device("meta"):
                whole = timm.create_model(self.name, pretrained=False)
            # timm's feature networks say stages_0 where its classifiers say stages.0
            self.spellings = {name.replace(".", "_"): name for name, _ in whole.named_modules()}

    def _of_classifier(self, model: ClassificationModel) -> None:
        """A classifier has its library's names already; the paper's own networks have no other."""
        name, small = model.config["name"], model.config["small_input"]
        self.name = name.removeprefix("tu-")
        if isinstance(model.network, EncoderClassifier):
            return
        self.library = "torchvision" if name == self.name else "timm"
        if small and name in CLASSIFIERS:
            self.name = CLASSIFIERS[name].large or name
            self.library = "torchvision" if _has_names_of(self.name, model) else "segdeconv"
            self.name = self.name if self.library == "torchvision" else name

    def upstream(self, key: str) -> str:
        """The library's key for one of the encoder's."""
        if self.library == "timm":
            key = key.removeprefix("model.")
        module, _, leaf = key.rpartition(".")
        module = self.spellings.get(module.replace(".", "_"), module)
        return f"{self.prefix}{module}.{leaf}" if module else f"{self.prefix}{leaf}"


def _has_names_of(name: str, model: ClassificationModel) -> bool:
    """Whether a network for small images has its modules where torchvision's are, but the last."""
    if name not in torchvision.models.list_models(module=torchvision.models):
        return False
    with torch.device("meta"):
        theirs = {each for each, _ in torchvision.models.get_model(name).named_modules()}
    head = _head_in_encoder(model)
    ours = (key for key in model.network.state_dict() if not key.startswith(head))
    return {key.rpartition(".")[0] for key in ours} <= theirs


def _folded_state(model: AnyModel) -> State:
    """The encoder's folded weights, with the keys of the library's own encoder.

    Raises:
        ValueError: A bias has no batch norm to go to, or a layer is not the library's.
    """
    host = build_model(model.task, _plain_config(model)).eval().encoder
    own = _plain_state(fold(model.encoder))
    state = dict(host.state_dict())
    biases = {key for key in own if key not in state}
    norms, called = _norms_behind(host, probe(model)) if biases else ({}, set())
    for name, norm in host.named_modules():
        if isinstance(norm, _BatchNorm) and f"{name}.running_mean" not in own:
            if f"{name}.weight" in own:
                raise ValueError(_no_form(model, f"{name} is no batch norm"))
            state.update(_norm_state(name, norm, None))
    for key in sorted(biases):
        conv = key.removesuffix(".bias")
        if conv not in called:  # smp builds layers that its encoders never run
            continue
        norm_name = norms.get(conv, "")
        if not norm_name or f"{norm_name}.running_mean" in own:
            raise ValueError(_no_form(model, f"{conv} has no batch norm right behind it"))
        norm = cast(_BatchNorm, host.get_submodule(norm_name))
        layer = model.encoder.get_submodule(conv)
        state.update(_norm_state(norm_name, norm, own[key], layer))
    return {key: own.get(key, value) for key, value in state.items()}


def _no_form(model: AnyModel, reason: str) -> str:
    encoder = model.config["encoder" if isinstance(model, SegmentationModel) else "name"]
    return (
        f"{encoder!r} with operator {model.config['operator']!r} cannot be folded "
        f"into the library's own encoder: {reason}; export it --unfolded, or the whole network"
    )


def _plain_state(plain: nn.Module) -> State:
    """Tensors of a folded encoder; a convolution behind a padding layer keeps the pair's name."""
    state = dict(plain.state_dict())
    for name, module in plain.named_modules():
        if isinstance(module, nn.Sequential) and len(module) == 2:
            if isinstance(module[0], nn.ZeroPad2d) and isinstance(module[1], nn.Conv2d):
                for leaf in ("weight", "bias"):
                    state[f"{name}.{leaf}"] = state.pop(f"{name}.1.{leaf}")
    return state


def _norm_state(
    name: str, norm: _BatchNorm, bias: Tensor | None, layer: nn.Module | None = None
) -> State:
    """Tensors of a batch norm that adds a bias in evaluation, and nothing else.

    Any mean and variance will do for that.  Behind a whitening layer they are those that its output
    has if whitening is perfect: then training with batches does not start with a jump.

    Args:
        name: Of the norm.
        norm: The norm.
        bias: (C,) of the folded convolution; None: nothing to add.
        layer: What was folded.
    """
    mean = torch.zeros(norm.num_features)
    variance = torch.ones(norm.num_features)
    shift = mean if bias is None else bias
    if isinstance(layer, operator_layers()) and isinstance(layer, nn.Conv2d):
        weight, own_bias = cast(Any, layer).effective_weight(), layer.bias
        variance = weight.detach().square().sum((1, 2, 3))
        mean = (torch.zeros_like(shift) if own_bias is None else own_bias.detach()) - shift
    tensors = {
        "weight": (variance + norm.eps).sqrt(),
        "bias": shift + mean,
        "running_mean": mean,
        "running_var": variance,
        "num_batches_tracked": torch.zeros((), dtype=torch.long),
    }
    return {f"{name}.{leaf}": tensor for leaf, tensor in tensors.items()}


def _norms_behind(host: nn.Module, images: Tensor) -> tuple[dict[str, str], set[str]]:
    """Name of a convolution -> name of the batch norm that takes its very output; all that ran."""
    outputs: list[tuple[str, Tensor, int]] = []
    found: dict[str, str] = {}

    def remember(name: str, output: Tensor) -> None:
        outputs.append((name, output, output._version))

    def look(name: str, given: Tensor) -> None:
        for conv, output, version in outputs:
            # an activation in place gives the same tensor, in another version
            if output is given and output._version == version:
                found[conv] = name

    handles = []
    for name, module in host.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            hook = module.register_forward_hook(lambda _m, _i, out, name=name: remember(name, out))
            handles.append(hook)
        elif isinstance(module, _BatchNorm):
            before = module.register_forward_pre_hook(lambda _m, x, name=name: look(name, x[0]))
            handles.append(before)
    with torch.no_grad():
        host(images)
    for handle in handles:
        handle.remove()
    return found, {name for name, _, _ in outputs}
