"""Every loss against torch's, smp's or a literal numpy version, and the promises of all."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.losses import DiceLoss, LovaszLoss

from segdeconv.losses import (
    LOSSES,
    SegmentationLoss,
    cross_entropy,
    dice,
    lovasz_softmax,
    ohem_cross_entropy,
)

CLASSES = 5
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 0.1, 3.0])


@pytest.fixture(params=list(LOSSES))
def loss(request):
    return LOSSES[request.param]


def batch(dtype=torch.float32, size=(2, 6, 7), ignored=0.3, classes=CLASSES):
    gen = torch.Generator().manual_seed(0)
    logits = torch.randn(size[0], classes, *size[1:], generator=gen, dtype=torch.float64) * 2
    target = torch.randint(0, classes, size, generator=gen)
    target[torch.rand(size, generator=gen) < ignored] = 255
    return logits.to(dtype).requires_grad_(), target


def without_ignored(logits, target):
    """The same pixels as a batch of one row, those with 255 taken out."""
    keep = target != 255
    return logits.movedim(1, -1)[keep].T[None, :, None], target[keep][None, None]


# what each computes


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_equals_torchs(weights, label_smoothing):
    logits, target = batch()
    actual = cross_entropy(logits, target, class_weights=weights, label_smoothing=label_smoothing)
    expected = F.cross_entropy(
        logits, target, weight=weights, ignore_index=255, label_smoothing=label_smoothing
    )
    torch.testing.assert_close(actual, expected)


def literal_ohem(logits, target, threshold, min_kept, weights):
    """Pixel by pixel: sort by probability of the true class, keep what the docstring says."""
    pixels = []
    for n, y, x in np.argwhere(target != 255):
        scores = logits[n, :, y, x]
        probability = np.exp(scores - scores.max())
        probability /= probability.sum()
        pixels.append((probability[target[n, y, x]], weights[target[n, y, x]]))
    pixels.sort()
    kept = [p for i, p in enumerate(pixels) if p[0] < threshold or i < min_kept * len(target)]
    return sum(-np.log(p) * w for p, w in kept) / sum(w for _, w in kept)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
@pytest.mark.parametrize(
    ("threshold", "min_kept"),
    [(0.7, 1), (0.05, 15), (0.3, 15), (1e-9, 10_000)],
    ids=["threshold decides", "count decides", "either", "fewer labelled than min_kept"],
)
def test_ohem_equals_a_literal_version(threshold, min_kept, weights):
    logits, target = batch(torch.float64)
    actual = ohem_cross_entropy(
        logits, target, class_weights=weights, threshold=threshold, min_kept=min_kept
    )
    plain = np.ones(CLASSES) if weights is None else weights.numpy()
    expected = literal_ohem(logits.detach().numpy(), target.numpy(), threshold, min_kept, plain)
    assert actual.item() == pytest.approx(expected, rel=1e-6)


def test_ohem_keeps_pixels_when_all_are_equally_easy():
    logits = torch.zeros(1, 2, 4, 4, requires_grad=True)
    target = torch.zeros(1, 4, 4, dtype=torch.long)
    loss = ohem_cross_entropy(logits, target, threshold=0.1, min_kept=3)
    assert loss.item() == pytest.approx(np.log(2))


def test_ohem_gives_easy_pixels_no_gradient():
    logits, target = batch()
    ohem_cross_entropy(logits, target, threshold=0.7, min_kept=1).backward()
    true = logits.softmax(1).gather(1, target.where(target != 255, 0)[:, None])[:, 0]
    easy = (true >= 0.7) | (target == 255)
    moved = logits.grad.abs().sum(1) > 0
    assert easy.any() and torch.equal(moved, ~easy)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
def test_dice_equals_smps_when_all_classes_are_present(weights):
    logits, target = batch()
    expected = DiceLoss("multiclass", ignore_index=255, class_weights=weights)(logits, target)
    torch.testing.assert_close(dice(logits, target, class_weights=weights), expected)


def test_dice_averages_over_present_classes_where_smp_divides_by_all():
    logits, target = batch()
    target[(target == 1) | (target == 3)] = 255
    expected = DiceLoss("multiclass", ignore_index=255)(logits, target) * CLASSES / 3
    torch.testing.assert_close(dice(logits, target), expected)


def test_dice_of_a_case_worked_by_hand():
    # two pixels of class 0 with p = 3/4 and one of class 1 with p = 1/2
    probability = torch.tensor([[0.75, 0.75, 0.5], [0.25, 0.25, 0.5]]).reshape(1, 2, 1, 3)
    target = torch.tensor([[[0, 0, 1]]])
    class_0 = 1 - 2 * 1.5 / (2.0 + 2)
    class_1 = 1 - 2 * 0.5 / (1.0 + 1)
    assert dice(probability.log(), target).item() == pytest.approx((class_0 + class_1) / 2)


def test_lovasz_equals_smps_with_absent_classes_too():
    for absent in ([], [1, 3]):
        logits, target = batch()
        for c in absent:
            target[target == c] = 255
        expected = LovaszLoss("multiclass", ignore_index=255)(logits, target)
        torch.testing.assert_close(lovasz_softmax(logits, target), expected)


def test_lovasz_of_a_hard_prediction_is_one_minus_iou():
    prediction = torch.tensor([[[0, 0, 1, 1, 2, 0]]])
    target = torch.tensor([[[0, 1, 1, 1, 2, 255]]])
    logits = F.one_hot(prediction, 3).movedim(-1, 1) * 1e4
    iou = [1 / 2, 2 / 3, 1.0]
    assert lovasz_softmax(logits.float(), target).item() == pytest.approx(1 - np.mean(iou))


def literal_lovasz(logits, target):
    """Algorithm 1 of the paper class by class: differences of neighbouring IoUs, in float64."""
    keep = target != 255
    probabilities, labels = logits.softmax(1).movedim(1, -1)[keep], target[keep]
    losses = []
    for c in labels.unique():
        errors, order = ((labels == c).double() - probabilities[:, c]).abs().sort(descending=True)
        truth = (labels == c)[order].double()
        missed, added = truth.cumsum(0), (1 - truth).cumsum(0)
        jaccard = 1 - (truth.sum() - missed) / (truth.sum() + added)
        losses.append(errors @ jaccard.diff(prepend=torch.zeros(1)))
    return torch.stack(losses).mean()


def test_lovasz_gradients_in_fp32_are_no_noise_on_a_large_map():
    logits, target = batch(torch.float64, size=(1, 256, 512), classes=3)
    (exact,) = torch.autograd.grad(literal_lovasz(logits, target), logits)
    (ours,) = torch.autograd.grad(lovasz_softmax(logits.float(), target), logits)
    # differences of fp32 IoUs, as smp takes them, are off by 2e-3 here
    assert (ours - exact).norm() < 1e-5 * exact.norm()


def test_class_weights_weigh_the_mean_over_classes_of_lovasz():
    logits, target = batch(torch.float64)
    per_class = [
        lovasz_softmax(logits, target, class_weights=F.one_hot(torch.tensor(c), CLASSES).double())
        for c in range(CLASSES)
    ]
    expected = (
        sum(w * value for w, value in zip(WEIGHTS.double(), per_class, strict=True)) / WEIGHTS.sum()
    )
    torch.testing.assert_close(lovasz_softmax(logits, target, class_weights=WEIGHTS), expected)


# what all promise


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
def test_ignored_pixels_have_no_influence(loss, weights):
    logits, target = batch(torch.float64)
    expected = loss(*without_ignored(logits, target), class_weights=weights)
    torch.testing.assert_close(loss(logits, target, class_weights=weights), expected)
    (gradient,) = torch.autograd.grad(loss(logits, target, class_weights=weights), logits)
    assert not gradient.movedim(1, -1)[target == 255].any()


def test_only_the_proportions_of_class_weights_matter(loss):
    logits, target = batch()
    small = loss(logits, target, class_weights=WEIGHTS * 1e-4)
    torch.testing.assert_close(small, loss(logits, target, class_weights=WEIGHTS))


def test_an_ignore_index_inside_the_class_range_is_ignored_too(loss):
    logits, target = batch()
    inside = target.where(target != 2, 255)
    torch.testing.assert_close(
        loss(logits, target.where(target != 255, 2), ignore_index=2),
        loss(logits, inside, ignore_index=255),
    )


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
def test_a_batch_without_labels_gives_zero_and_zero_gradients(loss, weights):
    logits, target = batch()
    value = loss(logits, target.fill_(255), class_weights=weights)
    value.backward()
    assert value.item() == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


def test_labels_of_weight_zero_only_give_zero_and_zero_gradients(loss):
    logits, target = batch()
    value = loss(logits, target.where(target == 255, 0), class_weights=WEIGHTS * (WEIGHTS != 0.5))
    value.backward()
    assert value.item() == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
def test_gradients_agree_with_finite_differences(loss, weights):
    logits, target = batch(torch.float64, size=(2, 3, 4))
    assert torch.autograd.gradcheck(lambda x: loss(x, target, class_weights=weights), logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_fp32_under_autocast(loss, dtype):
    logits, target = batch(dtype, size=(2, 60, 70))
    expected = loss(logits.detach().float(), target)
    with torch.autocast("cpu", dtype):
        value = loss(logits, target)
    assert value.dtype == torch.float32 and torch.equal(value, expected)
    value.backward()
    assert logits.grad.dtype == dtype and logits.grad.isfinite().all()


def test_large_logits_stay_finite(loss):
    logits, target = batch(size=(1, 8, 8))
    for scale in (1e4, 1e30):
        (gradient,) = torch.autograd.grad(loss(logits * scale, target), logits)
        assert loss(logits * scale, target).isfinite() and gradient.isfinite().all()


def test_deterministic_mode_refuses_nothing(loss):
    logits, target = batch()
    torch.use_deterministic_algorithms(True)
    try:
        loss(logits, target, class_weights=WEIGHTS).backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert logits.grad.isfinite().all()


@pytest.mark.gpu
def test_deterministic_mode_refuses_nothing_on_cuda(loss):
    logits, target = batch()
    torch.use_deterministic_algorithms(True)
    try:
        value = loss(logits.cuda(), target.cuda(), class_weights=WEIGHTS.cuda())
        value.backward()
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(value.cpu(), loss(logits, target, class_weights=WEIGHTS))


def test_a_wrong_number_of_class_weights_is_an_error(loss):
    with pytest.raises(ValueError, match="3 class weights for logits of 5 classes"):
        loss(*batch(), class_weights=torch.ones(3))


# the weighted sum


def test_the_sum_weighs_its_terms():
    logits, target = batch()
    both = SegmentationLoss({"cross_entropy": 1.0, "dice": 0.5})
    expected = cross_entropy(logits, target) + 0.5 * dice(logits, target)
    torch.testing.assert_close(both(logits, target), expected)
    assert list(both.terms(logits, target)) == ["cross_entropy", "dice"]


def test_the_sum_hands_on_weights_ignore_index_and_options():
    logits, target = batch()
    target[target == 255] = 254
    module = SegmentationLoss(
        {"ohem": 2.0},
        ignore_index=254,
        class_weights=WEIGHTS.tolist(),
        options={"ohem": {"min_kept": 3}},
    )
    expected = 2 * ohem_cross_entropy(
        logits, target, ignore_index=254, class_weights=WEIGHTS, min_kept=3
    )
    torch.testing.assert_close(module(logits, target), expected)


def test_class_weights_move_with_the_module_and_stay_out_of_checkpoints():
    module = SegmentationLoss({"dice": 1.0}, class_weights=[1.0, 2.0])
    assert module.to("meta").class_weights.device.type == "meta"
    assert not module.state_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"names": {"cros_entropy": 1.0}},
            "unknown loss 'cros_entropy'; did you mean 'cross_entropy'",
        ),
        ({"names": {}}, "no loss given; name at least one of cross_entropy, dice"),
        ({"names": {"dice": 1.0}, "options": {"ohem": {}}}, "'ohem', which is not in the loss"),
        (
            {"names": {"ohem": 1.0}, "options": {"ohem": {"min_keep": 1}}},
            "'ohem' has no option 'min_keep'; it takes threshold, min_kept",
        ),
        ({"names": {"dice": 1.0}, "options": {"dice": {"eps": 1}}}, "it takes none"),
    ],
)
def test_a_mistake_in_the_sum_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SegmentationLoss(**arguments)
