"""What goes into the layers of a running network: moments before and after whitening, zeros.

A plain layer is looked at as if it were a whitening one of default settings, with the same weights,
so that both kinds are measured alike: over patches of every place where the kernel is applied.

What is kept is bounded: of each batch `MAX_PATCHES` patches, fewer where they are so wide that all
their columns were more than `MAX_ENTRIES` numbers; of a whole patch `MAX_COLUMNS` columns (whole
channels, evenly spread).
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from segdeconv.analysis.spectra import whiten
from segdeconv.operators.calibration import Calibration, PooledMoments
from segdeconv.operators.deconv import Deconv2d, DeconvTranspose2d, Delinear
from segdeconv.operators.whitened_layer import WhitenedLayer
from segdeconv.whitening import Sampling

MAX_COLUMNS = 256
MAX_PATCHES = 8192
MAX_ENTRIES = 2**24

_VIEWS: dict[type[nn.Module], Callable[..., WhitenedLayer]] = {
    nn.Conv2d: Deconv2d.from_conv,
    nn.ConvTranspose2d: DeconvTranspose2d.from_conv,
    nn.Linear: Delinear.from_linear,
}
_KINDS = (nn.modules.conv._ConvNd, nn.Linear)


class LayerStatistics:
    """What went into one layer.

    Args:
        layer: A whitening layer, or a plain one that `_VIEWS` knows.

    Attributes:
        layer: The same.
        whitens: Whether it whitens.
        columns: Indices of the columns of a patch that are looked at, (D,).
        before: Moments of these columns, over all calls.
        after: Moments of the same columns, whitened with the layer's running statistics over the
            whole patch; those of a plain layer stay empty.
        calibration: Moments of its blocks, eps on the diagonal.
        zeros: Entries of its input that were exactly 0.
        entries: All entries of its input.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer, self.whitens = layer, isinstance(layer, WhitenedLayer)
        self.view = layer if isinstance(layer, WhitenedLayer) else _VIEWS[type(layer)](layer)
        self.calibration = Calibration(self.view)
        self.columns = self._choose_columns()
        like = self.view.running_mean
        self.before, self.after = (PooledMoments(1, 1, len(self.columns), like) for _ in range(2))
        self.zeros = self.entries = 0

    @property
    def channels(self) -> int:
        """Channels (features) of its input."""
        layer: Any = self.layer
        return int(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)

    @property
    def kernel_size(self) -> tuple[int, int]:
        """Taps down and across; 1, 1 of a linear layer."""
        height, width = getattr(self.layer, "kernel_size", (1, 1))
        return height, width

    @property
    def running(self) -> tuple[Tensor, Tensor]:
        """Mean (1 or G, D) and root (M, D, D) that the layer whitens with, in float64."""
        size = self.view.blocks.size
        mean, root = self.view.running_mean.double(), self.view.running_deconv.double()
        return mean.view(-1, size), root.view(-1, size, size)

    def _choose_columns(self) -> Tensor:
        """All taps of as many channels, evenly spread, as `MAX_COLUMNS` has room for."""
        channels, taps = self.channels, self.kernel_size[0] * self.kernel_size[1]
        count = min(channels, max(1, MAX_COLUMNS // taps))
        chosen = torch.arange(count) * channels // count
        return (chosen[:, None] * taps + torch.arange(taps)).flatten()[:MAX_COLUMNS]

    @torch.no_grad()
    def read(self, x: Tensor, sampling: Callable[[int], Sampling]) -> None:
        """Take one input in, as `WhitenedLayer.observer` is called."""
        blocks = self.view.blocks
        most = min(MAX_PATCHES, MAX_ENTRIES // (blocks.num * blocks.size))
        grid = _bounded(sampling(1), x.shape, most)
        self.calibration.read(x, grid)
        columns = grid.gather(x, torch.float64)
        _add(self.before, columns[self.columns])
        if self.whitens:
            mean, root = self.running
            _add(self.after, whiten(columns, mean, root, blocks)[self.columns])

    @torch.no_grad()
    def count(self, x: Tensor) -> None:
        """Count the zeros of one input."""
        self.zeros += int((x == 0).sum())
        self.entries += x.numel()


def _bounded(grid: Sampling, shape: torch.Size, most: int) -> Sampling:
    """The grid, thinned until it reads ``most`` patches or is at its thinnest."""
    count = grid.count(shape)
    thin, factor = grid, count / most
    while thin.count(shape) > most and factor < count:
        thin, factor = grid.thinned(shape, factor), 1.5 * factor  # its steps are coarse
    return thin


def _add(moments: PooledMoments, columns: Tensor) -> None:
    """Pool columns (D, S) in."""
    samples = columns.shape[1]
    if samples:
        covariance = torch.cov(columns, correction=0).view(1, len(columns), -1)
        moments.add(samples, columns.mean(1)[None], covariance)


@contextmanager
def observing(network: nn.Module) -> Iterator[dict[str, LayerStatistics]]:
    """Observe what goes into the layers of a network in evaluation mode.

    Yields:
        The layers that were called so far, by name, in the order of their first call.

    Raises:
        ValueError: The network is in training mode.
    """
    if network.training:
        raise ValueError("layers are observed in evaluation mode; call eval() first")
    called: dict[str, LayerStatistics] = {}
    with ExitStack() as stack:
        for name, layer in network.named_modules():
            if _is_known(layer):
                stack.enter_context(_observing(name, LayerStatistics(layer), called))
        yield called


@contextmanager
def _observing(
    name: str, statistics: LayerStatistics, called: dict[str, LayerStatistics]
) -> Iterator[None]:
    view = statistics.view

    def before(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        called.setdefault(name, statistics).count(args[0])
        if view is not statistics.layer:
            view(*args, **kwargs)  # computes nothing new, but knows which patches it reads

    hook = statistics.layer.register_forward_pre_hook(before, with_kwargs=True)
    view.observer = statistics.read
    try:
        yield
    finally:
        hook.remove()
        del view.observer


def _is_known(layer: nn.Module) -> bool:
    return isinstance(layer, WhitenedLayer) or type(layer) in _VIEWS


def unobserved(network: nn.Module, called: dict[str, LayerStatistics]) -> dict[str, str]:
    """Convolutions and linear layers that were not observed, by name, and why."""
    reasons = {}
    for name, layer in network.named_modules():
        if not isinstance(layer, _KINDS) or name in called:
            continue
        kind = type(layer).__name__
        reasons[name] = (
            "never called" if _is_known(layer) else f"a {kind}, which has a forward of its own"
        )
    return reasons
