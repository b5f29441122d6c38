"""Train a network: python tools/train.py --config configs/quickstart.yaml."""

import sys
from shlex import quote

from segdeconv.training.command_line import last_given, show_help, with_bases
from segdeconv.training.mistakes import UsageError, loading, run_tool

HELP = """\
usage: python tools/train.py --config FILE [--config FILE …] [--key value …]
       python tools/train.py --resume RUN_DIR|last [--key value …]

Train a network that segments or classifies. Later files win over earlier ones, the command line
over all.

  python tools/train.py --config configs/quickstart.yaml
  python tools/train.py --config configs/cifar10/resnet18_deconv.yaml --optimizer.lr 0.05

where it goes
  --output_dir runs         folder of all runs
  --name NAME               folder of this run in it; a taken name gets a number behind it
  --resume RUN_DIR|last     go on where a run stopped, in its folder
the network
  --task segmentation|classification  whose keys the groups model, data and loss have
  --model.arch unet         segmentation: decoder unet, deeplabv3plus, pspnet, fcn, …
  --model.encoder resnet50  its encoder, by its smp or timm name
  --model.name resnet18     classification: one of the paper's ten, torchvision's, tu-TIMM_NAME
  --model.operator deconv   deconv, batchnorm, groupnorm, …
  --model.operator_options '{block: 16}'
the data
  --data.dataset camvid     cityscapes, camvid, folder, synthetic; for classification cifar10,
                            cifar100, mnist, fashion_mnist, image_folder, webdataset
  --data.root FOLDER
  --data.batch_size 8       per process
  --data.crop_size '[512, 1024]'      --data.resize '[256, 512]'
the recipe
  --optimizer.lr 0.01       --optimizer.weight_decay 5e-4      --optimizer.name sgd|adamw
  --schedule.name poly|cosine|constant      --schedule.warmup_steps 500
  --loss.terms '{cross_entropy: 1, dice: 1}'
  --trainer.max_epochs 30   --trainer.max_steps 40000          --trainer.precision bf16-mixed
  --trainer.devices 2       --ema_decay 0.999                  --seed 0

  --help-all                every key with its meaning and default
  --print_config            the whole configuration that the arguments give, and stop
  --debug                   show the traceback of an error
"""

NO_CONFIG = "give a config: python tools/train.py --config configs/quickstart.yaml"


def main(arguments: list[str]) -> None:
    """Parse, train."""
    show_help(HELP, arguments)
    resume, _ = last_given(list(with_bases(arguments)), "resume", None)
    if not arguments:
        raise UsageError(NO_CONFIG)
    with loading():
        from segdeconv.training.cli import ConfigParser
        from segdeconv.training.run import train

    parser = ConfigParser()
    parser.add_argument("--resume", type=str | None, help="folder of a run to go on with, or last")
    earlier = None
    if resume:
        earlier, config = parser.open_run(resume, arguments)
    else:
        config = parser.read(arguments)
        if not config.config:
            raise UsageError(NO_CONFIG)
    del config["resume"]
    folder = train(parser, config, earlier)
    print(f"done; evaluate with: python tools/eval.py {quote(str(folder))}")


if __name__ == "__main__":
    sys.exit(run_tool(main, output="--output_dir"))
