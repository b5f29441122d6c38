"""Surgery on a zoo: every smp decoder with 13 encoders, torchvision's networks, timm's families.

Each network is converted to "deconv", trained for one step on two images, folded, and judged:

* forward and backward are finite in training mode;
* the folded network equals evaluation to 1e-9 in float64, and holds no layer of segdeconv;
* no activation overwrites a shortcut once the norms are gone (against norms that only copy).

A run that was stopped goes on where it was; rows that failed are run again, and so are those that
--only names.  The exit status tells whether every row passed.
"""

import argparse
import copy
import gc
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from _common import COMMIT, RESULTS, environment, matching, write_result
from torch import Tensor, nn

from segdeconv.models import create_model
from segdeconv.models.architectures import ARCHITECTURES, TRIED_ENCODERS
from segdeconv.operators.normalization import without_batchnorm
from segdeconv.surgery import NORMS_2D, SurgeryReport, convert, fold, swap_modules
from segdeconv.tables import markdown_table

FOLD_TOLERANCE = 1e-9
COPY_TOLERANCE = 1e-5  # float32; a convolution with a bias of zeros may round in another order
Build = Callable[[], tuple[nn.Module, SurgeryReport]]

TIMM = {  # model -> image size; one or two of every family whose convolutions are of interest
    "convnext_atto": 64,
    "cspresnet50": 64,
    "densenet121": 64,
    "dla34": 64,
    "dpn48b": 64,
    "edgenext_xx_small": 64,
    "efficientnet_b0": 64,
    "efficientvit_b0": 64,
    "ese_vovnet19b_dw": 64,
    "fastvit_t8": 64,
    "ghostnet_100": 64,
    "hgnetv2_b0": 64,
    "hrnet_w18_small": 64,
    "inception_resnet_v2": 128,
    "inception_v3": 128,
    "inception_v4": 128,
    "levit_128s": 224,
    "mixnet_s": 64,
    "mobilenetv3_small_100": 64,
    "mobilenetv4_conv_small": 64,
    "mobileone_s0": 64,
    "mobilevit_xs": 64,
    "nf_resnet50": 64,
    "poolformer_s12": 64,
    "pvt_v2_b0": 64,
    "regnety_004": 64,
    "repghostnet_050": 64,
    "repvgg_a0": 64,
    "repvit_m0_9": 64,
    "res2net50_14w_8s": 64,
    "resnest14d": 64,
    "resnet18": 64,
    "resnetv2_50": 64,
    "resnetv2_50x1_bit": 64,
    "resnext50_32x4d": 64,
    "rexnet_100": 64,
    "selecsls42b": 64,
    "seresnet18": 64,
    "skresnet18": 64,
    "starnet_s1": 64,
    "swin_tiny_patch4_window7_224": 224,
    "tf_efficientnetv2_b0": 64,
    "tresnet_m": 64,
    "vgg11_bn": 64,
    "xception41": 64,
}
SHORT_PSPNET = ("densenet121", "vgg16_bn", "tu-hrnet_w18")  # not dilated: smp's own three stages
# Weight standardisation is the normalisation of these networks; nothing is left to swap.
NOTHING_TO_SWAP = ("timm/nf_resnet50",)


@dataclass
class Row:
    """A network of the zoo: how to build it, and whether it is to be refused."""

    build: Build
    size: int
    refused: bool = False


def zoo() -> dict[str, Row]:
    """All rows by name."""
    rows = {}
    for arch in smp.MODEL_ARCHITECTURES_MAPPING:
        for encoder in TRIED_ENCODERS:
            options = {"encoder_depth": 3} if _short(arch, encoder) else {}
            refused = encoder not in ARCHITECTURES[arch].encoders and not options
            rows[f"smp/{arch}/{encoder}"] = Row(_model(arch, encoder, **options), 64, refused)
    for arch in ("fcn", "torchvision_deeplabv3", "lraspp"):
        for encoder in ARCHITECTURES[arch].encoders:
            build = _model(arch, encoder, aux_head=arch != "lraspp")
            rows[f"torchvision/{arch}/{encoder}"] = Row(build, 64)
    for name, size in TIMM.items():
        rows[f"timm/{name}"] = Row(_timm(name, size), size, f"timm/{name}" in NOTHING_TO_SWAP)
    return rows


def _short(arch: str, encoder: str) -> bool:
    return arch == "pspnet" and encoder in SHORT_PSPNET


def _model(arch: str, encoder: str, **options: Any) -> Build:
    def build() -> tuple[nn.Module, SurgeryReport]:
        model = create_model(arch, encoder, num_classes=5, **options)
        return model, model.surgery_report

    return build


def _timm(name: str, size: int) -> Build:
    def build() -> tuple[nn.Module, SurgeryReport]:
        network = timm.create_model(name, pretrained=False, num_classes=5)
        return network, convert(network, example_input=torch.empty(2, 3, size, size))

    return build


# ------------------------------------------------------------------------------------------ checks


def check(row: Row) -> dict[str, Any]:
    """Convert, train, fold and judge one network; ``passed`` is false with the reasons."""
    torch.manual_seed(0)
    started = time.perf_counter()
    try:
        network, report = row.build()
    except ValueError as error:
        return {"passed": row.refused, "refused": str(error)}
    if row.refused:
        return {"passed": False, "problems": ["was to be refused, and was built"]}
    x = torch.randn(2, 3, row.size, row.size)
    result = {"parameters": sum(p.numel() for p in network.parameters()), **_told(report)}
    result |= trained(network, x)
    result |= folded(network, x)
    problems = [name for name in ("finite", "plain") if not result[name]]
    if not result["fold_error"] <= FOLD_TOLERANCE:
        problems.append("fold_error")
    result["seconds"] = round(time.perf_counter() - started, 1)
    return {"passed": not problems, "problems": problems, **result}


def _told(report: SurgeryReport) -> dict[str, Any]:
    """The report, one line per action, type and reason."""
    groups = Counter((row.action, row.kind, row.reason) for row in report.rows)
    return {
        "counts": report.counts,
        "layers": [[*group, count] for group, count in groups.items()],
        "biases_added": report.biases_added,
        "activations_copied": report.activations_copied,
        "uncalled": list(report.uncalled),
    }


def trained(network: nn.Module, x: Tensor) -> dict[str, Any]:
    """One forward and backward in training mode."""
    outputs = _tensors(network.train()(x))
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    gradients = [p.grad for p in network.parameters()]
    finite = all(t.isfinite().all() for t in (*outputs, *gradients) if t is not None)
    return {"finite": bool(finite), "without_gradient": sum(g is None for g in gradients)}


@torch.no_grad()
def folded(network: nn.Module, x: Tensor) -> dict[str, Any]:
    """The folded network against evaluation, in float64."""
    network.double().eval()
    plain = fold(network)
    x = x.double()
    pairs = zip(_tensors(network(x)), _tensors(plain(x)), strict=True)
    errors = [((a - b).abs().max() / a.abs().max()).item() for a, b in pairs]
    inside = getattr(plain, "network", plain)  # the model around a network pads and crops
    left = [n for n, m in inside.named_modules() if type(m).__module__.startswith("segdeconv")]
    return {"fold_error": max(errors), "plain": not left}


def _tensors(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)


class Copy(nn.Module):
    """What a batch norm does to memory, without what it does to values."""

    def forward(self, x: Tensor) -> Tensor:
        """The same values in other memory."""
        return x.clone()


@torch.no_grad()
def shortcut_error(name: str, size: int) -> float | None:
    """Largest change that missing copies make: norms taken out against norms that only copy.

    Returns:
        Relative to the largest output; None if there is no norm to take out.
    """
    torch.manual_seed(0)
    library, *rest = name.split("/")
    if library == "timm":
        network = timm.create_model(rest[0], pretrained=False, num_classes=5)
    else:
        short = {"encoder_depth": 3} if _short(*rest) else {}
        network = create_model(*rest, num_classes=5, operator="batchnorm", **short)
    reference = copy.deepcopy(network).eval()
    swapped = swap_modules(
        reference,
        lambda _, m: type(m) in NORMS_2D,
        lambda _, m: nn.Sequential(Copy(), without_batchnorm(m)),
    )
    if not swapped:
        return None
    convert(network.eval(), "none")
    x = torch.randn(2, 3, size, size)
    expected = reference(x)
    return float(((network(x) - expected).abs().max() / expected.abs().max()).item())


# ----------------------------------------------------------------------------------------- results


def run(name: str, row: Row) -> dict[str, Any]:
    """All checks of a row; an exception is a failure, and the zoo goes on."""
    try:
        result = check(row)
        if "counts" in result:
            result["shortcut_error"] = shortcut_error(name, row.size)
            if (result["shortcut_error"] or 0) > COPY_TOLERANCE:
                result |= {"passed": False, "problems": [*result["problems"], "shortcut_error"]}
    except Exception as error:
        return {"passed": False, "problems": [f"{type(error).__name__}: {error}"]}
    return result


def about() -> dict[str, Any]:
    """Where and with what the rows were run."""
    libraries = {"torchvision": torchvision, "segmentation_models_pytorch": smp, "timm": timm}
    return environment(seed=0) | {name: lib.__version__ for name, lib in libraries.items()}


INTRODUCTION = """\
# Surgery on a zoo of networks

Converted to "deconv": {built} networks; refused: {refused}; failed: {failed}{names}.

Every network that did not fail gave finite outputs and gradients in a training step on two images,
and held no layer of segdeconv after folding.

- *fold*: largest difference between the folded network and evaluation in float64, relative to the
  largest output; 1e-9 is allowed.
- *copies*: largest relative change in outputs because a norm that was taken out no longer copies
  its input, in float32; 1e-5 is allowed, a dash means that there was no batch norm.
- *uncalled*: convolutions and norms that a training step never reaches.

Rows may come from several runs of the script: the last section is about the last one, and the JSON
file beside this one has the commit of each row."""


def text(rows: dict[str, dict[str, Any]]) -> str:
    """The results as markdown."""
    built = {name: row for name, row in rows.items() if "counts" in row}
    refused = {name: row for name, row in rows.items() if "refused" in row}
    failed = [name for name, row in rows.items() if not row["passed"]]
    header = "network, M parameters, swapped, removed, kept, skipped, new biases, uncalled, fold"
    head = INTRODUCTION.format(
        built=len(built),
        refused=len(refused),
        failed=len(failed),
        names=f": {', '.join(failed)}" if failed else "",
    )
    return "\n\n".join(
        [
            head,
            markdown_table(
                [*header.split(", "), "copies", "s"], [_cells(n, row) for n, row in built.items()]
            ),
            "## What happened to the layers",
            markdown_table(["action, type: reason", "layers", "networks"], _reasons(built)),
            "## Refused",
            "\n".join(f"- {name}: {row['refused']}" for name, row in refused.items()),
        ]
    )


def _cells(name: str, row: dict[str, Any]) -> list[str]:
    counts = [str(row["counts"].get(a, 0)) for a in ("swapped", "removed", "kept", "skipped")]
    copies = row["shortcut_error"]
    return [
        name + ("" if row["passed"] else f" **failed: {'; '.join(row['problems'])}**"),
        f"{row['parameters'] / 1e6:.1f}",
        *counts,
        str(row["biases_added"]),
        str(len(row["uncalled"])),
        f"{row['fold_error']:.1g}",
        "-" if copies is None else f"{copies:.2g}",
        f"{row['seconds']}",
    ]


def _reasons(rows: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Every action, type and reason, with its number of layers and of networks."""
    layers: Counter[tuple[str, str, str]] = Counter()
    networks: Counter[tuple[str, str, str]] = Counter()
    for row in rows.values():
        for action, kind, reason, count in row["layers"]:
            layers[action, kind, reason] += count
            networks[action, kind, reason] += 1
    return [
        [f"{action} {kind}: {reason}", str(layers[key]), str(networks[key])]
        for key in sorted(layers, key=lambda key: (key[0] != "swapped", *key))
        for action, kind, reason in [key]
    ]


def main() -> int:
    """Run rows; return 1 if any row has failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="glob of rows, such as 'smp/unet/*'")
    parser.add_argument("--out", type=Path, default=RESULTS / "zoo", help="path without ending")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")  # of smp about its own encoders
    known = zoo()
    done = arguments.out.with_suffix(".json")
    rows = json.loads(done.read_text())["rows"] if done.exists() else {}
    if arguments.only:
        todo = matching([arguments.only], known, "row", "rows are such as smp/unet/resnet50")
    else:
        todo = [name for name in known if not rows.get(name, {}).get("passed")]
    for number, name in enumerate(todo, 1):
        rows[name] = run(name, known[name]) | {"commit": COMMIT}
        rows = {name: rows[name] for name in known if name in rows}
        outcome = "refused" if "refused" in rows[name] else "passed"
        print(f"{number}/{len(todo)} {name}: {rows[name].get('problems') or outcome}", flush=True)
        write_result(arguments.out, {"environment": about(), "rows": rows}, text(rows))
        gc.collect()
    return int(any(not row["passed"] for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
