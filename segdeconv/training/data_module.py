"""The data of a run that segments: which set, how it is augmented, how it is loaded."""

from collections.abc import Sequence
from typing import Any

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from segdeconv.data import DATASETS
from segdeconv.data.check import quick_check
from segdeconv.data.labels import LabelSet
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
from segdeconv.training.base_data import RunData
from segdeconv.training.loading import EvalSampler, SeededSamples, TrainSampler, make_loader
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


class SegmentationData(RunData):
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

    sets = DATASETS

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
        self._resize, self.val_resize = resize, val_resize or resize
        self._normalise = {"mean": mean, "std": std}
        self._augment: dict[str, Any] = {"crop_size": crop_size, "flip": flip, **self._normalise}
        self._scale: dict[str, Any] = {
            "scale": scale,
            "max_class_ratio": max_class_ratio,
            "photometric": photometric,
        }
        self._shorter_side = shorter_side
        self._train_transforms = train_transforms

    @property
    def label_set(self) -> LabelSet:
        """Classes of the data set."""
        return self.val_set.label_set  # type: ignore[no-any-return]

    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel."""
        return self._normalise["mean"], self._normalise["std"]

    def eval_transform(self) -> Any:
        """What validation does with an image; labels keep their size."""
        transform = eval_transform(**self._normalise)
        return Resized(self.val_resize, transform, masks=False) if self.val_resize else transform

    def train_transform(self) -> Any:
        """Augmentation, as the arguments describe it."""
        if self._train_transforms is not None:
            transform = compose(self._train_transforms)
        elif self._shorter_side is not None:
            transform = released_transform(shorter_side=self._shorter_side, **self._augment)
        else:
            transform = train_transform(**self._scale, **self._augment)
        return Resized(self._resize, transform, masks=True) if self._resize else transform

    def train_loader(self, epoch: int, step: int) -> tuple[DataLoader[dict[str, Any]], int]:
        """Shuffled, augmented batches of one size, and their number in an epoch."""
        sampler = self.train_sampler(TrainSampler, epoch, step)
        loader = make_loader(
            SeededSamples(self.train_set), sampler, self.batch_size, self.num_workers, True
        )
        return loader, sampler.steps

    def val_dataloader(self, count: int | None = None) -> DataLoader[dict[str, Any]]:
        """Validation images in order (the first ``count``; None: all), each in one process only."""
        count = len(self.val_set) if count is None else count
        sampler = EvalSampler(count, *rank_and_world_size())
        return make_loader(
            SeededSamples(self.val_set), sampler, self.val_batch_size, self.num_workers, False
        )

    def problems(self, samples: Any) -> list[str]:
        """What is wrong with some of the samples, read from their files."""
        return quick_check(samples)
