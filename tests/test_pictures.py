"""Pictures of predictions, pixel by pixel."""

import io

import numpy as np
import pytest
from PIL import Image

from segdeconv.data.labels import CITYSCAPES
from segdeconv.pictures import colour_mask, encode, overlay, side_by_side

CLASSES = np.array([[0, 18, 255]], np.uint8)
IMAGE = np.full((1, 3, 3), 100, np.uint8)


def test_every_class_has_its_colour_and_what_is_ignored_is_black():
    expected = [[128, 64, 128], [119, 11, 32], [0, 0, 0]]
    assert colour_mask(CLASSES, CITYSCAPES).tolist() == [expected]


def test_an_overlay_mixes_image_and_colours():
    assert overlay(IMAGE, CLASSES, CITYSCAPES, 0.25)[0, 0].tolist() == [107, 91, 107]
    assert np.array_equal(overlay(IMAGE, CLASSES, CITYSCAPES, 0), IMAGE)
    assert np.array_equal(overlay(IMAGE, CLASSES, CITYSCAPES, 1), colour_mask(CLASSES, CITYSCAPES))


def test_pictures_stand_from_left_to_right():
    found = side_by_side(IMAGE, colour_mask(CLASSES, CITYSCAPES))
    assert found.shape == (1, 6, 3)
    assert np.array_equal(found[:, :3], IMAGE)


@pytest.mark.parametrize("picture", [CLASSES, IMAGE], ids=["ids", "colours"])
def test_png_files_hold_pictures_exactly(picture):
    found = Image.open(io.BytesIO(encode(picture, ".png")))
    assert found.format == "PNG"
    assert np.array_equal(np.array(found), picture)
