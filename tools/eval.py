"""Evaluate a trained network: python tools/eval.py RUN_DIR."""

import json
import sys
from pathlib import Path

from segdeconv.training.command_line import PREDICTION_HELP, take_names
from segdeconv.training.mistakes import loading, run_tool

HELP = f"""\
usage: python tools/eval.py RUN_DIR [--key value …]

Evaluate the network of a run, on whole images if nothing else is said, with the labels at their
original size. The run's config.yaml says what network it is; the weights file holds numbers only.
Of a classifier: top-1, top-5, loss, accuracy of each class; --split, --limit, --json, --checkpoint,
--device and --precision are for it too.

  RUN_DIR                     folder of a run, or "last" for the newest in --output_dir; or what
                              tools/export.py wrote of one
  --split val                 split of the data set
  --limit 10                  evaluate only the first images
  --save-predictions FOLDER   write a PNG of label ids for each image, of its own size, as the
                              Cityscapes server wants them, into a new or empty folder; also of a
                              split without labels (--split test), which gets no scores
  --official                  let cityscapesScripts score the PNGs, too, and show both, with its
                              iIoU where instanceIds lie beside the labels; for data in the
                              Cityscapes layout. Without --save-predictions the PNGs are temporary
  --json FILE                 where the scores go; default: RUN_DIR/eval_SPLIT_CHECKPOINT.json,
                              with _first10 behind it for --limit 10, _tta for --tta, …; of a
                              published model: beside its folder, in RUN_DIR_results
  --report FILE               an HTML page to look at; default: beside the scores; none: no page
{PREDICTION_HELP}
  --data.root FOLDER          and any other key of the run's config

In several processes, each of which takes its share of the images (and a GPU, if there are some):
  torchrun --nproc_per_node 2 tools/eval.py RUN_DIR

  --help-all                  every key with its meaning and default
  --debug                     show the traceback of an error
"""


def main(arguments: list[str]) -> None:
    """Parse, evaluate, print and write."""
    usage = "name the folder of a run first: python tools/eval.py RUN_DIR"
    run, _, options = take_names(HELP, arguments, usage)
    with loading():
        from segdeconv.training.cli import ConfigParser
        from segdeconv.training.evaluation import evaluate_run, result_name
        from segdeconv.training.prediction_options import add_prediction_options
        from segdeconv.training.processes import joined_processes
        from segdeconv.training.reporting import only_warning, write_report
        from segdeconv.training.run_folder import check_writable, results_folder, write_new

    parser = ConfigParser()
    parser.add_argument("--split", type=str | None, help="split; null: the validation split")
    parser.add_argument("--limit", type=int | None, help="number of images; null: all")
    parser.add_argument("--save-predictions", type=str | None, help="folder for label id PNGs")
    parser.add_argument("--official", action="store_true", help="score by cityscapesScripts, too")
    parser.add_argument("--json", type=str | None, help="file for the scores")
    add_prediction_options(parser)
    parser.add_argument("--report", type=str | None, help="HTML file; none: no report")
    folder, config = parser.open_run(run, options)
    place = results_folder(folder)
    check_writable(Path(config.json or place / "eval.json"))
    if config.report not in (None, "none"):
        check_writable(Path(config.report))
    with joined_processes() as rank:
        scores, record, evaluation = evaluate_run(parser, config, folder, rank)
    if rank > 0:
        return
    print(scores)
    if config.task == "segmentation":
        print(f"\n{record['images']} images of {record['split']}, each at its own size")
        print(f"predicted: {record['mode']}")
        if config.save_predictions:
            print(f"label ids of each image: {config.save_predictions}")
    else:
        print(f"\n{record['images']} images of {record['split']}, loss {record['loss']:.4f}")
    path = Path(config.json or place / result_name(record, config, parser.read_run(folder)))
    write_new(path, json.dumps(record, indent=1) + "\n")
    print(f"written to {path}")
    if config.report != "none":
        report = Path(config.report or path.with_suffix(".html"))
        with only_warning():
            write_report(report, folder, evaluation)
            print(f"report: {report}")
    if failed := record.get("official", {}).get("failed"):
        raise ValueError(f"there are no official figures: {failed}")


if __name__ == "__main__":
    sys.exit(run_tool(main, output="--json or --save-predictions"))
