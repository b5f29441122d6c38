"""Look at predictions before they are uploaded: python tools/check_submission.py FOLDER."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from segdeconv.training.command_line import show_help
from segdeconv.training.mistakes import UsageError, loading, run_tool

HELP = """\
usage: python tools/check_submission.py FOLDER [--key value …]

Look at a folder of predictions for the Cityscapes server: one PNG for each image, its name, its
size, 8 bit grey, and label ids in it, not train ids, which cityscapesScripts scores without a word.
It changes nothing. Exit code: 0 if the folder can be uploaded, 1 if not, 2 for a mistake in the
command line.

  FOLDER                      the predictions, in any sub-folders, as tools/eval.py
                              --save-predictions and tools/predict.py --write ids write them
  --split test                split of the data set that they are for
  --data.root FOLDER          Cityscapes itself; default: the environment's CITYSCAPES_DATASET

Example
  python tools/eval.py last --split test --save-predictions predictions
  python tools/check_submission.py predictions --data.root data/cityscapes

  --help-all                  every key with its meaning and default
  --debug                     show the traceback of an error
"""


def main(arguments: list[str]) -> None:
    """Parse, look, report."""
    show_help(HELP, arguments or ["--help"])
    options = arguments if arguments[0].startswith("-") else arguments[1:]
    if options == arguments and "--help-all" not in options:
        raise UsageError(
            "name the folder of predictions first: python tools/check_submission.py FOLDER"
        )
    with loading():
        from segdeconv.data.cityscapes import Cityscapes
        from segdeconv.data.submission import check_submission
        from segdeconv.training.cli import ConfigParser

    parser = ConfigParser()
    parser.add_argument("--split", type=str, default="test", help="split of the data set")
    config = parser.read(["--data.dataset", "cityscapes", *options])
    if config.data.dataset != "cityscapes":
        raise UsageError(f"this tool is for data.dataset cityscapes, not {config.data.dataset}")
    samples: Cityscapes = parser.instantiate(config).data.open(config.split, None)
    found = check_submission(Path(arguments[0]), samples, show_progress)
    print(found)
    for remark in found.remarks:
        print(f"remark: {remark}")
    for problem in found.problems:
        print(f"wrong: {problem}")
    if found.problems:
        raise ValueError(
            f"{arguments[0]} is no submission for split {config.split}; what is wrong is above"
        )
    print(f"nothing wrong was found; {arguments[0]} can be uploaded")


def show_progress(names: Sequence[str]) -> Iterable[str]:
    """A bar, where there is a terminal."""
    bar: Iterable[str] = tqdm(names, desc="predictions", unit="file", disable=None)
    return bar


if __name__ == "__main__":
    sys.exit(run_tool(main))
