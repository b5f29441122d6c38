"""Trained networks in forms that others read: encoders, safetensors, ONNX, torch.export programs.

Every file is compared with the network that it came from before it gets its name: what differs by
more than rounding is an error and leaves nothing behind.

    encoder/                      network/
        config.json                   config.json
        model.safetensors             model.safetensors   folded: plain layers only
                                      model.onnx          (N, 3, H, W) -> logits, or classes
    pretrained/                       model.pt2           the same as a torch.export program
        config.json, model.safetensors, README.md: see `segdeconv.models.pretrained`

A folded encoder has the keys of the library's own: each convolution's bias goes into the batch norm
behind it, which has nothing else to do in evaluation.  So the file loads strictly into networks
that never heard of whitening.
"""

import copy
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from segdeconv.inference import OnnxModel
from segdeconv.models import (
    ClassificationModel,
    SegmentationModel,
    create_model,
    from_pretrained,
)
from segdeconv.models.classification import LARGE, SMALL
from segdeconv.models.pretrained import FORMAT as _PRETRAINED
from segdeconv.models.weights import plain_tensors
from segdeconv.operators import operator_layers
from segdeconv.surgery import fold

FORMATS = {"safetensors": "model.safetensors", "onnx": "model.onnx", "program": "model.pt2"}
TOLERANCE = 1e-4  # of the largest output; most networks stay below 1e-5
ROUNDING = 10  # times the eager network's own difference from float64, where that is more
_ENCODER, _NETWORK = "segdeconv encoder", "segdeconv network"

State = dict[str, Tensor]
Normalization = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Check:
    """What was found of a file that was written.

    Attributes:
        file: Its name.
        difference: Largest difference of its outputs from the eager network's.
        largest: Largest absolute output of the eager network.
        note: What it takes and gives, in words.
    """

    file: str
    difference: float
    largest: float
    note: str = ""

    def __str__(self) -> str:
        text = f"{self.file}: differs by {self.difference:.1e} at most, of {self.largest:.1e}"
        return f"{text}; {self.note}" if self.note else text


# ----------------------------------------------------------------------------------------- encoder


def export_encoder(
    model: SegmentationModel,
    folder: Path,
    *,
    folded: bool = True,
    normalization: Normalization | None = None,
    overwrite: bool = False,
) -> Check:
    """Write the encoder of a model as safetensors and config.json.

    Args:
        model: Any mode, on any device.
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
        _save({names.upstream(key): value for key, value in state.items()}, part)
        config = _plain_config(model) if folded else model.config
        library, name = names.library, names.name
        about = {"library": library, "encoder": name, "folded": folded, "model": config}
        _write_config(part, _ENCODER, about, normalization)
        again = create_model(**config, weights=part)
        assert again.weights_report is not None
        if again.weights_report.part != "encoder":
            raise ValueError(f"the encoder {name!r} was not found again in what was written")
        images = _probe(model)
        with torch.no_grad():
            found, expected = (_tensors(net.encoder(images)) for net in (again.eval(), model))
            exact = _tensors(model.double().encoder(images.double()))
        note = f"{again.weights_report.loaded} tensors with the names of {library}'s {name}"
        rounding = [_difference(*pair) for pair in zip(expected, exact, strict=True)]
        check = _compare(FORMATS["safetensors"], found, expected, rounding, note)
    return check


def _plain_config(model: SegmentationModel) -> dict[str, Any]:
    return {**model.config, "operator": "batchnorm", "operator_options": {}, "aux_head": False}


class _Names:
    """Names of an encoder's parts within the library that it comes from."""

    def __init__(self, model: SegmentationModel) -> None:
        encoder = model.config["encoder"]
        self.name = encoder.removeprefix("tu-")
        self.library, self.prefix = "segmentation_models_pytorch", ""
        self.spellings: dict[str, str] = {}
        if hasattr(model.network, "backbone"):
            self.library = "torchvision"
            self.prefix = "features." if encoder.startswith("mobilenet") else ""
        elif encoder != self.name:
            self.library = "timm"
            with torch.device("meta"):
                whole = timm.create_model(self.name, pretrained=False)
            # timm's feature networks say stages_0 where its classifiers say stages.0
            self.spellings = {name.replace(".", "_"): name for name, _ in whole.named_modules()}

    def upstream(self, key: str) -> str:
        """The library's key for one of the encoder's."""
        if self.library == "timm":
            key = key.removeprefix("model.")
        module, _, leaf = key.rpartition(".")
        module = self.spellings.get(module.replace(".", "_"), module)
        return f"{self.prefix}{module}.{leaf}" if module else f"{self.prefix}{leaf}"


def _folded_state(model: SegmentationModel) -> State:
    """The encoder's folded weights, with the keys of the library's own encoder.

    Raises:
        ValueError: A bias has no batch norm to go to, or a layer is not the library's.
    """
    host = create_model(**_plain_config(model)).eval().encoder
    own = _plain_state(fold(model.encoder))
    state = dict(host.state_dict())
    biases = {key for key in own if key not in state}
    norms, called = _norms_behind(host, _probe(model)) if biases else ({}, set())
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


def _no_form(model: SegmentationModel, reason: str) -> str:
    return (
        f"{model.config['encoder']!r} with operator {model.config['operator']!r} cannot be folded "
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


# -------------------------------------------------------------------------------------- pretrained


def export_pretrained(
    model: SegmentationModel | ClassificationModel, folder: Path, *, overwrite: bool = False
) -> Check:
    """Write a model as `segdeconv.from_pretrained` reads it, with its model card.

    Args:
        model: Any mode, on any device; what the card says of its training is in ``model.about``.
        folder: New or empty folder.
        overwrite: Replace an earlier export.

    Raises:
        ValueError: The folder is taken; the model is not what its config builds; what was written
            differs.
    """
    model = copy.deepcopy(model).cpu().eval()
    with new_folder(folder, overwrite) as part:
        model.save_pretrained(part)
        again = from_pretrained(part)
        if isinstance(model, SegmentationModel):
            images = _probe(model)
        else:
            side = SMALL if model.config["small_input"] else LARGE
            images = _random(2, model.config["in_channels"], side, side)
        with torch.no_grad():
            found, expected = again(images), model(images)
        assert again.weights_report is not None
        note = f"{again.weights_report.loaded} tensors, for segdeconv.from_pretrained"
        check = _compare(FORMATS["safetensors"], [found], [expected], [0.0], note)
    return check


# ----------------------------------------------------------------------------------- whole network


def export_network(
    model: SegmentationModel,
    folder: Path,
    *,
    formats: Sequence[str] = tuple(FORMATS),
    argmax: bool = False,
    normalization: Normalization | None = None,
    normalize: bool = False,
    size: tuple[int, int] | None = None,
    overwrite: bool = False,
) -> list[Check]:
    """Write a model, folded, for others to run.

    ONNX file and program take (N, 3, H, W) float32, N, H and W free, and give logits
    (N, num_classes, H, W) float32.

    Args:
        model: Any mode, on any device.
        folder: New or empty folder.
        formats: Some of `FORMATS`.
        argmax: They give classes (N, H, W) int64 in place of logits.
        normalization: Mean and standard deviation of the images.
        normalize: They take pixels 0 to 255 and normalise them.
        size: Fix height and width; N stays free where the network allows it.
        overwrite: Replace an earlier export.

    Raises:
        ValueError: The folder is taken; a package is missing; the network has no such form; what
            was written differs.
    """
    _check_formats(formats, size)
    assert normalization or not normalize
    model = copy.deepcopy(model).cpu().eval()
    deployed = Deployed(model, argmax, normalization if normalize else None).eval()
    about = {"argmax": argmax, "normalize": normalize, "size": size, "formats": list(formats)}
    checks = []
    with new_folder(folder, overwrite) as part:
        _write_config(part, _NETWORK, {"model": deployed.network.config, **about}, normalization)
        if "safetensors" in formats:
            _save(deployed.network.state_dict(), part)
            checks.append(_check_weights(model, part))
        if {"onnx", "program"} & set(formats):
            traced = _trace(model, deployed, size)
            if "program" in formats:
                checks.append(_write_program(traced, part))
            if "onnx" in formats:
                checks.append(_write_onnx(traced, part))
    return checks


def load_network(folder: Path) -> SegmentationModel:
    """The folded network in a folder of `export_network`, in evaluation mode.

    Raises:
        ValueError: It is no such folder, or has no safetensors.
    """
    config, weights = folder / "config.json", folder / FORMATS["safetensors"]
    if _format_of(folder) != _NETWORK or not weights.is_file():
        raise ValueError(
            f"{folder} is not an exported network with safetensors; tools/export.py writes one"
        )
    model = fold(create_model(**json.loads(config.read_text())["model"]))
    model.load_state_dict(load_file(weights))
    return model


class Deployed(nn.Module):
    """A folded network, with what a deployer wants in the graph.

    Differs from the model's own forward in having no branch on the size of the images: padding to a
    multiple is a choice of rows and columns, of which the last ones repeat.

    Args:
        model: The model, of which a folded copy is taken.
        argmax: Give classes.
        normalization: Take pixels 0 to 255, and subtract this mean and divide by this deviation.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: SegmentationModel, argmax: bool, normalization: Normalization | None
    ) -> None:
        super().__init__()
        self.network = fold(model)
        self.network.aux_head = None
        self.network.config = {**model.config, "aux_head": False}
        self.argmax, self.normalize = argmax, normalization is not None
        if normalization is not None:
            for name, values in zip(("mean", "std"), normalization, strict=True):
                self.register_buffer(name, 255 * torch.tensor(values).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, num_classes, H, W), or classes (N, H, W)."""
        if self.normalize:
            images = (images - self.mean) / self.std
        height, width = images.shape[-2:]
        padded = images
        for side, size in ((2, height), (3, width)):
            divisor, least = self.network.divisor, self.network.min_size
            wanted = torch.sym_max((size + divisor - 1) // divisor * divisor, least)
            chosen = torch.arange(wanted, device=images.device).clamp(max=size - 1)
            padded = padded.index_select(side, chosen)
        logits, _ = self.network._logits(padded)
        if logits.shape[-2:] != padded.shape[-2:]:
            logits = F.interpolate(logits, padded.shape[-2:], mode="bilinear", align_corners=False)
        logits = logits[..., :height, :width]
        return logits.argmax(1) if self.argmax else logits

    def given(self, images: Tensor) -> Tensor:
        """What it takes for normalised images."""
        return images * self.std + self.mean if self.normalize else images


def _check_formats(formats: Sequence[str], size: tuple[int, int] | None) -> None:
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"format {name!r}: expected some of {', '.join(FORMATS)}")
    if not formats:
        raise ValueError(f"no format is named: expected some of {', '.join(FORMATS)}")
    if size is not None and min(size) < 1:
        raise ValueError(f"size={size}: expected a height and a width of 1 or more")
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if not find_spec(name)]
    if "onnx" in formats and missing:
        others = " ".join(name for name in FORMATS if name != "onnx")
        raise ValueError(
            f"ONNX files need {', '.join(missing)}, which the extra `export` installs: "
            f"pip install '.[export]'; or leave ONNX out: --formats {others}"
        )


def _check_weights(model: SegmentationModel, part: Path) -> Check:
    images = _probe(model)
    with torch.no_grad():
        found, expected = load_network(part)(images), cast(Tensor, model(images))
        exact = copy.deepcopy(model).double()(images.double())
    rounding = [_difference(expected, exact)]
    note = "folded: plain layers only"
    return _compare(FORMATS["safetensors"], [found], [expected], rounding, note)


@dataclass(frozen=True)
class _Traced:
    """A program, what it was made of, and for which images."""

    program: torch.export.ExportedProgram
    model: SegmentationModel
    deployed: Deployed
    size: tuple[int, int] | None
    free_batch: bool
    least: int

    @property
    def note(self) -> str:
        """What it takes and gives."""
        config, deployed = self.model.config, self.deployed
        number = "N" if self.free_batch else "1"
        sides = "{}, {}".format(*(self.size or ("H", "W")))
        given = "pixels 0 to 255" if deployed.normalize else "normalised images"
        logits = f"logits ({number}, {config['num_classes']}, {sides})"
        gives = f"classes ({number}, {sides})" if deployed.argmax else logits
        text = f"{given} ({number}, {config['in_channels']}, {sides}) -> {gives}"
        return f"{text}, H and W from {self.least}" if self.least > 1 else text

    def compare(self, file: str, run: Callable[[Tensor], Tensor]) -> Check:
        """Compare ``run`` with the eager model on several batches.

        Of classes the difference is how much higher the eager logit of another class is.
        """
        found, expected, rounding = [], [], []
        double = copy.deepcopy(self.model).double()
        for images in _probes(self.model, self.size, self.free_batch, self.least):
            with torch.no_grad():
                logits = cast(Tensor, self.model(images))
                rounding.append(_difference(logits, double(images.double())))
                output = self._output(file, run, images)
            argmax = self.deployed.argmax
            expected.append(logits.amax(1, keepdim=True) if argmax else logits)
            found.append(logits.gather(1, output[:, None]) if argmax else output)
        return _compare(file, found, expected, rounding, self.note)

    def _output(self, file: str, run: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        try:
            return run(self.deployed.given(images))
        except Exception as error:  # of torch.export or onnxruntime
            number, _, height, width = images.shape
            reason = " ".join(str(error).split())[:150]
            raise ValueError(
                f"{file} fails on {number} images of {height} x {width} ({reason}); "
                f"{_advice(self.size)}; nothing was written"
            ) from error


def _advice(size: tuple[int, int] | None) -> str:
    return "leave this format out" if size else "fix the size with --size HEIGHT WIDTH"


def _trace(model: SegmentationModel, deployed: Deployed, size: tuple[int, int] | None) -> _Traced:
    """The network as a program; the number of images is fixed only if it cannot be free.

    Raises:
        ValueError: The network does not bear a free size.
    """
    reason = ""
    # some networks branch at small sizes: one pixel is left of 32 rows, and is treated otherwise
    leasts = (1, max(33, model.min_size + 1)) if size is None else (1,)
    attempts = [(True, least) for least in leasts] + ([(False, 1)] if size else [])
    for free_batch, least in attempts:
        images = deployed.given(_probes(model, size, free_batch, least)[0])
        try:
            with torch.no_grad():
                program = torch.export.export(
                    deployed,
                    (images,),
                    dynamic_shapes=(_free_dims(size, free_batch, least),),
                    prefer_deferred_runtime_asserts_over_guards=True,
                )
        except Exception as error:  # torch.export raises whatever the layers of a library run into
            reason = " ".join(str(error).split())[:200]
            continue
        _drop_asserts(program)
        return _Traced(program, model, deployed, size, free_batch, least)
    name = f"{model.config['arch']} with encoder {model.config['encoder']}"
    raise ValueError(f"{name} cannot be traced ({reason}); {_advice(size)}")


def _drop_asserts(program: torch.export.ExportedProgram) -> None:
    """Take out what torch.export noted of the example's size without need.

    It writes down each branch that its own code took, such as "the padded width is not the width",
    which only chose a memory layout, and the program then refuses other sizes.  Sizes on either
    side of these branches are compared with the eager network after this.
    """
    graph = program.graph_module.graph
    for node in reversed(list(graph.nodes)):
        if node.target is torch.ops.aten._assert_scalar.default:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()


def _free_dims(size: tuple[int, int] | None, free_batch: bool, least: int) -> dict[int, Any]:
    free = {0: torch.export.Dim("batch")} if free_batch else {}
    if size is None:
        for axis, name in {2: "height", 3: "width"}.items():
            bound = {"min": least} if least > 1 else {}
            free[axis] = torch.export.Dim(name, **bound)
    return free


def _write_program(traced: _Traced, part: Path) -> Check:
    path = part / FORMATS["program"]
    torch.export.save(traced.program, path)
    return traced.compare(path.name, torch.export.load(path).module())


def _write_onnx(traced: _Traced, part: Path) -> Check:
    path, deployed = part / FORMATS["onnx"], traced.deployed
    exported = torch.onnx.export(
        traced.program,
        (),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["classes" if deployed.argmax else "logits"],
        dynamic_shapes=(_free_dims(traced.size, traced.free_batch, traced.least),),
    )
    assert exported is not None
    about = {"num_classes": traced.model.config["num_classes"], "argmax": deployed.argmax}
    if deployed.normalize:
        about |= {"mean": deployed.mean.flatten().tolist(), "std": deployed.std.flatten().tolist()}
    exported.model.metadata_props["segdeconv"] = json.dumps(about)
    exported.save(path)
    runner = OnnxModel(path)

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(runner.session.run(None, {runner.input: images.numpy()})[0])

    return traced.compare(path.name, run)


# ------------------------------------------------------------------------------------- comparisons


def _probe(model: SegmentationModel, count: int = 2) -> Tensor:
    """Random images (count, C, H, W) of a size that encoders take."""
    side = max(64, model.min_size)
    return _random(count, model.config["in_channels"], side, 2 * side)


def _probes(
    model: SegmentationModel, size: tuple[int, int] | None, free_batch: bool, least: int
) -> list[Tensor]:
    """Random images of several numbers and sizes: no multiple, multiples, the smallest."""
    unit, channels = model.min_size, model.config["in_channels"]
    small = (max(unit // 2 + 1, least), 128)
    sizes = [size] if size else [(3 * unit + 1, 2 * unit + 7), (128, 256), small]
    sizes = [(max(height, least), max(width, least)) for height, width in sizes]
    counts = (2, 1, 3) if free_batch else (1,)
    longest = max(len(sizes), len(counts))
    pairs = [(counts[n % len(counts)], sizes[n % len(sizes)]) for n in range(longest)]
    return [_random(count, channels, *chosen) for count, chosen in pairs]


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _tensors(features: Any) -> list[Tensor]:
    """Feature maps of an encoder, however the library packs them."""
    maps = features.values() if isinstance(features, Mapping) else features
    return [each for each in maps if each.numel()]  # smp fills up with maps without channels


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _compare(
    file: str, found: list[Tensor], expected: list[Tensor], rounding: list[float], note: str
) -> Check:
    """The largest difference of any tensor.

    Args:
        file: Where ``found`` comes from.
        found: Outputs of the file.
        expected: Outputs of the eager network.
        rounding: Their differences from those in float64.
        note: For the result.

    Raises:
        ValueError: It is more than rounding.
    """
    worst = Check(file, 0.0, 0.0, note)
    for one, other, rounded in zip(found, expected, rounding, strict=True):
        assert one.shape == other.shape, f"{one.shape} is not {other.shape}"
        check = Check(file, _difference(one, other), float(other.abs().max()), note)
        if not check.difference <= max(TOLERANCE * check.largest, ROUNDING * rounded):
            raise ValueError(
                f"{file} would differ from the network by {check.difference:.1e}, of at most "
                f"{check.largest:.1e}, which is more than rounding; nothing was written"
            )
        if check.difference >= worst.difference:
            worst = check
    return worst


# ------------------------------------------------------------------------------------------- files


@contextmanager
def new_folder(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill, which gets the name ``folder`` when all went well, and vanishes otherwise.

    Raises:
        ValueError: Something is there that may not be replaced.
    """
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise ValueError(
                f"{folder} is there already; --overwrite replaces it, --out names another folder"
            )
        if _format_of(folder) not in (_ENCODER, _NETWORK, _PRETRAINED):
            raise ValueError(f"{folder} is no export, and is not replaced; name another with --out")
    elif folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name another folder with --out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part, old = (folder.parent / f".{folder.name}.{os.getpid()}.{n}" for n in ("part", "old"))
    part.mkdir()
    try:
        yield part
        if folder.exists():
            folder.replace(old)
        part.replace(folder)
        shutil.rmtree(old, ignore_errors=True)
    except Exception as error:
        if shutil.disk_usage(part).free < 2**20:  # each library has its own error for it
            reason = os.strerror(errno.ENOSPC)
            raise OSError(errno.ENOSPC, f"could not write {folder}: {reason}") from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _format_of(folder: Path) -> str | None:
    """What kind of export is in a folder; None if there is none."""
    try:
        content = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return None
    return content.get("format") if isinstance(content, dict) else None


def _write_config(
    part: Path, kind: str, about: Mapping[str, Any], normalization: Normalization | None
) -> None:
    if normalization:
        about = {**about, "mean": list(normalization[0]), "std": list(normalization[1])}
    (part / "config.json").write_text(json.dumps({"format": kind, **about}, indent=2) + "\n")


def _save(state: Mapping[str, Tensor], part: Path) -> None:
    save_file(plain_tensors(state), part / FORMATS["safetensors"], metadata={"format": "pt"})
