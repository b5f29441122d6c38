"""What every model refuses, in the same words."""

from torch import Tensor


def check_images(images: Tensor, channels: int) -> None:
    """Look at the number of dimensions and of channels.

    Args:
        images: What a model was called on.
        channels: What it was built for.

    Raises:
        ValueError: If images are not a batch, or have other channels.
    """
    if images.dim() != 4:
        raise ValueError(
            f"images of shape {tuple(images.shape)}: expected (N, C, H, W); "
            "give a single image as images[None]"
        )
    if images.shape[1] != channels:
        raise ValueError(
            f"images of {images.shape[1]} channels: the model takes {channels}; build it with "
            f"in_channels={images.shape[1]}, or give images (N, {channels}, H, W)"
        )


def check_counts(**counts: object) -> None:
    """Look at numbers of classes or channels, by their names.

    Raises:
        ValueError: If one is no whole number of 1 or more.
    """
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{name}={count!r}: expected a whole number of 1 or more")
