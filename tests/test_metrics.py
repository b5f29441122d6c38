"""Our scores against the official Cityscapes script, torchmetrics, and counting by hand."""

import json
import math

import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
from cityscapesscripts.helpers.labels import labels, trainId2label
from PIL import Image
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.functional.classification import multiclass_confusion_matrix

from segdeconv import metrics
from segdeconv.metrics import ConfusionMatrix, count_confusions, scores_from_confusion

IDS = np.array([trainId2label[c].id for c in range(19)])
NAMES = [trainId2label[c].name for c in range(19)]
CATEGORIES = [trainId2label[c].category for c in range(19)]
TRAIN_ID = np.array([label.trainId if label.trainId < 19 else 255 for label in labels[:34]])
ALL_IDS = np.arange(34)


def id_maps(truth_ids=ALL_IDS, predicted_ids=IDS, images=4, right=0.6, seed=0):
    """Pairs of (truth, prediction) of label ids; a network predicts evaluated classes only."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(images):
        truth = rng.choice(truth_ids, (37, 53)).astype(np.uint8)
        prediction = rng.choice(predicted_ids, truth.shape).astype(np.uint8)
        keep = (rng.random(truth.shape) < right) & np.isin(truth, predicted_ids)
        pairs.append((truth, np.where(keep, truth, prediction)))
    return pairs


def confusion_of(pairs):
    metric = ConfusionMatrix(19, ignore_index=255)
    for truth, prediction in pairs:
        metric.update(torch.from_numpy(TRAIN_ID[prediction]), torch.from_numpy(TRAIN_ID[truth]))
    return metric.compute()


@pytest.fixture
def official_result(tmp_path, monkeypatch):
    """The official script's verdict on PNG files of the given maps."""
    monkeypatch.setattr(official.args, "evalInstLevelScore", False)
    monkeypatch.setattr(official.args, "JSONOutput", False)
    monkeypatch.setattr(official.args, "quiet", True)

    def run(pairs):
        files = []
        for i, pair in enumerate(pairs):
            names = [tmp_path / f"{i}_{kind}.png" for kind in ("labelIds", "prediction")]
            for name, ids in zip(names, pair, strict=True):
                Image.fromarray(ids).save(name)
            files.append([str(name) for name in names])
        truths, predictions = zip(*files, strict=True)
        return official.evaluateImgLists(predictions, truths, official.args)

    return run


@pytest.mark.parametrize("kinds", [torch.int64, torch.uint8, torch.int32])
@pytest.mark.parametrize("ignore_index", [255, 254, 2, 0])
@pytest.mark.parametrize("classes", [1, 2, 19, 200])
def test_confusions_are_those_that_torchmetrics_counts(classes, ignore_index, kinds):
    generator = torch.Generator().manual_seed(classes)
    shape = (3, 41, 29)
    truth, predicted = (torch.randint(classes, shape, generator=generator) for _ in range(2))
    truth[torch.rand(shape, generator=generator) < 0.2] = ignore_index
    expected = multiclass_confusion_matrix(
        predicted, truth, max(2, classes), ignore_index=ignore_index
    )[:classes, :classes]
    found = count_confusions(predicted.to(kinds), truth.to(kinds), classes, ignore_index)
    assert (found.dtype == torch.int64 and found.sum() > 0) or classes == 1
    assert torch.equal(found, expected)


def test_pixels_are_counted_on_beyond_what_float32_can_hold():
    truth = torch.zeros(2**24 + 3, dtype=torch.uint8)
    truth[-1] = 1
    expected = torch.tensor([[2**24 + 2, 0], [1, 0]])
    assert torch.equal(count_confusions(torch.zeros_like(truth), truth, 2, 255), expected)


@pytest.mark.parametrize("wrong", [19, 200, 255])
def test_a_class_that_does_not_exist_is_refused(wrong):
    right = torch.zeros(4, 5, dtype=torch.long)
    strange = right.clone()
    strange[1, 2:4] = wrong
    with pytest.raises(ValueError, match=r"2 of 20 pixels.*not 0 to 18"):
        count_confusions(strange, right, 19, 254)
    with pytest.raises(ValueError, match=r"2 of 20 pixels.*not 0 to 18"):
        count_confusions(right, strange, 19, 254)


def test_both_ways_to_count_agree():
    generator = torch.Generator().manual_seed(0)
    truth, predicted = (torch.randint(5, (50, 60), generator=generator) for _ in range(2))
    truth[:9] = 255
    ways = metrics._count_on_cpu, metrics._count_on_gpu
    (one, labelled), (other, also) = (way(predicted, truth, 5, 255) for way in ways)
    assert torch.equal(one, other) and labelled == also == 41 * 60


@pytest.mark.parametrize("run", [1, 7, 8, 9, 500])
@pytest.mark.parametrize("size", [1, 2, 1009])
def test_long_runs_and_single_pixels_are_counted_alike(run, size):
    generator = torch.Generator().manual_seed(run)
    truth, predicted = (
        torch.randint(19, (size,), generator=generator).repeat_interleave(run)[shift:]
        for shift in (0, 3)
    )
    truth = truth[: len(predicted)]
    expected = torch.zeros(19, 19, dtype=torch.int64)
    for pair in zip(truth.tolist(), predicted.tolist(), strict=True):
        expected[pair] += 1
    assert torch.equal(count_confusions(predicted, truth, 19, 255), expected)


def test_a_map_without_a_pixel_has_no_counts():
    empty = torch.zeros(0, 4, 5, dtype=torch.uint8)
    assert count_confusions(empty, empty, 3, 255).tolist() == [[0] * 3] * 3


@pytest.mark.gpu
def test_a_gpu_counts_what_the_cpu_does_in_deterministic_mode_too():
    generator = torch.Generator().manual_seed(0)
    truth, predicted = (torch.randint(19, (512, 1024), generator=generator) for _ in range(2))
    truth[:9] = 255
    expected = count_confusions(predicted, truth, 19, 255)
    torch.use_deterministic_algorithms(True)
    try:
        found = count_confusions(predicted.cuda(), truth.cuda(), 19, 255)
    finally:
        torch.use_deterministic_algorithms(False)
    assert found.is_cuda and torch.equal(found.cpu(), expected)


@pytest.mark.parametrize(
    "maps",
    [
        {},
        {"right": 1.0},
        {"right": 0.0, "images": 1},
        {"truth_ids": IDS[:3]},
        {"truth_ids": IDS[2:], "predicted_ids": IDS[4:]},
        {"truth_ids": np.array([0, 3, 7, 9, 26, 29, 33]), "predicted_ids": IDS[[0, 13, 18]]},
    ],
    ids=["all", "right", "wrong", "few true", "absent in both", "mostly ignored"],
)
def test_scores_equal_the_official_script_on_random_maps(maps, official_result):
    pairs = id_maps(**maps)
    expected, actual = (
        official_result(pairs),
        scores_from_confusion(confusion_of(pairs), CATEGORIES),
    )
    for name, iou in zip(NAMES, actual.class_iou.tolist(), strict=True):
        assert iou == pytest.approx(expected["classScores"][name], abs=1e-6, nan_ok=True)
    assert actual.miou == pytest.approx(expected["averageScoreClasses"], abs=1e-6)
    for category, iou in actual.category_iou.items():
        assert iou == pytest.approx(expected["categoryScores"][category], abs=1e-6, nan_ok=True)
    assert actual.mean_category_iou == pytest.approx(expected["averageScoreCategories"], abs=1e-6)
    scored = {name for name, iou in expected["categoryScores"].items() if not math.isnan(iou)}
    assert scored <= set(actual.category_iou)


def test_miou_equals_torchmetrics_jaccard_index():
    jaccard = MulticlassJaccardIndex(19, ignore_index=255, average="macro")
    pairs = id_maps(images=2)
    for truth, prediction in pairs:
        jaccard.update(torch.from_numpy(TRAIN_ID[prediction]), torch.from_numpy(TRAIN_ID[truth]))
    miou = scores_from_confusion(confusion_of(pairs)).miou
    assert miou == pytest.approx(jaccard.compute().item(), abs=1e-6)


def test_accuracies_equal_counting_pixels():
    pairs = id_maps(images=2)
    truth, prediction = (
        np.concatenate([TRAIN_ID[pair[i]].ravel() for pair in pairs]) for i in (0, 1)
    )
    right = (prediction == truth)[truth != 255]
    per_class = [(prediction == truth)[truth == c].mean() for c in range(19)]
    scores = scores_from_confusion(confusion_of(pairs))
    assert scores.pixel_accuracy == pytest.approx(right.mean(), abs=1e-12)
    np.testing.assert_allclose(scores.class_accuracy, per_class, atol=1e-12)
    assert scores.mean_accuracy == pytest.approx(np.mean(per_class), abs=1e-12)


def test_the_sum_over_two_halves_is_the_whole():
    pairs = id_maps()
    whole = scores_from_confusion(confusion_of(pairs))
    halves = scores_from_confusion(confusion_of(pairs[:1]) + confusion_of(pairs[1:]))
    assert torch.equal(whole.confusion, halves.confusion) and whole.miou == halves.miou


def test_scores_of_a_case_worked_by_hand():
    # class 0: 3 found, 1 lost to class 1; class 1: 2 found; class 2 only predicted; class 3 nowhere
    confusion = torch.tensor([[3, 1, 0, 0], [0, 2, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    scores = scores_from_confusion(confusion, ["a", "b", "b", "void"])
    expected = torch.tensor([3 / 4, 2 / 5, 0, math.nan], dtype=torch.float64)
    torch.testing.assert_close(scores.class_iou, expected, equal_nan=True)
    assert scores.miou == pytest.approx((3 / 4 + 2 / 5) / 3)
    assert scores.mean_accuracy == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert scores.pixel_accuracy == pytest.approx(5 / 8)
    assert scores.category_iou == pytest.approx(
        {"a": 3 / 4, "b": 4 / 5, "void": math.nan}, nan_ok=True
    )
    assert scores.mean_category_iou == pytest.approx((3 / 4 + 4 / 5) / 2)


def test_counts_of_a_whole_validation_set_lose_no_pixel():
    confusion = torch.tensor([[2**40, 1], [1, 2**40]])
    scores = scores_from_confusion(confusion)
    assert scores.confusion[0, 0] == 2**40
    assert scores.miou == pytest.approx(2**40 / (2**40 + 2), rel=1e-15)


def test_an_empty_evaluation_has_no_score_rather_than_zero():
    scores = scores_from_confusion(torch.zeros(2, 2, dtype=torch.long))
    assert math.isnan(scores.miou) and math.isnan(scores.pixel_accuracy)
    assert "-" in scores.table(["road", "car"])


def test_the_dictionary_is_strict_json_with_null_for_absent_classes():
    pairs = id_maps(truth_ids=IDS[2:], predicted_ids=IDS[4:])
    scores = scores_from_confusion(confusion_of(pairs), CATEGORIES)
    read = json.loads(json.dumps(scores.to_dict(NAMES), allow_nan=False))
    assert read["class_iou"]["road"] is None and read["category_iou"]["flat"] is None
    assert read["class_iou"]["car"] == scores.class_iou[13].item()
    assert read["miou"] == scores.miou
    assert read["confusion"] == scores.confusion.tolist()


def test_the_table_names_each_class_with_its_percentages():
    confusion = torch.tensor([[3, 1, 0], [0, 2, 2], [0, 0, 0]])
    lines = scores_from_confusion(confusion, ["a", "b", "b"]).table(["road", "car", "bus"])
    assert [line.split() for line in lines.splitlines()] == [
        ["class", "IoU", "accuracy", "pixels"],
        ["-" * 47],
        ["road", "75.00", "75.00", "50.00"],
        ["car", "40.00", "50.00", "50.00"],
        ["bus", "0.00", "-", "0.00"],
        ["-" * 47],
        ["mean", "38.33", "62.50"],
        ["all", "pixels", "62.50"],
        [],
        ["category", "IoU"],
        ["-" * 47],
        ["a", "75.00"],
        ["b", "80.00"],
        ["-" * 47],
        ["mean", "category", "IoU", "77.50"],
    ]


def test_a_matrix_that_cannot_be_one_is_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        scores_from_confusion(torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="float32"):
        scores_from_confusion(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="1 categories for 2 classes"):
        scores_from_confusion(torch.zeros(2, 2, dtype=torch.long), ["flat"])
    with pytest.raises(ValueError, match="3 class names for scores of 2 classes"):
        scores_from_confusion(torch.eye(2).long()).table(["a", "b", "c"])
