"""Files are read to the last pixel as they were written, or refused with a sentence."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from segdeconv.data.readers import read_image, read_labels


def test_a_palette_png_is_read_exactly(tmp_path, random_ids):
    ids = random_ids(34)
    picture = Image.fromarray(ids)
    picture.putpalette(np.random.default_rng(1).integers(0, 256, 768, dtype=np.uint8).tobytes())
    picture.save(tmp_path / "labels.png")
    assert Image.open(tmp_path / "labels.png").mode == "P"
    np.testing.assert_array_equal(read_labels(tmp_path / "labels.png"), ids)
    # What the fuss is about: OpenCV reads colours, in any of its modes.
    read = cv2.imread(str(tmp_path / "labels.png"), cv2.IMREAD_GRAYSCALE)
    assert not np.array_equal(read, ids)


@pytest.mark.parametrize("ending", ["png", "tif", "bmp"])
@pytest.mark.parametrize("dtype", [np.uint8, bool])
def test_grey_and_bilevel_labels_are_read_exactly(tmp_path, random_ids, ending, dtype):
    ids = random_ids(2).astype(dtype)
    Image.fromarray(ids).save(tmp_path / f"labels.{ending}")
    read = read_labels(tmp_path / f"labels.{ending}")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, ids.astype(np.uint8))


@pytest.mark.parametrize("colours", [2, 4, 16])
def test_palettes_of_few_bits_are_read_exactly(tmp_path, random_ids, colours):
    ids = random_ids(colours)
    picture = Image.fromarray(ids)
    picture.putpalette(np.arange(3 * colours, dtype=np.uint8).tobytes())
    picture.save(tmp_path / "labels.png", bits={2: 1, 4: 2, 16: 4}[colours])
    np.testing.assert_array_equal(read_labels(tmp_path / "labels.png"), ids)


def test_16_bit_labels_are_read_if_their_values_fit(tmp_path, random_ids):
    ids = random_ids(200).astype(np.uint16)
    Image.fromarray(ids).save(tmp_path / "labels.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "labels.png"), ids)
    Image.fromarray(ids + 26000).save(tmp_path / "instances.png")
    with pytest.raises(ValueError, match=r"instances\.png holds the value 26\d\d\d;.*instance map"):
        read_labels(tmp_path / "instances.png")


def test_labels_in_colour_are_refused_with_what_to_do(tmp_path, random_image):
    Image.fromarray(random_image()).save(tmp_path / "color.png")
    with pytest.raises(ValueError, match=r"color\.png holds colours \(mode RGB\).*convert it"):
        read_labels(tmp_path / "color.png")


def test_jpeg_labels_are_refused(tmp_path, random_ids):
    Image.fromarray(random_ids(3)).save(tmp_path / "labels.jpg")
    with pytest.raises(ValueError, match=r"labels\.jpg is a JPEG, which alters ids"):
        read_labels(tmp_path / "labels.jpg")


@pytest.mark.parametrize("read", [read_labels, read_image])
def test_a_truncated_png_is_refused_wherever_it_was_cut(tmp_path, random_ids, read):
    ids = random_ids(34)
    buffer = io.BytesIO()
    Image.fromarray(ids).save(buffer, "PNG")
    whole = buffer.getvalue()
    path = tmp_path / "cut.png"
    refused = 0
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            pixels = read(path)
        except ValueError as error:
            assert "cut.png" in str(error) and "copy it again" in str(error)
            assert "\n" not in str(error)
            refused += 1
        else:  # only the bytes behind the last pixel are missing
            np.testing.assert_array_equal(pixels if pixels.ndim == 2 else pixels[..., 0], ids)
    assert refused > 0.8 * len(whole)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.png does not exist"):
        read_image(tmp_path / "nowhere.png")


@pytest.mark.parametrize("ending", ["png", "tif", "bmp", "webp"])
def test_images_are_red_green_blue(tmp_path, random_image, ending):
    image = random_image()
    options = {"lossless": True} if ending == "webp" else {}
    Image.fromarray(image).save(tmp_path / f"image.{ending}", **options)
    np.testing.assert_array_equal(read_image(tmp_path / f"image.{ending}"), image)


def test_grey_palette_and_transparent_images_become_red_green_blue(tmp_path, random_image):
    image = random_image()
    Image.fromarray(image[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(
        read_image(tmp_path / "grey.png"), np.repeat(image[..., :1], 3, axis=2)
    )
    Image.fromarray(np.dstack([image, image[..., :1]])).save(tmp_path / "transparent.png")
    np.testing.assert_array_equal(read_image(tmp_path / "transparent.png"), image)
    palette = Image.fromarray(np.arange(96, dtype=np.uint8).reshape(8, 12))
    palette.putpalette(image.tobytes())
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), image)


def test_a_photo_that_is_stored_lying_is_turned_upright(tmp_path, random_image):
    image = random_image(8, 12)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees clockwise to see it upright
    Image.fromarray(image).save(tmp_path / "photo.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "photo.png"), np.rot90(image, k=-1))


def test_16_bit_images_are_refused(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png has the mode I;16, more than 8 bits"):
        read_image(tmp_path / "deep.png")


@pytest.mark.parametrize("size", [(700, 401), (200_000, 2), (1, 1)])
def test_large_images_are_what_pillow_makes_of_them(write, tmp_path, random_image, size):
    columns, rows = size
    path = write(tmp_path / "large.png", random_image(rows, columns))
    image = read_image(path)
    assert np.array_equal(image, np.array(Image.open(path))) and image.flags.writeable
