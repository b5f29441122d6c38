"""The table of data sets, and what every row of it promises."""

import numpy as np
import pytest
import torch

from segdeconv.data import DATASETS
from segdeconv.data.check import quick_check
from segdeconv.data.transforms import train_transform


@pytest.fixture(params=list(DATASETS))
def dataset(request, tmp_path, write, random_image, random_ids):
    """A small data set of each kind."""
    if request.param == "synthetic":
        return DATASETS["synthetic"](length=3, size=(64, 128))
    if request.param == "cityscapes":
        return DATASETS["cityscapes"](request.getfixturevalue("cityscapes"))
    (tmp_path / "classes.yaml").write_text("classes: [road, pavement]")
    for name in "abc":
        write(tmp_path / f"train/images/{name}.png", random_image())
        write(tmp_path / f"train/masks/{name}.png", random_ids(2))
    return DATASETS[request.param](tmp_path)


def test_samples_without_a_transform_are_arrays(dataset):
    for index in range(len(dataset)):
        sample = dataset[index]
        assert sample.keys() == {"image", "mask", "name"}
        assert sample["image"].dtype == sample["mask"].dtype == np.uint8
        assert sample["image"].shape == (*sample["mask"].shape, 3)
        assert sample["name"] == dataset.names[index]
    assert len(set(dataset.names)) == len(dataset) == 3


def test_labels_are_classes_of_the_label_set_or_ignored(dataset):
    classes = {*range(dataset.label_set.num_classes), dataset.ignore_index}
    assert all(set(np.unique(sample["mask"])) <= classes for sample in dataset)
    assert quick_check(dataset) == []


def test_samples_with_a_transform_are_tensors_of_its_size(dataset):
    dataset.transform = train_transform((32, 48))
    batch = torch.utils.data.default_collate([dataset[0], dataset[1]])
    assert batch["image"].shape == (2, 3, 32, 48) and batch["image"].dtype == torch.float32
    assert batch["mask"].shape == (2, 32, 48) and batch["mask"].dtype == torch.int64
    assert batch["name"] == dataset.names[:2]


def test_an_index_beyond_the_end_is_an_index_error(dataset):
    with pytest.raises(IndexError):
        dataset[3]


def test_an_unknown_data_set_lists_those_that_exist():
    with pytest.raises(ValueError, match="unknown data set 'cityscape'; did you mean 'cityscapes'"):
        DATASETS["cityscape"]
