"""What the whitening layers share: their settings, running statistics and the merged kernel."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypedDict, TypeVar

import torch
from torch import Tensor, nn

from segdeconv.registry import suggest
from segdeconv.whitening import (
    BACKENDS,
    Backend,
    Blocks,
    Gram,
    Sampling,
    Share,
    inverse_root,
    kronecker_root,
    largest_divisor,
    merge,
    released_block,
    sampled_moments,
    shrink,
    unmerge,
)

# Blocks that share a root give a row each, so in a wide layer a handful of patches would fill
# `Whitening.max_rows`: 8 for 1024 channels and 1x1 taps in blocks of 16.  Neighbours are too alike.
FEWEST_PATCHES = 256

Layer = TypeVar("Layer", bound="WhitenedLayer")
Plain = TypeVar("Plain", bound=nn.Module)


class WhiteningOptions(TypedDict, total=False):
    """Keyword options of the whitening layers, see `Whitening`."""

    block: int
    n_iter: int
    eps: float
    momentum: float
    sampling_stride: int
    freeze: bool
    freeze_iter: int
    grouping: Literal["interleaved", "channel"]
    share: Share
    sampling: Literal["grid", "flat"]
    min_rows: float
    max_rows: float
    structure: Literal["full", "kronecker"]
    detach: bool
    update_every: int
    bias_correction: bool
    backend: Backend
    gram: Gram


@dataclass(frozen=True, kw_only=True)
class Whitening:
    """Settings of a whitening layer.

    Attributes:
        block: Channels per whitening block; the layer takes the largest divisor of its channels up
            to this. The matrix has block x taps columns, and its cost grows with the cube.
        n_iter: Newton-Schulz steps, 1 or more. Caps the gain at 1.5**n_iter: a regulariser, not a
            tolerance. The released networks use 15 in the first layer.
        eps: Added to the diagonal of the covariance.
        momentum: Of the running averages, in (0, 1].
        sampling_stride: Distance between sampled patches, in units of the layer's stride.
        freeze: Keep the statistics fixed in most steps, on the duty cycle of the released code.
        freeze_iter: With ``freeze``: freeze_iter + 1 live steps, then 9 freeze_iter - 1 others.
        grouping: "interleaved": block g holds columns g, g + G, ... of the (channel, tap) list;
            "channel": each block is a run of channels with all their taps.
        share: "both": all blocks pool their samples into one mean and one root; "root": one root,
            each block its own mean; "none": a mean and a root per block. Grouped convolutions
            always use "none".
        sampling: 1x1 layers sample a "grid" or, as released, every k-th pixel of the "flat" batch.
        min_rows: Rows per column of the covariance below which sampling gets denser, then the
            covariance is shrunk; 0 never does either.
        max_rows: Rows per column of the covariance above which sampling gets sparser, to no fewer
            than that many, nor than `FEWEST_PATCHES`; 0 never makes it so.
        structure: "full", or "kronecker": the root is the product of one over channels and one over
            taps (`segdeconv.whitening.kronecker_root`); needs channel grouping.
        detach: Take mean and root as constants in the backward.
        update_every: Compute statistics in every so many-th step and use the running ones, as
            constants, in between.
        bias_correction: Weigh the running averages so that their start does not count.
        backend: How the root is computed, see `segdeconv.whitening.inverse_root`.
        gram: What patches are multiplied in for the covariance: "single", float32 (float64 in a
            double layer), or "input", a 16-bit input in its own type with float32 sums, as tensor
            cores do fastest; see `segdeconv.whitening.sampled_moments` for what it costs.
        released_blocks: Block sizes by the released rule (gcd; whole groups); set by the preset.
    """

    block: int = 16
    n_iter: int = 5
    eps: float = 1e-5
    momentum: float = 0.1
    sampling_stride: int = 3
    freeze: bool = False
    freeze_iter: int = 100
    grouping: Literal["interleaved", "channel"] = "interleaved"
    share: Share = "both"
    sampling: Literal["grid", "flat"] = "grid"
    min_rows: float = 4.0
    max_rows: float = 32.0
    structure: Literal["full", "kronecker"] = "full"
    detach: bool = False
    update_every: int = 1
    bias_correction: bool = True
    backend: Backend = "auto"
    gram: Gram = "single"
    released_blocks: bool = False

    def __post_init__(self) -> None:
        for name in ("block", "n_iter", "sampling_stride", "freeze_iter", "update_every"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: expected a whole number, 1 or more")
        for name in ("momentum", "eps", "min_rows", "max_rows"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"{name}={value!r}: expected a number, 0 or more")
        if not 0 < self.momentum <= 1:
            raise ValueError(f"momentum={self.momentum}: expected a number in (0, 1]")
        for name in ("freeze", "detach", "bias_correction", "released_blocks"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected true or false")
        if self.structure == "kronecker" and self.grouping != "channel":
            raise ValueError(
                "structure='kronecker' needs blocks of whole channels; give grouping='channel'"
            )
        if 0 < self.max_rows < self.min_rows:
            raise ValueError(
                f"max_rows={self.max_rows}: expected 0 or at least min_rows={self.min_rows}"
            )
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {known}")

    @property
    def cycle(self) -> int:
        """Steps after which the pattern of live and frozen ones repeats; 1 if all are live."""
        return 10 * self.freeze_iter if self.freeze else self.update_every

    def channels_per_block(self, channels: int, groups: int = 1) -> int:
        """Block size the layer really uses."""
        if self.released_blocks:
            return released_block(channels, self.block, groups)
        return largest_divisor(channels // groups, self.block)


_CHOICES: dict[str, tuple[str, ...]] = {
    "grouping": ("interleaved", "channel"),
    "share": ("both", "root", "none"),
    "sampling": ("grid", "flat"),
    "structure": ("full", "kronecker"),
    "backend": BACKENDS,
    "gram": ("single", "input"),
}

_RELEASED = Whitening(
    block=64,
    sampling="flat",
    min_rows=0.0,
    max_rows=0.0,
    bias_correction=False,
    released_blocks=True,
)
PRESETS: dict[str, Whitening] = {"default": Whitening(), "released": _RELEASED}
LINEAR_PRESETS: dict[str, Whitening] = {
    "default": Whitening(block=64, sampling_stride=1, grouping="channel"),
    "released": replace(_RELEASED, block=512, sampling_stride=1, grouping="channel"),
}


def whitening_settings(
    preset: str, options: Mapping[str, Any], presets: Mapping[str, Whitening] = PRESETS
) -> Whitening:
    """Settings of a preset with options over them; unknown names raise with the nearest one."""
    if preset not in presets:
        raise ValueError(f"unknown preset {preset!r}; known: {', '.join(presets)}")
    known = [field.name for field in fields(Whitening) if field.name != "released_blocks"]
    for name in options:
        if name not in known:
            rest = suggest(name, known, f"known: {', '.join(known)}")
            raise ValueError(f"unknown whitening option {name!r}; {rest}")
    return replace(presets[preset], **options)


class WhitenedLayer(nn.Module):
    """State shared by the whitening layers: running statistics, their update, the merged kernel.

    A mixin over a torch layer with ``weight`` and ``bias``.  Subclasses say how to sample a batch.

    Buffers:
        running_mean: (means x D,).
        running_deconv: (D, D), or (M, D, D) when there are several; an average of roots, as
            released.
        running_weight: Share of real batches in the averages, 0 at the start, towards 1.
        counter: Steps within the cycle of live and frozen ones, only with such a cycle.
    """

    weight: Any
    bias: Any
    running_mean: Tensor
    running_deconv: Tensor
    running_weight: Tensor
    counter: Tensor
    settings: Whitening
    blocks: Blocks
    _merged: tuple[object, Tensor, Tensor] | None
    observer: Callable[[Tensor, Callable[[int], Sampling]], None] | None = None
    """Called with the arguments of `_whiten` in evaluation, for `Calibration`."""

    def _init_whitening(self, settings: Whitening, blocks: Blocks) -> None:
        self.settings, self.blocks, self._merged = settings, blocks, None
        self.reset_running_stats()

    def reset_running_stats(self) -> None:
        """Forget the statistics: mean 0 and the identity, so that evaluation is the plain layer."""
        blocks, like = self.blocks, self.weight
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        roots = torch.eye(blocks.size, dtype=dtype, device=like.device)
        if blocks.num_roots > 1:
            roots = roots.repeat(blocks.num_roots, 1, 1)
        mean = torch.zeros(blocks.num_means * blocks.size, dtype=dtype, device=like.device)
        self.register_buffer("running_mean", mean)
        self.register_buffer("running_deconv", roots)
        self.register_buffer("running_weight", torch.zeros((), dtype=dtype, device=like.device))
        if self.settings.cycle > 1:
            self.register_buffer("counter", torch.zeros((), dtype=torch.long, device=like.device))

    def effective_weight(self) -> Tensor:
        """The kernel that is applied to whitened patches, in the shape of ``weight``."""
        weight: Tensor = self.weight
        return weight

    def _merge(self, mean: Tensor, root: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Kernel and bias of the plain layer, both in ``dtype``."""
        weight = self.effective_weight()
        kernel, bias = merge(weight, self.bias, mean, root, self.blocks, dtype)
        return kernel, bias.to(dtype)

    @torch.no_grad()
    def restate(self, mean: Tensor, root: Tensor) -> None:
        """Take other running statistics, with the weight and bias that keep evaluation as it is.

        The statistics then weigh as those of a long training.  The layer must have a bias.

        Args:
            mean: (1 or G, D).
            root: (M, D, D), invertible.
        """
        assert self.bias is not None
        kernel, bias = self._merge(*self._running_in_double(), torch.float64)
        self.running_mean.copy_(mean.flatten())
        self.running_deconv.copy_(root.view_as(self.running_deconv))
        self.running_weight.fill_(1)
        weight, bias = self._unmerge(kernel, bias, *self._running_in_double())
        self.weight.copy_(weight)
        self.bias.copy_(bias)

    def _unmerge(
        self, kernel: Tensor, bias: Tensor, mean: Tensor, root: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Inverse of `_merge`."""
        return unmerge(kernel, bias, mean, root, self.blocks)

    def _running_in_double(self) -> tuple[Tensor, Tensor]:
        mean, root = self._running()
        return mean.double(), root.double()

    def _whiten(
        self, x: Tensor, sampling: Callable[[int], Sampling]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Kernel and bias for this input: by batch statistics in training, else by running ones.

        Args:
            x: Input of the convolution.
            sampling: What to read from ``x``, by sampling stride.

        Returns:
            ``x`` as the convolution must take it (see `sampled_moments`), kernel and bias.
        """
        dtype = compute_dtype(x)
        if not self.training:
            if self.observer is not None:
                self.observer(x, sampling)
            return x, *self._running_kernel_and_bias(dtype)
        with torch.autocast(x.device.type, enabled=False):
            x, mean, root = self._batch_statistics(x, sampling)
            return x, *self._merge(mean, root, dtype)

    def _running(self) -> tuple[Tensor, Tensor]:
        """Running mean (1 or G, D) and roots (M, D, D), as copies.

        Copies, because a later training step changes the buffers in place, and an evaluation
        forward that still waits for its backward would fail on that.
        """
        size = self.blocks.size
        return self.running_mean.clone().view(-1, size), self.running_deconv.clone().view(
            -1, size, size
        )

    def _batch_statistics(
        self, x: Tensor, sampling: Callable[[int], Sampling]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``x``, mean and root of this batch, or the running ones if the batch cannot give them."""
        settings = self.settings
        grid, freedom = self._choose_sampling(x, sampling)
        if freedom < 1:  # one row has no covariance; running statistics can serve and stay
            return x, *self._running()
        live = self._advance_counter() if settings.cycle > 1 else None
        may_branch = x.device.type == "cpu" and not torch.compiler.is_compiling()
        if live is not None and may_branch and not live:
            return x, *self._running()
        x, mean, covariance = self._moments(x, grid, freedom)
        # A value that is not finite, or too large to square, shows in its column's variance.
        largest = covariance.detach().diagonal(dim1=-2, dim2=-1).amax()
        if may_branch:
            if not math.isfinite(largest.item()):
                return x, *self._running()
            live = None
        else:  # asking a GPU for the answer would make it wait
            live = largest < math.inf if live is None else live & (largest < math.inf)
            identity = torch.eye(self.blocks.size, dtype=covariance.dtype, device=x.device)
            covariance = torch.where(live, covariance, identity)
        root = self._root(covariance)
        if live is not None:
            old_mean, old_root = self._running()
            mean, root = torch.where(live, mean, old_mean), torch.where(live, root, old_root)
        if not in_backward():
            self._update(mean.detach(), root.detach(), live)
        return x, mean, root

    def _moments(self, x: Tensor, grid: Sampling, freedom: int) -> tuple[Tensor, Tensor, Tensor]:
        """``x`` for the convolution, mean, and covariance, shrunk where the rows are few."""
        settings, source = self.settings, x.detach() if self.settings.detach else x
        read, mean, covariance = sampled_moments(
            source, grid, self.blocks, settings.eps, self.running_mean.dtype, settings.gram
        )
        wanted = settings.min_rows * self.blocks.size
        if freedom < wanted:
            covariance = shrink(covariance, 1 - freedom / wanted)
        return x if settings.detach else read, mean, covariance

    def _root(self, covariance: Tensor) -> Tensor:
        settings = self.settings
        if settings.structure == "kronecker":
            taps = math.prod(self.weight.shape[2:])
            return kronecker_root(covariance, taps, settings.n_iter, settings.backend)
        return inverse_root(covariance, settings.n_iter, settings.backend)

    def _choose_sampling(
        self, x: Tensor, sampling: Callable[[int], Sampling]
    ) -> tuple[Sampling, int]:
        """What to read: between ``min_rows`` and ``max_rows`` per column if the batch has them.

        Returns:
            The sampling, and the rows' degrees of freedom.
        """
        settings, size = self.settings, self.blocks.size

        def freedom(grid: Sampling) -> int:
            return self.blocks.degrees_of_freedom(grid.count(x.shape))

        stride = settings.sampling_stride
        grid = sampling(stride)
        while freedom(grid) < settings.min_rows * size and stride > 1:
            stride = max(1, stride - 2)  # stays odd, see `PatchGrid.stride`
            grid = sampling(stride)
        rows = self.blocks.rows(grid.count(x.shape))
        most = max(settings.max_rows * size, self.blocks.rows(FEWEST_PATCHES))
        if settings.max_rows and most < rows:
            grid = grid.thinned(x.shape, rows / most)
        if settings.min_rows == 0:  # any number of rows will do
            return grid, min(grid.count(x.shape), 1)
        return grid, freedom(grid)

    def _advance_counter(self) -> Tensor:
        """Whether this step is live; counts it."""
        settings = self.settings
        # Recomputation under activation checkpointing: the step was counted.
        step = (self.counter - 1) % settings.cycle if in_backward() else self.counter.clone()
        if not in_backward():
            self.counter.add_(1).remainder_(settings.cycle)
        live = step % settings.update_every == 0
        return live & (step <= settings.freeze_iter) if settings.freeze else live

    def _update(self, mean: Tensor, root: Tensor, live: Tensor | None) -> None:
        """Average a batch in.

        Args:
            mean: Detached; the running one where the batch is not live.
            root: The same.
            live: Whether the batch counts; None if it does.
        """
        momentum = self.settings.momentum
        weight = self.running_weight * (1 - momentum) + momentum
        # Divided, the buffers themselves stay corrected: (average - start) / (1 - (1 - m)^t).
        rate: Any = momentum / weight if self.settings.bias_correction else momentum
        self.running_mean.lerp_(mean.flatten(), rate)
        self.running_deconv.lerp_(root.view_as(self.running_deconv), rate)
        if live is not None:
            weight = torch.where(live, weight, self.running_weight)
        self.running_weight.copy_(weight)

    def _running_kernel_and_bias(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Merged running statistics; computed once until a gradient is asked or they change."""
        sources = [
            t for t in (*self._parameters.values(), *self._buffers.values()) if t is not None
        ]
        needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in sources)
        if needs_grad or torch.compiler.is_compiling() or any(t.is_inference() for t in sources):
            return self._merge_running(dtype)
        key = (dtype, tuple((id(t), t._version) for t in sources))
        if self._merged is None or self._merged[0] != key:
            # A tensor born in inference mode could not serve a later forward that needs gradients.
            with torch.inference_mode(False), torch.no_grad():
                self._merged = (key, *self._merge_running(dtype))
        return self._merged[1], self._merged[2]

    def _merge_running(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.running_mean.device.type, enabled=False):
            return self._merge(*self._running(), dtype)

    def train(self, mode: bool = True) -> Any:
        """As `nn.Module.train`; a change of mode also drops the merged kernel.

        Weight averaging swaps weights through ``.data``, which leaves no trace in the version
        counter.
        """
        self._merged = None
        return super().train(mode)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        """Move or cast, but keep the statistics in float32 when the layer goes to 16 bits."""
        before = {name: self._buffers[name] for name in _STATISTICS}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.element_size() < 4:
                self._buffers[name] = old.to(new.device)
        self._merged = None
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Accept checkpoints of the released code: statistics without weight or counter."""
        if prefix + "running_deconv" in state_dict:
            state_dict.setdefault(prefix + "running_weight", torch.ones_like(self.running_weight))
            if self.settings.cycle > 1:
                state_dict.setdefault(prefix + "counter", torch.zeros_like(self.counter))
        self._merged = None
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_merged": None}

    def _whitening_repr(self) -> str:
        used = self.blocks
        parts = [f"blocks={used.num}x{used.size}", f"n_iter={self.settings.n_iter}"]
        defaults = Whitening()
        for name in ("eps", "momentum", "sampling_stride", "grouping", "share", "freeze"):
            value = getattr(self.settings, name)
            if value != getattr(defaults, name):
                parts.append(f"{name}={value}")
        return ", ".join(parts)

    def extra_repr(self) -> str:
        """The torch layer's arguments, then the whitening that is really done."""
        return f"{super().extra_repr()}, {self._whitening_repr()}"


_STATISTICS = ("running_mean", "running_deconv", "running_weight")


def conv_blocks(settings: Whitening, channels: int, groups: int, taps: int) -> Blocks:
    """Layout of a layer with ``channels`` inputs in ``groups``."""
    block = settings.channels_per_block(channels, groups)
    num = channels // block
    if groups > 1:
        return Blocks(num, block * taps, groups, share="none")
    return Blocks(num, block * taps, 1, settings.grouping == "interleaved", settings.share)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Precision in which the convolution of ``x`` will run."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def in_backward() -> bool:
    """Whether this forward is the repetition that activation checkpointing makes in a backward.

    `torch.utils.checkpoint` tells its own recomputation the same way; there is no public name for
    it.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def take_over(new: Layer, old: nn.Module) -> Layer:
    """Give ``new`` the parameters and mode of ``old`` and fresh statistics beside them."""
    new.weight, new.bias = old.weight, old.bias
    new.reset_running_stats()
    new.train(old.training)
    return new


def give_merged(plain: Plain, layer: WhitenedLayer) -> Plain:
    """Put the running kernel and bias of ``layer`` into ``plain``."""
    with torch.no_grad():
        kernel, bias = layer._merge_running(layer.weight.dtype)
    plain.weight, plain.bias = nn.Parameter(kernel.clone()), nn.Parameter(bias.clone())
    plain.train(layer.training)
    return plain
