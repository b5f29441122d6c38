"""Grafting: a trained batch-norm network becomes one of network deconvolution, function unchanged.

In evaluation a batch norm is an affine map, and behind a convolution it folds into that:
``y = K u + c``.  A whitening layer with mean mu and root R evaluates as ``y = w R (u - mu) + b``.
Any mu and any invertible R will do: with ``w = K R^-1`` and ``b = c + K mu`` both are the same
function.  mu and R come from a few batches, so that training starts with the statistics that it
will see.  R is truncated, so its condition number is bounded and nothing is lost to rounding.

Which norm stands behind which convolution is seen by running the network: every use of a
convolution's output is watched, not only those by modules.  A norm that stands elsewhere, as in
pre-activation networks, stays a batch norm, and the convolution behind it is grafted all the same.
"""

import glob
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from segdeconv.analysis import in_evaluation
from segdeconv.operators import OPERATORS, operator_layers
from segdeconv.operators.calibration import Calibration, calibrating, condition
from segdeconv.operators.whitened_layer import WhitenedLayer
from segdeconv.surgery import (
    NORMS_2D,
    LayerOptions,
    Plan,
    Row,
    Rules,
    SurgeryReport,
    check_module,
    nothing_to_do,
)

# Largest difference of outputs, over the largest output, that rounding explains.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 3e-1}


@dataclass(frozen=True)
class GraftedLayer:
    """How one layer was calibrated.

    Attributes:
        name: Of the layer.
        norm: Name of the batch norm that is folded into it, if any.
        rows_per_column: Sampled rows per column of the covariance; below the layer's ``min_rows``
            it was shrunk, at 0 the root is the identity.
        condition: Condition number of the root: rounding grows by up to that.
    """

    name: str
    norm: str | None
    rows_per_column: float
    condition: float


@dataclass(frozen=True)
class GraftReport(SurgeryReport):
    """What grafting did to every layer, and how far the outputs moved.

    Attributes:
        layers: Calibration of each grafted layer that was called.
        skip: What `segdeconv.convert` must skip to build the same architecture from a new network,
            for the grafted weights to load into: mostly the norms that stayed.
        images: Number of calibration images.
        difference: Largest difference between the outputs before and after on the calibration
            images, over the largest output.
        tolerance: What rounding explains in the precision of the network.
    """

    layers: tuple[GraftedLayer, ...] = ()
    skip: tuple[str, ...] = ()
    images: int = 0
    difference: float = float("nan")
    tolerance: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether the outputs are those of before, to rounding."""
        return self.difference <= self.tolerance

    def __str__(self) -> str:
        worst = max(self.layers, key=lambda layer: layer.condition)
        poorest = min(self.layers, key=lambda layer: layer.rows_per_column)
        return (
            f"{super().__str__()}\n"
            f"  calibrated on {self.images} images: condition numbers up to "
            f"{worst.condition:.1f} ({worst.name}), rows per column from "
            f"{poorest.rows_per_column:.1f} ({poorest.name})\n"
            f"  {self.verdict}"
        )

    @property
    def verdict(self) -> str:
        """How far the outputs moved, in words."""
        moved = f"outputs moved by {self.difference:.1e} of the largest"
        if self.holds:
            return f"{moved}: the same function"
        return f"{moved}, more than the {self.tolerance:.0e} that rounding explains"


def graft(
    model: nn.Module,
    batches: Iterable[Any],
    operator: str = "deconv",
    *,
    options_by_name: Mapping[str, LayerOptions] | None = None,
    skip: Sequence[str] = (),
    **options: Any,
) -> GraftReport:
    """Make a trained batch-norm network one of an operator that whitens, in place.

    The function in evaluation stays.  In training it does not: the new layers then whiten with the
    statistics of the batch, as batch norms normalise with them.

        >>> network = torchvision.models.resnet18(weights="DEFAULT")
        >>> print(segdeconv.graft(network, islice(loader, 8)))

    Args:
        model: Any network with 2-D batch norms, trained; in any mode, which it keeps.
        batches: A few batches as the network takes them: tensors (N, C, H, W), tuples or lists
            that start with one, or dictionaries with one under "image".  All of them are kept in
            memory, so give an endless or a long loader through `itertools.islice`.
        operator: Row of `segdeconv.operators.OPERATORS` whose layers whiten: "deconv".
        options_by_name: As in `segdeconv.convert`.
        skip: Globs of layers to leave alone; a convolution keeps its batch norm then.
        **options: Options of the operator, for all layers.

    Returns:
        What was swapped, removed, kept and skipped, and why; how each layer was calibrated; how far
        the outputs moved.  If that is more than rounding explains, it also warns.

    Raises:
        ValueError: No batches, or not of images; a network that has no batch norm, or has whitening
            layers already; an operator that does not whiten; an option or glob that it does not
            know; outputs that are not finite.  The network is then as it was.
    """
    check_module(model, "graft")
    chosen = OPERATORS[operator]
    _check_whitens(operator)
    _check_network(model)
    rules = Rules(operator, chosen.options, options, options_by_name or {}, skip)
    first = Plan(model, chosen, rules)
    rules.check_used()
    if first.idle:
        raise ValueError(nothing_to_do(operator, model, first.rows))
    images = _images(batches, model)
    with in_evaluation(model):
        convs = [conv for conv in first.convs if conv in first.changes]
        uses = _Uses(model, convs)
        before = uses.watch(model, images)
    left = _left(model, convs, uses)
    plan = Plan(model, chosen, rules, left)
    if plan.idle:
        raise ValueError(nothing_to_do(operator, model, plan.rows))
    names = {module: name for name, module in model.named_modules()}
    norms = {names[conv]: norm for conv, norm in uses.pairs().items() if norm in plan.changes}
    swapped = [names[conv] for conv in convs if conv in plan.changes]
    biases, copied = plan.apply(model)
    layers = {name: cast(WhitenedLayer, model.get_submodule(name)) for name in swapped}
    for name, norm in norms.items():
        _fold_norm(layers[name], norm)
    with in_evaluation(model):
        calibrations = _calibrate(model, layers, images)
        difference = _difference((model(x) for x in images), before)
    report = GraftReport(
        operator,
        type(model).__name__,
        tuple(_with_reason(row) for row in plan.rows),
        biases,
        copied,
        tuple(names[module] for module in uses.uncalled),
        tuple(_grafted(name, c, names.get(norms.get(name))) for name, c in calibrations.items()),
        (*skip, *(glob.escape(names[module]) for module in left)),
        sum(len(x) for x in images),
        difference,
        TOLERANCES[next(iter(layers.values())).weight.dtype],
    )
    if not report.holds:
        warnings.warn(f"graft on {report.model}: {report.verdict}", stacklevel=2)
    return report


# ------------------------------------------------------------------------------------------ checks


def _check_whitens(operator: str) -> None:
    def whitens(name: str) -> bool:
        layer = getattr(OPERATORS[name].from_conv, "__self__", object)
        return isinstance(layer, type) and issubclass(layer, WhitenedLayer)

    if not whitens(operator):
        known = " or ".join(repr(name) for name in OPERATORS if whitens(name))
        raise ValueError(f"graft needs an operator that whitens, {known}, got {operator!r}")


def _check_network(model: nn.Module) -> None:
    what = type(model).__name__
    if any(isinstance(module, operator_layers()) for module in model.modules()):
        raise ValueError(
            f"{what} has whitening layers already; graft takes the batch-norm network it came from"
        )
    if not any(type(module) in NORMS_2D for module in model.modules()):
        raise ValueError(f"{what} has no 2-D batch norm to graft; use segdeconv.convert for it")


def _images(batches: Iterable[Any], model: nn.Module) -> list[Tensor]:
    """The images of every batch, on the device and in the precision of the network."""
    if isinstance(batches, Tensor | Mapping) or not isinstance(batches, Iterable):
        raise ValueError(
            f"graft takes a list or loader of batches, got {type(batches).__name__}; put a single "
            f"batch into a list"
        )
    like = next(p for p in model.parameters() if p.is_floating_point())
    images = [_image(batch).to(like) for batch in batches]
    if not sum(len(x) for x in images):
        raise ValueError("graft got no calibration batches; give it a few batches of images")
    return images


def _image(batch: Any) -> Tensor:
    image = batch
    if isinstance(batch, Mapping):
        image = batch.get("image")
    elif isinstance(batch, tuple | list) and batch:
        image = batch[0]
    if not isinstance(image, Tensor) or image.dim() != 4 or not image.is_floating_point():
        got: object = type(batch).__name__
        if isinstance(image, Tensor):
            got = f"{image.dtype} of shape {tuple(image.shape)}"
        raise ValueError(
            f"a calibration batch is a float tensor (N, C, H, W), a tuple that starts with one, or "
            f'a dictionary with one under "image", got {got}'
        )
    return image


# ------------------------------------------------------------------------------------ what is where


class _Uses(TorchFunctionMode):
    """Watches a network run: what becomes of the output of every convolution.

    Attributes:
        consumers: Convolution -> what reads its output: norms, or None for anything else.
        producers: Norm -> what made its input: convolutions, or None for anything else.
    """

    def __init__(self, model: nn.Module, convs: Iterable[nn.Module]) -> None:
        super().__init__()
        norms = [module for module in model.modules() if type(module) in NORMS_2D]
        self.consumers: dict[nn.Module, set[nn.Module | None]] = {conv: set() for conv in convs}
        self.producers: dict[nn.Module, set[nn.Module | None]] = {norm: set() for norm in norms}
        self._made: Any = WeakIdKeyDictionary()  # output of a convolution, while it lives -> that
        self._inside: list[nn.Module] = []
        self._called: set[nn.Module] = set()

    @property
    def uncalled(self) -> list[nn.Module]:
        """Convolutions and norms that never ran."""
        return [m for m in (*self.consumers, *self.producers) if m not in self._called]

    def pairs(self) -> dict[nn.Module, _BatchNorm]:
        """Convolution -> the only reader of its output, a norm."""
        found = {}
        for conv, readers in self.consumers.items():
            reader = next(iter(readers)) if len(readers) == 1 else None
            if reader is not None:
                found[conv] = cast(_BatchNorm, reader)
        return found

    @torch.no_grad()
    def watch(self, model: nn.Module, images: Iterable[Tensor]) -> list[list[Tensor]]:
        """Run the network; return its outputs, batch by batch."""
        handles = [conv.register_forward_hook(self._after_conv) for conv in self.consumers]
        for norm in self.producers:
            handles.append(norm.register_forward_pre_hook(self._before_norm))
            handles.append(norm.register_forward_hook(self._after_norm))
        outputs = []
        try:
            with self:
                for x in images:
                    outputs.append(list(_tensors(model(x))))
                    self._read(outputs[-1])
        finally:
            for handle in handles:
                handle.remove()
        if not all(bool(tensor.isfinite().all()) for tensor in _tensors(outputs)):
            raise ValueError(
                f"{type(model).__name__} gives values that are not finite on the calibration "
                f"batches; look at its weights and at the images"
            )
        return outputs

    def _after_conv(self, conv: nn.Module, _args: Any, output: Tensor) -> None:
        self._called.add(conv)
        self._made[output] = conv

    def _before_norm(self, norm: nn.Module, args: tuple[Tensor]) -> None:
        self._called.add(norm)
        self.producers[norm].add(self._made.get(args[0]))
        self._inside.append(norm)

    def _after_norm(self, _norm: nn.Module, _args: Any, _output: Tensor) -> None:
        self._inside.pop()

    def _read(self, values: Any) -> None:
        for tensor in _tensors(values):
            conv = self._made.get(tensor)
            if conv is not None:
                self.consumers[conv].add(self._inside[-1] if self._inside else None)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Note which outputs of convolutions a function reads; questions for shapes are none."""
        result = func(*args, **(kwargs or {}))
        if any(True for _ in _tensors(result)):
            self._read((args, kwargs))
        return result


def _tensors(value: Any) -> Iterator[Tensor]:
    """Tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _left(model: nn.Module, convs: Sequence[nn.Module], uses: _Uses) -> dict[nn.Module, str]:
    """Convolutions and norms that must stay as they are, and why."""
    uncalled, left = set(uses.uncalled), dict[nn.Module, str]()
    owners = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    for conv in convs:
        if any(owners[id(p)] > 1 for p in conv.parameters()):
            left[conv] = "shares its parameters with another layer"
    pairs = {conv: norm for conv, norm in uses.pairs().items() if conv not in left}
    for norm, producers in uses.producers.items():
        if norm in uncalled:
            left[norm] = "never called in evaluation"
        elif cast(_BatchNorm, norm).running_var is None:
            left[norm] = "keeps no running statistics, so evaluation is no fixed map"
        elif None in producers:
            left[norm] = "does not stand directly behind a swapped convolution"
        elif any(pairs.get(cast(nn.Module, conv)) is not norm for conv in producers):
            left[norm] = "something else reads, or holds the weight of, the convolution before it"
    return left


# ------------------------------------------------------------------------------------------ change


@torch.no_grad()
def _fold_norm(layer: WhitenedLayer, norm: _BatchNorm) -> None:
    """Multiply the affine map of a norm in evaluation into the convolution before it."""
    mean, var = (cast(Tensor, t).double() for t in (norm.running_mean, norm.running_var))
    scale = (var + norm.eps).rsqrt()
    shift = -mean * scale
    if norm.affine:
        scale = scale * norm.weight
        shift = shift * norm.weight + norm.bias
    weight: Tensor = layer.weight.double()
    if isinstance(layer, nn.ConvTranspose2d):  # (C, O / groups, h, w)
        groups = layer.groups
        by_group = weight.view(groups, -1, *weight.shape[1:]) * scale.view(groups, 1, -1, 1, 1)
        weight = by_group.flatten(0, 1)
    else:
        weight = weight * scale.view(-1, 1, 1, 1)
    layer.weight.copy_(weight)
    layer.bias.copy_(layer.bias.double() * scale + shift)


@torch.no_grad()
def _calibrate(
    model: nn.Module, layers: Mapping[str, WhitenedLayer], images: Iterable[Tensor]
) -> dict[str, Calibration]:
    """Give the layers the statistics of their inputs; the outputs of the network stay.

    A layer that is never called starts afresh, with the identity for a root.
    """
    with calibrating(layers) as calibrations:
        for x in images:
            model(x)
    seen = {name: c for name, c in calibrations.items() if c.samples}
    for calibration in seen.values():
        calibration.layer.restate(*calibration.statistics())
    return seen


@torch.no_grad()
def _difference(outputs: Iterable[Any], before: Iterable[Sequence[Tensor]]) -> float:
    """Largest difference over the largest output; of several outputs the worst."""
    moved: dict[int, float] = {}
    largest: dict[int, float] = {}
    for values, old in zip(outputs, before, strict=True):
        for place, (a, b) in enumerate(zip(_tensors(values), old, strict=True)):
            change, size = (float(t.double().abs().max()) for t in (a.double() - b.double(), b))
            moved[place] = max(moved.get(place, 0.0), change)
            largest[place] = max(largest.get(place, 0.0), size)
    return max(moved[place] / max(largest[place], 1e-30) for place in moved)


def _with_reason(row: Row) -> Row:
    if row.action != "removed":
        return row
    rest = "" if row.reason == "nothing in its place" else f"; {row.reason}"
    return replace(row, reason=f"folded into the convolution before it{rest}")


def _grafted(name: str, calibration: Calibration, norm: str | None) -> GraftedLayer:
    root = calibration.layer.running_deconv
    rows = calibration.rows_per_column
    return GraftedLayer(name, norm, rows, condition(root.view(-1, *root.shape[-2:])))
