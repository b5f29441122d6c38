"""The network deconvolution layer written down literally: what `segdeconv` is measured against.

Ye et al., "Network Deconvolution", ICLR 2020, arXiv:1905.11926; the behaviour is that of the code
released with it.  Everything is spelled out as the method is described: unfold, three copies of the
im2col rows, coupled Newton-Schulz steps on the autograd tape, merge.  Nothing here is meant to be
fast, and nothing is shared with the package.

Shapes: R sampled positions, B channels per block, F = k k B columns per block, n pooled rows.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LiteralDeconv2d(nn.Module):
    """Network deconvolution of (N, C, H, W), square kernels and zero padding only.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: Side of the kernel.
        stride: As `nn.Conv2d`.
        padding: As `nn.Conv2d`.
        dilation: As `nn.Conv2d`.
        groups: As `nn.Conv2d`.
        block: Wanted channels per block.
        n_iter: Newton-Schulz steps.
        eps: Added to the diagonal of the covariance.
        momentum: Of the running averages.
        sampling_stride: Distance of sampled patches, times the stride.
        freeze: Whether the statistics rest in most steps.
        freeze_iter: With ``freeze``: steps t with ``t mod 10 freeze_iter <= freeze_iter`` are live.
    """

    running_mean: Tensor
    running_deconv: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        *,
        block: int = 64,
        n_iter: int = 5,
        eps: float = 1e-5,
        momentum: float = 0.1,
        sampling_stride: int = 3,
        freeze: bool = False,
        freeze_iter: int = 100,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.dilation, self.groups = dilation, groups
        self.n_iter, self.eps, self.momentum = n_iter, eps, momentum
        self.step = sampling_stride * stride
        self.freeze, self.freeze_iter, self.counter = freeze, freeze_iter, 0

        if groups > 1:
            block = in_channels // groups
        elif block > in_channels:
            block = in_channels
        else:
            block = math.gcd(block, in_channels)
        self.columns = kernel_size**2 * block
        self.num_blocks = in_channels // block

        fan_in = in_channels // groups * kernel_size**2
        shape = (out_channels, in_channels // groups, kernel_size, kernel_size)
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5))
        self.bias = nn.Parameter(torch.empty(out_channels).uniform_(-(fan_in**-0.5), fan_in**-0.5))
        identity = torch.eye(self.columns)
        if groups > 1:
            self.register_buffer("running_mean", torch.zeros(groups * self.columns))
            self.register_buffer("running_deconv", identity.repeat(groups, 1, 1))
        else:
            self.register_buffer("running_mean", torch.zeros(self.columns))
            self.register_buffer("running_deconv", identity)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, O, H', W')."""
        frozen = self.freeze and self.counter > self.freeze_iter
        if self.training:
            self.counter = (self.counter + 1) % (10 * self.freeze_iter)
        if self.training and not frozen:
            mean, root = self._statistics(self._rows(x))
            self.running_mean.mul_(1 - self.momentum).add_(mean.detach() * self.momentum)
            self.running_deconv.mul_(1 - self.momentum).add_(root.detach() * self.momentum)
        else:
            mean, root = self.running_mean, self.running_deconv
        kernel, bias = self._merge(mean, root)
        return F.conv2d(x, kernel, bias, self.stride, self.padding, self.dilation, self.groups)

    def _rows(self, x: Tensor) -> Tensor:
        """im2col rows (R, C k k), channel slowest; of 1x1 kernels every step**2-th flat pixel."""
        if self.kernel_size == 1:
            return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])[:: self.step**2]
        columns = F.unfold(x, self.kernel_size, self.dilation, self.padding, self.step)
        return columns.transpose(1, 2).reshape(-1, columns.shape[1])

    def _statistics(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and truncated inverse root; one pair, or one pair per group of the convolution."""
        identity = torch.eye(self.columns, dtype=rows.dtype, device=rows.device)
        if self.groups > 1:
            mean = rows.mean(0)
            centred = (rows - mean).view(-1, self.groups, self.columns).transpose(0, 1)
            covariance = torch.baddbmm(
                identity.expand(self.groups, -1, -1),
                centred.mT,
                centred,
                beta=self.eps,
                alpha=1 / len(rows),
            )
        else:  # column j is position j div G of block j mod G; blocks are pooled as further rows
            pooled = rows.view(-1, self.columns, self.num_blocks)
            pooled = pooled.transpose(1, 2).reshape(-1, self.columns)
            mean = pooled.mean(0)
            centred = pooled - mean
            covariance = torch.addmm(
                identity, centred.mT, centred, beta=self.eps, alpha=1 / len(pooled)
            )
        return mean, self._inverse_root(covariance, identity)

    def _inverse_root(self, covariance: Tensor, identity: Tensor) -> Tensor:
        """Coupled Newton-Schulz steps; autograd records all of them."""
        norm = torch.linalg.matrix_norm(covariance, keepdim=True)
        y, z = covariance / norm, identity.expand_as(covariance)
        for _ in range(self.n_iter):
            t = 0.5 * (3 * identity - z @ y)
            y, z = y @ t, t @ z
        return z / norm.sqrt()

    def _merge(self, mean: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
        """Kernel W D and bias b - W D mean."""
        outputs = self.weight.shape[0]
        if self.groups > 1:
            weight = self.weight.view(self.groups, -1, self.columns)
            kernel = weight @ root
            shift = kernel @ mean.view(self.groups, self.columns, 1)
            return kernel.view_as(self.weight), self.bias - shift.flatten()
        weight = self.weight.view(outputs, self.columns, self.num_blocks).transpose(1, 2)
        kernel = weight.reshape(-1, self.columns) @ root
        shift = (kernel @ mean).view(outputs, self.num_blocks).sum(1)
        kernel = kernel.view(outputs, self.num_blocks, self.columns).transpose(1, 2)
        return kernel.reshape(self.weight.shape), self.bias - shift
