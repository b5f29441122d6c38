"""What is done to an image and its label map before the network sees them, by albumentations 2.

The one room that knows albumentations.  `compose` makes a `Pipeline` of any of its transforms, in
code or in a config; `train_transform` is mmsegmentation's recipe for Cityscapes,
`released_transform` that of the released network deconvolution code, `eval_transform` only
normalises.

What albumentations 2.0.8 does otherwise, and a `Pipeline` does not:

* Unknown arguments, such as the 1.x names, only warn; labels are then padded with 0, which is road.
  Here they are errors, and so is a transform that fills labels with anything but `ignore_index`, or
  that interpolates them.
* Each `Compose` owns generators that no global seed reaches.  Forked workers inherit their state,
  so every worker draws the same augmentations, and every epoch again (its issue 2473).  A pipeline
  takes a new seed wherever torch has one, and torch gives each worker and epoch its own.
* `Compose.set_random_seed` gives each of its transforms the same seed, so that two flips with
  probability 1/2 always go together.  Here all transforms draw from one stream.
"""

import os
import random
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import cv2
import numpy as np
import torch
import torch.utils.data
from numpy.typing import NDArray
from torch import Tensor

# albumentations asks the network for its newest version when it is imported, unless told not to.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A

Transform: TypeAlias = A.BasicTransform | A.BaseCompose

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # red, green, blue, of values from 0 to 1
IMAGENET_STD = (0.229, 0.224, 0.225)
IGNORE_INDEX = 255

Pixels = NDArray[Any]  # (H, W, 3) or (H, W)


class Pipeline:
    """Transforms of an image with its label map, ending in tensors.

    Random numbers follow torch's seed: they repeat after ``torch.manual_seed``, and differ between
    the workers and the epochs of a `DataLoader`.  Only processes of a distributed run have the
    same seed; `seed_worker` tells them apart.

    Args:
        transforms: albumentations transforms, `albumentations.Normalize` among them.
        ignore_index: Label of the pixels that are not scored; what label maps are padded with.

    Raises:
        ValueError: A transform has an argument that it does not know, fills label maps with
            anything but ``ignore_index``, interpolates them, or makes tensors itself.
    """

    def __init__(self, transforms: Sequence[Transform], ignore_index: int = IGNORE_INDEX) -> None:
        for transform in _leaves(transforms):
            _check_labels_stay_exact(transform, ignore_index)
        self._compose = A.Compose(list(transforms), strict=True)
        self._seeded_under: int | None = None

    def __call__(self, *, image: Pixels, mask: Pixels) -> dict[str, Tensor]:
        """Transform an image (H, W, 3) uint8 and its train ids (H, W) uint8.

        Returns:
            ``image``, float32 (3, h, w), and ``mask``, int64 (h, w).
        """
        if self._seeded_under != torch.initial_seed():
            self.set_random_seed(torch.initial_seed())
        result = self._compose(image=image, mask=mask)
        pixels, labels = result["image"], result["mask"]
        if pixels.dtype != np.float32:
            raise ValueError(
                f"the transforms end with an image of type {pixels.dtype}, expected float32; add "
                f"albumentations.Normalize to them"
            )
        return {
            "image": torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))),
            "mask": torch.from_numpy(labels).long(),
        }

    def set_random_seed(self, seed: int | Sequence[int]) -> None:
        """Start the random numbers anew, from one number or several, each 0 or above."""
        sequence = np.random.SeedSequence(seed)
        python_seed = int(sequence.generate_state(1, np.uint64)[0])
        self._compose.set_random_state(np.random.default_rng(sequence), random.Random(python_seed))
        self._seeded_under = torch.initial_seed()

    def __repr__(self) -> str:
        return repr(self._compose)


def compose(transforms: Sequence[Transform], ignore_index: int = IGNORE_INDEX) -> Pipeline:
    """A `Pipeline` of albumentations transforms; same arguments, same errors."""
    return Pipeline(transforms, ignore_index)


def _leaves(transforms: Sequence[Transform]) -> Iterator[Transform]:
    """Every transform, those inside `OneOf` and the like too."""
    for transform in transforms:
        if isinstance(transform, A.BaseCompose):
            yield from _leaves(transform.transforms)
        else:
            yield transform


def _check_labels_stay_exact(transform: Transform, ignore_index: int) -> None:
    name = type(transform).__name__
    if name in ("ToTensorV2", "ToTensor3D"):
        raise ValueError(f"{name} is not needed: the pipeline makes tensors itself; leave it out")
    # Unknown arguments first: 1.x's mask_value=255 leaves fill_mask at 0, and is what to mend.
    if getattr(transform, "invalid_args", None):
        raise ValueError(
            f"argument {', '.join(transform.invalid_args)} is not known to {name}; its arguments "
            f"are {', '.join(sorted(transform.InitSchema.model_fields))}"
        )
    # None leaves the label map alone (dropouts); a crop that may not pad fills nothing.
    fill = getattr(transform, "fill_mask", None)
    if fill is not None and fill != ignore_index and getattr(transform, "pad_if_needed", True):
        raise ValueError(
            f"{name} fills label maps with class {fill}; give it fill_mask={ignore_index}, so "
            f"that what lies outside the image is ignored"
        )
    nearest = (cv2.INTER_NEAREST, cv2.INTER_NEAREST_EXACT)
    if (
        getattr(transform, "mask_interpolation", cv2.INTER_NEAREST) not in nearest
        or getattr(transform, "area_for_downscale", None) == "image_mask"
    ):
        raise ValueError(
            f"{name} interpolates label maps, which makes classes that are not there; leave "
            f"mask_interpolation at 0 (nearest) and area_for_downscale off or at 'image'"
        )


class ClassBalancedCrop(A.DualTransform):  # type: ignore[misc]
    """Random crop, drawn again while one class fills too much of its labelled pixels.

    mmsegmentation's ``RandomCrop(cat_max_ratio=...)``: a crop is good if its largest class covers
    less than ``max_ratio`` of the labelled pixels; the last draw is taken as it comes.

    Args:
        height: Height of the crop in pixels.
        width: Width of the crop in pixels.
        max_ratio: Largest share of one class; 1 takes the first draw.
        tries: Draws after the first.
        pad_if_needed: Pad a smaller image below and on the right; otherwise the crop is smaller.
        fill: Colour of the padding, 0 to 255; default: ImageNet's mean.
        fill_mask: Label of the padding, and of the pixels that are not counted.
        p: Probability of cropping.
    """

    class InitSchema(A.BasicTransform.InitSchema):  # type: ignore[misc]
        """What albumentations checks the arguments against."""

        height: int
        width: int
        max_ratio: float
        tries: int
        pad_if_needed: bool
        fill: tuple[float, ...] | float
        fill_mask: int

    def __init__(
        self,
        height: int,
        width: int,
        max_ratio: float = 0.75,
        tries: int = 10,
        pad_if_needed: bool = True,
        fill: tuple[float, ...] | float = (124, 116, 104),
        fill_mask: int = IGNORE_INDEX,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.height, self.width = height, width
        self.max_ratio, self.tries = max_ratio, tries
        self.pad_if_needed, self.fill, self.fill_mask = pad_if_needed, fill, fill_mask

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """Draw the corner of the crop."""
        mask = data["mask"]
        for _ in range(self.tries + 1):
            top = self.py_random.randint(0, max(0, mask.shape[0] - self.height))
            left = self.py_random.randint(0, max(0, mask.shape[1] - self.width))
            if self.max_ratio >= 1 or self._is_balanced(
                mask[top : top + self.height, left : left + self.width]
            ):
                break
        return {"top": top, "left": left}

    def _is_balanced(self, labels: Pixels) -> bool:
        # OpenCV's histogram of 512x1024 labels takes 0.2 ms, numpy's bincount 1.2.
        counts = cv2.calcHist([labels], [0], None, [256], [0, 256]).ravel()
        counts[self.fill_mask] = 0
        return bool(counts.max() < self.max_ratio * counts.sum())

    def apply(self, img: Pixels, top: int, left: int, **params: Any) -> Pixels:
        """Crop, and pad with ``fill``."""
        return self._crop(img, top, left, self.fill)

    def apply_to_mask(self, mask: Pixels, top: int, left: int, **params: Any) -> Pixels:
        """Crop, and pad with ``fill_mask``."""
        return self._crop(mask, top, left, self.fill_mask)

    def _crop(self, pixels: Pixels, top: int, left: int, fill: Any) -> Pixels:
        window = pixels[top : top + self.height, left : left + self.width]
        below, right = self.height - window.shape[0], self.width - window.shape[1]
        if self.pad_if_needed and (below or right):
            value = fill if np.iterable(fill) else (fill,) * 3
            return np.asarray(
                cv2.copyMakeBorder(window, 0, below, 0, right, cv2.BORDER_CONSTANT, value=value)
            )
        return window


class PhotoMetricDistortion(A.ImageOnlyTransform):  # type: ignore[misc]
    """Brightness, contrast, saturation and hue, each with probability 1/2.

    After Liu et al., "SSD", ECCV 2016, section 2.2, as in mmsegmentation: brightness is added, not
    multiplied; contrast comes before or after the colours, with equal probability; each step is
    clipped to 0..255.  Values are rounded, where mmsegmentation cuts them off.

    Args:
        brightness: Largest value added or taken away.
        contrast: Range of the factor of all values.
        saturation: Range of the factor of the saturation.
        hue: Largest turn of the hue, in steps of 2 degrees (180 steps in all).
        p: Probability of doing any of it.
    """

    class InitSchema(A.BasicTransform.InitSchema):  # type: ignore[misc]
        """What albumentations checks the arguments against."""

        brightness: float
        contrast: tuple[float, float]
        saturation: tuple[float, float]
        hue: int

    def __init__(
        self,
        brightness: float = 32,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: int = 18,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.brightness, self.contrast = brightness, contrast
        self.saturation, self.hue = saturation, hue

    def get_params(self) -> dict[str, Any]:
        """Draw what is done to the next image."""
        draw = self.py_random
        return {
            "shift": draw.uniform(-self.brightness, self.brightness) if self._coin() else 0.0,
            "contrast_factor": draw.uniform(*self.contrast) if self._coin() else 1.0,
            "contrast_last": self._coin(),
            "saturation_factor": draw.uniform(*self.saturation) if self._coin() else 1.0,
            "turn": draw.randint(-self.hue, self.hue) if self._coin() else 0,
        }

    def _coin(self) -> bool:
        return bool(self.py_random.random() < 0.5)

    def apply(
        self,
        img: Pixels,
        shift: float,
        contrast_factor: float,
        contrast_last: bool,
        saturation_factor: float,
        turn: int,
        **params: Any,
    ) -> Pixels:
        """Distort an image, (H, W, 3) uint8 in red green blue."""
        brighter = _table(np.arange(256) + shift)
        contrast = _table(np.arange(256) * contrast_factor)
        img = cv2.LUT(img, brighter if contrast_last else contrast[brighter])
        if saturation_factor != 1 or turn:
            hue = (np.arange(256) + turn) % 180
            tables = np.stack([hue, _table(np.arange(256) * saturation_factor), np.arange(256)], 1)
            hsv = cv2.LUT(cv2.cvtColor(img, cv2.COLOR_RGB2HSV), tables.astype(np.uint8)[None])
            img = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        return np.asarray(cv2.LUT(img, contrast) if contrast_last else img)


def _table(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Rounded, clipped to 0..255."""
    table: NDArray[np.uint8] = np.rint(values).clip(0, 255).astype(np.uint8)
    return table


def train_transform(
    crop_size: tuple[int, int] | None = (512, 1024),
    scale: tuple[float, float] = (0.5, 2.0),
    flip: float = 0.5,
    max_class_ratio: float = 0.75,
    photometric: bool = True,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
    extra: Sequence[Transform] = (),
) -> Pipeline:
    """The recipe of mmsegmentation: scale, crop, flip, distort the colours, normalise, pad.

    Labels are scaled by OpenCV's exact nearest neighbour; its older one, which is the default,
    shifts them against the image by up to half a pixel.  Padding comes last, so that it is the mean
    colour exactly, as in mmsegmentation; before the normalisation, zeros would be black (-2.1).

    Args:
        crop_size: Height and width of what the network sees; None: all of the scaled image.
        scale: Range of the factor, drawn uniformly.
        flip: Probability of a horizontal flip.
        max_class_ratio: Largest share of one class in the crop, see `ClassBalancedCrop`.
        photometric: Distort the colours, see `PhotoMetricDistortion`.
        mean: Mean of each channel, of values from 0 to 1.
        std: Standard deviation of each channel, of values from 0 to 1.
        extra: More albumentations transforms, of images in 0..255, done before the normalisation.

    Raises:
        ValueError: A size is below 1, or the range of the scale is no range above 0.
    """
    if not 0 < scale[0] <= scale[1]:
        raise ValueError(f"scale={list(scale)}: expected two factors above 0, smaller one first")
    if crop_size is not None and min(crop_size) < 1:
        raise ValueError(f"crop_size={list(crop_size)}: expected height and width in pixels")
    steps: list[Transform] = []
    if tuple(scale) != (1, 1):
        limit = (scale[0] - 1, scale[1] - 1)
        steps.append(A.RandomScale(limit, mask_interpolation=cv2.INTER_NEAREST_EXACT, p=1.0))
    if crop_size is not None:
        height, width = crop_size
        steps.append(ClassBalancedCrop(height, width, max_class_ratio, pad_if_needed=False))
    steps.append(A.HorizontalFlip(p=flip))
    if photometric:
        steps.append(PhotoMetricDistortion())
    steps += [*extra, A.Normalize(mean, std)]
    if crop_size is not None:
        steps.append(_pad_to(crop_size))
    return compose(steps)


def released_transform(
    crop_size: tuple[int, int] = (480, 480),
    shorter_side: tuple[int, int] = (260, 1040),
    flip: float = 0.5,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> Pipeline:
    """The recipe of the released network deconvolution code: resize, flip, pad, crop, normalise.

    It is that of torchvision's reference scripts.  They resize with Pillow, which averages when it
    shrinks; so do we, by area.

    Args:
        crop_size: Height and width of what the network sees.
        shorter_side: Smallest and largest length of the shorter side, a whole number drawn
            uniformly.
        flip: Probability of a horizontal flip.
        mean: Mean of each channel, of values from 0 to 1.
        std: Standard deviation of each channel, of values from 0 to 1.

    Raises:
        ValueError: The range of the shorter side is none.
    """
    if not 1 <= shorter_side[0] <= shorter_side[1]:
        raise ValueError(
            f"shorter_side={list(shorter_side)}: expected two lengths in pixels, smaller one first"
        )
    sides = list(range(shorter_side[0], shorter_side[1] + 1))
    return compose(
        [
            A.SmallestMaxSize(
                max_size=sides,
                mask_interpolation=cv2.INTER_NEAREST_EXACT,
                area_for_downscale="image",
            ),
            A.HorizontalFlip(p=flip),
            _pad_to(crop_size),  # black, since it comes before the normalisation
            A.RandomCrop(*crop_size),
            A.Normalize(mean, std),
        ]
    )


def eval_transform(
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> Pipeline:
    """Normalise, nothing else: evaluation sees whole images and labels as they are.

    Args:
        mean: Mean of each channel, of values from 0 to 1.
        std: Standard deviation of each channel, of values from 0 to 1.
    """
    return compose([A.Normalize(mean, std)])


def _pad_to(size: tuple[int, int]) -> Transform:
    """Zeros below and on the right of a smaller image, and labels that are ignored."""
    return A.PadIfNeeded(
        size[0],
        size[1],
        position="top_left",
        border_mode=cv2.BORDER_CONSTANT,
        fill=0,
        fill_mask=IGNORE_INDEX,
    )


def seed_worker(worker_id: int, rank: int = 0, seed: int = 0) -> None:
    """Set up a worker of a `DataLoader`: ``worker_init_fn=partial(seed_worker, rank=rank)``.

    Every pipeline of the data set gets random numbers of its own: they differ between workers,
    epochs and processes, and repeat when torch is seeded alike.  OpenCV is kept to one thread.

    Args:
        worker_id: Number of the worker; its torch seed tells it apart already.
        rank: Number of this process among those of a distributed run, which share torch's seed.
        seed: One more number to draw from.
    """
    cv2.setNumThreads(0)
    worker = torch.utils.data.get_worker_info()
    assert worker is not None, "seed_worker runs in a worker; seed_transforms is for num_workers=0"
    seed_transforms(worker.dataset, torch.initial_seed(), rank, seed)
    # For transforms that use the global generators (albumentations.Lambda); torch seeds them
    # alike in all ranks.
    words = np.random.SeedSequence((torch.initial_seed(), rank, seed)).generate_state(2)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))


def seed_transforms(dataset: Any, *seed: int) -> None:
    """Seed every pipeline of a data set, also of one inside `Subset` or `ConcatDataset`.

    With ``num_workers=0``, call it once: ``seed_transforms(dataset, seed, rank)``.
    """
    for number, pipeline in enumerate(_pipelines(dataset)):
        pipeline.set_random_seed((*seed, number))


def _pipelines(dataset: Any) -> Iterator[Any]:
    """What can be seeded in a data set and in those that it wraps."""
    if hasattr(transform := getattr(dataset, "transform", None), "set_random_seed"):
        yield transform
    for inner in (getattr(dataset, "dataset", None), *getattr(dataset, "datasets", ())):
        if inner is not None:
            yield from _pipelines(inner)
