"""The data of a run that classifies: which set, how it is augmented, how it is loaded."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from segdeconv.data import CLASSIFICATION_DATASETS
from segdeconv.data.arrays import ArrayTransform, ImageArrays
from segdeconv.data.check import spread_over
from segdeconv.data.photos import eval_photos, train_photos
from segdeconv.data.shards import Plan, Shards, together
from segdeconv.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from segdeconv.training.base_data import RunData
from segdeconv.training.loading import (
    EvalSampler,
    SeededSamples,
    TrainBatches,
    TrainSampler,
    make_loader,
)
from segdeconv.training.processes import rank_and_world_size
from segdeconv.training.ranges import check_ranges

OF_PHOTOS = ("crop_size", "resize", "scale", "auto_augment")
OF_ARRAYS = ("padding",)


class ClassificationData(RunData):
    """The data: which set, how it is augmented, how it is loaded.

    The small sets (CIFAR, MNIST) are held in memory and augmented a batch at a time: `padding` and
    `flip`. Photographs are cut out, resized and mirrored one by one: `crop_size`, `scale`, `flip`,
    `auto_augment`; in validation `resize` and the middle.

    Args:
        dataset: Data set by name: cifar10, cifar100, mnist, fashion_mnist, image_folder (ImageNet,
            your own), webdataset (tar shards).
        root: Its folder.
        options: Further arguments of the data set.
        train_split: Split to train on; "fit" is "train" without "holdout".
        val_split: Split to validate on: "test", "val", "holdout", ….
        batch_size: Training images per step and process.
        val_batch_size: Validation images per forward.
        num_workers: Loader processes; null: one per processor core, 8 at most.
        padding: Black pixels around a small image, out of which a piece of its size is cut; null:
            4, as is usual for CIFAR.
        flip: Probability of a horizontal flip.
        crop_size: Height and width of photographs; null: 224.
        resize: Shorter side of photographs before the middle is cut out in validation; null: 256.
        scale: Range of the share of a photograph that is cut out; null: 0.08 to 1.
        auto_augment: Policy for photographs: rand, trivial, augmix; null: none.
        mean: Mean of each channel, of values in 0 to 1; null: the data set's.
        std: Standard deviation of each channel; null: the data set's.
        seed: Seed of order and augmentations (in a config: the key `seed`).
    """

    sets = CLASSIFICATION_DATASETS

    def __init__(
        self,
        dataset: str = "cifar10",
        root: str | None = None,
        options: dict[str, Any] | None = None,
        train_split: str = "train",
        val_split: str = "test",
        batch_size: int = 128,
        val_batch_size: int = 500,
        num_workers: int | None = None,
        padding: int | None = None,
        flip: float = 0.5,
        crop_size: int | None = None,
        resize: int | None = None,
        scale: tuple[float, float] | None = None,
        auto_augment: str | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        seed: int = 0,
    ) -> None:
        check_ranges(
            "data",
            locals(),
            batch_size="1 or more",
            val_batch_size="1 or more",
            num_workers="0 or more",
            padding="0 or more",
            flip="0 to 1",
            crop_size="1 or more",
            resize="1 or more",
            scale="above 0, at most 1",
            std="above 0",
        )
        super().__init__(
            dataset,
            root,
            options,
            train_split,
            val_split,
            batch_size,
            val_batch_size,
            num_workers,
            seed,
        )
        self._given: dict[str, Any] = {
            "padding": padding,
            "crop_size": crop_size,
            "resize": resize,
            "scale": scale,
            "auto_augment": auto_augment,
        }
        self.flip, self._mean, self._std = flip, mean, std

    @property
    def photos(self) -> bool:
        """Whether the data set holds photographs; else small images of one size.

        Raises:
            ValueError: No such data set; settings that would have no effect on its images.
        """
        photos = bool(getattr(self.sets[self.dataset], "photos", False))
        idle = OF_ARRAYS if photos else OF_PHOTOS
        for key in idle:
            if self._given[key] is not None:
                other = "crop_size and scale" if photos else "padding"
                raise ValueError(
                    f"data.{key} has no effect on {self.dataset}; leave it out, and see "
                    f"data.{other}"
                )
        return photos

    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel.

        Raises:
            ValueError: If they are not those of as many channels as the images have.
        """
        kind = self.sets[self.dataset]
        usual: tuple[float, ...] = getattr(kind, "MEAN", IMAGENET_MEAN)
        mean = usual if self._mean is None else tuple(self._mean)
        std = getattr(kind, "STD", IMAGENET_STD) if self._std is None else tuple(self._std)
        channels = len(usual)
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != channels:
                raise ValueError(
                    f"data.{name} has {len(values)} numbers, and images of {self.dataset} have "
                    f"{channels} channels"
                )
        return mean, std

    def train_transform(self) -> Any:
        """Augmentation, as the arguments describe it."""
        mean, std = self.mean_and_std()
        if not self.photos:
            padding = self._given["padding"]
            return ArrayTransform(mean, std, 4 if padding is None else padding, self.flip)
        return train_photos(
            self._given["crop_size"] or 224,
            self._given["scale"] or (0.08, 1.0),
            self.flip,
            self._given["auto_augment"],
            mean,
            std,
        )

    def eval_transform(self) -> Any:
        """What validation does with an image."""
        if not self.photos:
            return ArrayTransform(*self.mean_and_std())
        size = self._given["crop_size"] or 224
        return eval_photos(size, self._given["resize"] or size * 8 // 7, *self.mean_and_std())

    def train_loader(self, epoch: int, step: int) -> tuple[Iterable[dict[str, Any]], int]:
        """Shuffled, augmented batches, and their number in an epoch."""
        samples = self.train_set
        if isinstance(samples, Shards):
            stream = TrainStream(samples, self, epoch, step)
            return stream, len(stream)
        whole = isinstance(samples, ImageArrays)
        sampler = self.train_sampler(TrainBatches if whole else TrainSampler, epoch, step)
        loader = make_loader(
            samples if whole else SeededSamples(samples),
            sampler,
            None if whole else self.batch_size,
            self.num_workers,
            True,
        )
        return loader, sampler.steps

    def val_dataloader(self, count: int | None = None) -> Iterable[dict[str, Any]]:
        """Validation images in order (the first ``count``; None: all), each in one process only."""
        samples, processes = self.val_set, rank_and_world_size()
        if isinstance(samples, Shards):
            return ValStream(samples, self, count)
        length = len(samples) if count is None else count
        return self.val_batches(EvalSampler(length, *processes).indices)

    def val_batches(self, indices: Sequence[int]) -> Iterable[dict[str, Any]]:
        """Batches of some validation images, in that order; not of shards, which are streamed."""
        samples, size = self.val_set, self.val_batch_size
        if isinstance(samples, ImageArrays):
            keys = [(indices[at : at + size], None) for at in range(0, len(indices), size)]
            return make_loader(samples, keys, None, self.num_workers, False)
        singles = [(index, 0) for index in indices]
        return make_loader(SeededSamples(samples), singles, size, self.num_workers, False)

    def problems(self, samples: Any) -> list[str]:
        """What is wrong with some of the samples, read from their files."""
        try:
            if isinstance(samples, Shards):
                samples.decode(next(samples.samples(samples.urls)))
            elif not isinstance(samples, ImageArrays):
                for index in spread_over(len(samples), 16):
                    samples[index]
        except StopIteration:
            return [f"the shard {samples.urls[0]} is empty"]
        except ValueError as error:
            return [str(error)]
        return []

    def state_dict(self) -> dict[str, Any]:
        """Batches so far; for shards also what their order depends on."""
        state = super().state_dict()
        if isinstance(self.train_set, Shards):
            state["num_workers"] = self.num_workers
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Start the loader behind those batches.

        Raises:
            ValueError: In the middle of an epoch of shards, with another number of workers.
        """
        super().load_state_dict(state_dict)
        workers = state_dict.get("num_workers", self.num_workers)
        if workers != self.num_workers and self._batches_done % (self._steps_before or 1):
            raise ValueError(
                f"the run stopped in the middle of an epoch of shards, whose order depends on the "
                f"number of workers: go on with --data.num_workers {workers}"
            )


class TrainStream:
    """Batches of shards to train on: as many in each epoch as their stated number fills.

    Args:
        samples: The shards.
        data: Batch size, workers and seed.
        epoch: Epoch to begin with.
        step: Steps of it that are left out.
    """

    def __init__(self, samples: Shards, data: RunData, epoch: int, step: int) -> None:
        self.samples, self.data = samples, data
        self.rank, self.world_size = rank_and_world_size()
        self.steps = len(samples) // (data.batch_size * self.world_size)
        if not self.steps:
            raise ValueError(
                f"{len(samples)} training images do not fill one step of {self.world_size} x "
                f"{data.batch_size}; lower data.batch_size"
            )
        self.epoch, self.skip = epoch, (epoch, step)
        self.sampler = self  # where Lightning looks for set_epoch

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        size, data = self.data.batch_size, self.data
        had = self.skip[1] if self.epoch == self.skip[0] else 0
        self.samples.plan = Plan(size, data.seed, self.epoch, self.rank, self.world_size, had)
        loader = make_loader(self.samples, None, None, data.num_workers, False)
        given = had
        for batch in islice(together(loader, size, had), self.steps - had):
            if len(batch["image"]) == size:
                given += 1
                yield batch
        if given < self.steps:
            raise ValueError(
                f"the shards of process {self.rank} of {self.world_size} fill {given} steps of "
                f"{size}, and {len(self.samples)} samples in all should fill {self.steps}; correct "
                "data.options.length, or give each process as many shards"
            )


class ValStream:
    """Batches of shards to validate on.

    Args:
        samples: The shards.
        data: Batch size and workers.
        count: Only the first so many, for one process alone; None: all.

    Raises:
        ValueError: A count for several processes.
    """

    def __init__(self, samples: Shards, data: RunData, count: int | None) -> None:
        self.samples, self.data = samples, data
        self.count = count if count is not None and count < len(samples) else None
        self.rank, self.world_size = rank_and_world_size()
        if self.count is not None and self.world_size > 1:
            raise ValueError("--limit is for one process where shards are read; leave it out")

    def __len__(self) -> int:
        if self.world_size > 1:
            raise TypeError("how many samples the shards of a process hold is not known")
        return -(-self._wanted() // self.data.val_batch_size)

    def _wanted(self) -> int:
        return len(self.samples) if self.count is None else self.count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        size = self.data.val_batch_size
        self.samples.plan = Plan(size, rank=self.rank, world_size=self.world_size)
        loader = make_loader(self.samples, None, None, self.data.num_workers, False)
        seen, held = 0, None  # one batch is held back, to find out first whether it is the last
        for batch in together(loader, size):
            if held is not None:
                yield held
            seen, held = seen + len(batch["image"]), batch
            if self.count is not None and seen >= self.count:
                kept = len(batch["image"]) - (seen - self.count)
                held = {key: value[:kept] for key, value in batch.items()}
                break
            if seen > len(self.samples):
                break
        if self.world_size == 1 and self.count is None and seen != len(self.samples):
            more = " or more" if seen > len(self.samples) else ""
            raise ValueError(
                f"the shards of {self.samples.split} hold {seen} samples{more}, and not "
                f"{len(self.samples)}; correct data.options.length"
            )
        if held is not None:
            yield held
