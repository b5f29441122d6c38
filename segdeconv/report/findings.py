"""What is kept of an inspection: numbers as JSON types, pictures as addresses of PNGs."""

from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from segdeconv.analysis import (
    THRESHOLDS,
    LayerStatistics,
    Whitened,
    centre_filters,
    condition,
    constant_response,
    correlation,
    effective_share,
    log_map,
    mean_correlation,
    participation,
    radius,
    spectrum,
    squares,
    tap_filters,
    whitened,
    whitening_matrix,
)
from segdeconv.analysis.spectra import CONSTANT, FLOOR
from segdeconv.report import raster
from segdeconv.whitening import inverse_root

PICTURE_STEPS = 15
"""Newton-Schulz steps of the whitening that is drawn beside the layer's own: those of the first
layer in the released networks."""

DECADES = 4
"""Of the logarithmic picture of a receptive field."""


def layer_numbers(statistics: LayerStatistics) -> dict[str, Any]:
    """One row of the table: a layer in numbers.

    "block" is of the blocks that the layer whitens (a plain layer: would whiten by default), with
    eps on the diagonal; "patch" of columns of a whole patch, over the borders of blocks.
    """
    blocks, calibration = statistics.view.blocks, statistics.calibration
    block: dict[str, Any] = {
        "columns": blocks.size,
        "blocks": blocks.num,
        "rows": blocks.rows(calibration.samples),
        "before": _moment_numbers(calibration.covariance),
    }
    patch: dict[str, Any] = {
        "columns": blocks.num * blocks.size,
        "columns_seen": len(statistics.columns),
        "samples": statistics.before.samples,
        "before": _moment_numbers(statistics.before.covariance),
    }
    if statistics.whitens:
        root, made = statistics.running[1], _whitened(statistics)
        block |= {
            "after": _moment_numbers(root @ calibration.covariance @ root),
            "n_iter": statistics.view.settings.n_iter,
            "gain": float(made.gain.mean()),
            "deviation": float(made.deviation.mean()),
        }
        patch["after"] = _moment_numbers(statistics.after.covariance)
    return {
        "kind": type(statistics.layer).__name__,
        "channels": statistics.channels,
        "kernel_size": list(statistics.kernel_size),
        "zeros": statistics.zeros / statistics.entries,
        "block": block,
        "patch": patch,
    }


def _whitened(statistics: LayerStatistics) -> Whitened:
    root = statistics.running[1]
    return whitened(statistics.calibration.covariance, root, statistics.view.settings.n_iter)


def _moment_numbers(covariances: Tensor) -> dict[str, float]:
    """Of (M, D, D): the worst condition, and means of the rest."""
    spectra = [spectrum(each) for each in covariances]
    return {
        "condition": max(map(condition, spectra)),
        "effective": fmean(map(effective_share, spectra)),
        "correlation": fmean(mean_correlation(correlation(each)) for each in covariances),
    }


def layer_details(statistics: LayerStatistics) -> dict[str, Any]:
    """What the figures of one layer are drawn from: spectra, gains, pictures of correlations."""
    stages = {"before": statistics.before}
    if statistics.whitens:
        stages["after"] = statistics.after
    details: dict[str, Any] = {
        name: {
            "spectrum": _rounded(spectrum(moments.covariance)),
            "picture": raster.signed(correlation(moments.covariance[0])),
        }
        for name, moments in stages.items()
    }
    if statistics.whitens:
        made = _whitened(statistics)
        moving = made.values > CONSTANT * made.values.amax()  # nothing has no exact gain
        details["gain"] = {name: _rounded(value[moving]) for name, value in vars(made).items()}
        if statistics.view.settings.structure == "kronecker":  # two roots, of other spectra
            del details["gain"]["truncated"]
    return details


def first_layer(statistics: LayerStatistics) -> dict[str, Any]:
    """The filters of a network's first layer: its own, and those of its whole input patch."""
    channels, kernel_size = statistics.channels, statistics.kernel_size
    blocks = statistics.view.blocks
    drawn: dict[str, Any] = {"channels": channels, "kernel_size": list(kernel_size)}
    if statistics.whitens:
        matrix = whitening_matrix(statistics.running[1], blocks)
        drawn["own"] = _filter_pictures(tap_filters(matrix, channels, kernel_size))
        drawn["own"] |= {"blocks": blocks.num, "n_iter": statistics.view.settings.n_iter}
    if len(statistics.columns) == blocks.num * blocks.size:  # all of the patch was seen
        covariance = statistics.before.covariance[0]
        root = inverse_root(
            covariance + FLOOR * torch.eye(len(covariance)).to(covariance), PICTURE_STEPS
        )
        drawn["whole"] = _filter_pictures(tap_filters(root, channels, kernel_size))
        drawn["whole"] |= {"n_iter": PICTURE_STEPS}
    return drawn


def _filter_pictures(filters: Tensor) -> dict[str, Any]:
    """Pictures and numbers of filters (C, h, w, C, h, w)."""
    centre = centre_filters(filters)
    channels, _, height, width = centre.shape
    own = torch.stack([centre[channel, channel] for channel in range(channels)])
    profile = own[:, height // 2] / own[:, height // 2, width // 2, None]
    return {
        "centre": raster.filters(centre[None]),
        "all": [raster.filters(filters[channel]) for channel in range(channels)],
        "profile": _rounded(profile.mean(0)),
        "constant_response": _rounded(constant_response(centre)),
    }


def field_record(target: str, field: Tensor, images: int, step: str) -> dict[str, Any]:
    """A receptive field in numbers and pictures.

    Args:
        target: Whose field it is.
        field: (H, W).
        images: How many it is the mean of.
        step: Size of the target's map, in words.
    """
    largest = field.max()
    decades = (1 + (field / largest).clamp_min(1e-30).log10() / DECADES).clamp_min(0)
    readings = {
        name: {
            "squares": [[share, *square] for share, square in zip(THRESHOLDS, found, strict=True)],
            "radius": radius(each),
            "participation": participation(each),
        }
        for name, each in {"raw": field, "log": log_map(field)}.items()
        for found in [squares(each)]
    }
    return {
        "target": target,
        "images": images,
        "map": step,
        "size": list(field.shape),
        "pictures": {"raw": raster.signed(field / largest), "log": raster.signed(decades)},
        **readings,
    }


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.5g}") for value in values.flatten().tolist()]
