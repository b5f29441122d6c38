"""The first convolution of a network, replaced."""

from typing import Any

from torch import nn


def replace_stem(network: nn.Module, in_channels: int, **geometry: Any) -> None:
    """Put a fresh convolution in the place of the first one.

    Args:
        network: Its first convolution must be the stem; ungrouped and undilated.
        in_channels: Channels of the images.
        **geometry: What differs from the old one of ``kernel_size``, ``stride`` and ``padding``.
    """
    name, old = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    kept = {key: getattr(old, key) for key in ("kernel_size", "stride", "padding")}
    new = nn.Conv2d(
        in_channels, old.out_channels, bias=old.bias is not None, **{**kept, **geometry}
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")  # as the libraries do
    network.set_submodule(name, new, strict=True)
