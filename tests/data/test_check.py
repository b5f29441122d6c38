"""The quick check finds what would stop or spoil a training run."""

import numpy as np
import pytest

from segdeconv.data.check import quick_check
from segdeconv.data.labels import CAMVID


class Drawn:
    """A data set in memory."""

    label_set = CAMVID

    def __init__(self, masks, image_shape=(4, 6, 3)):
        self.masks, self.image_shape = masks, image_shape
        self.transform = lambda **_: pytest.fail("the transform must not be called")
        self.read = []

    def __len__(self):
        return len(self.masks)

    def __getitem__(self, index):
        self.read.append(index)
        image = np.zeros(self.image_shape, np.uint8)
        if self.transform is not None:
            self.transform(image=image)
        return {"image": image, "mask": self.masks[index], "name": f"sample{index}"}


def drawn(*values):
    return Drawn([np.full((4, 6), value, np.uint8) for value in values])


def test_a_good_data_set_has_no_problems_and_keeps_its_transform():
    dataset = drawn(0, 10, 255)
    transform = dataset.transform
    assert quick_check(dataset) == []
    assert dataset.transform is transform


def test_samples_are_spread_over_the_whole_set():
    dataset = drawn(*[0] * 101)
    quick_check(dataset, 5)
    assert dataset.read == [0, 25, 50, 75, 100]


def test_classes_out_of_range_are_found():
    (problem,) = quick_check(drawn(0, 11))
    assert "sample1 holds the class 11" in problem and "11 classes (0 to 10)" in problem


def test_masks_of_another_size_are_found():
    (problem,) = quick_check(Drawn([np.zeros((6, 4), np.uint8)]))
    assert "sample0 has the shape (6, 4), its image (4, 6)" in problem


def test_images_that_are_no_colour_images_are_found():
    problems = quick_check(Drawn([np.zeros((4, 6), np.uint8)], (4, 6)))
    assert "expected uint8 (height, width, 3)" in problems[0]


def test_a_set_without_any_labelled_pixel_is_found():
    (problem,) = quick_check(drawn(255, 255))
    assert "none of the 2 label maps" in problem


def test_an_empty_set_is_found():
    assert quick_check(drawn()) == ["the data set has no samples"]
