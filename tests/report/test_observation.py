"""What an evaluation shows besides the scores of the whole set."""

import base64

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from segdeconv.data.labels import CAMVID
from segdeconv.inference import Prediction, evaluate, predict, predict_with_confidence
from segdeconv.report import Observer, choose, make_example
from segdeconv.report.examples import pack
from segdeconv.report.observation import BINS, Calibration


def unpack(data, shape):
    runs = np.frombuffer(data, np.uint8).reshape(-1, 3).astype(int)
    return np.repeat(runs[:, 0], runs[:, 1] + 256 * runs[:, 2]).reshape(shape)


def test_the_calibration_error_is_that_of_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.randn(5000, 4, generator=generator).mul(2).softmax(1)
    truth = torch.randint(4, (5000,), generator=generator)
    confidence, classes = probabilities.max(1)
    calibration = Calibration()
    for part in range(0, 5000, 700):
        calibration.update(*(x[part : part + 700] for x in (confidence, classes == truth)))
    expected = multiclass_calibration_error(probabilities, truth, 4, n_bins=BINS, norm="l1")
    assert calibration.error == pytest.approx(float(expected), abs=1e-6)
    curve = calibration.curve()
    assert sum(share for _, _, share in curve) == pytest.approx(1)
    chosen = (confidence * BINS).long() == 7
    (about,) = [row for row in curve if 7 / BINS <= row[0] < 8 / BINS]
    right = (classes == truth)[chosen].double().mean()
    expected = (float(confidence[chosen].mean()), float(right), float(chosen.double().mean()))
    assert about == pytest.approx(expected, abs=1e-6)


def test_full_confidence_and_none_have_a_bin():
    calibration = Calibration()
    calibration.update(torch.tensor([1.0, 0.0]), torch.tensor([True, False]))
    assert calibration.error == 0 and [row[0] for row in calibration.curve()] == [0, 1]


@pytest.mark.parametrize(
    "settings",
    [
        Prediction(),
        Prediction(scales=(0.5, 1.0), flip=True),
        Prediction(crop_size=(16, 16), memory="rows"),
        Prediction(crop_size=(16, 16), memory="rows", flip=True),
    ],
    ids=str,
)
def test_confidence_comes_with_the_classes_that_predict_gives(settings):
    torch.manual_seed(0)
    model = torch.nn.Conv2d(3, 4, 3, padding=1)
    images = torch.randn(2, 3, 40, 24)
    classes, confidence = predict_with_confidence(model, images, None, settings)
    assert torch.equal(classes, predict(model, images, None, settings))
    assert classes.dtype == torch.int64
    assert float(confidence.min()) >= 0.25 and float(confidence.max()) <= 1
    if settings == Prediction():
        expected = model(images).softmax(1).amax(1)
        torch.testing.assert_close(confidence, expected, rtol=0, atol=1e-6)


def test_an_observed_evaluation_has_the_scores_of_one_that_is_not():
    torch.manual_seed(0)
    model = torch.nn.Conv2d(3, 11, 3, padding=1)
    masks = torch.randint(11, (4, 12, 16))
    masks[0, :4] = 255
    masks[3] = 255
    batches = [
        {"image": torch.randn(2, 3, 12, 16), "mask": masks[n : n + 2], "name": [f"{n}", f"{n + 1}"]}
        for n in (0, 2)
    ]
    observer = Observer(11, 255)
    with torch.no_grad():
        plain = evaluate(model, batches, CAMVID)
        observed = evaluate(model, batches, CAMVID, observe=observer)
        one = evaluate(model, [{k: v[:1] for k, v in batches[1].items()}], CAMVID)
    assert torch.equal(plain.confusion, observed.confusion)
    assert list(observer.images) == ["0", "1", "2"]  # the fourth has no label
    assert observer.images["2"] == one.miou
    assert observer.calibration.sums[0].sum() == (masks != 255).sum()
    assert observer.calibration.sums[2].sum() == plain.confusion.diagonal().sum()


def test_examples_go_from_the_best_to_the_worst_over_all_ranks():
    scores = {f"image {number}": number / 100 for number in range(101)}
    chosen = choose(scores, 5)
    assert chosen == [(1 + 25 * n, f"image {100 - 25 * n}") for n in range(5)]
    assert choose({"a": 0.1, "b": 0.2}, 12) == [(1, "b"), (2, "a")]
    assert choose({}, 12) == []


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (480, 300)])
def test_packed_labels_come_back(shape):
    labels = np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8)
    labels[0, 0] = 255
    assert np.array_equal(unpack(pack(labels), shape), labels)
    flat = np.full(shape, 7, np.uint8)
    assert np.array_equal(unpack(pack(flat), shape), flat)


def test_an_example_is_small_and_has_no_mixed_labels():
    image = np.random.default_rng(0).integers(0, 256, (1000, 2000, 3), np.uint8)
    truth = np.zeros((1000, 2000), np.uint8)
    truth[:, 1000:] = 9
    example = make_example("name", 0.5, 3, image, truth, truth)
    assert (example.width, example.height) == (480, 240)
    labels = unpack(base64.b64decode(example.truth), (240, 480))
    assert (labels[:, :240] == 0).all() and (labels[:, 240:] == 9).all()
    assert example.image.startswith("data:image/jpeg;base64,") and len(example.image) < 250_000
    tall = make_example("name", 0.5, 3, image[:30, :20], truth[:30, :20], truth[:30, :20])
    assert (tall.width, tall.height) == (20, 30)
