"""Predict images and videos: python tools/predict.py RUN_DIR INPUT …."""

import sys

from segdeconv.training.command_line import PREDICTION_HELP, take_names
from segdeconv.training.mistakes import loading, run_tool

HELP = f"""\
usage: python tools/predict.py RUN_DIR INPUT [INPUT …] [--key value …]

Show what the network of a run sees on images and videos. Results are written one by one into
OUT/KIND/, named after their input; what cannot be read is left out, named at the end, and makes
the exit code 1. Nothing is replaced unless you say so.

  RUN_DIR                     folder of a run, or "last" for the newest in --output_dir; or what
                              tools/export.py wrote of one
  INPUT                       images, videos, folders (with sub-folders), patterns such as 'a/*.png'
  --out predictions           folder of the results
  --write overlay             some of: colour overlay ids side
                              colour: PNG in the colours of the classes; overlay: JPEG of the image
                              with them; ids: grey PNG of label ids; side: JPEG of image and colours
                              A video becomes a video of overlays
  --frames                    write the same for each frame of a video, too
  --palette FILE              names, colours and ids of the classes: cityscapes, camvid, or a file
                              like classes.yaml of your own data; default: the run's
  --overwrite                 replace earlier results
{PREDICTION_HELP}

Examples
  python tools/predict.py runs/unet_resnet18_deconv street.jpg
  python tools/predict.py last photos --out seen --write colour ids --tta
  python tools/predict.py last drive.mp4 --slide --crop 512 1024 --blend smooth

  --help-all                  every key with its meaning and default
  --debug                     show the traceback of an error
"""


def main(arguments: list[str]) -> None:
    """Parse, predict, report."""
    usage = "name the folder of a run, then images: python tools/predict.py RUN_DIR INPUT"
    run, inputs, options = take_names(HELP, arguments, usage, inputs=True)
    with loading():
        from segdeconv.training.cli import ConfigParser
        from segdeconv.training.prediction import predict_run
        from segdeconv.training.prediction_options import add_prediction_options

    parser = ConfigParser()
    parser.add_argument("--out", type=str, default="predictions", help="folder of the results")
    parser.add_argument("--write", type=str, nargs="+", default=["overlay"], help="kinds")
    parser.add_argument("--frames", action="store_true", help="frames of videos as images")
    parser.add_argument("--palette", type=str | None, help="cityscapes, camvid or a classes file")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier results")
    add_prediction_options(parser)
    folder, config = parser.open_run(run, options, task="segmentation")
    done, problems = predict_run(parser, config, folder, inputs)
    where = f", written to {config.out}" if done else ""
    print(f"{done} of {done + len(problems)} files predicted{where}")
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        print(f"left out:{listed}", file=sys.stderr)
        raise ValueError(f"{len(problems)} files could not be read; they are listed above")


if __name__ == "__main__":
    sys.exit(run_tool(main, output="--out"))
