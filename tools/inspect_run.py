"""Show what whitening does in a trained network: python tools/inspect_run.py RUN_DIR."""

import sys
from pathlib import Path

from segdeconv.training.command_line import check_run, last_given, take_names
from segdeconv.training.mistakes import UsageError, loading, run_tool

HELP = """\
usage: python tools/inspect_run.py RUN_DIR [--against RUN_DIR] [--key value …]

Show what goes into the layers of a trained network, on some validation images: the filters of the
first layer, correlations and spectra before and after whitening, the gain of each direction, zeros,
effective receptive fields. Writes a page, its numbers as JSON, and a section of the run's report.
Runs with batch norms are shown too, without what whitening adds.

  RUN_DIR                     folder of a run, or of a published model, or "last"
  --against RUN_DIR           another run on the same data, such as its batch-norm twin, beside it
  --images 16                 validation images, evenly spread over the split
  --layers GLOB …             layers to draw, such as '*layer1*conv1' (all are in the table);
                              default: the first, the last and two between them
  --checkpoint best           best, last, or a file of weights (.safetensors, .ckpt)
  --device auto               cpu, cuda, cuda:1, …; auto takes a GPU if there is one
  --out FILE.html             the page; its JSON lies beside it. Default: inspect.html in RUN_DIR,
                              of a published model beside its folder, in RUN_DIR_results
  --data.root FOLDER          and any other key of the run's config

Examples
  python tools/inspect_run.py runs/unet_resnet18_deconv
  python tools/inspect_run.py runs/unet_resnet18_deconv --against runs/unet_resnet18_batchnorm

  --help-all                  every key with its meaning and default
  --debug                     show the traceback of an error
"""


def main(arguments: list[str]) -> None:
    """Parse, inspect, print and write."""
    usage = "name the folder of a run first: python tools/inspect_run.py RUN_DIR"
    run, _, options = take_names(HELP, arguments, usage)
    against, _ = last_given(options, "against", None)
    if against not in (None, "last"):
        check_run(Path(str(against)))
    with loading():
        from segdeconv.report.layer_table import text_table
        from segdeconv.training.cli import ConfigParser
        from segdeconv.training.inspection import inspect_run, write_inspection
        from segdeconv.training.run_folder import check_writable, results_folder

    parser = ConfigParser()
    add = parser.add_argument
    add("--against", type=str | None, help="another run on the same data")
    add("--images", type=int, default=16, help="validation images")
    add("--layers", type=str, nargs="+", help="globs of the layers to draw")
    add("--checkpoint", type=str, default="best", help="best, last, or a file")
    add("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, …")
    add("--out", type=str | None, help="the page")
    folder, config = parser.open_run(run, options)
    page = Path(config.out or results_folder(folder) / "inspect.html")
    if page.suffix != ".html":
        raise UsageError(f"--out {page}: expected a page, such as --out inspect.html")
    check_writable(page)
    found = inspect_run(parser, config, folder)
    written = write_inspection(found, page, None if config.out else folder / "report.html")
    print(text_table(found))
    print("\n".join(written))


if __name__ == "__main__":
    sys.exit(run_tool(main, output="--out"))
