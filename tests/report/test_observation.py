"""What an evaluation shows besides the scores of the whole set."""

import base64
import pickle

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes
from torchmetrics.classification import MulticlassCalibrationError
from torchmetrics.functional.classification import multiclass_calibration_error

from segdeconv.data.labels import CAMVID
from segdeconv.inference import Prediction, evaluate, predict, predict_with_confidence
from segdeconv.report import ClassificationObserver, Observer, choose, make_example
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


# ---------------------------------------------------------------------------------- classifiers


NAMES = ("cat", "dog", "owl")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def shown_images(count):
    """Names, normalised images, their pixels, logits and labels."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, 5, 7), generator=generator, dtype=torch.uint8)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, STD))
    logits = 2 * torch.randn(count, 3, generator=generator)
    labels = torch.randint(3, (count,), generator=generator)
    names = [f"image {number}" for number in range(count)]
    return names, (pixels / 255 - mean) / std, pixels, logits, labels


def observed_classifier(places, count=4):
    """What is seen of images at some places of 50, in batches of 7."""
    names, images, _, logits, labels = shown_images(50)
    observer = ClassificationObserver(NAMES, MEAN, STD, count)
    for start in range(0, len(places), 7):
        chosen = list(places[start : start + 7])
        observer([names[n] for n in chosen], images[chosen], logits[chosen], labels[chosen])
    return observer


def test_a_classifiers_calibration_error_is_that_of_torchmetrics():
    _, _, _, logits, labels = shown_images(50)
    observer = observed_classifier(range(50))
    metric = MulticlassCalibrationError(3, n_bins=BINS, norm="l1")
    metric.update(logits.softmax(1), labels)
    assert observer.calibration.error == pytest.approx(float(metric.compute()), abs=1e-6)
    assert observer.calibration.sums[0].sum() == 50
    assert observer.calibration.sums[2].sum() == (logits.argmax(1) == labels).sum()


def test_the_surest_mistakes_come_first_and_so_do_the_surest_hits():
    names, _, pixels, logits, labels = shown_images(50)
    observer = observed_classifier(range(50))
    probabilities = logits.softmax(1).numpy()
    confident = np.argsort(-probabilities.max(1))
    for kept, hit in ((observer.wrong, False), (observer.right, True)):
        order = [n for n in confident if (probabilities[n].argmax() == labels[n]) == hit][:4]
        assert [each.name for each in kept] == [names[n] for n in order]
        for each, place in zip(kept, order, strict=True):
            assert each.truth == NAMES[labels[place]]
            assert each.predicted == NAMES[probabilities[place].argmax()]
            assert each.confidence == pytest.approx(probabilities[place].max(), abs=1e-6)
            assert np.array_equal(each.picture, pixels[place].permute(1, 2, 0))


def test_a_classifier_that_makes_no_mistake_has_none_to_show():
    names, images, _, _, labels = shown_images(5)
    observer = ClassificationObserver(NAMES, MEAN, STD)
    observer(names, images, 9 * torch.eye(3)[labels], labels)
    assert observer.wrong == [] and len(observer.right) == 5


def test_a_grey_image_is_shown_in_three_equal_channels():
    observer = ClassificationObserver(NAMES, (0.5,), (0.25,))
    grey = torch.tensor([-2.0, 0.0, 2.0]).view(1, 1, 1, 3)
    observer(["a"], grey, torch.eye(3)[:1], torch.tensor([0]))
    assert observer.right[0].picture.tolist() == [[[0] * 3, [128] * 3, [255] * 3]]


def observe_share(rank, world, folder):
    torch.set_num_threads(1)  # as OpenMP's threads do not survive a fork
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world)
    observer = observed_classifier(range(rank, 50, world))
    observer.gather()
    seen = observer.wrong, observer.right, observer.calibration.sums
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(seen))
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_see_each_image_once(tmp_path, world):
    expected = observed_classifier(range(50))
    start_processes(observe_share, (world, tmp_path), world, start_method="fork")
    for rank in range(world):
        path = tmp_path / f"{rank}.pickle"
        wrong, right, sums = pickle.loads(path.read_bytes())
        assert wrong == expected.wrong and right == expected.right
        torch.testing.assert_close(sums, expected.calibration.sums)
