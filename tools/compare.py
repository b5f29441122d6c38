"""Put runs side by side: python tools/compare.py RUN_DIR RUN_DIR …."""

import sys
from pathlib import Path

from segdeconv.training.command_line import check_run, show_help
from segdeconv.training.mistakes import UsageError, loading, run_tool

HELP = """\
usage: python tools/compare.py RUN_DIR RUN_DIR [RUN_DIR …] [--out FILE]

Write an HTML page with several runs side by side: curves against epochs and seconds, scores and
their spread over seeds, differences of each class. Runs whose configs differ in the seed alone are
one group; the best batch-norm group is the reference, without one the first group.

  RUN_DIR                     folder of a run
  --out comparison.html       file to write; an earlier one is replaced

Example
  python tools/compare.py runs/unet_resnet18_batchnorm runs/unet_resnet18_deconv
"""


def main(arguments: list[str]) -> None:
    """Read the runs, write the page."""
    show_help(HELP, arguments or ["--help"])
    names, out = split(arguments)
    if len(names) < 2:
        raise UsageError("name two runs or more: python tools/compare.py RUN_DIR RUN_DIR …")
    folders = [Path(name) for name in names]
    for number, folder in enumerate(folders):
        check_run(folder)
        if folder.resolve() in [other.resolve() for other in folders[:number]]:
            raise UsageError(f"{folder} is named twice; name each run once")
    with loading():
        from segdeconv.report import read_run, render_comparison
        from segdeconv.training.run_folder import check_writable, write_new

    check_writable(out)
    write_new(out, render_comparison([read_run(folder) for folder in folders]))
    print(f"written to {out}")


def split(arguments: list[str]) -> tuple[list[str], Path]:
    """Names of runs, and the file to write."""
    names, out = [], "comparison.html"
    rest = iter(arguments)
    for argument in rest:
        if argument == "--out" or argument.startswith("--out="):
            out = argument[6:] if "=" in argument else next(rest, "")
            if not out.endswith(".html"):
                raise UsageError("--out needs a file of its own, such as --out comparison.html")
        elif argument.startswith("-"):
            raise UsageError(f"unknown option {argument}; --out FILE is the only one")
        else:
            names.append(argument)
    return names, Path(out)


if __name__ == "__main__":
    sys.exit(run_tool(main, output="--out"))
