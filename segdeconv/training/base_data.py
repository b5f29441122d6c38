"""What the data of all tasks have in common: splits, options, resuming in mid-epoch."""

import inspect
from abc import abstractmethod
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from lightning.pytorch import LightningDataModule

from segdeconv.registry import Registry, suggest
from segdeconv.training.base_task import Classes
from segdeconv.training.loading import TrainSampler, default_workers
from segdeconv.training.processes import rank_and_world_size


class RunData(LightningDataModule):
    """A data set with a split to train on and one to validate on.

    Args:
        dataset: Name in the table ``sets``.
        root: Its folder; None where it needs none.
        options: Further arguments of the data set.
        train_split: Split to train on.
        val_split: Split to validate on.
        batch_size: Training images per step and process.
        val_batch_size: Validation images per forward.
        num_workers: Loader processes; None: one per processor core, 8 at most.
        seed: Seed of order and augmentations.
    """

    sets: Registry[Any]
    """The data sets of the task, by name."""

    def __init__(
        self,
        dataset: str,
        root: str | None,
        options: dict[str, Any] | None,
        train_split: str,
        val_split: str,
        batch_size: int,
        val_batch_size: int,
        num_workers: int | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.dataset, self.root, self.options = dataset, root, options or {}
        self.splits = {"train": train_split, "val": val_split}
        self.batch_size, self.val_batch_size, self.seed = batch_size, val_batch_size, seed
        self.num_workers = default_workers() if num_workers is None else num_workers
        self._batches_done, self._steps_before, self._steps = 0, 0, 0

    @abstractmethod
    def train_transform(self) -> Any:
        """What training does with an image."""

    @abstractmethod
    def eval_transform(self) -> Any:
        """What validation does with an image."""

    @abstractmethod
    def train_loader(self, epoch: int, step: int) -> tuple[Iterable[dict[str, Any]], int]:
        """Batches to train on from a step of an epoch on, and the number of steps of an epoch."""

    @abstractmethod
    def val_dataloader(self, count: int | None = None) -> Iterable[dict[str, Any]]:
        """Validation images in order (the first ``count``; None: all), each in one process only."""

    @abstractmethod
    def problems(self, samples: Any) -> list[str]:
        """What training cannot work with in some of the samples, a sentence each."""

    @cached_property
    def train_set(self) -> Any:
        """The training split, augmented."""
        return self.open(self.splits["train"], self.train_transform())

    @cached_property
    def val_set(self) -> Any:
        """The validation split."""
        return self.open(self.splits["val"], self.eval_transform())

    @property
    def label_set(self) -> Classes:
        """Classes of the data set."""
        return self.val_set.label_set  # type: ignore[no-any-return]

    def open(self, split: str, transform: Any, **extra: Any) -> Any:
        """One split of the data set.

        Args:
            split: Its name.
            transform: What is done with a sample.
            **extra: Further arguments, for those data sets that take them.

        Raises:
            ValueError: If the data set does not exist, or does not know an option.
        """
        kind = self.sets[self.dataset]
        arguments = {**self.options, **({} if self.root is None else {"root": self.root})}
        parameters = inspect.signature(kind).parameters
        known = [name for name in parameters if name not in ("transform", "split", "unpaired")]
        for name in arguments:
            if name not in known:
                key = "data.root" if name == "root" else f"data.options.{name}"
                rest = suggest(name, known, f"it takes {', '.join(known)}")
                raise ValueError(f"{key}: data set {self.dataset!r} has no such option; {rest}")
        needs_root = "root" in known and parameters["root"].default is inspect.Parameter.empty
        if needs_root and "root" not in arguments:
            raise ValueError(f"data set {self.dataset!r} needs its folder; give --data.root FOLDER")
        empty = inspect.Parameter.empty
        wanted = [f"data.options.{n}" for n in known if parameters[n].default is empty]
        wanted = [key for key in wanted if key.split(".")[-1] not in arguments]
        if wanted:
            raise ValueError(
                f"data set {self.dataset!r} needs {', '.join(wanted)}; see docs/data.md"
            )
        arguments |= {name: value for name, value in extra.items() if name in parameters}
        return kind(split=split, transform=transform, **arguments)

    def train_dataloader(self) -> Iterable[dict[str, Any]]:
        """Shuffled, augmented batches, behind those that a resumed run has had."""
        steps = self._steps_before or 1
        loader, self._steps = self.train_loader(*divmod(self._batches_done, steps))
        if self._steps_before not in (0, self._steps):
            raise ValueError(
                f"an epoch of this run has {self._steps_before} steps, and would now have "
                f"{self._steps}; go on with the same number of images and processes"
            )
        return loader

    def train_sampler(self, kind: type[TrainSampler], epoch: int, step: int) -> TrainSampler:
        """Order of the training samples of this process, from a step of an epoch on."""
        processes = rank_and_world_size()
        sampler = kind(len(self.train_set), self.batch_size, self.seed, *processes)
        sampler.start_at(epoch, step)
        return sampler

    def state_dict(self) -> dict[str, Any]:
        """Batches that training has taken so far, for a resume in mid-epoch."""
        assert self.trainer is not None
        done = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        return {"batches_done": done, "steps_per_epoch": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Start the loader behind those batches."""
        self._batches_done = state_dict["batches_done"]
        self._steps_before = state_dict["steps_per_epoch"]
