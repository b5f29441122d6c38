"""The table of operators: what `segdeconv.convert` can do to a network, by name.

A row says how a convolution is replaced, and what happens to the batch norms.  The table imports
the operators, never the reverse.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from segdeconv.operators.deconv import Deconv2d, DeconvTranspose2d, Delinear
from segdeconv.operators.normalization import group_norm, sync_batchnorm
from segdeconv.operators.whitened_layer import WhiteningOptions
from segdeconv.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One row of the table.

    Attributes:
        summary: What the operator does, in a few words.
        paper: Its source.
        from_conv: Layer that takes over an `nn.Conv2d`; None where convolutions stay.
        from_conv_transpose: Layer that takes over an `nn.ConvTranspose2d`; None where they stay.
        removes_batchnorm: Whether 2-D batch norms are taken out.  Convolutions without a bias then
            get one, as the shift of the norms is gone.
        from_batchnorm: Module that replaces a batch norm; None where they stay or are taken out.
        options: Names of the options that ``from_conv`` or ``from_batchnorm`` takes.
        layers: Types of ours that it brings into networks; each has ``fold()``, its plain torch
            layer.
    """

    summary: str
    paper: str = ""
    from_conv: Callable[..., nn.Conv2d] | None = None
    from_conv_transpose: Callable[..., nn.ConvTranspose2d] | None = None
    removes_batchnorm: bool = False
    from_batchnorm: Callable[..., nn.Module] | None = None
    options: frozenset[str] = frozenset()
    layers: tuple[type[nn.Module], ...] = ()


OPERATORS = Registry[Operator](
    "operator",
    deconv=Operator(
        summary="whiten the input patches of every convolution; no batch norm",
        paper="Ye et al., ICLR 2020, arXiv:1905.11926",
        from_conv=Deconv2d.from_conv,
        from_conv_transpose=DeconvTranspose2d.from_conv,
        removes_batchnorm=True,
        options=frozenset({"preset", *WhiteningOptions.__annotations__}),
        layers=(Deconv2d, DeconvTranspose2d, Delinear),
    ),
    batchnorm=Operator(
        summary="leave the network as it is",
        paper="Ioffe and Szegedy, ICML 2015, arXiv:1502.03167",
    ),
    syncbatchnorm=Operator(
        summary="batch norm with statistics over all processes",
        paper="Peng et al., CVPR 2018, arXiv:1711.07240",
        from_batchnorm=sync_batchnorm,
    ),
    groupnorm=Operator(
        summary="group norm in place of every batch norm",
        paper="Wu and He, ECCV 2018, arXiv:1803.08494",
        from_batchnorm=group_norm,
        options=frozenset({"num_groups"}),
    ),
    none=Operator(
        summary="no normalisation: batch norms out, plain convolutions with biases",
        removes_batchnorm=True,
    ),
)


def operator_layers() -> tuple[type[nn.Module], ...]:
    """Types of all layers of ours that may stand in a network."""
    return tuple(layer for name in OPERATORS for layer in OPERATORS[name].layers)


class OperatorList(list[tuple[str, str, str]]):
    """Rows (name, summary, paper) that print as a table."""

    def __str__(self) -> str:
        rows = [("operator", "what it does", "paper"), *self]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        return "\n".join(
            f"{name:{widths[0]}}  {summary:{widths[1]}}  {paper}".rstrip()
            for name, summary, paper in rows
        )

    __repr__ = __str__


def list_operators() -> OperatorList:
    """The operators: name, summary and paper; printing it gives a table."""
    return OperatorList(
        (name, OPERATORS[name].summary, OPERATORS[name].paper) for name in OPERATORS
    )
