"""Segmentation losses with one calling convention, for any training loop.

Each takes ``(logits, target, *, ignore_index, class_weights, ...)`` and returns a scalar:

* pixels whose target is `ignore_index` have no influence; when nothing else is there, the loss is 0
  with zero gradients (torch's own cross entropy is NaN then, and one such crop ends a run);
* a mean is over what counts: labelled pixels (cross entropy), kept pixels (OHEM), classes present
  in the batch's truth (Dice, Lovász). mmsegmentation divides cross entropy by all pixels instead;
* the arithmetic is fp32 whatever autocast says (float64 stays float64);
* nothing waits for the device, and torch's deterministic mode refuses none of it: cross entropy is
  reduced outside the kernel, and the Lovász counts are integers.

Sources. OHEM: Shrivastava et al., arXiv:1604.03540, per pixel as is common in segmentation. Dice:
Milletari et al., arXiv:1606.04797, section 3. Lovász-Softmax: Berman et al., arXiv:1705.08790,
section 3 and algorithm 1.

Shapes: N images, C classes, H x W pixels, P = N H W.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdeconv.registry import Registry

Loss = TypeVar("Loss", bound=Callable[..., Tensor])

IGNORE_INDEX = 255  # unlabelled pixels in Cityscapes' train ids, and nearly everywhere else


def _in_full_precision(loss: Loss) -> Loss:
    """Run ``loss`` on fp32 logits, or float64 where they are; autocast casts none of it down."""

    @functools.wraps(loss)
    def run(logits: Tensor, target: Tensor, **options: Any) -> Tensor:
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return loss(wide, target, **options)

    return cast(Loss, run)


@_in_full_precision
def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = IGNORE_INDEX,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy, averaged over the labelled pixels (with weights: over their sum).

    Args:
        logits: Scores before softmax, (N, C, H, W), any float type.
        target: Class of each pixel, (N, H, W) int64, 0 to C - 1 or `ignore_index`.
        ignore_index: Target value of pixels without a label.
        class_weights: Weight of each class, (C,), not negative.
        label_smoothing: Share of the target that is spread evenly over all classes, 0 to 1.

    Raises:
        ValueError: If there is not one weight per class.
    """
    weights = _class_weights(logits, class_weights)
    losses_NHW = F.cross_entropy(
        logits,
        target,
        weight=weights,
        ignore_index=ignore_index,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return _ratio(losses_NHW.sum(), _pixel_weights(target, ignore_index, weights).sum())


@_in_full_precision
def ohem_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = IGNORE_INDEX,
    class_weights: Tensor | None = None,
    threshold: float = 0.7,
    min_kept: int = 10_000,
) -> Tensor:
    """Cross entropy over the hard pixels only (online hard example mining).

    A pixel is hard when the probability of its true class is below ``threshold``; if fewer than
    ``min_kept`` times N pixels of the batch are, the hardest ``min_kept`` times N labelled pixels
    are kept, or all where there are not so many. Class weights do not take part in the selection.

    Args:
        logits: Scores before softmax, (N, C, H, W), any float type.
        target: Class of each pixel, (N, H, W) int64, 0 to C - 1 or `ignore_index`.
        ignore_index: Target value of pixels without a label.
        class_weights: Weight of each class, (C,), not negative.
        threshold: Probability of the true class above which a pixel is easy, 0 to 1.
        min_kept: Least number of pixels kept per image, on average over the batch; 1 or more.

    Raises:
        ValueError: If there is not one weight per class.
    """
    weights = _class_weights(logits, class_weights)
    losses_NHW = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none")
    valid_NHW = target != ignore_index
    with torch.no_grad():
        # no real probability is 2: ignored pixels are taken last, and dropped again below
        true_NHW = torch.exp(-losses_NHW).masked_fill(~valid_NHW, 2.0)
        count = min(min_kept * len(target), target.numel())
        # topk, as kthvalue has no deterministic CUDA kernel
        hardest = true_NHW.flatten().topk(count, largest=False, sorted=False).values.amax()
        kept_NHW = valid_NHW & ((true_NHW < threshold) | (true_NHW <= hardest))
        weights_NHW = _pixel_weights(target, ignore_index, weights) * kept_NHW
    return _ratio((losses_NHW * weights_NHW).sum(), weights_NHW.sum())


@_in_full_precision
def dice(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = IGNORE_INDEX,
    class_weights: Tensor | None = None,
) -> Tensor:
    """One minus the soft Dice score over the batch, averaged over the classes in the truth.

    ``1 - 2 sum(p t) / (sum(p) + sum(t))`` per class, with p the softmax and t the one-hot truth.
    (segmentation-models-pytorch divides the sum by all C classes, present or not.)

    Args:
        logits: Scores before softmax, (N, C, H, W), any float type.
        target: Class of each pixel, (N, H, W) int64, 0 to C - 1 or `ignore_index`.
        ignore_index: Target value of pixels without a label.
        class_weights: Weight of each class in the mean, (C,), not negative.

    Raises:
        ValueError: If there is not one weight per class.
    """
    probability_NCHW = logits.softmax(1)
    truth_NCHW = _one_hot(target, logits.shape[1], ignore_index)
    valid_N1HW = (target != ignore_index).unsqueeze(1)
    true_C = truth_NCHW.sum((0, 2, 3))
    overlap_C = (probability_NCHW * truth_NCHW).sum((0, 2, 3))
    predicted_C = (probability_NCHW * valid_N1HW).sum((0, 2, 3))
    losses_C = 1 - _ratio(2 * overlap_C, predicted_C + true_C)
    return _mean_over_present(losses_C, true_C > 0, _class_weights(logits, class_weights))


@_in_full_precision
def lovasz_softmax(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = IGNORE_INDEX,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Lovász extension of one minus IoU over the batch, averaged over the classes in the truth.

    Args:
        logits: Scores before softmax, (N, C, H, W), any float type.
        target: Class of each pixel, (N, H, W) int64, 0 to C - 1 or `ignore_index`.
        ignore_index: Target value of pixels without a label.
        class_weights: Weight of each class in the mean, (C,), not negative.

    Raises:
        ValueError: If there is not one weight per class.
    """
    truth_NCHW = _one_hot(target, logits.shape[1], ignore_index)
    valid_N1HW = (target != ignore_index).unsqueeze(1)
    # ignored pixels have error 0: sorted behind the others they add nothing, whatever their factor
    errors_NCHW = (logits.softmax(1) - truth_NCHW.to(logits.dtype)).abs() * valid_N1HW
    errors_CP, order_CP = errors_NCHW.transpose(0, 1).flatten(1).sort(dim=1, descending=True)
    truth_CP = truth_NCHW.transpose(0, 1).flatten(1).gather(1, order_CP)
    losses_C = (errors_CP * _lovasz_gradient(truth_CP, errors_CP.dtype)).sum(1)
    return _mean_over_present(losses_C, truth_CP.any(1), _class_weights(logits, class_weights))


def _lovasz_gradient(truth_CP: Tensor, dtype: torch.dtype) -> Tensor:
    """Growth of one minus IoU with each next-worst pixel, (C, P); algorithm 1 of Berman et al.

    A true pixel that is missed takes 1 from the intersection I, another one adds 1 to the union U:
    1/U or I / (U (U - 1)), I and U counted after it. The paper's difference of neighbouring IoUs is
    the same, but in fp32 it cancels to noise where there are millions of pixels.
    """
    true_C1 = truth_CP.sum(1, keepdim=True)
    missed_CP = truth_CP.cumsum(1, dtype=torch.int32)
    intersection_CP = (true_C1 - missed_CP).to(dtype)
    rank_P = torch.arange(1, truth_CP.shape[1] + 1, device=truth_CP.device)
    union_CP = (true_C1 + rank_P - missed_CP).to(dtype)
    # U - 1 is 0 only for a class that is absent, which does not count
    return torch.where(truth_CP, 1.0, intersection_CP / (union_CP - 1).clamp(min=1)) / union_CP


def _class_weights(logits: Tensor, class_weights: Tensor | None) -> Tensor | None:
    if class_weights is None:
        return None
    if class_weights.shape != logits.shape[1:2]:
        raise ValueError(
            f"{class_weights.numel()} class weights for logits of {logits.shape[1]} classes; "
            "give one weight per class"
        )
    return class_weights.to(logits)


def _pixel_weights(target: Tensor, ignore_index: int, weights: Tensor | None) -> Tensor:
    """What each pixel weighs in a mean, (N, H, W): 0 if ignored, else 1 or its class's weight."""
    valid_NHW = target != ignore_index
    if weights is None:
        return valid_NHW.to(torch.float32)
    return weights[target.where(valid_NHW, 0)] * valid_NHW


def _one_hot(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Truth as (N, C, H, W) booleans, False in all classes where ignored.

    A comparison, as `F.one_hot` gives int64 and takes eight times the memory.
    """
    classes_C11 = torch.arange(num_classes, device=target.device).view(-1, 1, 1)
    return (target.unsqueeze(1) == classes_C11) & (target != ignore_index).unsqueeze(1)


def _mean_over_present(losses_C: Tensor, present_C: Tensor, weights: Tensor | None) -> Tensor:
    weights_C = present_C if weights is None else present_C * weights
    return _ratio((losses_C * weights_C).sum(), weights_C.sum())


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Their quotient; where the denominator is 0, the numerator (which is 0 in all uses here)."""
    return numerator / torch.where(denominator > 0, denominator, 1)


LOSSES = Registry[Callable[..., Tensor]](
    "loss", cross_entropy=cross_entropy, ohem=ohem_cross_entropy, dice=dice, lovasz=lovasz_softmax
)


class SegmentationLoss(nn.Module):
    """Weighted sum of losses of the table `LOSSES`.

    Args:
        names: Weight of each loss, by its name: ``{"cross_entropy": 1.0, "dice": 1.0}``.
        ignore_index: Target value of pixels without a label.
        class_weights: Weight of each class in every term; not part of `state_dict`.
        options: Further arguments of a loss by its name: ``{"ohem": {"min_kept": 5000}}``.

    Raises:
        ValueError: If `names` is empty or holds an unknown loss, or an option has no place.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        names: Mapping[str, float],
        ignore_index: int = IGNORE_INDEX,
        class_weights: Sequence[float] | Tensor | None = None,
        options: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        super().__init__()
        if not names:
            raise ValueError(f"no loss given; name at least one of {', '.join(LOSSES)}")
        self.names = dict(names)
        self.ignore_index = ignore_index
        self.options = {name: dict(values) for name, values in (options or {}).items()}
        for name in names:
            LOSSES[name]
        _check_options(self.names, self.options)
        weights = None if class_weights is None else torch.as_tensor(class_weights).float()
        self.register_buffer("class_weights", weights, persistent=False)

    def terms(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Each loss before weighting, by name; logits (N, C, H, W), target (N, H, W)."""
        return {
            name: LOSSES[name](
                logits,
                target,
                ignore_index=self.ignore_index,
                class_weights=self.class_weights,
                **self.options.get(name, {}),
            )
            for name in self.names
        }

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The weighted sum, a scalar; logits (N, C, H, W), target (N, H, W)."""
        terms = self.terms(logits, target)
        return torch.stack([self.names[name] * value for name, value in terms.items()]).sum()

    def extra_repr(self) -> str:
        """The terms, for `print(model)`."""
        return f"names={self.names}, ignore_index={self.ignore_index}, options={self.options}"


SHARED_ARGUMENTS = ("logits", "target", "ignore_index", "class_weights")


def _check_options(names: Mapping[str, float], options: Mapping[str, Mapping[str, float]]) -> None:
    for name, values in options.items():
        if name not in names:
            raise ValueError(
                f"options for {name!r}, which is not in the loss; it has {', '.join(names)}"
            )
        known = [a for a in inspect.signature(LOSSES[name]).parameters if a not in SHARED_ARGUMENTS]
        for option in values:
            if option not in known:
                raise ValueError(
                    f"loss {name!r} has no option {option!r}; it takes {', '.join(known) or 'none'}"
                )
