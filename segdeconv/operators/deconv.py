"""Network deconvolution: remove the correlation of the input patches, then convolve.

Ye et al., "Network Deconvolution", ICLR 2020, arXiv:1905.11926; code: yechengxi/deconvolution.

Each layer estimates mean and covariance of its im2col rows, takes a truncated inverse square root
and merges both into kernel and bias (`segdeconv.whitening`).  It then runs one ordinary
convolution, and folds into a plain layer for deployment.  It replaces batch normalisation: the
*input* of each convolution is normalised, over channels and taps at once.

How this differs from the released layers (``preset="released"`` restores them):

* they are `nn.Conv2d`, `nn.ConvTranspose2d`, `nn.Linear`: every argument of those works, no bias
  included;
* evaluation agrees with training from the first step on (released: relative error 4.3 after one
  step), because the running averages are corrected for their start;
* too few samples for the covariance: sample more densely, then shrink towards a multiple of the
  identity, then (fewer than two rows) fall back on the running statistics;
* a batch with non-finite values leaves the running statistics alone;
* statistics and roots are computed in float32 or better whatever autocast says, counted once under
  activation checkpointing, and the freeze counter is part of the state;
* 1x1 layers sample a grid of pixels, not stripes; grouped convolutions may hold several blocks per
  group.

With gradient accumulation each micro-batch is whitened by, and averaged into, its own statistics,
as in batch norm.

Shapes: N images, C channels, O output channels, G blocks of D columns, M inverse roots (1 or G).
"""

import math
from functools import partial
from typing import Any, Literal, Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdeconv.operators.whitened_layer import (
    LINEAR_PRESETS,
    WhitenedLayer,
    WhiteningOptions,
    conv_blocks,
    give_merged,
    in_backward,
    take_over,
    whitening_settings,
)
from segdeconv.whitening import (
    FlatGrid,
    PatchGrid,
    RowGrid,
    Sampling,
    StretchedGrid,
    inverse_root,
    merge,
    unmerge,
)

Pair = tuple[int, int]


class Deconv2d(WhitenedLayer, nn.Conv2d):
    """2-D convolution that whitens its input patches; drop-in for `nn.Conv2d`.

    (N, C, H, W) -> (N, O, H', W').  Needs no batch norm before or behind it.  ``bias=False`` drops
    only the learned bias: the shift that centres the patches still applies, also after `fold`.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: Taps.
        stride: As `nn.Conv2d`.
        padding: As `nn.Conv2d`; padded values are part of the patches and of their statistics.
        dilation: As `nn.Conv2d`.
        groups: As `nn.Conv2d`; blocks never cross groups.
        bias: Whether to learn a bias.
        padding_mode: As `nn.Conv2d`.
        device: Of parameters and statistics.
        dtype: Of the parameters; statistics are float64 for float64 and float32 otherwise.
        preset: "default" or "released".
        **options: Any field of `Whitening`, over the preset.

    Raises:
        ValueError: An unknown preset or option, or a value out of range.

    Source: Ye et al. 2020, Algorithm 1.
    """

    input_padding: nn.Module | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        preset: str = "default",
        **options: Unpack[WhiteningOptions],
    ) -> None:
        settings = whitening_settings(preset, options)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self.input_padding = None
        self._init_whitening(
            settings, conv_blocks(settings, in_channels, groups, math.prod(self.kernel_size))
        )

    @classmethod
    def from_conv(
        cls, conv: nn.Conv2d, *, preset: str = "default", **options: Unpack[WhiteningOptions]
    ) -> "Deconv2d":
        """Take over ``conv``: the very same parameters, arguments and mode."""
        new = cls(  # on meta nothing is initialised, so the global random state does not move
            conv.in_channels,
            conv.out_channels,
            cast(Pair, conv.kernel_size),
            cast(Pair, conv.stride),
            cast(Any, conv.padding),
            cast(Pair, conv.dilation),
            conv.groups,
            conv.bias is not None,
            cast(Any, conv.padding_mode),
            device="meta",
            preset=preset,
            **options,
        )
        return take_over(new, conv)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, O, H', W'), or the same without N."""
        if x.dim() == 3:
            return self.forward(x[None])[0]
        x, kernel, bias = self._whiten(self._pad(x), self._sampling)
        return F.conv2d(
            x, kernel, bias, self.stride, self._zero_padding(), self.dilation, self.groups
        )

    def fold(self) -> nn.Conv2d:
        """A plain `nn.Conv2d` with the function of this layer in evaluation; always has a bias.

        ``input_padding`` is not part of it.
        """
        return give_merged(nn.Conv2d(**_geometry(self), device="meta"), self)

    def _zero_padding(self) -> tuple[int, int]:
        """Zeros on both sides that convolution and sampling add; `_pad` adds the rest."""
        if self.padding_mode != "zeros" or self.padding == "valid":
            return (0, 0)
        if self.padding == "same":
            vertical, horizontal = self._same_padding()
            return (0, 0) if vertical % 2 or horizontal % 2 else (vertical // 2, horizontal // 2)
        return cast(Pair, self.padding)

    def _same_padding(self) -> tuple[int, int]:
        """Pixels that "same" adds in all, (vertical, horizontal)."""
        vertical, horizontal = (
            dilation * (taps - 1)
            for dilation, taps in zip(self.dilation, self.kernel_size, strict=True)
        )
        return vertical, horizontal

    def _pad(self, x: Tensor) -> Tensor:
        if self.input_padding is not None:
            x = self.input_padding(x)
        if self.padding == "same":
            vertical, horizontal = self._same_padding()
            left, top = horizontal // 2, vertical // 2
            amounts = (left, horizontal - left, top, vertical - top)
        elif self.padding_mode != "zeros":
            vertical, horizontal = cast(Pair, self.padding)
            amounts = (horizontal, horizontal, vertical, vertical)
        else:
            return x
        if self._zero_padding() != (0, 0):
            return x
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return F.pad(x, amounts, mode)

    def _sampling(self, sampling_stride: int) -> Sampling:
        steps = (sampling_stride * self.stride[0], sampling_stride * self.stride[1])
        kernel_size, dilation = cast(Pair, self.kernel_size), cast(Pair, self.dilation)
        if kernel_size == (1, 1) and self.settings.sampling == "flat":
            return FlatGrid(steps[0] * steps[1])
        stride = cast(Pair, self.stride)
        return PatchGrid(kernel_size, steps, self._zero_padding(), dilation, stride)


class DeconvTranspose2d(WhitenedLayer, nn.ConvTranspose2d):
    """2-D transposed convolution that whitens its input patches; drop-in for `nn.ConvTranspose2d`.

    A transposed convolution is an ordinary one, with the kernel turned by 180 degrees, over the
    input with ``stride - 1`` zeros between its pixels.  Its patches are those of that stretched
    map: at each output pixel only the taps of one phase meet a pixel.  Mean and covariance are
    taken over patches of all phases alike, zeros included, so one kernel and one bias hold
    everywhere and the layer folds into a plain `nn.ConvTranspose2d`.  The sampling step is raised
    to the next number without a common factor with the stride: otherwise it would visit some phases
    only.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: Taps.
        stride: As `nn.ConvTranspose2d`.
        padding: As `nn.ConvTranspose2d`.
        output_padding: As `nn.ConvTranspose2d`.
        groups: As `nn.ConvTranspose2d`.
        bias: Whether to learn a bias.
        dilation: As `nn.ConvTranspose2d`.
        padding_mode: "zeros", as torch.
        device: Of parameters and statistics.
        dtype: Of the parameters.
        preset: "default" or "released" (the released code has no such layer; its rules are used).
        **options: Any field of `Whitening`, over the preset.

    Raises:
        ValueError: An unknown preset or option, or a value out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        output_padding: int | tuple[int, int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | tuple[int, int] = 1,
        padding_mode: Literal["zeros"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        preset: str = "default",
        **options: Unpack[WhiteningOptions],
    ) -> None:
        settings = whitening_settings(preset, options)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            groups,
            bias,
            cast(Any, dilation),
            padding_mode,
            device,
            dtype,
        )
        self._init_whitening(
            settings, conv_blocks(settings, in_channels, groups, math.prod(self.kernel_size))
        )

    @classmethod
    def from_conv(
        cls,
        conv: nn.ConvTranspose2d,
        *,
        preset: str = "default",
        **options: Unpack[WhiteningOptions],
    ) -> "DeconvTranspose2d":
        """Take over ``conv``: the very same parameters, arguments and mode."""
        new = cls(
            conv.in_channels,
            conv.out_channels,
            cast(Pair, conv.kernel_size),
            cast(Pair, conv.stride),
            cast(Pair, conv.padding),
            cast(Pair, conv.output_padding),
            conv.groups,
            conv.bias is not None,
            cast(Pair, conv.dilation),
            device="meta",
            preset=preset,
            **options,
        )
        return take_over(new, conv)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(N, C, H, W) -> (N, O, H', W'), or the same without N."""
        if x.dim() == 3:
            return self.forward(x[None], output_size)[0]
        output_padding = self._output_padding(
            x,
            output_size,
            cast(list[int], self.stride),
            cast(list[int], self.padding),
            cast(list[int], self.kernel_size),
            2,
            cast(list[int], self.dilation),
        )
        x, kernel, bias = self._whiten(x, partial(self._sampling, output_padding))
        return F.conv_transpose2d(
            x,
            kernel,
            bias,
            self.stride,
            cast(Pair, self.padding),
            cast(Any, output_padding),
            self.groups,
            self.dilation,
        )

    def fold(self) -> nn.ConvTranspose2d:
        """A plain `nn.ConvTranspose2d` with the function of this layer in evaluation."""
        plain = nn.ConvTranspose2d(
            **_geometry(self), output_padding=cast(Any, self.output_padding), device="meta"
        )
        return give_merged(plain, self)

    def _sampling(self, output_padding: list[int], sampling_stride: int) -> Sampling:
        """Patches of the equivalent ordinary convolution over the stretched input."""
        stride, dilation, kernel_size, padding = (
            cast(Pair, size)
            for size in (self.stride, self.dilation, self.kernel_size, self.padding)
        )
        top, left = (dilation[i] * (kernel_size[i] - 1) - padding[i] for i in (0, 1))
        steps = (
            _next_coprime(sampling_stride, stride[0]),
            _next_coprime(sampling_stride, stride[1]),
        )
        return StretchedGrid(
            PatchGrid(kernel_size, steps, dilation=dilation, stride=stride),
            stride,
            (top, left),
            (top + output_padding[0], left + output_padding[1]),
        )

    def _merge(self, mean: Tensor, root: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        weight = self._turned(self.effective_weight())
        kernel, bias = merge(weight, self.bias, mean, root, self.blocks, dtype)
        return self._turned(kernel), bias.to(dtype)

    def _unmerge(
        self, kernel: Tensor, bias: Tensor, mean: Tensor, root: Tensor
    ) -> tuple[Tensor, Tensor]:
        weight, bias = unmerge(self._turned(kernel), bias, mean, root, self.blocks)
        return self._turned(weight), bias

    def _turned(self, weight: Tensor) -> Tensor:
        """(C, O / groups, h, w), this layer's <-> (O, C / groups, h, w), the ordinary one's."""
        split = weight.reshape(self.groups, -1, *weight.shape[1:]).transpose(1, 2)
        return split.flatten(0, 1).flip(-2, -1)


class Delinear(WhitenedLayer, nn.Linear):
    """Linear layer that whitens its input features; drop-in for `nn.Linear`.

    (..., in_features) -> (..., out_features).  Blocks are runs of features and share one mean and
    root.

    Args:
        in_features: As `nn.Linear`.
        out_features: As `nn.Linear`.
        bias: Whether to learn a bias; the shift that centres the input applies in any case.
        device: Of parameters and statistics.
        dtype: Of the parameters.
        preset: "default" (block 64) or "released" (block 512).
        **options: Any field of `Whitening`, over the preset; ``block`` counts features here.

    Raises:
        ValueError: An unknown preset or option, or a value out of range.

    Source: the released code's layer of that name; the paper's classifier input.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        preset: str = "default",
        **options: Unpack[WhiteningOptions],
    ) -> None:
        settings = whitening_settings(preset, options, LINEAR_PRESETS)
        super().__init__(in_features, out_features, bias, device, dtype)
        self._init_whitening(settings, conv_blocks(settings, in_features, 1, 1))

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, *, preset: str = "default", **options: Unpack[WhiteningOptions]
    ) -> "Delinear":
        """Take over ``linear``: the very same parameters and mode."""
        new = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            device="meta",
            preset=preset,
            **options,
        )
        return take_over(new, linear)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        x, weight, bias = self._whiten(x, RowGrid)
        return F.linear(x, weight, bias)

    def fold(self) -> nn.Linear:
        """A plain `nn.Linear` with the function of this layer in evaluation; always has a bias."""
        with torch.device("meta"):
            plain = nn.Linear(self.in_features, self.out_features)
        return give_merged(plain, self)


class ChannelDeconv(nn.Module):
    """Whitens the channels of a feature map; no parameters.

    (N, C, H, W) or (N, C) -> the same shape.  The first ``C // block * block`` channels are
    whitened in interleaved blocks that share one mean and root; the rest is only scaled, as one.

    The released layer takes the second moment without removing the mean; the default preset centres
    it.

    Args:
        block: Channels per block, at most C.
        n_iter: Newton-Schulz steps.
        eps: Added to the diagonal of the covariance and to the variance.
        momentum: Of the running averages, in (0, 1]; the first batch is copied.
        sampling_stride: Every ``sampling_stride**2``-th pixel gives the statistics of maps that are
            at least that large.
        preset: "default" or "released".

    Raises:
        ValueError: A value out of range; an input that is neither 2-D nor 4-D; fewer than ``block``
            channels.

    Source: the released code's layer of that name.
    """

    running_mean1: Tensor
    running_deconv: Tensor
    running_mean2: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        block: int = 64,
        n_iter: int = 5,
        eps: float = 1e-2,
        momentum: float = 0.1,
        sampling_stride: int = 3,
        *,
        preset: str = "default",
    ) -> None:
        super().__init__()
        self.settings = whitening_settings(
            preset,
            {
                "block": block,
                "n_iter": n_iter,
                "eps": eps,
                "momentum": momentum,
                "sampling_stride": sampling_stride,
            },
        )
        self.centred = preset != "released"
        self.register_buffer("running_mean1", torch.zeros(block, 1))
        self.register_buffer("running_deconv", torch.eye(block))
        self.register_buffer("running_mean2", torch.zeros(1, 1))
        self.register_buffer("running_var", torch.ones(1, 1))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) or (N, C) -> the same shape."""
        block = self.settings.block
        if x.dim() not in (2, 4) or x.shape[1] < block:
            raise ValueError(
                f"ChannelDeconv(block={block}) got shape {tuple(x.shape)}: expected (N, C, H, W) "
                f"or (N, C) with C of {block} or more; choose a smaller block"
            )
        maps = x if x.dim() == 4 else x[:, :, None, None]
        whole = maps.shape[1] // block * block
        with torch.autocast(x.device.type, enabled=False):
            parts = [self._whiten(maps[:, :whole].to(self.running_deconv.dtype))]
            if whole < maps.shape[1]:
                parts.append(self._standardise(maps[:, whole:].to(self.running_deconv.dtype)))
            if self.training and not in_backward():
                self.num_batches_tracked.add_(1)
        return torch.cat(parts, 1).to(x.dtype).view(x.shape)

    def _sampled(self, values: Tensor, maps: Tensor) -> Tensor:
        stride = self.settings.sampling_stride
        return values[:, :: stride**2] if min(maps.shape[2:]) >= stride else values

    def _whiten(self, maps: Tensor) -> Tensor:
        rows = maps.transpose(0, 1).reshape(self.settings.block, -1)
        mean, root = self.running_mean1, self.running_deconv
        if self.training:
            mean, root = self._statistics(self._sampled(rows, maps))
        whitened = root @ (rows - mean)
        return whitened.view(maps.shape[1], maps.shape[0], *maps.shape[2:]).transpose(0, 1)

    def _statistics(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        mean = samples.mean(-1, keepdim=True)
        if self.centred:
            covariance = torch.cov(samples, correction=0)
        else:
            covariance = samples @ samples.mT / samples.shape[-1]
        identity = torch.eye(len(samples), dtype=samples.dtype, device=samples.device)
        covariance = covariance + self.settings.eps * identity
        root = inverse_root(covariance, self.settings.n_iter, self.settings.backend)
        self._average((self.running_mean1, mean), (self.running_deconv, root))
        return mean, root

    def _standardise(self, maps: Tensor) -> Tensor:
        mean, var = self.running_mean2, self.running_var
        if self.training:
            samples = self._sampled(maps.flatten(1), maps)
            mean = samples.mean().view(1, 1)
            var = samples.var(correction=0 if self.centred else 1).view(1, 1)
            self._average((self.running_mean2, mean), (self.running_var, var))
        return (maps - mean) * (var + self.settings.eps).rsqrt()

    @torch.no_grad()
    def _average(self, *pairs: tuple[Tensor, Tensor]) -> None:
        """Move each running value towards its batch value; the first batch is copied."""
        if in_backward():
            return
        for running, batch in pairs:
            first = (self.num_batches_tracked == 0).to(running.dtype)
            rate = torch.clamp(first + self.settings.momentum, max=1.0)
            ok = batch.isfinite().all()
            running.lerp_(torch.where(ok, batch.detach(), running), rate)

    def extra_repr(self) -> str:
        """Settings in short."""
        return f"block={self.settings.block}, n_iter={self.settings.n_iter}"


def _next_coprime(step: int, stride: int) -> int:
    while math.gcd(step, stride) > 1:
        step += 1
    return step


def _geometry(layer: nn.Conv2d | nn.ConvTranspose2d) -> dict[str, Any]:
    """Constructor arguments that Conv2d and ConvTranspose2d share."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
    return {name: getattr(layer, name) for name in (*names, "groups", "padding_mode")}
