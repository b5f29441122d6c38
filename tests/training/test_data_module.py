"""Order and augmentations depend on seed, epoch and image; evaluation counts each image once."""

import numpy as np
import pytest
import torch

from segdeconv.training.data_module import SegmentationData
from segdeconv.training.loading import EvalSampler, TrainSampler


@pytest.fixture
def make(tiny_camvid):
    defaults = {"dataset": "camvid", "root": str(tiny_camvid), "batch_size": 2, "num_workers": 0}
    return lambda **options: SegmentationData(**{**defaults, "crop_size": (16, 24), **options})


def batches(data, epoch=0):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return [(batch["name"], batch["image"]) for batch in loader]


def equal(one, other):
    return len(one) == len(other) and all(
        left[0] == right[0] and torch.equal(left[1], right[1])
        for left, right in zip(one, other, strict=True)
    )


def test_a_seed_gives_the_same_batches_and_another_seed_others(make):
    assert equal(batches(make(seed=3)), batches(make(seed=3)))
    assert not equal(batches(make(seed=3)), batches(make(seed=4)))


def test_the_number_of_workers_changes_nothing(make):
    alone = batches(make(seed=3), epoch=1)
    assert equal(alone, batches(make(seed=3, num_workers=1), epoch=1))
    assert equal(alone, batches(make(seed=3, num_workers=3), epoch=1))


def test_epochs_differ_in_order_and_in_augmentation(make):
    data = make()
    first, second = batches(data, 0), batches(data, 1)
    assert [names for names, _ in first] != [names for names, _ in second]
    pictures = [
        {name: image for names, images in epoch for name, image in zip(names, images, strict=True)}
        for epoch in (first, second)
    ]
    same = [name for name in pictures[0] if torch.equal(pictures[0][name], pictures[1][name])]
    assert same == []


def test_an_image_is_augmented_alike_wherever_it_stands_in_the_batch(make):
    pairs, singles = batches(make()), batches(make(batch_size=1))
    assert torch.equal(torch.cat([i for _, i in pairs]), torch.cat([i for _, i in singles]))


def test_each_epoch_has_every_image_at_most_once_and_whole_batches_only():
    sampler = TrainSampler(11, 2, seed=0)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        indices = [index for index, _ in sampler]
        assert len(indices) == len(sampler) == 10
        assert len(set(indices)) == 10


def test_processes_share_an_epoch_between_them():
    parts = [[i for i, _ in TrainSampler(11, 2, seed=0, rank=r, world_size=2)] for r in (0, 1)]
    whole = [index for index, _ in TrainSampler(11, 4, seed=0)]
    assert [len(part) for part in parts] == [4, 4]
    assert sorted(parts[0] + parts[1]) == sorted(whole)


def test_a_resumed_sampler_goes_on_where_the_batches_ended():
    sampler = TrainSampler(12, 2, seed=5)
    sampler.set_epoch(2)
    whole = list(sampler)
    resumed = TrainSampler(12, 2, seed=5)
    resumed.start_at(epoch=2, step=4)
    assert list(resumed) == whole[8:]
    assert len(resumed) == 12  # Lightning counts the epoch's steps by it
    resumed.set_epoch(3)
    sampler.set_epoch(3)
    assert list(resumed) == list(sampler)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_evaluation_counts_each_image_once_however_many_processes(processes):
    parts = [list(EvalSampler(5, rank, processes)) for rank in range(processes)]
    assert sorted(index for part in parts for index, _ in part) == [0, 1, 2, 3, 4]


def test_fewer_images_than_a_batch_is_said():
    with pytest.raises(ValueError, match=r"7 training images do not fill one step of 2 x 4"):
        TrainSampler(7, 4, seed=0, world_size=2)


def test_validation_keeps_labels_as_they_are_and_resizes_images(make):
    plain, small = make(), make(resize=(20, 24))
    for index in range(5):
        assert small.val_set[index]["image"].shape == (3, 20, 24)
        assert torch.equal(small.val_set[index]["mask"], plain.val_set[index]["mask"])
    assert small.train_set[0]["mask"].shape == (16, 24)
    assert make(resize=(20, 24), val_resize=(10, 12)).val_set[0]["image"].shape == (3, 10, 12)


def test_halving_an_image_averages_four_pixels(make, tiny_camvid):
    from PIL import Image

    data = make(resize=(20, 24), mean=(0, 0, 0), std=(1, 1, 1))
    pixels = np.array(Image.open(tiny_camvid / "val" / "images" / "00.png")).astype(float) / 255
    expected = pixels.reshape(20, 2, 24, 2, 3).mean((1, 3)).transpose(2, 0, 1)
    found = data.val_set[0]["image"].numpy()
    assert np.abs(found - expected).max() < 0.6 / 255  # rounded to 8 bits


def test_resized_training_masks_hold_no_new_classes(make):
    data = make(resize=(13, 17), crop_size=None, scale=(1, 1))
    for index in range(10):
        assert set(data.train_set[index]["mask"].unique().tolist()) <= {0, 1, 3, 255}


def test_the_released_transform_is_chosen_by_its_range_of_sides(make):
    data = make(shorter_side=(20, 30), crop_size=(24, 24))
    assert data.train_set[0]["image"].shape == (3, 24, 24)
    assert "SmallestMaxSize" in repr(data.train_set.transform)


def test_an_option_that_the_data_set_does_not_have_is_said_with_the_nearest(make):
    data = make(dataset="synthetic", root=None, options={"lenght": 3})
    with pytest.raises(ValueError, match=r"data.options.lenght.*did you mean 'length'"):
        data.val_set  # noqa: B018
    with pytest.raises(ValueError, match=r"data.root: data set 'synthetic' has no such option"):
        make(dataset="synthetic").val_set  # noqa: B018


def test_a_missing_folder_is_asked_for(make):
    with pytest.raises(ValueError, match=r"needs its folder; give --data.root FOLDER"):
        make(root=None).val_set  # noqa: B018
