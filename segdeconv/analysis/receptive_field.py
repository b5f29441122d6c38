"""Effective receptive field: which pixels a feature in the middle really depends on.

Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks",
NeurIPS 2016; the procedure and its squares are those of the tool that came with Ding et al.,
"Scaling Up Your Kernels to 31x31" (RepLKNet), CVPR 2022: evaluation mode, the sum over channels of
the rectified feature in the middle, its rectified gradient by the input, summed over colours.

Its numbers come from the map and from log10(map + 1); the logarithm changes their ranking, so both
are worth knowing. Give images of an odd size: of an even map there is no middle.

Shapes: N images, C channels, H and W height and width.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

THRESHOLDS = (0.2, 0.3, 0.5, 0.99)


def receptive_field(features: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The map (H, W) of some images (N, C, H, W): their rectified gradients, added up.

    Args:
        features: Images to a feature map (N, K, h, w); the network in evaluation mode, as batch
            statistics would tie each pixel to all others (see `in_evaluation`).
        images: (N, C, H, W).
    """
    with torch.enable_grad():
        images = images.detach().clone().requires_grad_()
        maps = features(images)
        centre = maps[..., maps.shape[-2] // 2, maps.shape[-1] // 2]
        (gradient,) = torch.autograd.grad(centre.relu().sum(), images)
    return gradient.relu().sum((0, 1))


@contextmanager
def in_evaluation(network: nn.Module) -> Iterator[None]:
    """Switch a network to evaluation, and every part of it back to its own mode in the end."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def last_map(network: nn.Module, part: nn.Module) -> Callable[[Tensor], Tensor]:
    """Images to the last feature map, of more than one place, that a part of a network gives.

    That is the last one in the part's own output if there is one, else the last that a module in
    it gives: of a classifier that is itself its encoder, what goes into the pooling.

    Args:
        network: What is run.
        part: Its encoder.

    Returns:
        A function that raises ``ValueError`` where there is no such map.
    """

    def features(images: Tensor) -> Tensor:
        found: list[Tensor] = []
        hooks = [
            module.register_forward_hook(lambda _, __, output: found.extend(_maps(output)))
            for module in part.modules()
        ]
        try:
            network(images)
        finally:
            for hook in hooks:
                hook.remove()
        if not found:
            raise ValueError("no part of the encoder gives a feature map of more than one place")
        return found[-1]

    return features


def _maps(output: Any) -> list[Tensor]:
    """All feature maps of more than one place in what a module gives."""
    if isinstance(output, Tensor):
        spatial = output.dim() == 4 and output.shape[-2] * output.shape[-1] > 1
        return [output] if spatial else []
    parts = output.values() if isinstance(output, Mapping) else output
    return [tensor for part in parts for tensor in _maps(part)] if _holds(output) else []


def _holds(output: Any) -> bool:
    return isinstance(output, Mapping | Sequence) and not isinstance(output, str)


def mean_map(maps: Iterable[Tensor]) -> tuple[Tensor | None, int]:
    """Mean of some maps, and of how many: those that are zero or no numbers are left out."""
    kept = [each for each in maps if each.isfinite().all() and each.sum() > 0]
    return (torch.stack(kept).mean(0) if kept else None), len(kept)


def log_map(field: Tensor) -> Tensor:
    """log10(map + 1), the other reading of a map."""
    return (field + 1).log10()


def squares(field: Tensor, thresholds: Sequence[float] = THRESHOLDS) -> list[tuple[int, float]]:
    """Of each threshold, the smallest square around the middle that holds more than that share.

    Args:
        field: (H, W).
        thresholds: Shares of the map's sum.

    Returns:
        Side 2i + 1 in pixels, i = 1, 2, ... < H // 2, and its share of the area; the larger side of
        the image, and 1, where no such square holds so much.
    """
    height, width = field.shape
    total, found = field.sum(), []
    for threshold in thresholds:
        found.append((max(height, width), 1.0))
        for i in range(1, height // 2):
            rows = slice(max(0, height // 2 - i), height // 2 + i + 1)
            columns = slice(max(0, width // 2 - i), width // 2 + i + 1)
            if field[rows, columns].sum() / total > threshold:
                side = 2 * i + 1
                found[-1] = (side, side / height * (side / width))
                break
    return found


def variances(field: Tensor) -> tuple[float, float]:
    """Mean squared distance from the middle (H // 2, W // 2), down and across, in pixels^2."""
    height, width = field.shape
    share = field.double() / field.double().sum()
    down = torch.arange(height, device=field.device).double() - height // 2
    across = torch.arange(width, device=field.device).double() - width // 2
    return float(share.sum(1) @ down.square()), float(share.sum(0) @ across.square())


def radius(field: Tensor) -> float:
    """Root of the mean squared distance from the middle, in pixels."""
    return math.sqrt(sum(variances(field)))


def participation(field: Tensor) -> float:
    """Share of the positions that take part: (sum)^2 / (H W sum of squares).

    1 for a constant map, 1 / (H W) for a single pixel, 0 for a map of zeros.
    """
    squared = field.double().square().sum() * field.numel()
    return float(field.double().sum().square() / squared) if squared > 0 else 0.0
