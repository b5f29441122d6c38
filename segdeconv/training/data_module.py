"""The data of a run: which set, how it is augmented, how it is loaded."""

import inspect
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import cv2
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from segdeconv.data import DATASETS
from segdeconv.data.labels import LabelSet
from segdeconv.data.pairs import Unpaired
from segdeconv.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Pixels,
    Transform,
    compose,
    eval_transform,
    released_transform,
    train_transform,
)
from segdeconv.registry import suggest
from segdeconv.training.loading import (
    EvalSampler,
    TrainSampler,
    default_workers,
    make_loader,
)
from segdeconv.training.processes import rank_and_world_size
from segdeconv.training.ranges import check_ranges


class Resized:
    """A transform of images that are first resized to (height, width), bilinear.

    Args:
        size: Height and width that images get.
        transform: What follows.
        masks: Whether masks are resized too (nearest), as training wants; in evaluation they stay
            as they are, and the logits are resized to them.
    """

    def __init__(self, size: Sequence[int], transform: Any, masks: bool) -> None:
        self.size, self.transform, self.masks = size, transform, masks

    def set_random_seed(self, seed: int) -> None:
        """Seed what follows."""
        self.transform.set_random_seed(seed)

    def __call__(self, *, image: Pixels, mask: Pixels) -> dict[str, Tensor]:
        """Resize an image (H, W, 3) uint8 with its labels (H, W) uint8, and transform it."""
        width_height = self.size[1], self.size[0]
        shrinks = self.size[0] < image.shape[0]
        image = cv2.resize(
            image, width_height, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        )
        small = cv2.resize(mask, width_height, interpolation=cv2.INTER_NEAREST_EXACT)
        sample: dict[str, Tensor] = self.transform(image=image, mask=small)
        return sample if self.masks else {**sample, "mask": torch.from_numpy(mask).long()}


class SegmentationData(LightningDataModule):
    """The data: which set, how it is augmented, how it is loaded.

    Args:
        dataset: Data set by name: cityscapes, camvid, folder, synthetic.
        root: Its folder; null where it needs none.
        options: Further arguments of the data set.
        train_split: Split to train on.
        val_split: Split to validate on.
        batch_size: Training images per step and process.
        val_batch_size: Validation images per forward; above 1, all must have one size.
        num_workers: Loader processes; null: one per processor core, 8 at most.
        resize: Height and width that images are resized to first; null: as they are. Labels of
            the validation keep their size, and the logits are resized to them.
        val_resize: The same for validation alone; null: as `resize`.
        crop_size: Height and width of the training crop; null: the whole image,
            in batches of 1 where images differ in size or `scale` makes them differ.
        scale: Range of the random scale before the crop.
        shorter_side: Range of the random length of the shorter side, in place of `scale`,
            `max_class_ratio` and `photometric`: the transform of the released code.
        flip: Probability of a horizontal flip.
        max_class_ratio: Largest share of one class in a crop (11 draws at most).
        photometric: Whether to distort brightness, contrast, saturation and hue.
        mean: Mean of each channel, of values in 0 to 1.
        std: Standard deviation of each channel.
        train_transforms: albumentations transforms in place of those that crop_size to
            photometric describe; normalising included, the tensor is made after them.
        seed: Seed of order and augmentations (in a config: the key `seed`).
    """

    def __init__(
        self,
        dataset: str = "synthetic",
        root: str | None = None,
        options: dict[str, Any] | None = None,
        train_split: str = "train",
        val_split: str = "val",
        batch_size: int = 8,
        val_batch_size: int = 1,
        num_workers: int | None = None,
        resize: tuple[int, int] | None = None,
        val_resize: tuple[int, int] | None = None,
        crop_size: tuple[int, int] | None = (512, 1024),
        scale: tuple[float, float] = (0.5, 2.0),
        shorter_side: tuple[int, int] | None = None,
        flip: float = 0.5,
        max_class_ratio: float = 0.75,
        photometric: bool = True,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        train_transforms: list[Transform] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_ranges(
            "data",
            locals(),
            batch_size="1 or more",
            val_batch_size="1 or more",
            num_workers="0 or more",
            resize="1 or more",
            val_resize="1 or more",
            crop_size="1 or more",
            scale="above 0",
            shorter_side="1 or more",
            flip="0 to 1",
            max_class_ratio="above 0, at most 1",
            std="above 0",
        )
        if shorter_side is not None and crop_size is None:
            raise ValueError(
                "data.shorter_side is for training on crops, and data.crop_size is null; give "
                "--data.crop_size '[480, 480]', or leave data.shorter_side out"
            )
        self.dataset, self.root, self.options = dataset, root, options or {}
        self.splits = {"train": train_split, "val": val_split}
        self.batch_size, self.val_batch_size, self.seed = batch_size, val_batch_size, seed
        self.num_workers = default_workers() if num_workers is None else num_workers
        self._resize, self.val_resize = resize, val_resize or resize
        self._batches_done, self._steps_before = 0, 0
        self._normalise = {"mean": mean, "std": std}
        self._augment: dict[str, Any] = {"crop_size": crop_size, "flip": flip, **self._normalise}
        self._scale: dict[str, Any] = {
            "scale": scale,
            "max_class_ratio": max_class_ratio,
            "photometric": photometric,
        }
        self._shorter_side = shorter_side
        self._train_transforms = train_transforms

    @cached_property
    def train_set(self) -> Any:
        """The training split, augmented."""
        return self.open(self.splits["train"], self._train_transform())

    @cached_property
    def val_set(self) -> Any:
        """The validation split, its labels at their original size."""
        return self.open(self.splits["val"], self.eval_transform())

    @property
    def label_set(self) -> LabelSet:
        """Classes of the data set."""
        return self.val_set.label_set  # type: ignore[no-any-return]

    def open(self, split: str, transform: Any, unpaired: list[Unpaired] | None = None) -> Any:
        """One split of the data set.

        Args:
            split: Its name.
            transform: What is done with a sample.
            unpaired: Gets the files without counterpart, in place of an error.

        Raises:
            ValueError: If the data set does not exist, or does not know an option.
        """
        kind = DATASETS[self.dataset]
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
        if "unpaired" in parameters:  # drawn scenes have no files
            arguments["unpaired"] = unpaired
        return kind(split=split, transform=transform, **arguments)

    def eval_transform(self) -> Any:
        """What validation does with an image; labels keep their size."""
        transform = eval_transform(**self._normalise)
        return Resized(self.val_resize, transform, masks=False) if self.val_resize else transform

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Shuffled, augmented batches of one size."""
        processes = rank_and_world_size()
        sampler = TrainSampler(len(self.train_set), self.batch_size, self.seed, *processes)
        if self._steps_before not in (0, sampler.steps):
            raise ValueError(
                f"an epoch of this run has {self._steps_before} steps, and would now have "
                f"{sampler.steps}; go on with the same number of images and processes"
            )
        self._steps = sampler.steps
        epoch, step = divmod(self._batches_done, sampler.steps)
        sampler.start_at(epoch, step)
        return make_loader(
            self.train_set, sampler, self.batch_size, self.num_workers, keep_workers=True
        )

    def val_dataloader(self, count: int | None = None) -> DataLoader[dict[str, Any]]:
        """Validation images in order (the first ``count``; None: all), each in one process only."""
        count = len(self.val_set) if count is None else count
        sampler = EvalSampler(count, *rank_and_world_size())
        return make_loader(
            self.val_set, sampler, self.val_batch_size, self.num_workers, keep_workers=False
        )

    def state_dict(self) -> dict[str, Any]:
        """Batches that training has taken so far, for a resume in mid-epoch."""
        assert self.trainer is not None
        done = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        return {"batches_done": done, "steps_per_epoch": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Start the loader behind those batches."""
        self._batches_done = state_dict["batches_done"]
        self._steps_before = state_dict["steps_per_epoch"]

    def _train_transform(self) -> Any:
        if self._train_transforms is not None:
            transform = compose(self._train_transforms)
        elif self._shorter_side is not None:
            transform = released_transform(shorter_side=self._shorter_side, **self._augment)
        else:
            transform = train_transform(**self._scale, **self._augment)
        return Resized(self._resize, transform, masks=True) if self._resize else transform
