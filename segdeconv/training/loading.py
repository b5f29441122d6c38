"""Loaders whose order and augmentations are a function of (seed, epoch, image) alone.

Every sample travels through the loader with its own seed, so a run repeats bit for bit whatever
the number of workers, and resumes at any step as if it had never stopped. albumentations' own
generators would give each worker, and each epoch, the same augmentations (its issue 2473).

Evaluation gives process r the images r, r + world, …: nothing is counted twice. Lightning's own
sampler pads, and counted 5 images as 6 with two processes.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from segdeconv.data.workers import init_worker, usable_cores


def mix_seeds(*seeds: int) -> int:
    """One 32-bit seed from several numbers; near inputs give unrelated outputs."""
    return int(np.random.SeedSequence(seeds).generate_state(1)[0])


class TrainSampler(Sampler[tuple[int, int]]):
    """(index, augmentation seed) of each sample of an epoch, in an order drawn from the seed.

    Args:
        length: Samples in the data set.
        batch_size: Samples per step of one process; a last, smaller step is left out.
        seed: Seed of the run.
        rank: This process.
        world_size: Number of processes; together they see each sample at most once per epoch.

    Raises:
        ValueError: If the samples do not fill one step.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.steps = length // (batch_size * world_size)
        if not self.steps:
            raise ValueError(
                f"{length} training images do not fill one step of {world_size} x {batch_size}; "
                "lower data.batch_size"
            )
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.skip = (0, 0)

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def start_at(self, epoch: int, step: int) -> None:
        """Leave out the first ``step`` steps of ``epoch``: a resumed run has seen them."""
        self.epoch = epoch
        self.skip = (epoch, step)

    def __len__(self) -> int:
        return self.steps * self.batch_size

    def order(self) -> list[int]:
        """Indices of this process in this epoch, without those that are left out."""
        generator = torch.Generator().manual_seed(mix_seeds(self.seed, self.epoch))
        order = torch.randperm(self.length, generator=generator).tolist()
        mine = order[self.rank :: self.world_size][: self.steps * self.batch_size]
        first = self.skip[1] * self.batch_size if self.epoch == self.skip[0] else 0
        return mine[first:]

    def __iter__(self) -> Iterator[Any]:
        epoch = self.epoch
        for index in self.order():
            yield index, mix_seeds(self.seed, epoch, index)


class TrainBatches(TrainSampler):
    """(indices, augmentation seed) of each step, for data sets that give whole batches."""

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        epoch, order = self.epoch, self.order()
        for start in range(0, len(order), self.batch_size):
            indices = order[start : start + self.batch_size]
            # the first index is that of one step of one process in this epoch
            yield indices, mix_seeds(self.seed, epoch, indices[0])


class EvalSampler(Sampler[tuple[int, int]]):
    """(index, 0) of every ``world_size``-th sample from ``rank`` on, none twice."""

    def __init__(self, length: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, length, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Any]:
        return iter([(index, 0) for index in self.indices])


class SeededSamples(Dataset[dict[str, Any]]):
    """A data set that is asked for (index, seed), and draws its augmentation from that seed."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        index, seed = key
        self.dataset.transform.set_random_seed(seed)
        return self.dataset[index]  # type: ignore[no-any-return]


def collate(samples: list[Any]) -> Any:
    """One batch of samples.

    Raises:
        ValueError: If their images or their masks differ in size.
    """
    first = samples[0]
    for sample in samples[1:]:
        for part in [part for part in ("image", "mask") if part in first]:
            one, other = (tuple(each[part].shape[-2:]) for each in (first, sample))
            if one != other:
                raise ValueError(
                    f"the {part}s of a batch must have one size, but {first['name']} has "
                    f"{list(one)} and {sample['name']} {list(other)}; in training give "
                    "data.crop_size or data.batch_size 1, in validation data.val_batch_size 1"
                )
    return default_collate(samples)


def make_loader(
    samples: Dataset[dict[str, Any]],
    sampler: Sampler[Any] | Sequence[Any] | None,
    batch_size: int | None,
    num_workers: int,
    keep_workers: bool,
) -> DataLoader[dict[str, Any]]:
    """A loader of batches.

    Args:
        samples: `SeededSamples`; a data set that is asked for whole batches; or one that streams.
        sampler: What the data set is asked for, one after the other; None where it streams.
        batch_size: Samples per batch; None: the data set gives whole batches.
        num_workers: Loader processes; 0: none, this process loads.
        keep_workers: Whether they live on from one epoch to the next.
    """
    return DataLoader(
        samples,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        worker_init_fn=init_worker,
        collate_fn=collate if batch_size else _as_it_is,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=keep_workers and num_workers > 0,
        # its own generator: a loader draws a seed from the global one whenever it starts
        generator=torch.Generator(),
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def default_workers() -> int:
    """One per processor core that this process may use, 8 at most."""
    return min(8, usable_cores())
