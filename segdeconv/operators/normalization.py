"""What may stand in the place of a batch norm: a synchronised one, a group norm, or nothing.

Each function takes a batch norm of torch or timm and returns the module that replaces it.  timm's
`BatchNormAct2d` is a batch norm that also drops out and activates; those two parts survive.
Scale and shift are taken over as the very same parameters, under the same names.

Sources: Peng et al., "MegDet", CVPR 2018, arXiv:1711.07240 (batch norm over processes); Wu and He,
"Group Normalization", ECCV 2018, arXiv:1803.08494.
"""

from collections import OrderedDict
from typing import cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def fuses_activation(norm: nn.Module) -> bool:
    """Whether a norm is one of timm's, which drop out and activate in the same module."""
    return hasattr(norm, "drop") and hasattr(norm, "act")


def without_batchnorm(norm: _BatchNorm) -> nn.Module:
    """What is left of a batch norm when its norm is taken out: its dropout and activation.

    Both keep their names, so a parameter of the activation keeps its key.
    """
    if not fuses_activation(norm):
        return nn.Identity().train(norm.training)
    rest = nn.Sequential(
        OrderedDict(drop=cast(nn.Module, norm.drop), act=cast(nn.Module, norm.act))
    )
    return rest.train(norm.training)


def sync_batchnorm(norm: _BatchNorm) -> nn.Module:
    """The same batch norm with statistics over all processes; equal to it on one process."""
    if isinstance(norm, nn.SyncBatchNorm):
        return norm
    # Here, so that importing an operator does not load timm.  torch's own converter loses the
    # activation of a BatchNormAct2d: logits of unet/tu-efficientnet_b0 went from 0.4 to hundreds.
    from timm.layers import convert_sync_batchnorm

    new: nn.Module = convert_sync_batchnorm(norm)
    return new


def group_norm(norm: _BatchNorm, *, num_groups: int = 32) -> nn.Module:
    """A group norm with the scale and shift of a batch norm.

    Args:
        norm: The batch norm.
        num_groups: Upper bound of the number of groups, see `groups_of`.  32 as in the paper.

    Raises:
        ValueError: ``num_groups`` below 1.
    """
    if num_groups < 1:
        raise ValueError(f"num_groups={num_groups}: expected 1 or more; the paper uses 32")
    channels = norm.num_features
    like = norm.weight if norm.affine else norm.running_mean
    groups = groups_of(channels, num_groups)
    new: nn.GroupNorm
    if fuses_activation(norm):
        from timm.layers import GroupNormAct  # here, as above

        new = GroupNormAct(channels, groups, norm.eps, norm.affine)
        new.drop, new.act = cast(nn.Module, norm.drop), cast(nn.Module, norm.act)
    else:
        new = nn.GroupNorm(groups, channels, norm.eps, norm.affine)
    if like is not None:
        new.to(device=like.device, dtype=like.dtype)
    if norm.affine:
        new.weight, new.bias = norm.weight, norm.bias
    return new.train(norm.training)


def groups_of(channels: int, num_groups: int = 32) -> int:
    """The most groups up to ``num_groups`` that are equal and hold two channels or more.

    One channel per group would be an instance norm: on a 1x1 map, behind a global pooling, it
    returns zero whatever its input.
    """
    fitting = (n for n in range(min(num_groups, channels // 2), 1, -1) if channels % n == 0)
    return next(fitting, 1)
