"""cityscapesScripts as a function: by hand, beside our own scores, and what it leaves behind."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.classification import MulticlassConfusionMatrix

from segdeconv import official
from segdeconv.data.cityscapes import Cityscapes
from segdeconv.data.labels import CITYSCAPES
from segdeconv.data.synthetic import SyntheticStreets
from segdeconv.metrics import scores_from_confusion
from segdeconv.official import Comparison, check_official, official_scores

ROAD, PERSON, RIDER, CAR = 7, 24, 25, 26


@pytest.fixture
def written(tmp_path):
    """``written([(truth, instances, prediction), …])``: files of truth and of predictions."""

    def write(maps):
        root, files = tmp_path / "cityscapes", ([], [])
        for number, (truth, instances, prediction) in enumerate(maps):
            stem = f"aachen_{number:06}_000019"
            truths = root / "gtFine" / "val" / "aachen"
            images = root / "leftImg8bit" / "val" / "aachen"
            for folder in (truths, images, tmp_path / "predictions"):
                folder.mkdir(parents=True, exist_ok=True)
            path = truths / f"{stem}_gtFine_labelIds.png"
            Image.fromarray(truth).save(path)
            if instances is not None:
                Image.fromarray(instances).save(truths / f"{stem}_gtFine_instanceIds.png")
            Image.new("RGB", truth.shape[::-1]).save(images / f"{stem}_leftImg8bit.png")
            Image.fromarray(prediction).save(tmp_path / "predictions" / f"{stem}.png")
            files[0].append(path)
            files[1].append(tmp_path / "predictions" / f"{stem}.png")
        return files

    return write


def ours(truths, predictions):
    """Our scores of files, counted with void left out."""
    metric = MulticlassConfusionMatrix(19, ignore_index=255)
    for pair in zip(predictions, truths, strict=True):
        metric.update(
            *(torch.from_numpy(CITYSCAPES.id_to_train[np.array(Image.open(p))]) for p in pair)
        )
    return scores_from_confusion(metric.compute(), CITYSCAPES.categories)


def by_hand():
    """Four rows of eight pixels.

    Two rows of road; one of two cars, of 6 and 2 pixels; a group of persons; void.
    """
    truth = np.full((4, 8), ROAD, np.uint8)
    truth[2], truth[3, :4], truth[3, 4:] = CAR, PERSON, 0
    instances = truth.astype(np.uint16)
    instances[2, :6], instances[2, 6:] = 1000 * CAR, 1000 * CAR + 1
    prediction = truth.copy()
    prediction[0, :2] = CAR  # 14 of 16 pixels of the road are found
    prediction[2, :3] = ROAD  # half of the large car, and the whole small one
    prediction[3] = [PERSON, RIDER, CAR, CAR, CAR, CAR, CAR, CAR]  # those on void do not count
    return truth, instances, prediction


def test_a_case_worked_by_hand(written):
    found = official_scores(*written([by_hand()]))
    seen = {name: iou for name, iou in found.class_iou.items() if not math.isnan(iou)}
    # road: 2 lost, 3 false; car: 3 lost, 2 + 2 false; person: 3 lost; rider: only predicted
    expected = {"road": 14 / 19, "car": 5 / 12, "person": 1 / 4, "rider": 0}
    assert seen == pytest.approx(expected, abs=1e-12)
    assert found.miou == pytest.approx((14 / 19 + 5 / 12 + 1 / 4 + 0) / 4, abs=1e-12)
    seen = {name: iou for name, iou in found.category_iou.items() if not math.isnan(iou)}
    assert seen == pytest.approx({"flat": 14 / 19, "human": 2 / 4, "vehicle": 5 / 12}, abs=1e-12)
    assert found.mean_category_iou == pytest.approx((14 / 19 + 1 / 2 + 5 / 12) / 3, abs=1e-12)


def test_the_instance_weighted_case_worked_by_hand(written):
    found = official_scores(*written([by_hand()]))
    size = 12794.0202738185  # of the average car
    hit, lost, false = 3 * size / 6 + 2 * size / 2, 3 * size / 6, 4
    car = hit / (hit + lost + false)
    assert found.class_iiou["car"] == pytest.approx(car, abs=1e-12)
    assert found.class_iiou["rider"] == 0  # no rider, and one pixel of false ones
    assert math.isnan(found.class_iiou["person"])  # a group is no instance
    assert found.mean_iiou == pytest.approx(car / 2, abs=1e-12)
    assert found.category_iiou["vehicle"] == pytest.approx(car, abs=1e-12)
    assert math.isnan(found.category_iiou["human"])
    assert found.mean_category_iiou == pytest.approx(car, abs=1e-12)
    assert set(found.class_iiou) == {
        *("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
    }
    assert found.left_out == ""


def random_maps(seed):
    """Truth of all 34 ids, persons and vehicles in instances and groups; six of ten right."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 34, (37, 53)).astype(np.uint8)
    prediction = rng.choice(CITYSCAPES.train_to_id, truth.shape)
    keep = (rng.random(truth.shape) < 0.6) & np.isin(truth, CITYSCAPES.train_to_id)
    number = rng.integers(0, 4, truth.shape).astype(np.uint16)
    single = (truth >= 24) & (number > 0)
    instances = np.where(single, 1000 * truth.astype(np.uint16) + number, truth)
    return truth, instances.astype(np.uint16), np.where(keep, truth, prediction)


def test_both_metrics_are_equal(written):
    truths, predictions = written([random_maps(seed) for seed in range(3)])
    comparison = Comparison(ours(truths, predictions), official_scores(truths, predictions))
    assert comparison.largest.difference < 1e-12
    rows = [*comparison.classes, *comparison.categories]
    assert len(rows) == 19 + 1 + 7 + 1
    assert all(row.ours == pytest.approx(row.official, abs=1e-12) for row in rows)
    with_iiou = [row.name for row in rows if not math.isnan(row.iiou)]
    assert with_iiou[-4:] == ["mean of classes", "human", "vehicle", "mean of categories"]
    assert comparison.to_dict()["largest_difference"] < 1e-12
    assert "largest difference of IoU and official" in str(comparison)


def test_numpy_and_the_script_are_as_before(written, monkeypatch):
    before = vars(np).get("in1d"), copy.copy(vars(official._script().args))
    files = written([by_hand()])
    official_scores(*files)
    Image.new("L", (3, 3)).save(files[1][0])
    with pytest.raises(ValueError, match=r"refuses the files: Image widths of .* are not equal"):
        official_scores(*files)
    assert (vars(np).get("in1d"), vars(official._script().args)) == before
    monkeypatch.setitem(vars(np), "in1d", max)  # as where NumPy has it still
    official_scores(files[0], files[0])
    assert vars(np)["in1d"] is max


def test_numpy_without_in1d_is_not_given_one(written, monkeypatch):
    monkeypatch.delitem(vars(np), "in1d", raising=False)
    official_scores(*written([by_hand()]))
    assert "in1d" not in vars(np)


def test_one_missing_instance_file_leaves_all_iiou_out_and_says_so(written):
    second = by_hand()
    files = written([by_hand(), (second[0], None, second[2])])
    found = official_scores(*files)
    assert found.class_iiou == {} and math.isnan(found.mean_iiou)
    assert found.left_out.startswith("1 of 2 images have no instance file (first: ")
    assert "aachen_000001_000019_gtFine_instanceIds.png" in found.left_out
    assert found.class_iou["road"] == pytest.approx(14 / 19)
    record = Comparison(ours(*files), found).to_dict()
    assert record["mean_iiou"] is None and record["iiou_left_out"] == found.left_out
    assert f"iIoU is left out: {found.left_out}" in str(Comparison(ours(*files), found))


def test_each_pair_is_told_once_and_a_missing_prediction_is_named(written):
    files = written([by_hand(), by_hand()])
    seen = []
    official_scores(*files, lambda: seen.append(1))
    assert len(seen) == 2
    files[1][1].unlink()
    with pytest.raises(ValueError, match=r"1 of 2 predictions are not there \(first: .*_000001_"):
        official_scores(*files)


def test_a_difference_is_found_where_it_is(written):
    files = written([by_hand()])
    found, mine = official_scores(*files), ours(*files)
    changed = replace(found, class_iou={**found.class_iou, "car": 0.5})
    assert Comparison(mine, changed).largest.name == "car"
    assert Comparison(mine, changed).to_dict()["largest_difference"] == pytest.approx(0.5 - 5 / 12)
    assert "8.3e-02 (car)" in str(Comparison(mine, changed))
    # a score that only one of both has
    changed = replace(found, category_iou={**found.category_iou, "sky": 0.0})
    assert Comparison(mine, changed).largest[:1] == ("sky",)
    assert Comparison(mine, changed).largest.difference == 1


def test_what_the_script_cannot_read_is_refused_before(written, monkeypatch):
    with pytest.raises(ValueError, match=r"Cityscapes layout, and this is SyntheticStreets; it is"):
        check_official(SyntheticStreets("val", 1, size=(32, 32)), 1)
    (truth, *_), _ = written([by_hand(), by_hand()])
    root = truth.parents[3]
    check_official(Cityscapes(root, "val"), 2)
    with monkeypatch.context() as patch:
        patch.setattr(official, "SCRIPT", "cityscapesscripts_that_is_not_there")
        with pytest.raises(ValueError, match="not installed; pip install cityscapesscripts, or"):
            check_official(Cityscapes(root, "val"), 2)
    truth.rename(truth.with_name(truth.name.replace("labelIds", "labelTrainIds")))
    with pytest.raises(ValueError, match=r"_labelIds\.png, and 1 of 2 images have none \(first: "):
        check_official(Cityscapes(root, "val"), 2)
