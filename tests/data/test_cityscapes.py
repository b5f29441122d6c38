"""The Cityscapes reader against torchvision's own, and what it says when something is wrong."""

import shutil

import numpy as np
import pytest
import torchvision
from PIL import Image

from segdeconv.data.check import quick_check
from segdeconv.data.cityscapes import Cityscapes

labels = pytest.importorskip("cityscapesscripts.helpers.labels")


def official_train_ids(ids):
    return np.vectorize(lambda i: labels.id2label[i].trainId)(ids).astype(np.uint8)


@pytest.mark.parametrize("split", ["train", "val"])
def test_it_lists_the_files_that_torchvision_lists_but_sorted(cityscapes, split):
    theirs = torchvision.datasets.Cityscapes(cityscapes, split, "fine", "semantic")
    ours = Cityscapes(cityscapes, split)
    assert [str(path) for path in ours.image_paths] == sorted(theirs.images)
    assert [str(path) for path in ours.label_paths] == sorted(t[0] for t in theirs.targets)
    assert ours.image_paths == sorted(ours.image_paths)
    assert len(ours) == len(theirs)


def test_samples_hold_the_pixels_and_the_official_train_ids(cityscapes, random_image, random_ids):
    # The first frame in sorted order was written with seed 1.
    sample = Cityscapes(cityscapes, "train")[0]
    assert sample["name"] == "aachen_000000_000019"
    np.testing.assert_array_equal(sample["image"], random_image(seed=1))
    np.testing.assert_array_equal(sample["mask"], official_train_ids(random_ids(34, seed=1)))
    assert sample["image"].dtype == sample["mask"].dtype == np.uint8


def test_files_of_train_ids_serve_as_well(cityscapes, write):
    expected = [sample["mask"] for sample in Cityscapes(cityscapes, "val")]
    for path in sorted(cityscapes.glob("gtFine/val/*/*_labelIds.png")):
        train_ids = official_train_ids(np.asarray(Image.open(path)))
        write(path.with_name(path.name.replace("labelIds", "labelTrainIds")), train_ids)
        path.unlink()
    dataset = Cityscapes(cityscapes, "val")
    assert all(path.name.endswith("labelTrainIds.png") for path in dataset.label_paths)
    for sample, mask in zip(dataset, expected, strict=True):
        np.testing.assert_array_equal(sample["mask"], mask)


def test_label_ids_are_preferred_to_train_ids(cityscapes, write):
    path = next(cityscapes.glob("gtFine/val/*/*_labelIds.png"))
    write(path.with_name(path.name.replace("labelIds", "labelTrainIds")), np.zeros((8, 12), "u1"))
    assert path in Cityscapes(cityscapes, "val").label_paths


def test_the_environment_names_the_folder(cityscapes, monkeypatch):
    monkeypatch.setenv("CITYSCAPES_DATASET", str(cityscapes))
    assert len(Cityscapes(split="val")) == 2
    monkeypatch.delenv("CITYSCAPES_DATASET")
    with pytest.raises(ValueError, match=r"give --data.root .* CITYSCAPES_DATASET"):
        Cityscapes(split="val")


def test_coarse_labels_come_from_their_own_folder(cityscapes, write, random_image, random_ids):
    name = "train_extra/augsburg/augsburg_000000_000000"
    write(cityscapes / f"leftImg8bit/{name}_leftImg8bit.png", random_image(seed=7))
    write(cityscapes / f"gtCoarse/{name}_gtCoarse_labelIds.png", random_ids(34, seed=7))
    theirs = torchvision.datasets.Cityscapes(cityscapes, "train_extra", "coarse", "semantic")
    dataset = Cityscapes(cityscapes, "train_extra", mode="coarse")
    assert [str(dataset.image_paths[0])] == theirs.images
    assert [str(dataset.label_paths[0])] == theirs.targets[0]
    np.testing.assert_array_equal(dataset[0]["mask"], official_train_ids(random_ids(34, seed=7)))


def test_test_images_may_be_without_labels(cityscapes):
    dataset = Cityscapes(cityscapes, "test")
    assert dataset.label_paths == [None]
    assert (dataset[0]["mask"] == 255).all() and dataset[0]["mask"].shape == (8, 12)


def test_the_transform_gets_image_and_mask_and_makes_the_sample(cityscapes):
    seen = {}

    def transform(image, mask):
        seen.update(image=image, mask=mask)
        return {"image": "tensor", "mask": "labels"}

    dataset = Cityscapes(cityscapes, "val", transform)
    assert dataset[1] == {"image": "tensor", "mask": "labels", "name": dataset.names[1]}
    np.testing.assert_array_equal(seen["mask"], dataset.load(1)[1])


def test_hidden_files_of_other_systems_are_no_images(cityscapes):
    path = next(cityscapes.glob("leftImg8bit/val/*/*.png"))
    path.with_name("._" + path.name).write_bytes(b"resource fork")
    assert len(Cityscapes(cityscapes, "val")) == 2


def test_a_missing_folder_is_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"nowhere does not exist; expected .* leftImg8bit"):
        Cityscapes(tmp_path / "nowhere")
    monkeypatch.setenv("CITYSCAPES_DATASET", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"\(from CITYSCAPES_DATASET\) does not exist"):
        Cityscapes()


def test_a_folder_of_something_else_is_described(tmp_path, cityscapes):
    (cityscapes / "leftImg8bit").rename(cityscapes / "images")
    with pytest.raises(ValueError, match=r"no leftImg8bit in .* which holds gtFine, images; pass"):
        Cityscapes(cityscapes)


def test_an_empty_folder_says_what_was_expected(cityscapes):
    shutil.rmtree(cityscapes / "leftImg8bit/val")
    (cityscapes / "leftImg8bit/val/munster").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no images in .*leftImg8bit/val; expected val/<city>/"):
        Cityscapes(cityscapes, "val")


def test_images_without_labels_are_counted(cityscapes):
    for path in cityscapes.glob("gtFine/train/aachen/*_labelIds.png"):
        path.unlink()
    message = (
        r"no label file for 2 of 3 images of split train \(first: .*aachen_000000_000019_left.*"
        r"expected files such as gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds\.png"
    )
    with pytest.raises(ValueError, match=message):
        Cityscapes(cityscapes, "train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "valid"}, "split='valid': with fine labels, Cityscapes has train, val, test$"),
        ({"split": "train_extra"}, "has train, val, test; mode='coarse' has it"),
        ({"split": "test", "mode": "coarse"}, "has train, val, train_extra; mode='fine' has it"),
        ({"mode": "gtFine"}, "mode='gtFine': expected 'fine' or 'coarse'"),
    ],
)
def test_unknown_splits_and_modes_are_refused(cityscapes, arguments, message):
    with pytest.raises(ValueError, match=message):
        Cityscapes(cityscapes, **arguments)


@pytest.mark.parametrize("value", [34, 255])
def test_ids_without_a_meaning_are_refused(cityscapes, write, value):
    path = next(cityscapes.glob("gtFine/val/*/*_labelIds.png"))
    ids = np.full((8, 12), 7, np.uint8)
    ids[0, :5] = value
    write(path, ids)
    dataset = Cityscapes(cityscapes, "val")
    message = (
        f"{path.name} holds the value {value} in 5 of 96 pixels, but .* Cityscapes has the ids "
        r"0 to 33 .*if the file holds train ids, name it \.\.\._labelTrainIds\.png"
    )
    with pytest.raises(ValueError, match=message):
        dataset[dataset.label_paths.index(path)]


def test_label_ids_in_a_file_of_train_ids_are_refused(cityscapes):
    for path in cityscapes.glob("gtFine/val/*/*_labelIds.png"):
        path.rename(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    with pytest.raises(ValueError, match=r"0 to 18, 255 .* label ids, name it \.\.\._labelIds"):
        Cityscapes(cityscapes, "val")[0]


def test_colours_in_place_of_ids_are_refused(cityscapes):
    for path in cityscapes.glob("gtFine/val/*/*_color.png"):
        path.rename(path.with_name(path.name.replace("color", "labelIds")))
    with pytest.raises(ValueError, match="holds colours"):
        Cityscapes(cityscapes, "val")[0]


def test_sizes_must_agree(cityscapes, write):
    write(next(cityscapes.glob("gtFine/val/*/*_labelIds.png")), np.full((4, 6), 7, np.uint8))
    problems = quick_check(Cityscapes(cityscapes, "val"))
    assert len(problems) == 1 and "is 12x8 pixels" in problems[0] and "is 6x4" in problems[0]


@pytest.mark.data
def test_camvid_in_the_cityscapes_layout_is_read_as_torchvision_reads_it(data_folder):
    root = data_folder("camvid-cityscapes")
    theirs = torchvision.datasets.Cityscapes(root, "val", "fine", "semantic")
    ours = Cityscapes(root, "val")
    assert len(ours) == len(theirs) == 101
    order = np.argsort(theirs.images)
    for index in (0, 57, 100):
        image, target = theirs[order[index]]
        np.testing.assert_array_equal(ours[index]["image"], np.asarray(image))
        np.testing.assert_array_equal(ours[index]["mask"], official_train_ids(np.asarray(target)))
    assert quick_check(ours) == []
