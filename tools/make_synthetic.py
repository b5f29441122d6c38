"""Write synthetic street scenes to disk in the Cityscapes layout."""

import argparse
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from segdeconv.training.mistakes import loading

DESCRIPTION = """\
Write synthetic street scenes to disk in the Cityscapes layout, 19 classes and void.
The same seed gives the same files, whatever the number of workers.

  python tools/make_synthetic.py --out data/synthetic
  python tools/make_synthetic.py --out /tmp/small --train 200 --val 50 --size 256 512
  python tools/train.py --config FILE --data.dataset cityscapes --data.root data/synthetic
"""


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one sentence."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where help is."""
        self.exit(2, f"error: {message}; --help lists the options\n")


def whole_number(text: str) -> int:
    """A count from the command line: 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 0 or more")
    return int(text)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    count = {"type": whole_number, "metavar": "N"}
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder to write to; made if it is not there")
    add("--train", default=2000, help="training scenes (default: 2000)", **count)
    add("--val", default=200, help="validation scenes (default: 200)", **count)
    add("--test", default=0, help="test scenes, without labels (default: 0)", **count)
    add(
        "--size",
        type=whole_number,
        nargs=2,
        default=(512, 1024),
        metavar=("HEIGHT", "WIDTH"),
        help="pixels (default: 512 1024; Cityscapes itself has 1024 2048)",
    )
    add("--seed", default=0, help="another seed gives other streets (default: 0)", **count)
    add(
        "--workers",
        default=os.cpu_count() or 1,
        help="processes that draw; 0: draw in this one (default: one per core)",
        **count,
    )
    add(
        "--overwrite",
        action="store_true",
        help="write into a folder that is not empty; synthetic scenes in it are removed first",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Parse, write; the exit code."""
    given = parse(arguments)
    with loading():
        from segdeconv.data.synthetic.files import plan_jobs, prepare_folder, write_all

    counts = {split: getattr(given, split) for split in ("train", "val", "test")}
    done, jobs = 0, []
    try:
        jobs = plan_jobs(given.out, counts, given.seed, given.size)
        if not jobs:
            raise ValueError("nothing to write: --train, --val and --test are all 0")
        prepare_folder(given.out, given.overwrite)
        with closing(write_all(jobs, given.workers)) as written:
            for _ in tqdm(written, total=len(jobs), unit=" scenes"):
                done += 1
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: cannot write to {given.out}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"stopped after {done} of {len(jobs)} scenes; what is in {given.out} is whole, and "
            f"--overwrite starts anew",
            file=sys.stderr,
        )
        return 130
    print(f"{len(jobs)} scenes written to {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
