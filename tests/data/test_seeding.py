"""Random numbers of the pipelines, through a real `DataLoader`.

A sample is told by the window that its crop cut from an image of random pixels.
"""

import random
from functools import partial

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from segdeconv.data.transforms import (
    ClassBalancedCrop,
    compose,
    seed_transforms,
    seed_worker,
    train_transform,
)


class OneImage(Dataset):
    """Eight times the same image, so that samples differ by their augmentation only."""

    def __init__(self):
        pixels = np.random.default_rng(0)
        self.image = pixels.integers(0, 256, (600, 600, 3), dtype=np.uint8)
        self.mask = pixels.integers(0, 19, (600, 600), dtype=np.uint8)
        self.transform = compose([ClassBalancedCrop(32, 32, 1.0), A.Normalize()])

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return self.transform(image=self.image, mask=self.mask)["image"].sum()


def draws(seed=0, epochs=1, num_workers=2, rank=None, dataset=None, **options):
    """What was drawn, sample after sample; two workers take turns."""
    torch.manual_seed(seed)
    dataset = OneImage() if dataset is None else dataset
    if rank is not None:
        options["worker_init_fn"] = partial(seed_worker, rank=rank)
    loader = DataLoader(dataset, num_workers=num_workers, **options)
    return [value.item() for _ in range(epochs) for value in loader]


@pytest.mark.parametrize("rank", [None, 0], ids=["bare loader", "seed_worker"])
def test_workers_draw_different_augmentations_and_epochs_do_too(rank):
    assert len(set(draws(epochs=2, rank=rank))) == 16


@pytest.mark.parametrize("rank", [None, 0], ids=["bare loader", "seed_worker"])
def test_workers_differ_after_a_look_at_the_data_in_the_main_process(rank):
    dataset = OneImage()
    dataset[0]
    assert len(set(draws(epochs=2, rank=rank, dataset=dataset))) == 16


@pytest.mark.parametrize("rank", [None, 0], ids=["bare loader", "seed_worker"])
def test_persistent_workers_draw_anew_in_each_epoch(rank):
    assert len(set(draws(epochs=2, rank=rank, persistent_workers=True))) == 16


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_same_seed_repeats_the_run_and_another_does_not(num_workers):
    rank = 0 if num_workers else None
    first = draws(1, 2, num_workers, rank)
    assert draws(1, 2, num_workers, rank) == first
    assert not set(draws(2, 2, num_workers, rank)) & set(first)


def test_ranks_draw_different_augmentations():
    ranks = [draws(rank=rank) for rank in range(3)]
    assert len({value for drawn in ranks for value in drawn}) == 24
    assert draws(rank=1) == ranks[1]


def test_without_workers_epochs_and_ranks_differ():
    def run(rank):
        dataset = OneImage()
        seed_transforms(dataset, 0, rank)
        return draws(epochs=2, num_workers=0, dataset=dataset)

    assert len(set(run(0) + run(1))) == 32
    assert run(1) == run(1)


def test_an_explicit_seed_decides_the_sample_in_any_process():
    class Seeded(OneImage):
        def __getitem__(self, index):
            self.transform.set_random_seed(index)
            return super().__getitem__(index)

    first = draws(0, dataset=Seeded())
    assert draws(1, dataset=Seeded()) == first == draws(2, num_workers=0, dataset=Seeded())


def test_data_sets_inside_others_are_seeded_too():
    first, second = OneImage(), OneImage()
    both = ConcatDataset([Subset(first, [0, 1]), Subset(second, [0, 1])])
    seed_transforms(both, 0)
    values = [both[index].item() for index in range(4)]
    assert len(set(values)) == 4
    seed_transforms(both, 0)
    assert [both[index].item() for index in range(4)] == values


@pytest.mark.slow
def test_spawned_workers_are_seeded_as_forked_ones_are():
    forked = draws(rank=1, multiprocessing_context="fork")
    assert draws(rank=1, multiprocessing_context="spawn") == forked


def test_transforms_of_one_pipeline_draw_independently():
    # albumentations' own set_random_seed gives each the same stream: the two flips would always
    # agree.
    corner = np.zeros((4, 4), np.uint8)
    corner[0, 0] = 1
    image = np.zeros((4, 4, 3), np.uint8)
    transform = compose([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5), A.Normalize()])
    transform.set_random_seed(0)
    places = [transform(image=image, mask=corner)["mask"].argmax().item() for _ in range(400)]
    counts = np.bincount(places, minlength=16)[[0, 3, 12, 15]]
    assert counts.sum() == 400 and counts.min() > 70


def test_a_pipeline_draws_from_no_global_generator(random_image, random_ids):
    transform = train_transform((8, 8))
    transform.set_random_seed(0)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    transform(image=random_image(40, 40), mask=random_ids(19, 40, 40))
    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert after == before


def test_opencv_keeps_to_one_thread_in_workers():
    class Threads(OneImage):
        def __getitem__(self, index):
            return torch.tensor(cv2.getNumThreads())

    before = cv2.getNumThreads()
    cv2.setNumThreads(2)  # what the workers inherit
    try:
        assert set(draws(dataset=Threads())) == {2}
        assert set(draws(dataset=Threads(), rank=0)) == {1}
    finally:
        cv2.setNumThreads(before)
