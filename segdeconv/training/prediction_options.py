"""Options of the command line that evaluation and prediction share: with what, where and how."""

from typing import Any

from jsonargparse import Namespace

from segdeconv.inference import TTA_SCALES, Prediction


def add_prediction_options(parser: Any) -> None:
    """Add the options of `segdeconv.training.command_line.PREDICTION_HELP` to a `ConfigParser`."""
    usual = Prediction()
    add = parser.add_argument
    add("--checkpoint", type=str, default="best", help="best, last, or a file")
    add("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, …")
    add("--onnx", type=str | None, help="ONNX file in place of the weights")
    add("--tta", action="store_true", help="scales 0.5 to 1.75 and mirror images")
    add("--scales", type=float, nargs="+", help="sizes at which images are seen")
    add("--flip", action="store_true", help="see images mirrored, too")
    add("--slide", action="store_true", help="predict by sliding windows")
    add("--crop", type=int, nargs=2, help="height and width of the windows")
    add("--stride", type=int, nargs=2, help="distance between windows, down and across")
    add("--blend", type=str, default=usual.blend, help="uniform, smooth")
    add("--tile-batch", type=int, default=usual.tile_batch, help="windows per forward")
    add("--precision", type=str, default=usual.precision, help="float32, bfloat16, float16")
    add("--memory", type=str, default=usual.memory, help="device, cpu, rows")


def prediction_of(config: Namespace) -> Prediction:
    """What the options say; windows are as large as the run's training crop if nothing is said.

    Raises:
        ValueError: If they contradict one another.
    """
    crop = config.crop or (config.data.crop_size if config.slide else None)
    if config.slide and crop is None:
        raise ValueError("--slide: this run trained on whole images; give --crop HEIGHT WIDTH")
    of_windows = {
        "crop": config.crop,
        "stride": config.stride,
        "blend smooth": config.blend == "smooth",
        "memory rows": config.memory == "rows",
    }
    given = [option for option, value in of_windows.items() if value]
    if given and not config.slide:
        raise ValueError(f"--{given[0]} is for sliding windows; give --slide too")
    scales = config.scales or (TTA_SCALES if config.tta else (1.0,))
    return Prediction(
        crop_size=tuple(crop) if crop else None,
        stride=tuple(config.stride) if config.stride else None,
        blend=config.blend,
        scales=tuple(scales),
        flip=config.flip or config.tta,
        precision=config.precision,
        tile_batch=config.tile_batch,
        memory=config.memory,
    )


def short_name(settings: Prediction) -> str:
    """Part of a file's name for results of ``settings``; empty for plain whole images."""
    parts = []
    if settings.crop_size is not None:
        parts.append("slide{}x{}".format(*settings.crop_size))
        if settings.stride is not None:
            parts.append("every{}x{}".format(*settings.stride))
        if settings.blend != "uniform":
            parts.append(settings.blend)
    if settings.scales == TTA_SCALES and settings.flip:
        parts.append("tta")
    else:
        if settings.scales != (1.0,):
            parts.append("scales" + "-".join(f"{scale:g}" for scale in settings.scales))
        if settings.flip:
            parts.append("flip")
    if settings.memory == "rows" and len(settings.views) > 1:
        parts.append("rows")
    if settings.precision != "float32":
        parts.append(settings.precision)
    return "_".join(parts)
