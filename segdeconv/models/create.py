"""Build a segmentation model by name: network, then weights, then surgery."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from segdeconv.models.architectures import build_network
from segdeconv.models.pretrained import is_exported
from segdeconv.models.segmentation import SegmentationModel, wrap
from segdeconv.models.weights import Fit, State, best_fit, read_weights
from segdeconv.operators import OPERATORS
from segdeconv.surgery import convert

if TYPE_CHECKING:
    from segdeconv.models.weights import AnyModel


def create_model(
    arch: str,
    encoder: str = "resnet50",
    num_classes: int = 19,
    operator: str = "deconv",
    operator_options: Mapping[str, Any] | None = None,
    in_channels: int = 3,
    aux_head: bool = False,
    weights: str | Path | None = None,
    **arch_options: Any,
) -> SegmentationModel:
    """A segmentation model whose layers are given to an operator.

        >>> model = create_model("unet", "resnet18", num_classes=5, operator="deconv")
        >>> model(torch.randn(2, 3, 97, 131)).shape
        torch.Size([2, 5, 97, 131])

    Args:
        arch: Row of `segdeconv.models.ARCHITECTURES`: a decoder of smp, or "fcn",
            "torchvision_deeplabv3", "lraspp" of torchvision.
        encoder: Encoder of that library; timm's as "tu-<name>" with smp's decoders.
        num_classes: Channels of the logits.
        operator: Row of `segdeconv.operators.OPERATORS`; "batchnorm" leaves the network as it is.
        operator_options: Keyword arguments of `segdeconv.convert`: options of the operator, such
            as {"block": 64}, and ``options_by_name`` and ``skip`` with globs on module names.
        in_channels: Channels of the images.
        aux_head: Add an auxiliary head on the third stage of the encoder, for training.
        weights: Local file of weights: of a whole model, of the library's network, or of an image
            classifier with this encoder.  A plain network's are loaded before the surgery, those
            of a converted one after it.
        **arch_options: Keyword arguments of the library's network; with a "tu-" encoder also of
            timm's model.

    Returns:
        The model, in training mode, with reports of the surgery and of the weights.

    Raises:
        ValueError: A name that does not exist (with the nearest one), a pair that does not go
            together (with those that do), weights that do not fit.
    """
    OPERATORS[operator]  # an unknown name fails here, before minutes of building
    network = build_network(arch, encoder, in_channels, num_classes, aux_head, arch_options)
    config = {
        "arch": arch,
        "encoder": encoder,
        "num_classes": num_classes,
        "operator": operator,
        "operator_options": dict(operator_options or {}),
        "in_channels": in_channels,
        "aux_head": aux_head,
        **arch_options,
    }
    model = wrap(network, copy.deepcopy(config))
    finish(model, weights, example_size=128)
    return model


def finish(
    model: "AnyModel",
    weights: str | Path | None,
    example_size: int,
    fit: Callable[["AnyModel", State], Fit] = best_fit,
) -> None:
    """Load weights and give the layers to the operator of the model's config, in place.

    Args:
        model: A new model, with batch norms.
        weights: Local file, or None.
        example_size: Height and width of an image that the network takes.
        fit: How the tensors of the file are paired with those of the model.

    Raises:
        ValueError: Weights that do not fit, options that the operator does not take.
    """
    if weights is None:
        _operate(model, example_size)
    else:
        _load_and_operate(model, weights, example_size, fit)


def _operate(model: "AnyModel", size: int) -> None:
    """Give the layers to the operator of the model's config."""
    config = model.config
    example = torch.empty(2, config["in_channels"], size, size, device="meta")
    model.surgery_report = convert(
        model, config["operator"], example_input=example, **config["operator_options"]
    )


def _load_and_operate(
    model: "AnyModel", path: str | Path, size: int, fit: Callable[["AnyModel", State], Fit]
) -> None:
    """Load weights before the surgery if they fit the plain network, else after it."""
    if isinstance(path, str | Path) and is_exported(Path(path)):
        raise ValueError(
            f"{path} holds a folded network, to run and not to train; start from the weights of "
            "the run it came from, or from its encoder: tools/export.py RUN --what encoder"
        )
    state = read_weights(path)
    plain = fit(model, state)
    if plain.complete:
        report = plain.load(model, state, str(path))
        _operate(model, size)
        changed = {row.action for row in model.surgery_report.rows} - {"kept", "skipped"}
        lost = changed >= {"swapped", "removed"}
        model.weights_report = replace(report, before_surgery=bool(changed), norms_lost=lost)
        return
    _operate(model, size)
    converted = fit(model, state)
    if not converted.complete:
        nearer = min(converted, plain, key=lambda fit: fit.problems)
        raise ValueError(nearer.refusal(model, state, str(path)))
    model.weights_report = converted.load(model, state, str(path))
