"""A whole network, folded, for others to run: safetensors, ONNX, a torch.export program."""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from segdeconv.export.comparison import AnyModel, Check, compare, difference, probe, probes
from segdeconv.export.files import (
    FORMATS,
    Normalization,
    new_folder,
    save,
    write_config,
)
from segdeconv.inference import OnnxModel
from segdeconv.models import About, SegmentationModel
from segdeconv.models.classification import SMALL
from segdeconv.models.pretrained import EXPORTED, build_model, is_exported, read_config
from segdeconv.surgery import fold


def export_network(
    model: AnyModel,
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
    (N, num_classes, H, W) float32, of a classifier (N, num_classes).

    Args:
        model: Any mode, on any device.
        folder: New or empty folder.
        formats: Some of `FORMATS`.
        argmax: They give classes (N, H, W) int64, of a classifier (N,), in place of logits.
        normalization: Mean and standard deviation of the images; default: what `model.about` says.
        normalize: They take pixels 0 to 255 and normalise them.
        size: Fix height and width; N stays free where the network allows it.
        overwrite: Replace an earlier export.

    Raises:
        ValueError: The folder is taken; a package is missing; the network has no such form; what
            was written differs.
    """
    _check_formats(formats, size)
    model = copy.deepcopy(model).cpu().eval()
    about = model.about
    if normalization:
        mean, std = map(list, normalization)
        about = replace(about, mean=mean, std=std)
    elif about.mean and about.std:
        normalization = about.mean, about.std
    if normalize and not normalization:
        raise ValueError("normalize=True needs the normalization of the images: mean and deviation")
    deployed = Deployed(model, argmax, normalization if normalize else None).eval()
    given = {"argmax": argmax, "normalize": normalize, "size": size, "formats": list(formats)}
    checks = []
    with new_folder(folder, overwrite) as part:
        network = {"task": model.task, "model": deployed.network.config, "about": asdict(about)}
        write_config(part, EXPORTED, {**network, **given})
        if "safetensors" in formats:
            save(deployed.network.state_dict(), part)
            checks.append(_check_weights(model, part))
        if {"onnx", "program"} & set(formats):
            traced = _trace(model, deployed, size)
            if "program" in formats:
                checks.append(_write_program(traced, part))
            if "onnx" in formats:
                checks.append(_write_onnx(traced, part))
    return checks


def load_network(folder: Path) -> AnyModel:
    """The folded network in a folder of `export_network`, in evaluation mode.

    Raises:
        ValueError: It is no such folder, or has no safetensors.
    """
    weights = folder / FORMATS["safetensors"]
    if not is_exported(folder) or not weights.is_file():
        raise ValueError(
            f"{folder} is not an exported network with safetensors; tools/export.py writes one"
        )
    content = read_config(folder, exported=True)
    model = fold(build_model(content["task"], content["model"], folder))
    model.load_state_dict(load_file(weights))
    model.about = About(**content["about"])
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

    def __init__(self, model: AnyModel, argmax: bool, normalization: Normalization | None) -> None:
        super().__init__()
        self.network = fold(model)
        if isinstance(self.network, SegmentationModel):
            self.network.aux_head = None
            self.network.config = {**model.config, "aux_head": False}
        self.argmax, self.normalize = argmax, normalization is not None
        if normalization is not None:
            for name, values in zip(("mean", "std"), normalization, strict=True):
                self.register_buffer(name, 255 * torch.tensor(values).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, num_classes, H, W), or classes (N, H, W).

        Of a classifier (N, num_classes) and (N,).
        """
        if self.normalize:
            images = (images - self.mean) / self.std
        if isinstance(self.network, SegmentationModel):
            logits = _at_any_size(self.network, images)
        else:
            logits = self.network.network(images)
        return logits.argmax(1) if self.argmax else logits

    def given(self, images: Tensor) -> Tensor:
        """What it takes for normalised images."""
        return images * self.std + self.mean if self.normalize else images


def _at_any_size(network: SegmentationModel, images: Tensor) -> Tensor:
    """Logits at the size of the images, which are padded to one that the network takes."""
    height, width = images.shape[-2:]
    padded = images
    for side, size in ((2, height), (3, width)):
        divisor, least = network.divisor, network.min_size
        wanted = torch.sym_max((size + divisor - 1) // divisor * divisor, least)
        chosen = torch.arange(wanted, device=images.device).clamp(max=size - 1)
        padded = padded.index_select(side, chosen)
    logits, _ = network._logits(padded)
    if logits.shape[-2:] != padded.shape[-2:]:
        logits = F.interpolate(logits, padded.shape[-2:], mode="bilinear", align_corners=False)
    return logits[..., :height, :width]


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


def _check_weights(model: AnyModel, part: Path) -> Check:
    images = probe(model)
    with torch.no_grad():
        found, expected = load_network(part)(images), cast(Tensor, model(images))
        exact = copy.deepcopy(model).double()(images.double())
    rounding = [difference(expected, exact)]
    note = "folded: plain layers only"
    return compare(FORMATS["safetensors"], [found], [expected], rounding, note)


@dataclass(frozen=True)
class _Traced:
    """A program, what it was made of, and for which images."""

    program: torch.export.ExportedProgram
    model: AnyModel
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
        after = f", {sides}" if isinstance(self.model, SegmentationModel) else ""
        logits = f"logits ({number}, {config['num_classes']}{after})"
        gives = f"classes ({number}{after or ','})" if deployed.argmax else logits
        text = f"{given} ({number}, {config['in_channels']}, {sides}) -> {gives}"
        return f"{text}, H and W from {self.least}" if self.least > 1 else text

    def compare(self, file: str, run: Callable[[Tensor], Tensor]) -> Check:
        """Compare ``run`` with the eager model on several batches.

        Of classes the difference is how much higher the eager logit of another class is.
        """
        found, expected, rounding = [], [], []
        double = copy.deepcopy(self.model).double()
        for images in probes(self.model, self.size, self.free_batch, self.least):
            with torch.no_grad():
                logits = cast(Tensor, self.model(images))
                rounding.append(difference(logits, double(images.double())))
                output = self._output(file, run, images)
            argmax = self.deployed.argmax
            expected.append(logits.amax(1, keepdim=True) if argmax else logits)
            found.append(logits.gather(1, output[:, None]) if argmax else output)
        return compare(file, found, expected, rounding, self.note)

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


def _trace(model: AnyModel, deployed: Deployed, size: tuple[int, int] | None) -> _Traced:
    """The network as a program; the number of images is fixed only if it cannot be free.

    Raises:
        ValueError: The network does not bear a free size.
    """
    reason = ""
    # some networks branch at small sizes: one pixel is left of 32 rows, and is treated otherwise
    least_size = model.min_size if isinstance(model, SegmentationModel) else SMALL
    leasts = (1, max(33, least_size + 1)) if size is None else (1,)
    attempts = [(True, least) for least in leasts] + ([(False, 1)] if size else [])
    for free_batch, least in attempts:
        images = deployed.given(probes(model, size, free_batch, least)[0])
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
    config = model.config
    name = (
        f"{config['arch']} with encoder {config['encoder']}" if "arch" in config else config["name"]
    )
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
