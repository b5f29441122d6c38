"""Prediction with any model that maps an image batch to logits, and scores of what it predicts.

Whole images, sliding windows, scales and mirror images, as semantic segmentation is usually
evaluated; the rules are mmsegmentation's: windows are pulled back at the border, overlapping logits
are averaged, and over scales and mirror images probabilities are. `Prediction` says which of it.

Logits are resized, never labels: what comes out is compared with the label at its original size.

Shapes: N images, C classes; H, W height and width.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from segdeconv.data.labels import LabelSet
from segdeconv.metrics import SegmentationScores, count_confusions, scores_from_confusion
from segdeconv.registry import Registry

Model = Callable[[Tensor], Tensor]
Observe = Callable[[Sequence[str], Tensor, Tensor, Tensor], None]
Answer = Callable[[Tensor], tuple[Tensor, ...]]

TTA_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # mmsegmentation's, each also mirrored
PRECISIONS = ("float32", "bfloat16", "float16")
MEMORIES = ("device", "cpu", "rows")
STRIP_PIXELS = 2**15  # of one class: their scores stay in the processor's cache


def _uniform(length: int) -> Tensor:
    return torch.ones(length, dtype=torch.float64)


def _smooth(length: int) -> Tensor:
    """Hann window, sampled at pixel centres, so that it is above 0 everywhere."""
    return torch.hann_window(2 * length + 1, periodic=False, dtype=torch.float64)[1::2]


BLENDS: Registry[Callable[[int], Tensor]] = Registry("blend", uniform=_uniform, smooth=_smooth)


def _check_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(known)}")


@dataclass(frozen=True)
class Prediction:
    """How a prediction is made.

    Args:
        crop_size: Height and width of the sliding window; None gives the network whole images.
            A window larger than an image is the image.
        stride: Distance between windows, down and across; None: two thirds of ``crop_size``.
        blend: Weights of overlapping windows: "uniform", or "smooth", which falls to the window's
            border, where a network sees least around a pixel.
        scales: Sizes at which each image is seen, relative to its own; the mean of the
            probabilities counts.
        flip: See each of them mirrored, too.
        precision: "float32" runs the model as it is; "bfloat16", "float16" run it under autocast.
        tile_batch: Windows per forward, of each image.
        memory: Where sums of logits are kept: "device" (where the model is), "cpu", or "rows": in
            main memory and for one row of windows at a time, so that no logits of a whole image
            ever exist; scales and mirror images are then taken of each window.

    Raises:
        ValueError: If these contradict one another, or leave pixels without a window.
    """

    crop_size: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    blend: str = "uniform"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    precision: str = "float32"
    tile_batch: int = 1
    memory: str = "device"

    def __post_init__(self) -> None:
        BLENDS[self.blend]
        _check_one_of("precision", self.precision, PRECISIONS)
        _check_one_of("memory", self.memory, MEMORIES)
        if self.crop_size is None and (self.stride is not None or self.memory == "rows"):
            what = "stride" if self.stride is not None else "memory='rows'"
            raise ValueError(f"{what} is for sliding windows; give crop_size too")
        if self.crop_size is not None and min(self.crop_size) < 1:
            raise ValueError(f"crop_size={self.crop_size}: expected 1 or more each")
        for side, step in zip(self.crop_size or (), self.stride or (), strict=False):
            if not 1 <= step <= side:
                raise ValueError(
                    f"stride={self.stride}: expected 1 to {self.crop_size}, the size of a window; "
                    "above it, pixels would lie between windows"
                )
        if not self.scales or not all(0 < scale < float("inf") for scale in self.scales):
            raise ValueError(f"scales={self.scales}: expected one or more numbers above 0")
        if self.tile_batch < 1:
            raise ValueError(f"tile_batch={self.tile_batch}: expected 1 or more")

    @property
    def steps(self) -> tuple[int, int]:
        """The stride, chosen or by default; of sliding windows only."""
        assert self.crop_size is not None
        height, width = self.crop_size
        return self.stride or (max(1, height * 2 // 3), max(1, width * 2 // 3))

    @property
    def views(self) -> list[tuple[float, bool]]:
        """(scale, mirrored) of everything that is seen of an image."""
        return list(product(self.scales, (False, True) if self.flip else (False,)))

    def __str__(self) -> str:
        """In words, as it belongs beside a result."""
        words = ["whole image"]
        if self.crop_size is not None:
            sizes = "windows of {} x {} every {} x {}".format(*self.crop_size, *self.steps)
            words = [f"{sizes}, {self.blend} blending"]
        if self.scales != (1.0,):
            words.append("scales " + " ".join(f"{scale:g}" for scale in self.scales))
        if self.flip:
            words.append("mirrored too")
        if self.memory == "rows" and len(self.views) > 1:
            words.append("in each window")
        return ", ".join(words)


WHOLE = Prediction()


def _size(images: Tensor) -> tuple[int, int]:
    """Height and width."""
    return images.shape[-2], images.shape[-1]


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (N, C, h, w) at ``size`` = (H, W), bilinear; unchanged where the size is right."""
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def window_starts(size: int, crop: int, stride: int) -> list[int]:
    """First pixel of each window along one side; the last is pulled back to end at the border."""
    last = max(size - crop, 0)
    return [min(start, last) for start in range(0, last + stride, stride)]


def window_weights(size: int, crop: int, stride: int, blend: str) -> Tensor:
    """Weight of each pixel of each window along one side; at every pixel they add up to one.

    The weight of a pixel of a window in the plane is the product of those along both sides, so
    these add up to one as well.

    Returns:
        (windows, crop) float64; crop is ``size`` where that is smaller.
    """
    crop = min(crop, size)
    starts, shape = window_starts(size, crop, stride), BLENDS[blend](crop)
    total = torch.zeros(size, dtype=torch.float64)
    for start in starts:
        total[start : start + crop] += shape
    return torch.stack([shape / total[start : start + crop] for start in starts])


def slide_rows(model: Model, images: Tensor, settings: Prediction) -> Iterator[Tensor]:
    """Logits of images (N, 3, H, W) by sliding windows, from top to bottom.

    A piece is yielded as soon as no further window reaches it, so no more than one row of windows
    is ever held.

    Args:
        model: Maps windows (k N, 3, h, w) to logits (k N, C, h, w), on any device.
        images: Normalised images; sums are kept where they are.
        settings: With a ``crop_size``.

    Yields:
        (N, C, rows, W); together they have H rows.
    """
    assert settings.crop_size is not None
    size = _size(images)
    per_side = list(zip(size, settings.crop_size, settings.steps, strict=True))
    rows, columns = (window_weights(*side, settings.blend).to(images) for side in per_side)
    tops, lefts = (window_starts(*side) for side in per_side)
    pending: Tensor | None = None
    for weights, (top, next_top) in zip(rows, pairwise([*tops, size[0]]), strict=True):
        strip = images[..., top : top + len(weights), :]
        band = _strip_logits(model, strip, lefts, columns, settings.tile_batch)
        band *= weights[:, None]
        if pending is not None:
            band[..., : pending.shape[-2], :] += pending
        yield band[..., : next_top - top, :]
        pending = band[..., next_top - top :, :]


def _strip_logits(
    model: Model, strip: Tensor, lefts: list[int], weights: Tensor, tile_batch: int
) -> Tensor:
    """Logits (N, C, h, W) of one row of windows over (N, 3, h, W), blended across."""
    total: Tensor | None = None
    crop = weights.shape[1]
    for first in range(0, len(lefts), tile_batch):
        chosen = lefts[first : first + tile_batch]
        logits = model(torch.cat([strip[..., left : left + crop] for left in chosen]))
        if total is None:
            shape = (len(strip), logits.shape[1], *strip.shape[-2:])
            total = torch.zeros(shape, dtype=logits.dtype, device=strip.device)
        parts = logits.to(strip.device).chunk(len(chosen))
        for number, (left, part) in enumerate(zip(chosen, parts, strict=True), first):
            total[..., left : left + crop] += part * weights[number]
    assert total is not None
    return total


def predict_scores(
    model: Model,
    images: Tensor,
    size: tuple[int, int] | None = None,
    settings: Prediction = WHOLE,
) -> Tensor:
    """What speaks for each class at each pixel, over all windows, scales and mirror images.

    Args:
        model: Maps images (N, 3, H, W) to logits (N, C, h, w).
        images: Normalised images, (N, 3, H, W).
        size: Height and width of the answer; None for that of the images.
        settings: How; its ``precision`` and ``memory`` are `predict`'s business.

    Returns:
        (N, C, height, width): logits, or mean probabilities where there are several views.
    """
    size = size or _size(images)
    total: Tensor | None = None
    for scale, mirrored in settings.views:
        seen = _scaled(images, scale)
        seen = seen.flip(-1) if mirrored else seen
        if settings.crop_size is None:
            logits = model(seen)
        else:
            logits = torch.cat(list(slide_rows(model, seen, settings)), -2)
        logits = resize_logits(logits.flip(-1) if mirrored else logits, size)
        if len(settings.views) == 1:
            return logits
        probabilities = logits.softmax(1)
        total = probabilities if total is None else total.add_(probabilities)
    assert total is not None
    return total / len(settings.views)


def _scaled(images: Tensor, scale: float) -> Tensor:
    """Images at ``scale`` times their size, rounded to whole pixels; bilinear."""
    if scale == 1:
        return images
    height, width = (max(1, int(side * scale + 0.5)) for side in _size(images))
    return F.interpolate(images, (height, width), mode="bilinear", align_corners=False)


@torch.no_grad()
def predict(
    model: Model,
    images: Tensor,
    size: tuple[int, int] | None = None,
    settings: Prediction = WHOLE,
    device: torch.device | str | None = None,
) -> Tensor:
    """Most likely class of each pixel.

    Args:
        model: Maps images (N, 3, H, W) to logits (N, C, h, w).
        images: Normalised images, (N, 3, H, W).
        size: Height and width of the answer; None for that of the images.
        settings: How; whole images in one forward, if nothing else is said.
        device: Where the model is; None: where the images are.

    Returns:
        Classes 0 to C - 1, (N, height, width) int64.

    Raises:
        ValueError: If ``memory="rows"`` shall answer at another size than the images'.
    """
    return _answer(model, images, size, settings, device, _classes)[0].long()


@torch.no_grad()
def predict_with_confidence(
    model: Model,
    images: Tensor,
    size: tuple[int, int] | None = None,
    settings: Prediction = WHOLE,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """As `predict`, with the probability of each prediction.

    Returns:
        Classes (N, height, width) int64, and their probabilities, 0 to 1, of the same shape.
    """
    answer = _classes_and_confidence(settings)
    classes, confidence = _answer(model, images, size, settings, device, answer)
    return classes.long(), confidence


def largest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Largest score of each pixel and the first class that has it, as ``scores.max(1)``.

    On CPU the classes are gone through one by one, a strip of rows at a time: 30 ms for 19 classes
    of 1024 x 2048 pixels on one core, where ``max`` takes 135.

    Args:
        scores: (N, C, H, W).

    Returns:
        (N, H, W) each; classes uint8, or int64 where torch found them.
    """
    usable = scores.dtype in (torch.float32, torch.float64) and scores.stride(-1) == 1
    if scores.device.type != "cpu" or not usable or scores.shape[1] > 256:
        return scores.max(1)  # of named values, and much faster than argmax
    values = scores.detach().numpy()
    best = values[:, 0].copy()
    classes = np.zeros(best.shape, np.uint8)
    for rows in _strips(scores):
        _keep_largest(values[..., rows, :], best[:, rows], classes[:, rows])
    return torch.from_numpy(best), torch.from_numpy(classes)


def _keep_largest(scores: NDArray[Any], best: NDArray[Any], classes: NDArray[np.uint8]) -> None:
    """Raise ``best`` (N, h, W) of class 0 to the largest of (N, C, h, W), ``classes`` with it."""
    for number in range(1, scores.shape[1]):
        score = scores[:, number]
        better = np.greater(score, best).view(np.uint8)
        better *= np.uint8(number)
        np.maximum(classes, better, out=classes)  # numbers rise, so the last one stays
        np.maximum(best, score, out=best)


def confidence_of(scores: Tensor, best: Tensor) -> Tensor:
    """Softmax probability of the largest score.

    Args:
        scores: Logits, (N, C, H, W).
        best: The largest over the classes, (N, H, W).

    Returns:
        (N, H, W), 0 to 1.
    """
    pieces = [
        (scores[..., rows, :] - best[:, None, rows]).float().exp_().sum(1).reciprocal_()
        for rows in _strips(scores)
    ]
    return torch.cat(pieces, 1)


def _strips(scores: Tensor) -> Iterator[slice]:
    """Rows that are worked on at once: few on CPU, for its cache, and all on other devices."""
    height, width = _size(scores)
    rows = max(1, STRIP_PIXELS // width) if scores.device.type == "cpu" else height
    for top in range(0, height, rows):
        yield slice(top, top + rows)


def _classes(scores: Tensor) -> tuple[Tensor, ...]:
    return (largest(scores)[1],)


def _classes_and_confidence(settings: Prediction) -> Answer:
    def answer(scores: Tensor) -> tuple[Tensor, ...]:
        best, classes = largest(scores)
        # the mean over several views is one of probabilities already
        return classes, best if len(settings.views) > 1 else confidence_of(scores, best)

    return answer


def _answer(
    model: Model,
    images: Tensor,
    size: tuple[int, int] | None,
    settings: Prediction,
    device: torch.device | str | None,
    answer: Answer,
) -> tuple[Tensor, ...]:
    """What ``answer`` makes of the scores (N, C, rows, W), of all rows."""
    device = torch.device(device or images.device)
    if settings.memory == "rows":
        if size not in (None, _size(images)):
            raise ValueError(
                f"memory='rows' answers at the size of the images, {_size(images)}, and {size} is "
                "wanted; leave the images at their size, or take memory='cpu'"
            )
        return _answer_rows(model, images.cpu(), settings, device, answer)
    images = images.to(device if settings.memory == "device" else "cpu")
    forward = _on_device(model, settings, device, images.device)
    return answer(predict_scores(forward, images, size, settings))


def _answer_rows(
    model: Model,
    images: Tensor,
    settings: Prediction,
    device: torch.device,
    answer: Answer,
) -> tuple[Tensor, ...]:
    """Answers to images in main memory, all views of one row of windows at a time."""
    within = replace(settings, crop_size=None, stride=None, memory="device")
    forward = _on_device(model, settings, device, device)

    def all_views(windows: Tensor) -> Tensor:
        return predict_scores(forward, windows.to(device), None, within)

    rows = [answer(scores) for scores in slide_rows(all_views, images, settings)]
    return tuple(torch.cat(parts, -2) for parts in zip(*rows, strict=True))


def _on_device(
    model: Model, settings: Prediction, device: torch.device, home: torch.device
) -> Model:
    """The model for images in ``home``: run on ``device``, under autocast if so set.

    Windows must come back at their size, to be laid beside one another.
    """
    half = getattr(torch, settings.precision) if settings.precision != "float32" else None

    def forward(images: Tensor) -> Tensor:
        with torch.autocast(device.type, half) if half else nullcontext():
            logits = model(images.to(device))
        logits = logits.float() if half else logits
        if settings.crop_size is not None:
            logits = resize_logits(logits, _size(images))
        return logits.to(home)

    return forward


@torch.no_grad()
def evaluate(
    model: Model,
    batches: Iterable[Mapping[str, Any]],
    label_set: LabelSet,
    device: torch.device | str = "cpu",
    save_to: Path | None = None,
    settings: Prediction = WHOLE,
    observe: Observe | None = None,
) -> SegmentationScores:
    """Scores of a model over a whole set, labels at their own size.

    In a group of processes (`torch.distributed`) each gives its own batches, and all of them get
    the scores of all: the confusion matrices are added up at the end, and nothing is exchanged
    before, so the numbers of batches may differ.

    Args:
        model: Maps images (N, 3, H, W) to logits (N, C, H, W), in evaluation mode.
        batches: Dictionaries of "image" (N, 3, H, W), "mask" (N, h, w) of train ids, and "name".
        label_set: Its classes, categories and `ignore_index`.
        device: Where the model is.
        save_to: Folder for one PNG of label ids per image, named after it; None writes none.
        settings: How each image is predicted.
        observe: Sees each batch too: names, classes, their probabilities, true classes.
    """
    device = torch.device(device)
    answer = _classes if observe is None else _classes_and_confidence(settings)
    confusion = torch.zeros(2 * (label_set.num_classes,), dtype=torch.int64, device=device)
    moved = ("image", "mask") if settings.memory == "device" else ("mask",)
    for batch in ahead(batches, moved, device):
        mask = batch["mask"].to(torch.uint8)
        found = _answer(model, batch["image"], _size(mask), settings, device, answer)
        predicted, *confidence = (part.to(device) for part in found)
        confusion += count_confusions(
            predicted, mask, label_set.num_classes, label_set.ignore_index
        )
        if observe is not None:
            observe(batch["name"], predicted, confidence[0], mask)
        if save_to is not None:
            for name, labels in zip(batch["name"], predicted, strict=True):
                save_label_ids(save_to / f"{name}.png", labels, label_set)
    confusion = confusion.cpu()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(confusion)
    return scores_from_confusion(confusion, label_set.categories)


def ahead(
    batches: Iterable[Mapping[str, Any]], names: Sequence[str], device: torch.device
) -> Iterator[dict[str, Any]]:
    """Batches with some of their tensors on the device.

    To a GPU each is copied while the one before is worked on, if it lies in pinned memory.

    Args:
        batches: Dictionaries.
        names: Of the tensors to be moved.
        device: Where to.
    """
    if device.type != "cuda":
        for batch in batches:
            yield {**batch, **{name: batch[name].to(device) for name in names}}
        return
    copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    held: dict[str, Any] | None = None
    for batch in batches:
        with torch.cuda.stream(copying):
            copies = {name: batch[name].to(device, non_blocking=True) for name in names}
        if held is not None:
            yield held
        working = torch.cuda.current_stream(device)
        working.wait_stream(copying)
        for copy in copies.values():
            copy.record_stream(working)
        held = {**batch, **copies}
    if held is not None:
        yield held


class OnnxModel:
    """The network in an ONNX file, run by onnxruntime, as a model for the functions above.

    Where the file fixes height and width, smaller images are padded by repeating their border,
    as the networks of this package do themselves; where it fixes the batch, batches are filled up.

    A file of tools/export.py may normalise images itself, and is then given pixels; one that gives
    classes (N, H, W) has a 1 for them and a 0 for the others in place of logits.

    Args:
        path: File with one input, images (N, 3, H, W), whose first output is logits (N, C, h, w);
            or a folder with such a ``model.onnx``.
        device: "cuda" asks for onnxruntime's CUDA provider.

    Raises:
        ValueError: If onnxruntime is not installed, or cannot read the file.
    """

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        path = path / "model.onnx" if path.is_dir() else path
        if not path.is_file():
            raise ValueError(f"cannot read {path} as an ONNX file: there is none")
        try:
            runtime = import_module("onnxruntime")
        except ImportError as error:
            raise ValueError(
                "ONNX files need onnxruntime, which is not installed; pip install onnxruntime"
            ) from error
        wanted = ["CPUExecutionProvider"]
        if torch.device(device).type == "cuda":
            wanted.insert(0, "CUDAExecutionProvider")
        available = runtime.get_available_providers()
        try:
            self.session = runtime.InferenceSession(
                path, providers=[name for name in wanted if name in available]
            )
        except Exception as error:  # onnxruntime's own types
            reason = " ".join(str(error).split())
            raise ValueError(f"cannot read {path} as an ONNX file ({reason})") from error
        self.path = path
        (given,) = self.session.get_inputs()
        self.input = given.name
        self.batch, _, *self.size = (n if isinstance(n, int) else None for n in given.shape)
        about = self.session.get_modelmeta().custom_metadata_map.get("segdeconv", "{}")
        self.about: dict[str, Any] = json.loads(about)

    @property
    def num_classes(self) -> int | None:
        """How many classes it tells apart; None if the file leaves that open."""
        if "num_classes" in self.about:
            return int(self.about["num_classes"])
        shape = self.session.get_outputs()[0].shape
        return shape[1] if len(shape) == 4 and isinstance(shape[1], int) else None

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of normalised images.

        Raises:
            ValueError: If images are larger than the file's own size.
        """
        shape = images.shape
        height, width = (own or given for own, given in zip(self.size, shape[-2:], strict=True))
        below, right = height - shape[-2], width - shape[-1]
        if below < 0 or right < 0:
            raise ValueError(
                f"{self.path} takes images of {height} x {width}, and one has {shape[-2]} x "
                f"{shape[-1]}; take sliding windows of its size: --slide --crop {height} {width}"
            )
        padded = F.pad(images, (0, right, 0, below), mode="replicate")
        batch = self.batch or shape[0]
        filled = padded[torch.arange(-(-shape[0] // batch) * batch) % shape[0]].cpu()
        parts = [self._run(part) for part in filled.reshape(-1, batch, *filled.shape[1:])]
        logits = resize_logits(torch.cat(parts)[: shape[0]], (height, width))
        return logits[..., : shape[-2], : shape[-1]].to(images.device)

    def _run(self, images: Tensor) -> Tensor:
        """Logits of one batch of the file's own size, on the CPU."""
        if "mean" in self.about:
            mean, std = (torch.tensor(self.about[name]).view(-1, 1, 1) for name in ("mean", "std"))
            images = images * std + mean
        output = torch.from_numpy(self.session.run(None, {self.input: images.numpy()})[0])
        if self.about.get("argmax"):
            return F.one_hot(output, self.about["num_classes"]).movedim(-1, 1).float()
        return output


def save_label_ids(path: Path, prediction: Tensor, label_set: LabelSet) -> None:
    """Write one prediction as an 8-bit grey PNG of label ids (not train ids).

    This is the file that cityscapesScripts and the Cityscapes server read.

    Args:
        path: File to write; its folder is made.
        prediction: Train ids, (H, W) integers.
        label_set: Where the label id of each train id stands.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(label_set.train_to_id[prediction.cpu().numpy()]).save(path)
