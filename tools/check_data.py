"""Look at every file of a data set: python tools/check_data.py --config FILE."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from segdeconv.training.command_line import show_help, with_bases
from segdeconv.training.mistakes import UsageError, loading, run_tool

HELP = """\
usage: python tools/check_data.py --config FILE [--key value …]
       python tools/check_data.py --data.dataset NAME --data.root FOLDER [--key value …]

The data doctor: read every image and label map of a data set before hours are spent on it. It finds
files that are missing, damaged, of other sizes or formats, labels that mean nothing, images that
are there twice or in two splits, and masks that look wrong; it counts classes, sizes and ignored
pixels, and suggests class weights. It changes nothing. Exit code: 0 without errors (there may be
warnings), 1 with errors, 2 for a mistake in the command line.

  --config FILE               config of a run, as for tools/train.py
  --data.dataset camvid       cityscapes, camvid, folder, synthetic
  --data.root FOLDER          its folder
  --data.options '{…}'        its options, such as '{masks: "{split}/labels"}' for folder
  --splits train val          splits; default: those that the config trains and validates on
  --json FILE                 write everything, with all file names, as JSON
  --show 5                    files that are named for each finding
  --limit 500                 read only so many samples of each split, spread over it
  --workers 8                 processes that read; 0: this one; default: one per core

Examples
  python tools/check_data.py --config configs/folder_example.yaml --data.root my_streets
  python tools/check_data.py --data.dataset camvid --data.root data/camvid --splits train val test
  python tools/check_data.py --data.dataset cityscapes --json cityscapes.json && echo sound

  --help-all                  every key with its meaning and default
  --debug                     show the traceback of an error
"""


def main(arguments: list[str]) -> None:
    """Parse, look, report."""
    show_help(HELP, arguments or ["--help"])
    list(with_bases(arguments))  # can all configs be read?
    with loading():
        from segdeconv.data.doctor import check_splits
        from segdeconv.data.doctor_text import report_text
        from segdeconv.data.workers import usable_cores
        from segdeconv.training.cli import ConfigParser
        from segdeconv.training.ranges import check_ranges
        from segdeconv.training.run_folder import check_writable, write_new

    parser = ConfigParser()
    parser.add_argument("--splits", type=str, nargs="+", help="splits; default: the config's two")
    parser.add_argument("--json", type=str | None, help="file for everything that is found")
    parser.add_argument("--show", type=int, default=5, help="files named for each finding")
    parser.add_argument("--limit", type=int | None, help="samples of each split; null: all")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="processes that read")
    config = parser.read(arguments)
    if config.task != "segmentation":
        raise UsageError(
            f"this tool is for segmentation, and the config is of task {config.task}; "
            "tools/train.py looks at its data when it starts"
        )
    numbers = {name: config[name] for name in ("show", "limit", "workers")}
    check_ranges("", numbers, show="0 or more", limit="1 or more", workers="0 or more")
    if config.json:
        check_writable(Path(config.json))
    data = parser.instantiate(config).data
    report = check_splits(
        lambda split, unpaired: data.open(split, None, unpaired=unpaired),
        list(dict.fromkeys(config.splits or data.splits.values())),
        config.workers,
        config.limit,
        show_progress,
    )
    print(report_text(report, config.show))
    if config.json:
        about = {"dataset": data.dataset, "root": data.root, "options": data.options}
        path = Path(config.json)
        write_new(path, json.dumps({"data": about, **report.to_dict()}, indent=1) + "\n")
        print(f"\nwritten to {path}")
    warnings = len(report.findings) - report.errors
    if report.errors:
        raise ValueError(
            f"errors in the data: {report.errors}, warnings: {warnings}; all of them are above"
        )
    print(f"\nno errors; warnings: {warnings}")


def show_progress(looks: Iterable[Any], count: int, split: str) -> Iterable[Any]:
    """A bar, where there is a terminal."""
    bar: Iterable[Any] = tqdm(looks, total=count, desc=split, unit=" samples", disable=None)
    return bar


if __name__ == "__main__":
    sys.exit(run_tool(main, output="--json"))
