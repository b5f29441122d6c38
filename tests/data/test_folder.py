"""One's own images and label maps: paired by name, with classes from a file."""

import numpy as np
import pytest
from PIL import Image

from segdeconv.data.check import quick_check
from segdeconv.data.folder import FolderDataset

CLASSES = "name: my streets\nclasses: [road, pavement, {name: vehicle, id: [4, 5]}]"


@pytest.fixture
def own(tmp_path, write, random_image):
    """Two training images in different formats, one of them in a sub-folder; one for test."""
    (tmp_path / "classes.yaml").write_text(CLASSES)
    ids = np.array([[0, 1, 4], [5, 255, 0]], np.uint8).repeat(4, 0).repeat(4, 1)
    for split, name in (("train", "b"), ("train", "city/a"), ("test", "c")):
        write(tmp_path / split / f"images/{name}.webp", random_image())
        if split == "train":
            write(tmp_path / split / f"masks/{name}.png", ids)
    (tmp_path / "train/images/b.webp").unlink()
    Image.fromarray(random_image()).save(tmp_path / "train/images/b.JPG")
    return tmp_path


def test_images_and_masks_are_paired_by_name_in_sorted_order(own):
    dataset = FolderDataset(own)
    assert dataset.names == ["b", "city/a"]
    assert [path.name for path in dataset.image_paths] == ["b.JPG", "a.webp"]
    assert quick_check(dataset) == []


def test_hidden_files_and_other_files_are_no_images(own):
    (own / "train/images/._b.jpg").write_bytes(b"resource fork")
    (own / "train/images/Thumbs.db").write_bytes(b"")
    assert FolderDataset(own).names == ["b", "city/a"]


def test_masks_become_train_ids(own):
    expected = np.array([[0, 1, 2], [2, 255, 0]]).repeat(4, 0).repeat(4, 1)
    np.testing.assert_array_equal(FolderDataset(own)[1]["mask"], expected)
    assert FolderDataset(own).label_set.num_classes == 3
    assert FolderDataset(own).ignore_index == 255


def test_other_layouts_are_described_by_patterns(own, write):
    for split in ("train", "test"):
        (own / split / "images").rename(own / f"{split}_images")
    (own / "train/masks").rename(own / "labels")
    for path in (own / "labels").rglob("*.png"):
        path.rename(path.with_name(path.stem + "_mask.png"))
    (own / "train_list.txt").write_text("city/a.webp\n")
    dataset = FolderDataset(
        own, images="{split}_images", masks="labels", names="{split}_list.txt", mask_suffix="_mask"
    )
    assert dataset.names == ["city/a"]
    assert dataset.label_paths == [own / "labels/city/a_mask.png"]


def test_the_classes_file_may_lie_elsewhere(own, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "two.yaml"
    elsewhere.write_text("classes: [{name: ground, id: [0, 1]}, {name: vehicle, id: [4, 5]}]")
    assert FolderDataset(own, classes=elsewhere).label_set.class_names == ("ground", "vehicle")


def test_test_images_may_be_without_masks(own):
    dataset = FolderDataset(own, "test")
    assert dataset.label_paths == [None] and (dataset[0]["mask"] == 255).all()


def test_a_wrong_id_names_file_value_and_classes(own, write):
    write(own / "train/masks/b.png", np.full((8, 12), 9, np.uint8))
    message = (
        r"masks/b\.png holds the value 9 in 96 of 96 pixels, but the label set my streets has the "
        r"ids 0 to 1, 4 to 5, 255 \(road, pavement, vehicle\); add it .*classes\.yaml"
    )
    with pytest.raises(ValueError, match=message):
        FolderDataset(own)[0]


def test_images_without_masks_are_counted(own):
    (own / "train/masks/b.png").unlink()
    message = r"no label map for 1 of 2 images \(first: .*b\.JPG, nothing named b\.png in .*masks"
    with pytest.raises(ValueError, match=message):
        FolderDataset(own)


def test_masks_without_images_are_reported(own, write):
    write(own / "train/masks/stray.png", np.zeros((8, 12), np.uint8))
    with pytest.warns(UserWarning, match=r"1 label maps in .* have no image .*stray\.png"):
        assert len(FolderDataset(own)) == 2


def test_two_images_of_one_name_are_refused(own, write, random_image):
    write(own / "train/images/b.png", random_image())
    with pytest.raises(ValueError, match=r"holds both b\.JPG and b\.png"):
        FolderDataset(own)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "val"}, "val/images is not a folder; expected images there"),
        ({"masks": "nowhere"}, "nowhere is not a folder; expected label maps there"),
        (
            {"masks": "nowhere"},
            "for each image in .*images a label map .* in .*nowhere, as docs/own-data",
        ),
        ({"images": "empty"}, r"no images in .*empty; expected files ending in \.png"),
        ({"names": "nowhere.txt"}, "cannot read the list of names"),
        ({"names": "twice.txt"}, "lists b more than once"),
        ({"names": "blank.txt"}, "is empty; expected one name per line"),
        ({"classes": "nowhere.yaml"}, "no classes file nowhere.yaml"),
    ],
)
def test_missing_and_empty_places_are_named(own, arguments, message):
    (own / "empty").mkdir()
    (own / "twice.txt").write_text("b\nb.JPG\n")
    (own / "blank.txt").write_text("\n")
    with pytest.raises(ValueError, match=message):
        FolderDataset(own, **arguments)


def test_a_missing_root_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"the data folder .*nowhere does not exist"):
        FolderDataset(tmp_path / "nowhere")
