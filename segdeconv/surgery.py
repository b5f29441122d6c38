"""Surgery: give the layers of any network to an operator, and take them back for deployment.

`convert` changes a network in place and reports every layer it met; `fold` returns a copy of plain
layers with the same function in evaluation.  The rules:

* **Exact types.**  `nn.Conv2d` and `nn.ConvTranspose2d` are swapped, their subclasses are not:
  timm's `Conv2dSame` is an `nn.Conv2d` with its own forward, and taking it for a plain one changes
  the logits of unet/tu-tf_efficientnetv2_b0 by as much as they are (random weights), without an
  error.  Two subclasses have their own rule, because whole families of encoders consist of them:
  timm's `Conv2dSame` and smp's `Conv2dStaticSamePadding`.  Their padding moves in front of the new
  layer.  Every other subclass, and every kernel that is computed (parametrized, weight norm,
  spectral norm, pruned), is skipped.
* **The same parameters.**  Weights keep object, name and order; hooks move along; an optimiser
  built before stays valid.  A module that the network holds twice stays one module.
* **Batch norms** of the types `nn.BatchNorm2d`, `nn.SyncBatchNorm` and timm's fused
  `BatchNormAct2d` and `SyncBatchNormAct` are removed when the operator normalises on its own
  ("deconv"), or when there is to be no normalisation ("none").  Their dropout and activation stay.
* **Biases.**  With the norms go their shifts.  Which convolution stood before which norm cannot be
  known without running the network, so once any norm is removed, every swapped convolution without
  a bias gets one of zeros, with the requires_grad of its weight.
* **Around a skipped convolution** norms stay: those of the nearest enclosing module that directly
  holds any.  A plain convolution in a network without norms would go unnormalised.
* **In-place activations** become ordinary ones when norms are removed.  The norm had made a copy;
  without it the first ReLU of a pre-activation block would overwrite the block's shortcut.
* **Left as they are, and reported**: linear layers, 1-D and 3-D convolutions and their batch norms,
  group, layer and instance norms.  Those compute their statistics per image or per token, are part
  of their architectures, and cost nothing in agreement between training and evaluation.

"groupnorm" and "syncbatchnorm" replace batch norms of every dimension and leave convolutions alone.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal, TypeVar, cast

import torch
from segmentation_models_pytorch.encoders._efficientnet import Conv2dStaticSamePadding
from timm.layers import BatchNormAct2d, Conv2dSame
from timm.layers.norm_act import SyncBatchNormAct
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd

from segdeconv.operators import OPERATORS, Operator, operator_layers
from segdeconv.operators.normalization import fuses_activation, without_batchnorm
from segdeconv.registry import suggest

Module = TypeVar("Module", bound=nn.Module)
Action = Literal["swapped", "removed", "replaced", "kept", "skipped"]

Verdict = tuple[Action, str]
AnyConv = nn.Conv2d | nn.ConvTranspose2d
LayerOptions = Mapping[str, Any] | Literal[False]

SWAPPABLE: tuple[type[nn.Module], ...] = (
    nn.Conv2d,
    nn.ConvTranspose2d,
    Conv2dSame,
    Conv2dStaticSamePadding,
)
SYNC_NORMS: tuple[type[nn.Module], ...] = (nn.SyncBatchNorm, SyncBatchNormAct)
NORMS_2D: tuple[type[nn.Module], ...] = (nn.BatchNorm2d, BatchNormAct2d, *SYNC_NORMS)
NORMS_1D_3D: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm3d)

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
)


# ----------------------------------------------------------------------------------------- reports


@dataclass(frozen=True)
class Row:
    """What happened to one module: its names, its type, the action and the reason."""

    name: str
    kind: str
    action: Action
    reason: str


@dataclass(frozen=True)
class SurgeryReport:
    """Every convolution, linear layer and norm of a network and what an operator did to it.

    Printing it gives a table, one line per action, type and reason.

    Attributes:
        operator: Name of the operator.
        model: Type of the network.
        rows: One row per module and name, in the order of the network.
        biases_added: Convolutions that had no bias and got one of zeros.
        activations_copied: In-place activations that were made ordinary.
        uncalled: Layers that never ran on the example input, see `uncalled_layers`.
    """

    operator: str
    model: str
    rows: tuple[Row, ...]
    biases_added: int = 0
    activations_copied: int = 0
    uncalled: tuple[str, ...] = ()

    def names(self, action: Action) -> list[str]:
        """Names of the modules with this action."""
        return [row.name for row in self.rows if row.action == action]

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows per action."""
        return dict(Counter(row.action for row in self.rows))

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {**asdict(self), "rows": [asdict(row) for row in self.rows], "counts": self.counts}

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {action}" for action, count in self.counts.items())
        lines = [f"{self.operator} on {self.model}: {counts or 'nothing to do'}"]
        groups: dict[tuple[str, str, str], list[str]] = {}
        for row in self.rows:
            groups.setdefault((row.action, row.kind, row.reason), []).append(row.name)
        for (action, kind, reason), names in groups.items():
            some = f" ({_few(names)})" if action in ("kept", "skipped") else ""
            lines.append(f"  {action} {len(names)} {kind}: {reason}{some}")
        if self.biases_added:
            lines.append(
                f"  {self.biases_added} new biases of zeros, for the shifts of the removed norms; "
                f"an optimiser built before does not know them"
            )
        if self.activations_copied:
            lines.append(f"  {self.activations_copied} activations no longer in place")
        if self.uncalled:
            lines.append(f"  {len(self.uncalled)} layers are never called ({_few(self.uncalled)})")
        return "\n".join(lines)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")


# ------------------------------------------------------------------------------------------ walker


def swap_modules(
    model: nn.Module,
    match: Callable[[str, nn.Module], bool],
    replace: Callable[[str, nn.Module], nn.Module],
) -> list[str]:
    """Replace every submodule that ``match`` accepts; return their names in model order.

    All names are listed and all new modules built before the first change, so a new module may
    contain the type it replaces, and an error in ``replace`` leaves the model as it was.  A module
    reachable under several names stays one module; hooks stay with their place.
    """
    targets = [
        (name, old)
        for name, old in model.named_modules(remove_duplicate=False)
        if name and match(name, old)
    ]
    new: dict[nn.Module, nn.Module] = {}
    for name, old in targets:
        if old not in new:
            new[old] = replace(name, old)
    for old, replacement in new.items():
        _move_hooks(old, replacement)
    for name, old in targets:
        model.set_submodule(name, new[old], strict=True)
    return [name for name, _ in targets]


def _move_hooks(old: nn.Module, new: nn.Module) -> None:
    """Hand over the hooks of the user; in the same dictionaries, so that handles still work."""
    for kind in _HOOKS:
        ours = getattr(new, kind)
        setattr(new, kind, getattr(old, kind))
        getattr(new, kind).update(ours)


# ----------------------------------------------------------------------------------------- convert


def convert(
    module: nn.Module,
    operator: str = "deconv",
    *,
    options_by_name: Mapping[str, LayerOptions] | None = None,
    skip: Sequence[str] = (),
    example_input: Tensor | None = None,
    **options: Any,
) -> SurgeryReport:
    """Give the layers of a network to an operator, in place.

    Args:
        module: Any network.
        operator: Row of `segdeconv.operators.OPERATORS`.
        options_by_name: Glob on the module name -> options for those layers, over ``options``; or
            False, to leave them alone.  Later globs win.
        skip: Globs of layers to leave alone.
        example_input: Given, layers that a forward never calls are reported; (N, C, H, W), with N
            of 2 or more where batch norms see a pooled map.
        **options: Options of the operator, for all layers.

    Returns:
        What was swapped, removed, replaced, kept and skipped, and why.

    Raises:
        ValueError: Unknown operator or option; a glob that matches no layer; nothing to replace.
    """
    check_module(module, "convert")
    chosen = OPERATORS[operator]
    rules = Rules(operator, chosen.options, options, options_by_name or {}, skip)
    plan = Plan(module, chosen, rules)
    rules.check_used()
    if plan.idle and operator != "batchnorm":
        raise ValueError(nothing_to_do(operator, module, plan.rows))
    never = uncalled_layers(module, example_input) if example_input is not None else []
    biases, copied = plan.apply(module)
    left = tuple(name for name in never if _is_layer(module.get_submodule(name)))
    return SurgeryReport(operator, type(module).__name__, tuple(plan.rows), biases, copied, left)


def check_module(module: nn.Module, function: str) -> None:
    """Refuse what is no network."""
    if not isinstance(module, nn.Module):
        raise ValueError(f"{function} takes a torch module, got {module!r}")


class Rules:
    """Options per layer: those for all, those by glob, and which layers to leave alone."""

    def __init__(
        self,
        operator: str,
        known: Iterable[str],
        options: Mapping[str, Any],
        by_name: Mapping[str, LayerOptions],
        skip: Sequence[str],
    ) -> None:
        self.options = options
        self.globs: dict[str, LayerOptions] = {**by_name}
        self.globs.update((glob, False) for glob in skip)
        self._unused = dict.fromkeys(self.globs)
        for given in (options, *self.globs.values()):
            _check_options(operator, given or {}, known)

    def of(
        self, names: Iterable[str], takes_options: bool = True
    ) -> tuple[dict[str, Any], str | None]:
        """Options of a layer with these names, and the glob that leaves it alone, if any."""
        options, left_by = dict(self.options), None
        for glob, rule in self.globs.items():
            if any(fnmatchcase(name, glob) for name in names):
                if takes_options or rule is False:
                    self._unused.pop(glob, None)
                left_by = glob if rule is False else None
                options.update(rule or {})
        return options, left_by

    def check_used(self) -> None:
        """Refuse a glob that matched nothing, which is a typing error more often than not."""
        for glob in self._unused:
            raise ValueError(
                f"{glob!r} matches none of the layers that the operator can change; globs go over "
                f"whole module names such as 'encoder.layer1.0.conv1', so try {'*' + glob + '*'!r}"
            )


def _check_options(operator: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    known = sorted(known)
    for name in given:
        if name not in known:
            rest = suggest(name, known, f"it takes {', '.join(known) or 'no options'}")
            raise ValueError(f"operator {operator!r} has no option {name!r}; {rest}")


class Plan:
    """What to do with every module of a network; nothing is changed before `apply`.

    Attributes:
        rows: The report's rows.
        changes: Module -> the function that builds its successor.
        removes: Whether convolutions need biases, and activations copies of their inputs.

    Args:
        module: The network.
        operator: What its layers are given to.
        rules: Options, and layers to leave alone.
        leave: Layer -> why it stays as it is; None if that is to be guessed: norms near a skipped
            convolution stay.
    """

    def __init__(
        self,
        module: nn.Module,
        operator: Operator,
        rules: Rules,
        leave: Mapping[nn.Module, str] | None = None,
    ) -> None:
        self.operator, self.rules, self.leave = operator, rules, leave or {}
        self.changes: dict[nn.Module, Callable[[], nn.Module]] = {}
        self.convs: list[AnyConv] = []
        names: dict[nn.Module, list[str]] = {}
        for name, layer in module.named_modules(remove_duplicate=False):
            if name and _is_layer(layer):
                names.setdefault(layer, []).append(name)
        verdicts = {m: self._conv(m, n) for m, n in names.items() if not _is_norm(m)}
        skipped = [names[m][0] for m, (action, _) in verdicts.items() if action == "skipped"]
        staying = self.leave if leave is not None else _norms_around(module, skipped)
        verdicts |= {m: self._norm(m, n, staying) for m, n in names.items() if _is_norm(m)}
        self.rows = [
            Row(name, type(layer).__name__, *verdicts[layer])
            for name, layer in module.named_modules(remove_duplicate=False)
            if layer in verdicts
        ]
        self.removes = leave is not None or any(row.action == "removed" for row in self.rows)

    @property
    def idle(self) -> bool:
        """Whether the operator found nothing of what it is for."""
        if self.operator.from_conv:
            wanted = "swapped"
        else:
            wanted = "removed" if self.operator.removes_batchnorm else "replaced"
        return all(row.action != wanted for row in self.rows)

    def apply(self, module: nn.Module) -> tuple[int, int]:
        """Change the network; return the number of new biases and of activations made ordinary."""
        without_bias = [conv for conv in self.convs if conv.bias is None] if self.removes else []
        if not self.operator.from_conv:
            for conv in without_bias:
                conv.bias = _zero_bias(conv)
        swap_modules(module, lambda _, old: old in self.changes, lambda _, old: self.changes[old]())
        return len(without_bias), _copy_activations(module) if self.removes else 0

    def _conv(self, layer: nn.Module, names: Sequence[str]) -> Verdict:
        """Verdict on a convolution or linear layer; registers its successor."""
        operator = self.operator
        if isinstance(layer, operator_layers()):
            return "kept", "is an operator's layer already"
        if isinstance(layer, nn.Linear):
            return "kept", "a linear layer; Delinear is put in by hand"
        if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            return "kept", "only 2-D convolutions are swapped"
        if not operator.from_conv and not operator.removes_batchnorm:
            return "kept", "the operator leaves convolutions as they are"
        reason = _unswappable(layer)
        if reason:
            return "skipped", reason
        options, left_by = self.rules.of(names)
        if left_by is not None:
            return "skipped", f"left alone by {left_by!r}"
        if layer in self.leave:
            return "skipped", self.leave[layer]
        self.convs.append(layer)
        transposed = isinstance(layer, nn.ConvTranspose2d)
        build = operator.from_conv_transpose if transposed else operator.from_conv
        if build is None:
            return "kept", "plain, with a bias"
        self.changes[layer] = partial(self._swapped, layer, build, options)
        return "swapped", f"now {cast(Any, build).__self__.__name__}"

    def _swapped(
        self, conv: AnyConv, build: Callable[..., nn.Module], options: Mapping[str, Any]
    ) -> nn.Module:
        bias = _zero_bias(conv) if conv.bias is None and self.removes else conv.bias
        new = build(_plain_view(conv, bias), **options)
        if type(conv) is Conv2dSame:
            new.register_forward_pre_hook(_pad_like_tensorflow)
        elif type(conv) is Conv2dStaticSamePadding:
            # Under smp's name: its make_dilated replaces the module that is called so.
            new.static_padding = conv.static_padding
            new.register_forward_pre_hook(_pad_statically)
        return new

    def _norm(
        self, layer: nn.Module, names: Sequence[str], staying: Mapping[nn.Module, str]
    ) -> Verdict:
        """Verdict on a norm; registers its successor."""
        operator = self.operator
        if type(layer) not in (*NORMS_2D, *NORMS_1D_3D):
            own_forward = isinstance(layer, _BatchNorm)
            return ("skipped", "has its own forward") if own_forward else ("kept", "no batch norm")
        if not operator.from_batchnorm and not operator.removes_batchnorm:
            return "kept", "the operator leaves batch norms as they are"
        if operator.removes_batchnorm and type(layer) in NORMS_1D_3D:
            return "kept", "belongs to a layer that is not swapped"
        options, left_by = self.rules.of(names, takes_options=bool(operator.from_batchnorm))
        if left_by is not None:
            return "skipped", f"left alone by {left_by!r}"
        norm = cast(_BatchNorm, layer)
        if operator.from_batchnorm:
            try:
                new = operator.from_batchnorm(norm, **options)
            except TypeError as error:
                raise ValueError(f"options {options} do not fit the operator: {error}") from error
            if new is norm:
                return "kept", "is one already"
            self.changes[norm] = lambda: new
            return "replaced", f"now {type(new).__name__}"
        if norm in staying:
            return "kept", staying[norm]
        self.changes[norm] = lambda: without_batchnorm(norm)
        fused = fuses_activation(norm)
        return "removed", "its dropout and activation stay" if fused else "nothing in its place"


def _unswappable(conv: AnyConv) -> str | None:
    """Why a 2-D convolution cannot be given to an operator, if so."""
    if torch.nn.utils.parametrize.is_parametrized(conv):
        return "is parametrized"
    if type(conv) not in SWAPPABLE:
        return "has its own forward"
    if conv._parameters.get("weight") is None:
        return "its weight is computed by a hook (weight norm, spectral norm, pruning)"
    return None


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, _ConvNd | nn.Linear) or _is_norm(module)


def _is_norm(module: nn.Module) -> bool:
    """Torch's norms, and those of libraries: a "...Norm..." with tensors of its own."""
    if isinstance(module, _ConvNd | nn.Linear):
        return False
    if isinstance(module, _NormBase | nn.GroupNorm | nn.LayerNorm | nn.LocalResponseNorm):
        return True
    tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return "norm" in type(module).__name__.lower() and bool(tensors)


def _norms_around(module: nn.Module, skipped: Iterable[str]) -> dict[nn.Module, str]:
    """2-D batch norms of the nearest module around each skipped layer that directly holds any.

    Each with the reason why it stays.
    """
    staying: dict[nn.Module, str] = {}
    for name in skipped:
        path = name
        while path:
            path = path.rpartition(".")[0]
            norms = [n for n in module.get_submodule(path).children() if type(n) in NORMS_2D]
            if norms:
                reason = f"near {name}, which is skipped"
                staying.update((norm, reason) for norm in norms if norm not in staying)
                break
    return staying


def _plain_view(conv: AnyConv, bias: Tensor | None) -> AnyConv:
    """A plain convolution with the parameters and geometry of ``conv``, whatever its forward."""
    arguments = _geometry(conv)
    view: AnyConv
    if isinstance(conv, nn.ConvTranspose2d):
        view = nn.ConvTranspose2d(**arguments, output_padding=cast(Any, conv.output_padding))
    else:
        view = nn.Conv2d(**arguments)
    view.weight, view.bias = conv.weight, cast(Any, bias)
    return view.train(conv.training)


def _geometry(conv: AnyConv) -> dict[str, Any]:
    names = ("in_channels", "out_channels", "kernel_size", "padding", "dilation", "groups")
    same = {name: getattr(conv, name) for name in (*names, "padding_mode")}
    # On meta nothing is initialised.  smp's static convolutions hold their stride in a list.
    return {**same, "stride": tuple(conv.stride), "device": "meta"}


def _zero_bias(conv: AnyConv) -> nn.Parameter:
    weight = conv.weight
    zeros = torch.zeros(conv.out_channels, dtype=weight.dtype, device=weight.device)
    return nn.Parameter(zeros, requires_grad=weight.requires_grad)


def _copy_activations(module: nn.Module) -> int:
    """Make in-place activations ordinary; return how many."""
    in_place = [m for m in module.modules() if getattr(m, "inplace", None) is True]
    for activation in in_place:
        activation.inplace = cast(Any, False)
    return len(in_place)


def _pad_like_tensorflow(conv: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    """Pad as `Conv2dSame` does: outputs are ceil(inputs / stride), the odd pixel comes last."""
    layer = cast(nn.Conv2d, conv)
    return (pad_same(args[0], layer.kernel_size, layer.stride, layer.dilation),)


def _pad_statically(conv: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (cast(nn.Module, conv.static_padding)(args[0]),)


def nothing_to_do(operator: str, module: nn.Module, rows: Sequence[Row]) -> str:
    """Why an operator found nothing to replace."""
    found = Counter((row.action, row.kind, row.reason) for row in rows)
    parts = [f"{action} {n} {kind} ({reason})" for (action, kind, reason), n in found.items()]
    if _is_layer(module):
        parts = ["a layer cannot be replaced inside itself; use the from_conv of the new layer"]
    what = "; ".join(parts) or "it holds no convolution and no norm"
    return f"operator {operator!r} replaced no layer of {type(module).__name__}: {what}"


# -------------------------------------------------------------------------------------------- fold


def fold(module: Module) -> Module:
    """A copy of plain layers, in evaluation mode, with the outputs of ``module`` in evaluation.

    Statistics are merged into kernels and biases: what is left costs and runs as a network that
    never had a norm.  A layer that came from timm's `Conv2dSame` becomes one again; one from smp's
    `Conv2dStaticSamePadding` becomes an `nn.Conv2d`, with an `nn.ZeroPad2d` in front where top and
    bottom, or left and right, differ.
    """
    check_module(module, "fold")
    return _folded(module).eval()


def _folded(module: Module) -> Module:
    """`fold`, in the mode that every layer has."""
    model = copy.deepcopy(module)
    if isinstance(model, operator_layers()):
        return cast(Module, _plain(model))
    swap_modules(
        model, lambda _, m: isinstance(m, operator_layers()), lambda _, layer: _plain(layer)
    )
    return model


def _plain(layer: nn.Module) -> nn.Module:
    plain = cast(nn.Conv2d, cast(Any, layer).fold())
    padding = _take_own_hook(layer)
    if padding is _pad_like_tensorflow:
        arguments = _geometry(plain)
        arguments.pop("padding_mode")
        host = Conv2dSame(**arguments)
        host.weight, host.bias = plain.weight, plain.bias
        return cast(nn.Module, host.train(layer.training))
    if padding is _pad_statically and isinstance(layer.static_padding, nn.ZeroPad2d):
        left, right, top, bottom = layer.static_padding.padding
        if (left, top) != (right, bottom):
            return nn.Sequential(layer.static_padding, plain).train(layer.training)
        plain.padding = (top, left)
    return plain


def _take_own_hook(layer: nn.Module) -> object:
    """Take the padding out of the hooks, which are about to move to the plain layer."""
    for key, hook in list(layer._forward_pre_hooks.items()):
        if hook in (_pad_like_tensorflow, _pad_statically):
            return layer._forward_pre_hooks.pop(key)
    return None


# ---------------------------------------------------------------------------------- uncalled layers


def uncalled_layers(module: nn.Module, example_input: Tensor) -> list[str]:
    """Names of convolutions and norms that a forward in the present mode never calls.

    Such layers get no gradient, which stops DistributedDataParallel, and their statistics never
    move.  The forward runs on the meta device: shapes only, no state changes.

    Args:
        module: Any network.
        example_input: (N, C, H, W), whose values do not matter.
    """
    names = [n for n, m in module.named_modules() if isinstance(m, _ConvNd | _NormBase)]
    plain = _folded(module) if _is_converted(module) else module  # autocast does not know meta
    called: set[str] = set()
    handles = [
        plain.get_submodule(name).register_forward_hook(lambda *_, name=name: called.add(name))
        for name in names
    ]
    tensors = (*plain.named_parameters(), *plain.named_buffers())
    state = {name: tensor.to("meta") for name, tensor in tensors}
    try:
        with torch.no_grad():
            torch.func.functional_call(plain, state, (example_input.to("meta"),))
    finally:
        for handle in handles:
            handle.remove()
    return [name for name in names if name not in called]


def _is_converted(module: nn.Module) -> bool:
    return any(isinstance(part, operator_layers()) for part in module.modules())
