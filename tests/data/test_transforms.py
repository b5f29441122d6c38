"""Transforms against arithmetic by hand: pixels, labels, padding, and what is refused."""

import colorsys

import albumentations as A
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from segdeconv.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ClassBalancedCrop,
    PhotoMetricDistortion,
    Pipeline,
    Transform,
    compose,
    eval_transform,
    released_transform,
    train_transform,
)


def normalised(image):
    """The definition, in float64: (values from 0 to 1 - mean) / std, channels first."""
    return ((image / 255 - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)


def coordinates(rows, columns):
    """An image whose red is the row and green the column; labels are their sum, modulo 19."""
    row, column = np.mgrid[:rows, :columns]
    image = np.stack([row, column, np.zeros_like(row)], 2).astype(np.uint8)
    return image, ((row + column) % 19).astype(np.uint8)


def denormalised(image):
    """Back to values from 0 to 255, channels last."""
    pixels = image.numpy().transpose(1, 2, 0) * IMAGENET_STD + IMAGENET_MEAN
    return np.rint(255 * pixels).astype(int)


# ---- what comes out


def test_evaluation_only_normalises(random_image, random_ids):
    image, mask = random_image(), random_ids(19)
    sample = eval_transform()(image=image, mask=mask)
    assert sample["image"].dtype == torch.float32 and sample["image"].is_contiguous()
    assert sample["mask"].dtype == torch.int64
    np.testing.assert_allclose(sample["image"].numpy(), normalised(image), atol=1e-6)
    np.testing.assert_array_equal(sample["mask"].numpy(), mask)


def test_a_smaller_image_is_padded_with_the_mean_colour_and_ignored_labels(
    random_image, random_ids
):
    image, mask = random_image(10, 14), random_ids(19, 10, 14)
    transform = train_transform((16, 20), scale=(1, 1), flip=0, photometric=False)
    sample = transform(image=image, mask=mask)
    assert sample["image"].shape == (3, 16, 20)
    expected_image, expected_mask = np.zeros((3, 16, 20)), np.full((16, 20), 255)
    expected_image[:, :10, :14], expected_mask[:10, :14] = normalised(image), mask
    np.testing.assert_allclose(sample["image"].numpy(), expected_image, atol=1e-6)
    assert (sample["image"][:, 10:] == 0).all() and (sample["image"][:, :, 14:] == 0).all()
    np.testing.assert_array_equal(sample["mask"].numpy(), expected_mask)


def test_image_and_labels_get_the_same_crop_and_flip():
    image, mask = coordinates(100, 120)
    transform = train_transform((40, 60), scale=(1, 1), photometric=False)
    flipped = 0
    for _ in range(20):
        sample = transform(image=image, mask=mask)
        row, column, _ = np.moveaxis(denormalised(sample["image"]), 2, 0)
        np.testing.assert_array_equal((row + column) % 19, sample["mask"].numpy())
        flipped += int(column[0, 0] > column[0, -1])
    assert 0 < flipped < 20


def test_labels_are_scaled_without_a_shift_against_the_image(random_ids):
    # A third of the size: the middle of each new pixel is the middle of the old pixel 3 i + 1,
    # for the linear interpolation of the image as for the labels.
    mask = random_ids(19, 30, 60)
    image = np.repeat(10 * mask[..., None], 3, 2)
    transform = train_transform(
        (10, 20), scale=(1 / 3 + 1e-9, 1 / 3 + 1e-9), flip=0, photometric=False
    )
    sample = transform(image=image, mask=mask)
    np.testing.assert_array_equal(sample["mask"].numpy(), mask[1::3, 1::3])
    np.testing.assert_array_equal(denormalised(sample["image"])[..., 0], 10 * mask[1::3, 1::3])


def test_the_scale_is_drawn_over_the_whole_range():
    image, mask = coordinates(40, 80)
    transform = train_transform(None, photometric=False)
    heights = [transform(image=image, mask=mask)["mask"].shape[0] for _ in range(200)]
    assert 20 <= min(heights) < 24 and 76 < max(heights) <= 80
    assert abs(np.mean(heights) - 50) < 4  # uniform from 0.5 to 2


GEOMETRY = {
    "rotate": A.Rotate((-45, 45), fill_mask=255, p=1),
    "affine": A.Affine(scale=(0.5, 2), rotate=(-30, 30), shear=(-10, 10), fill_mask=255, p=1),
    "perspective": A.Perspective((0.1, 0.2), fill_mask=255, p=1),
    "elastic": A.ElasticTransform(100, 6, fill_mask=255, p=1),
    "grid": A.GridDistortion(fill_mask=255, p=1),
    "optical": A.OpticalDistortion(0.5, fill_mask=255, p=1),
    "resize": A.RandomResizedCrop((33, 47), p=1),
    "one of several": A.OneOf([A.Rotate(fill_mask=255), A.D4()], p=1),
}


@pytest.mark.parametrize("geometry", GEOMETRY.values(), ids=GEOMETRY)
def test_geometry_makes_no_new_labels_and_keeps_rare_ones(geometry, random_image):
    mask = np.full((64, 96), 13, np.uint8)
    mask[28:36, 44:52] = 5  # one percent of the pixels
    transform = compose([geometry, A.Normalize()])
    seen = set()
    for _ in range(10):
        seen |= set(transform(image=random_image(64, 96), mask=mask)["mask"].unique().tolist())
    assert {5, 13} <= seen <= {5, 13, 255}


def test_the_released_recipe_resizes_pads_with_black_and_crops():
    white, mask = np.full((50, 100, 3), 255, np.uint8), np.zeros((50, 100), np.uint8)
    transform = released_transform((64, 200), shorter_side=(20, 60))
    sides = set()
    for _ in range(300):
        sample = transform(image=white, mask=mask)
        inside = sample["mask"] == 0
        assert sample["mask"].shape == (64, 200)
        assert set(sample["mask"].unique().tolist()) == {0, 255}
        side = int(inside.any(1).sum())
        assert abs(int(inside.any(0).sum()) - 2 * side) <= 1
        sides.add(side)
        red = sample["image"][0]
        assert abs(red[inside].mean() - (1 - 0.485) / 0.229) < 1e-5
        assert abs(red[~inside].mean() - (0 - 0.485) / 0.229) < 1e-5
    assert min(sides) <= 21 and max(sides) >= 59 and len(sides) > 35
    large = released_transform((64, 64), shorter_side=(70, 90))(image=white, mask=mask)
    assert large["mask"].shape == (64, 64) and (large["mask"] == 0).all()


def test_the_released_recipe_averages_when_it_shrinks():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[1::4], stripes[2::4] = 255, 255  # bilinear samples would see white or black only
    sample = released_transform((16, 16), shorter_side=(16, 16))(
        image=stripes, mask=stripes[..., 0]
    )
    assert np.abs(denormalised(sample["image"]) - 127.5).max() < 1


# ---- the crop


def draw_crops(crop, mask, count=200):
    transform = compose([crop, A.Normalize()])
    transform.set_random_seed(0)
    image = np.zeros((*mask.shape, 3), np.uint8)
    return [transform(image=image, mask=mask)["mask"].numpy() for _ in range(count)]


def share_of_largest(labels):
    counts = np.unique(labels[labels != 255], return_counts=True)[1]
    return counts.max() / counts.sum() if counts.size else 1.0


def test_crops_avoid_windows_that_one_class_fills():
    mask = np.zeros((100, 400), np.uint8)
    mask[:, 300:] = 1  # most windows of 50 x 50 see one class only
    balanced = [share_of_largest(c) for c in draw_crops(ClassBalancedCrop(50, 50, 0.75), mask)]
    plain = [share_of_largest(c) for c in draw_crops(ClassBalancedCrop(50, 50, 1.0), mask)]
    # One draw is good with probability 25 / 351; one of eleven with 0.56.
    assert np.mean(np.array(plain) < 0.75) < 0.15
    assert 0.42 < np.mean(np.array(balanced) < 0.75) < 0.70


def test_ignored_pixels_count_for_no_class():
    mask = np.full((60, 60), 255, np.uint8)
    mask[20:40, 20:30], mask[20:40, 30:40] = 3, 4  # half and half, in the midst of nothing
    crops = draw_crops(ClassBalancedCrop(30, 30, 0.75), mask, 100)
    good = [share_of_largest(crop) < 0.75 for crop in crops]
    assert np.mean(good) > 0.9


def test_a_window_of_one_class_alone_is_drawn_again_under_the_loosest_limit():
    mask = np.zeros((20, 200), np.uint8)
    mask[:, :10] = 1
    crops = draw_crops(ClassBalancedCrop(20, 20, 0.999), mask)
    both = np.mean([np.unique(crop).size == 2 for crop in crops])
    assert both > 2.5 * 19 / 181  # one draw has both with probability 9 / 181


def test_every_window_can_be_drawn():
    image, mask = coordinates(13, 18)
    transform = compose([ClassBalancedCrop(10, 16), A.Normalize()])
    corners = set()
    for _ in range(300):
        pixels = denormalised(transform(image=image, mask=mask)["image"])
        corners.add((pixels[0, 0, 0], pixels[0, 0, 1]))
    assert corners == {(row, column) for row in range(4) for column in range(3)}


def test_the_crop_pads_by_itself_with_its_own_colour():
    image, mask = np.zeros((8, 30, 3), np.uint8), np.zeros((8, 30), np.uint8)
    sample = compose([ClassBalancedCrop(12, 20), A.Normalize()])(image=image, mask=mask)
    assert (sample["mask"][:8] == 0).all() and (sample["mask"][8:] == 255).all()
    assert sample["mask"].shape == (12, 20)
    # 124, 116, 104 is the mean colour to half a level, and a level is 1 / 57 of a deviation.
    assert sample["image"][:, 8:].abs().max() < 0.5 / 57 + 1e-4


# ---- the colours


UNCHANGED = {
    "shift": 0.0,
    "contrast_factor": 1.0,
    "contrast_last": False,
    "saturation_factor": 1.0,
    "turn": 0,
}


def distort(image, **changes):
    return PhotoMetricDistortion().apply(image, **{**UNCHANGED, **changes})


def clipped(values):
    return np.clip(np.rint(values), 0, 255)


def test_brightness_is_added_and_contrast_multiplied(random_image):
    image = random_image()
    np.testing.assert_array_equal(distort(image), image)
    np.testing.assert_array_equal(distort(image, shift=-20.4), clipped(image - 20.4))
    np.testing.assert_array_equal(distort(image, contrast_factor=1.3), clipped(image * 1.3))
    both = distort(image, shift=31.7, contrast_factor=0.6)
    np.testing.assert_array_equal(both, clipped(clipped(image + 31.7) * 0.6))


def in_hsv(image, change):
    """Each pixel through the standard library's conversion, values from 0 to 1."""
    pixels = [
        colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel)))
        for pixel in image.reshape(-1, 3) / 255
    ]
    return 255 * np.array(pixels).reshape(image.shape)


def test_saturation_and_hue_are_those_of_hsv(random_image):
    # OpenCV keeps hue in 180 and saturation in 256 steps, so some levels apart is as near as it is.
    image = random_image(30, 30)
    paler = in_hsv(image, lambda h, s, v: (h, s * 0.6, v))
    richer = in_hsv(image, lambda h, s, v: (h, min(1.0, s * 1.4), v))
    turned = in_hsv(image, lambda h, s, v: ((h + 15 / 180) % 1, s, v))
    back = in_hsv(image, lambda h, s, v: ((h - 15 / 180) % 1, s, v))
    assert np.abs(distort(image, saturation_factor=0.6) - paler).max() <= 5
    assert np.abs(distort(image, saturation_factor=1.4) - richer).max() <= 5
    assert np.abs(distort(image, turn=15) - turned).max() <= 5
    assert np.abs(distort(image, turn=-15) - back).max() <= 5
    assert np.abs(turned - image).mean() > 20  # the comparison would notice


def test_contrast_comes_before_or_after_the_colours(random_image):
    image = random_image(30, 30)
    first = distort(image, contrast_factor=1.5, saturation_factor=0.5)
    last = distort(image, contrast_factor=1.5, saturation_factor=0.5, contrast_last=True)
    plain = distort(image, saturation_factor=0.5)
    np.testing.assert_array_equal(
        first, distort(clipped(image * 1.5).astype("u1"), saturation_factor=0.5)
    )
    np.testing.assert_array_equal(last, clipped(plain * 1.5))
    assert not np.array_equal(first, last)


def test_each_distortion_is_drawn_half_of_the_time_from_its_range():
    distortion = PhotoMetricDistortion()
    distortion.set_random_seed(0)
    draws = [distortion.get_params() for _ in range(4000)]
    for name, low, high, step in [
        ("shift", -32, 32, 1),
        ("contrast_factor", 0.5, 1.5, 0.02),
        ("saturation_factor", 0.5, 1.5, 0.02),
        ("turn", -18, 18, 1),
    ]:
        values = np.array([draw[name] for draw in draws if draw[name] != UNCHANGED[name]])
        assert abs(len(values) / len(draws) - 0.5) < 0.04, name
        assert low <= values.min() <= low + step and high - step <= values.max() <= high, name
    assert abs(np.mean([draw["contrast_last"] for draw in draws]) - 0.5) < 0.04


def test_labels_do_not_change_with_the_colours(random_image, random_ids):
    mask = random_ids(19)
    sample = compose([PhotoMetricDistortion(), A.Normalize()])(image=random_image(), mask=mask)
    np.testing.assert_array_equal(sample["mask"].numpy(), mask)


# ---- what is refused


@pytest.mark.filterwarnings("ignore:Argument")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: A.PadIfNeeded(64, 64, mask_value=255), "argument mask_value is not known to PadI"),
        (
            lambda: A.OneOf([A.Rotate(limt=3, fill_mask=255)]),
            "argument limt is not known to Rotate",
        ),
        (lambda: ClassBalancedCrop(9, 9, max_ratoi=1), "max_ratoi is not known to ClassBalancedC"),
        (
            lambda: A.Blur(blur=3),
            "argument blur is not known to Blur; its arguments are blur_limit",
        ),
        (lambda: A.Rotate(), "Rotate fills label maps with class 0.*give it fill_mask=255"),
        (lambda: A.OneOf([A.Blur(), A.Affine()]), "Affine fills label maps"),
        (lambda: A.RandomCrop(9, 9, pad_if_needed=True), "RandomCrop fills label maps"),
        (lambda: A.CoarseDropout(fill_mask=0), "CoarseDropout fills label maps"),
        (lambda: ClassBalancedCrop(9, 9, fill_mask=0), "ClassBalancedCrop fills label maps"),
        (lambda: A.RandomScale(mask_interpolation=1), "RandomScale interpolates label maps"),
        (
            lambda: A.SmallestMaxSize(9, area_for_downscale="image_mask"),
            "SmallestMaxSize interpolates label maps",
        ),
        (lambda: A.ToTensorV2(), "ToTensorV2 is not needed"),
    ],
)
def test_a_transform_that_would_spoil_labels_is_refused(build, message):
    with pytest.raises(ValueError, match=message) as error:
        compose([build(), A.Normalize()])
    assert "\n" not in str(error.value)


def test_transforms_that_leave_labels_alone_are_welcome(random_image, random_ids):
    harmless = [A.RandomCrop(6, 6), A.CoarseDropout(), A.HorizontalFlip(), A.Resize(9, 9), A.D4()]
    sample = compose([*harmless, A.Normalize()])(image=random_image(), mask=random_ids(9))
    assert sample["mask"].shape == (9, 9)


def test_another_ignore_index_is_possible():
    with pytest.raises(ValueError, match="give it fill_mask=19"):
        compose([A.Rotate(fill_mask=255), A.Normalize()], ignore_index=19)
    compose([A.Rotate(fill_mask=19), A.Normalize()], ignore_index=19)


def test_forgetting_to_normalise_is_an_error(random_image, random_ids):
    with pytest.raises(ValueError, match=r"type uint8, expected float32; add albumentations\.Norm"):
        compose([A.HorizontalFlip()])(image=random_image(), mask=random_ids(9))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": (2.0, 0.5)}, r"scale=\[2.0, 0.5\]: expected two factors above 0"),
        ({"scale": (0, 1)}, "expected two factors above 0"),
        ({"crop_size": (0, 8)}, r"crop_size=\[0, 8\]: expected height and width"),
    ],
)
def test_impossible_recipes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        train_transform(**arguments)


# ---- from a config


@pytest.fixture
def parser():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--pipeline", type=Pipeline)
    parser.add_argument("--transforms", type=list[Transform])
    return parser


def test_a_recipe_is_chosen_and_changed_in_yaml(parser, random_image, random_ids):
    config = parser.parse_string(
        """
        pipeline:
          class_path: segdeconv.data.transforms.train_transform
          init_args:
            crop_size: [16, 24]
            extra:
              - class_path: albumentations.GaussianBlur
        """
    )
    pipeline = parser.instantiate(config).pipeline
    sample = pipeline(image=random_image(50, 60), mask=random_ids(19, 50, 60))
    assert sample["image"].shape == (3, 16, 24)
    assert "GaussianBlur" in repr(pipeline) and "PhotoMetricDistortion" in repr(pipeline)


def test_a_list_of_transforms_is_written_in_yaml(parser):
    config = parser.parse_string(
        """
        transforms:
          - class_path: albumentations.OneOf
            init_args:
              transforms:
                - class_path: albumentations.Rotate
                  init_args: {limit: [-10, 10], fill_mask: 255}
                - class_path: albumentations.Blur
          - class_path: segdeconv.data.transforms.ClassBalancedCrop
            init_args: {height: 8, width: 8}
          - class_path: albumentations.Normalize
        """
    )
    transforms = parser.instantiate(config).transforms
    assert [type(t).__name__ for t in transforms] == ["OneOf", "ClassBalancedCrop", "Normalize"]
    compose(transforms)


@pytest.mark.parametrize(
    ("class_path", "argument"),
    [
        ("albumentations.PadIfNeeded", "mask_value"),
        ("segdeconv.data.transforms.ClassBalancedCrop", "max_ratoi"),
    ],
)
def test_an_unknown_argument_in_yaml_is_an_error(parser, class_path, argument):
    text = f"transforms: [{{class_path: {class_path}, init_args: {{{argument}: 1}}}}]"
    with pytest.raises(Exception, match=argument):
        parser.parse_string(text)
