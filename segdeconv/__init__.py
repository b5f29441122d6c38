"""Semantic segmentation whose networks whiten the input of every convolution.

The names below load on first use: `segdeconv.Deconv2d` does not pay for the model libraries.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "Deconv2d": "segdeconv.operators.deconv",
    "DeconvTranspose2d": "segdeconv.operators.deconv",
    "Delinear": "segdeconv.operators.deconv",
    "ChannelDeconv": "segdeconv.operators.deconv",
    "list_operators": "segdeconv.operators",
    "convert": "segdeconv.surgery",
    "fold": "segdeconv.surgery",
    "graft": "segdeconv.grafting",
    "create_model": "segdeconv.models",
    "create_classifier": "segdeconv.models",
    "from_pretrained": "segdeconv.models",
}

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from segdeconv.grafting import graft as graft
    from segdeconv.models import create_classifier as create_classifier
    from segdeconv.models import create_model as create_model
    from segdeconv.models import from_pretrained as from_pretrained
    from segdeconv.operators import list_operators as list_operators
    from segdeconv.operators.deconv import ChannelDeconv as ChannelDeconv
    from segdeconv.operators.deconv import Deconv2d as Deconv2d
    from segdeconv.operators.deconv import DeconvTranspose2d as DeconvTranspose2d
    from segdeconv.operators.deconv import Delinear as Delinear
    from segdeconv.surgery import convert as convert
    from segdeconv.surgery import fold as fold


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'segdeconv' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
