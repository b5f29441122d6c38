"""Export the network of a run: python tools/export.py RUN_DIR."""

import sys
from pathlib import Path
from typing import Any

from segdeconv.training.command_line import take_names
from segdeconv.training.mistakes import UsageError, loading, run_tool

HELP = """\
usage: python tools/export.py RUN_DIR [--key value …]

Write the network of a run, a classifier or one that segments, for others to run, or its encoder
for others to train. Statistics are folded into plain convolutions. Each file is compared with the
network on random images at once; one that differs by more than rounding is an error, and leaves
nothing behind.

  RUN_DIR                     folder of a run, or "last" for the newest in --output_dir
  --what network              encoder, or pretrained: the whole network as it is, to go on training
                              or to publish, with a model card (the Hugging Face layout)
  --out FOLDER                new folder for the files; default: RUN_DIR/WHAT; of a published
                              model beside its folder, RUN_DIR_results/WHAT
  --overwrite                 replace an earlier export
  --checkpoint best           best, last, or a file of weights (.safetensors, .ckpt)

Of a network
  --formats safetensors onnx program
                              folded weights; an ONNX file; a torch.export program
  --argmax                    ONNX file and program give classes in place of logits
  --normalize                 they take pixels 0 to 255 in place of normalised images
  --size HEIGHT WIDTH         they take this size only; default: any number and size of images

Of an encoder: model.safetensors with the names of torchvision's, timm's or smp's own; of a
classifier that is everything but its last layer
  --unfolded                  the run's own layers, to go on training with the same operator

Examples
  python tools/export.py runs/unet_resnet18_deconv
  python tools/export.py last --formats onnx --argmax --normalize --out deploy
  python tools/export.py runs/classifier --what encoder --unfolded --out my_encoder
  python tools/train.py --config configs/quickstart.yaml --model.weights my_encoder
  python tools/export.py last --what pretrained --out my_model

  --help-all                  every key with its meaning and default
  --debug                     show the traceback of an error
"""

KINDS = ("network", "encoder", "pretrained")


def main(arguments: list[str]) -> None:
    """Parse, export, report."""
    usage = "name the folder of a run first: python tools/export.py RUN_DIR"
    run, _, options = take_names(HELP, arguments, usage)
    with loading():
        from segdeconv.export import FORMATS, export_encoder, export_network, export_pretrained
        from segdeconv.training.cli import ConfigParser
        from segdeconv.training.evaluation import checkpoint_path, load_classifier, load_network
        from segdeconv.training.prediction import choose_label_set
        from segdeconv.training.publishing import about_run
        from segdeconv.training.run_folder import check_writable, results_folder

    parser = ConfigParser()
    add = parser.add_argument
    add("--what", type=str, default="network", help="network, encoder, pretrained")
    add("--out", type=str | None, help="new folder for the files")
    add("--overwrite", action="store_true", help="replace an earlier export")
    add("--checkpoint", type=str, default="best", help="best, last, or a file")
    add("--formats", type=str, nargs="+", help="of a network; null: all of them")
    add("--argmax", action="store_true", help="classes in place of logits")
    add("--normalize", action="store_true", help="take pixels 0 to 255")
    add("--size", type=int, nargs=2, help="the only height and width")
    add("--unfolded", action="store_true", help="the run's own layers")
    folder, config = parser.open_run(run, options)
    check_options(config)
    out = Path(config.out or results_folder(folder) / config.what)
    if out.resolve() == folder.resolve():
        raise UsageError(f"--out {out} is what is exported; name another folder")
    check_writable(out, folder=True)
    built = parser.instantiate(config)
    path, normalization = checkpoint_path(folder, config.checkpoint), built.data.mean_and_std()
    model: Any
    classes: Any
    if config.task == "classification":
        classes, model = built.data.label_set, load_classifier(built, path)
    else:
        classes = choose_label_set(config.data, None, folder)
        model = load_network(built.model, classes, path)
    model.about = about_run(config, folder, classes, normalization)
    if config.what == "pretrained":
        checks = [export_pretrained(model, out, overwrite=config.overwrite)]
    elif config.what == "encoder":
        checks = [
            export_encoder(
                model,
                out,
                folded=not config.unfolded,
                normalization=normalization,
                overwrite=config.overwrite,
            )
        ]
    else:
        checks = export_network(
            model,
            out,
            formats=list(FORMATS) if config.formats is None else config.formats,
            argmax=config.argmax,
            normalize=config.normalize,
            size=tuple(config.size) if config.size else None,
            overwrite=config.overwrite,
        )
    for check in checks:
        print(check)
    print(f"written to {out}")


def check_options(config: Any) -> None:
    """Refuse options that would have no effect."""
    if config.what not in KINDS:
        raise UsageError(f"--what {config.what}: expected one of {', '.join(KINDS)}")
    given = [name for name in ("formats", "argmax", "normalize", "size") if config[name]]
    if config.what != "network" and given:
        raise UsageError(f"--{given[0]} is for --what network; the others have weights only")
    if config.what != "encoder" and config.unfolded:
        other = "--what pretrained writes the whole network unfolded"
        raise UsageError(f"--unfolded is for --what encoder; {other}")


if __name__ == "__main__":
    sys.exit(run_tool(main, output="--out"))
