"""Graft a batch-norm network: python tools/graft.py RUN_DIR --out FOLDER."""

import sys
from pathlib import Path

from segdeconv.training.command_line import show_help, with_bases
from segdeconv.training.mistakes import UsageError, loading, run_tool

HELP = """\
usage: python tools/graft.py RUN_DIR --out FOLDER [--key value …]
       python tools/graft.py --config FILE --model.weights FILE --out FOLDER [--key value …]

Turn a trained batch-norm network into one with whitening layers that computes the same, to train it
on. The statistics come from training images. Weights of an encoder alone, such as those of
torchvision or timm, are enough: the rest of the network is then new.

  RUN_DIR                     folder of a run with batch norms, or "last"
  --config FILE               or the config of the run to come, and in --model.weights the file of
                              a batch-norm network (.safetensors, .pth)
  --out FOLDER                new folder for model.safetensors, config.yaml and report.txt
  --images 64                 training images to take the statistics from
  --checkpoint best           best, last, or a file of weights, of RUN_DIR
  --model.operator deconv     the operator to graft; with a config, that of the config
  --model.operator_options '{block: 16}'

Examples
  python tools/graft.py runs/unet_resnet18_batchnorm --out grafted
  python tools/graft.py --config configs/camvid/unet_resnet18_cpu_deconv.yaml \\
      --model.weights resnet18.pth --out grafted
  python tools/train.py --config grafted/config.yaml --optimizer.lr 0.05

  --help-all                  every key with its meaning and default
  --debug                     show the traceback of an error
"""


def main(arguments: list[str]) -> None:
    """Parse, graft, report."""
    show_help(HELP, arguments or ["--help"])
    list(with_bases(arguments))  # can all configs be read?
    with loading():
        from segdeconv.training.cli import ConfigParser
        from segdeconv.training.evaluation import checkpoint_path
        from segdeconv.training.graft_run import check_parent, graft_run
        from segdeconv.training.run_folder import check_writable

    parser = ConfigParser()
    parser.add_argument("--out", type=str | None, help="new folder for the files")
    parser.add_argument("--images", type=int, default=64, help="to take the statistics from")
    parser.add_argument("--checkpoint", type=str, default="best", help="best, last, or a file")
    trained = None
    if arguments[0].startswith("-"):
        config = parser.read(arguments)
    else:
        folder, config = parser.open_run(arguments[0], arguments[1:], "segmentation")
        check_parent(parser, folder)
        trained = checkpoint_path(folder, config.checkpoint)
    if config.task != "segmentation":
        raise UsageError(
            "the config is of a classification; give that of the segmentation to come, and the "
            "classifier's weights in --model.weights"
        )
    if config.out is None:
        raise UsageError("give a new folder for the grafted network: --out FOLDER")
    out = Path(config.out)
    if out.exists():
        raise UsageError(f"{out} is there already; name a new folder with --out")
    check_writable(out, folder=True)
    images = config.images
    for key in ("out", "images", "checkpoint"):
        del config[key]
    report = graft_run(parser, config, images, out, trained)
    print(report)
    print(f"written to {out}; train it on with: python tools/train.py --config {out}/config.yaml")


if __name__ == "__main__":
    sys.exit(run_tool(main, output="--out"))
