"""Predict images and videos with the network of a run, and write pictures of what it sees."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jsonargparse import Namespace
from tqdm import tqdm

from segdeconv.data.folder import classes_file
from segdeconv.data.labels import CAMVID, CITYSCAPES, LabelSet, load_label_set
from segdeconv.data.media import Source, Video, find_sources, video_writer
from segdeconv.data.readers import ImageArray, LabelArray, read_image
from segdeconv.inference import Model, Prediction, predict
from segdeconv.models.pretrained import is_exported, is_pretrained
from segdeconv.pictures import colour_mask, encode, overlay, side_by_side
from segdeconv.training.cli import ConfigParser
from segdeconv.training.evaluation import open_network, pick_device
from segdeconv.training.prediction_options import prediction_of
from segdeconv.training.publishing import labels_of
from segdeconv.training.run_folder import check_writable, write_new

Read = TypeVar("Read")
Predictor = Callable[[ImageArray], LabelArray]

ENDINGS = {"colour": ".png", "overlay": ".jpg", "ids": ".png", "side": ".jpg"}
PALETTES = {"cityscapes": CITYSCAPES, "camvid": CAMVID}
LABEL_SETS = {**PALETTES, "synthetic": CITYSCAPES}  # of the data sets that have always the same


def predict_run(
    parser: ConfigParser, config: Namespace, folder: Path, inputs: Sequence[str]
) -> tuple[int, list[str]]:
    """Predict files with the network that ``config`` describes, and write what is asked for.

    Args:
        parser: What read the configuration.
        config: A run's configuration, with the options of tools/predict.py.
        folder: The run's folder.
        inputs: Images, videos, folders and patterns.

    Returns:
        Number of files that were done, and a sentence for each that could not be read.

    Raises:
        ValueError: If the options cannot work; nothing has been written then.
    """
    for kind in config.write:
        if kind not in ENDINGS:
            raise ValueError(f"--write {kind}: expected some of {', '.join(ENDINGS)}")
    out = Path(config.out)
    sources = find_sources(inputs, without=[out / kind for kind in ENDINGS])
    label_set = choose_label_set(config.data, config.palette, folder)
    writer = Writer(out, config.write, label_set, config.frames)
    if not config.overwrite:
        writer.check_new(sources)
    check_writable(out, folder=True)
    predictor = make_predictor(parser, config, folder, writer.label_set)
    problems = []
    for source in tqdm(sources, desc="predict", unit="file", disable=None):
        try:
            writer.write(source, predictor)
        except UnreadableError as error:
            problems.append(str(error))
    return len(sources) - len(problems), problems


class UnreadableError(ValueError):
    """An image or video that cannot be read, or not to its end."""


def choose_label_set(data: Namespace, palette: str | None, folder: Path) -> LabelSet:
    """Classes, colours and ids: the palette's, or the run's own, without a look at its data.

    Args:
        data: The run's group ``data``.
        palette: "cityscapes", "camvid", a classes file, or None.
        folder: The run's folder, or one of `save_pretrained`.

    Raises:
        ValueError: If the palette is of another number of classes than the run.
    """
    published = is_pretrained(folder) or is_exported(folder)
    own = labels_of(folder) if published else LABEL_SETS.get(data.dataset)
    if palette is not None:
        chosen = PALETTES.get(palette) or load_label_set(palette)
        if own is not None and own.num_classes != chosen.num_classes:
            raise ValueError(
                f"--palette {palette} has {chosen.num_classes} classes, and the run's network "
                f"{own.num_classes}; give one with as many"
            )
        return chosen
    if own is not None:
        return own
    if published:
        raise ValueError(f"{folder} does not name its classes; give --palette FILE")
    path = classes_file(data.root, (data.options or {}).get("classes"))
    if not path.is_file():
        raise ValueError(
            f"the run's classes file {path} is not here; give it, or a copy, as --palette FILE"
        )
    return load_label_set(path)


def make_predictor(
    parser: ConfigParser, config: Namespace, folder: Path, label_set: LabelSet
) -> Predictor:
    """A function from an image (H, W, 3) uint8 to its classes (H, W) uint8.

    Images are normalised, and resized, as in the run's validation.
    """
    settings, device = prediction_of(config), pick_device(config.device)
    built = parser.instantiate(config)
    model, _ = open_network(config, built, label_set, folder, device)
    return partial(predict_image, model, built.data.eval_transform(), settings, device)


def predict_image(
    model: Model, transform: Any, settings: Prediction, device: torch.device, image: ImageArray
) -> LabelArray:
    """Classes (H, W) uint8 of one image (H, W, 3) uint8, at its own size."""
    size = image.shape[:2]
    normalised = transform(image=image, mask=np.zeros(size, np.uint8))["image"]
    classes = predict(model, normalised[None], size, settings, device)
    return np.asarray(classes[0].to("cpu", torch.uint8))


class Writer:
    """Where results go: ``out/KIND/NAME.ending``, each written whole as soon as it is there.

    Args:
        out: Folder of all results.
        kinds: Some of `ENDINGS`.
        label_set: Colours and ids.
        frames: Write the kinds for each frame of a video, in ``out/KIND/NAME/``; a video of
            overlays, ``out/overlay/NAME.mp4``, is always written.
    """

    def __init__(
        self, out: Path, kinds: Sequence[str], label_set: LabelSet, frames: bool = False
    ) -> None:
        self.out, self.kinds, self.label_set, self.frames = out, kinds, label_set, frames

    def check_new(self, sources: Sequence[Source]) -> None:
        """Refuse to replace anything.

        Raises:
            ValueError: If a result is there already.
        """
        paths = [path for source in sources for path in self._paths(source) if path.exists()]
        if paths:
            raise ValueError(
                f"{len(paths)} results are there already (first: {paths[0]}); --overwrite replaces "
                "them, --out names another folder"
            )

    def write(self, source: Source, predictor: Predictor) -> None:
        """Predict one image or video and write its results.

        Raises:
            UnreadableError: If it cannot be read; of a video, results up to there are kept.
        """
        if source.is_video:
            self._write_video(source, predictor)
            return
        image = _read(read_image, source.path)
        self._write_pictures(source.name, image, predictor(image))

    def _paths(self, source: Source) -> Iterator[Path]:
        if source.is_video:
            yield self._video_path(source)
        for kind in self.kinds if self.frames or not source.is_video else ():
            ending = "" if source.is_video else ENDINGS[kind]
            yield self.out / kind / f"{source.name}{ending}"

    def _video_path(self, source: Source) -> Path:
        return self.out / "overlay" / f"{source.name}.mp4"

    def _write_video(self, source: Source, predictor: Predictor) -> None:
        video = _read(Video, source.path)
        bar = tqdm(_readable(video), source.name, video.length or None, leave=False, disable=None)
        with bar, video_writer(self._video_path(source), video.fps) as add:
            for number, frame in enumerate(bar):
                classes = predictor(frame)
                add(overlay(frame, classes, self.label_set))
                if self.frames:
                    self._write_pictures(f"{source.name}/{number:06}", frame, classes)

    def _write_pictures(self, name: str, image: ImageArray, classes: LabelArray) -> None:
        for kind in self.kinds:
            path = self.out / kind / f"{name}{ENDINGS[kind]}"
            write_new(path, encode(self._picture(kind, image, classes), path.suffix))

    def _picture(
        self, kind: str, image: ImageArray, classes: LabelArray
    ) -> ImageArray | LabelArray:
        if kind == "ids":
            return np.asarray(self.label_set.train_to_id[classes])
        colours = colour_mask(classes, self.label_set)
        if kind == "colour":
            return colours
        if kind == "side":
            return side_by_side(image, colours)
        return overlay(image, classes, self.label_set)


def _read(reader: Callable[[Path], Read], path: Path) -> Read:
    try:
        return reader(path)
    except ValueError as error:
        raise UnreadableError(str(error)) from error


def _readable(frames: Iterable[ImageArray]) -> Iterator[ImageArray]:
    try:
        yield from frames
    except ValueError as error:
        raise UnreadableError(str(error)) from error
