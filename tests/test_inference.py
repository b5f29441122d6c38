"""Whole-image prediction and evaluation, against NumPy and by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from segdeconv.data.labels import CAMVID, CITYSCAPES
from segdeconv.inference import evaluate, predict, resize_logits, save_label_ids


def one_hot_model(images):
    """Logits that name the class written in the first channel."""
    return torch.nn.functional.one_hot(images[:, 0].long(), 11).permute(0, 3, 1, 2).float()


def images_of(labels):
    return labels[:, None].repeat(1, 3, 1, 1).float()


def random_labels(*shape, high=11):
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(0))


def test_a_prediction_is_the_class_of_the_largest_logit():
    labels = random_labels(2, 6, 8)
    found = predict(one_hot_model, images_of(labels))
    assert found.dtype == torch.int64
    assert torch.equal(found, labels)


def test_logits_are_resized_not_labels():
    logits = torch.tensor([[0.0, 4.0], [1.0, 1.0]]).view(1, 2, 1, 2)  # class 1 left, class 0 right
    found = predict(lambda images: logits.flip(1), torch.zeros(1, 3, 1, 2), (1, 8))
    # bilinear between 0 and 4 passes 1 between the fourth and the fifth of eight pixels
    assert found.flatten().tolist() == [0, 0, 0, 1, 1, 1, 1, 1]


def test_logits_of_the_right_size_are_left_alone():
    logits = torch.randn(1, 2, 3, 4)
    assert resize_logits(logits, (3, 4)) is logits


def test_a_prediction_keeps_no_gradients():
    layer = torch.nn.Conv2d(3, 11, 1)
    assert not predict(layer, torch.zeros(1, 3, 2, 2)).requires_grad


def test_evaluation_counts_pixels_over_the_whole_set_and_leaves_out_ignored_ones():
    truth = random_labels(3, 10, 12)
    truth[:, :2] = 255
    guess = random_labels(3, 10, 12, high=9)
    batches = [
        {"image": images_of(guess[i : i + 1]), "mask": truth[i : i + 1], "name": [str(i)]}
        for i in range(3)
    ]
    scores = evaluate(one_hot_model, batches, CAMVID)
    valid = (truth != 255).numpy()
    expected = np.zeros((11, 11), int)
    np.add.at(expected, (truth.numpy()[valid], guess.numpy()[valid]), 1)
    assert np.array_equal(scores.confusion.numpy(), expected)


def test_evaluation_works_at_the_size_of_the_labels(tmp_path):
    labels = random_labels(1, 5, 7)
    batch = {"image": images_of(labels), "mask": labels.repeat_interleave(4, 1), "name": ["a"]}
    scores = evaluate(one_hot_model, [batch], CAMVID, save_to=tmp_path)
    assert scores.confusion.sum() == 20 * 7
    assert Image.open(tmp_path / "a.png").size == (7, 20)


def test_label_files_hold_label_ids(tmp_path):
    labels = torch.arange(19).view(1, 19)
    save_label_ids(tmp_path / "new" / "a.png", labels, CITYSCAPES)
    image = Image.open(tmp_path / "new" / "a.png")
    assert image.mode == "L"
    expected = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert np.array(image)[0].tolist() == expected


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_label_files_take_any_integers(tmp_path, dtype):
    save_label_ids(tmp_path / "a.png", torch.tensor([[1, 2]], dtype=dtype), CITYSCAPES)
    assert np.array(Image.open(tmp_path / "a.png")).tolist() == [[8, 11]]
