"""Put a run together from its configuration, and train it."""

import json
import logging
import shutil
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from segdeconv.models.pretrained import is_exported
from segdeconv.operators.whitened_layer import WhitenedLayer
from segdeconv.training.averaging import AveragedWeights
from segdeconv.training.base_data import RunData
from segdeconv.training.base_task import Task
from segdeconv.training.callbacks import FiniteLoss, SeedEachStep, StopRequest
from segdeconv.training.cli import ConfigParser
from segdeconv.training.mistakes import RunStopped
from segdeconv.training.progress import Progress
from segdeconv.training.recording import SaveRun
from segdeconv.training.reporting import report_training
from segdeconv.training.resume import check_changes, check_complete, finished
from segdeconv.training.run_folder import (
    WholeCheckpointIO,
    check_fit,
    create_run_folder,
    read_checkpoint,
    weights_in,
    write_environment,
    write_whole,
)
from segdeconv.training.tasks import TASKS

# Remarks that ask for nothing: our loaders choose their workers, and are resumable.
QUIET = (
    "does not have many workers",
    "is smaller than the logging interval",
    "your dataloader is not resumable",
    "in eval mode at the start of training",
    "Checkpoint directory",
    "LeafSpec",
    "recommended to use .self.log",  # with sync_dist: what is logged is summed by torchmetrics
    "compute.. method of metric MeanMetric was called before",
    "a tuple is serialized as list",  # jsonargparse's, of transforms in config.yaml
)


def default_name(config: Namespace) -> str:
    """Name of a run that was given none, such as "unet_resnet18_deconv"."""
    return config.name or TASKS[config.task].run_name(config).replace("/", "-")


def train(parser: ConfigParser, config: Namespace, earlier: Path | None = None) -> Path:
    """Train as ``config`` says, and leave everything in a folder (see `run_folder`).

    Args:
        parser: What read the configuration.
        config: The whole configuration.
        earlier: Folder of a run to go on with, from its last checkpoint; None: a new run.

    Returns:
        The run's folder. A run that fails before its first step leaves none, and a resumed one
        is as it was.

    Raises:
        ValueError: If the configuration asks for what cannot be.
        RunStopped: If the user stopped the run; its state is saved.
    """
    hush()
    if earlier and is_exported(earlier):
        raise ValueError(
            f"{earlier} holds a folded network, to run and not to train; name the run it came from"
        )
    if earlier and not (earlier / "config.yaml").is_file():
        raise ValueError(
            f"{earlier} holds a model and no run to go on with; start one from its weights with "
            f"--model.weights {earlier}"
        )
    if config.trainer.max_epochs is None and config.trainer.max_steps == -1:
        raise ValueError("nothing says how long to train; give trainer.max_epochs or max_steps")
    last = earlier / "checkpoints" / "last.ckpt" if earlier else None
    checkpoint: dict[str, Any] = {}
    if earlier and last:
        checkpoint = read_checkpoint(last)
        check_complete(checkpoint, earlier)
        check_changes(parser.read_run(earlier), config, earlier)
        if where := finished(checkpoint, config.trainer):
            print(
                f"nothing to do: {earlier} finished at {where}; to train on, give a larger "
                "trainer.max_epochs or max_steps"
            )
            return earlier
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    built = parser.instantiate(config)
    task = build_task(built)
    if last:
        check_fit(task.network, weights_in(checkpoint), last)
        checkpoint.clear()  # Lightning reads it again; this one would be held for the whole run
    folder = earlier or new_folder(config)
    record = SaveRun(folder, StopRequest(), config.save_every_n_steps)
    try:
        trainer = make_trainer(config, (DescribeRun(folder, parser, config), record))
        fit(trainer, task, built.data, record, last)
    except BaseException:
        if not earlier and not record.began and is_first_process():
            shutil.rmtree(folder)  # a start that failed is no run
        raise
    if config.write_report and is_first_process():
        report_training(folder, task.network, built.data, trainer.strategy.root_device)
    return folder


def fit(
    trainer: Trainer,
    task: Task,
    data: RunData,
    record: SaveRun,
    last: Path | None = None,
) -> None:
    """Train, from the checkpoint ``last`` if given, to the end or until the user stops it.

    Raises:
        RunStopped: If the user stopped it; its state is saved.
        ValueError: If several processes are to train weights that have no part in the output.
    """
    try:
        with record.stop.listening():
            trainer.fit(task, data, ckpt_path=last, weights_only=True)
            if record.recorded_step != trainer.global_step and trainer.limit_val_batches != 0:
                # the last step was none that Lightning validates after, or that was broken off
                trainer.validate(task, data, verbose=False)
    except RunStopped:
        raise RunStopped(
            f"step {trainer.global_step} is saved; go on with: "
            f"python tools/train.py --resume {quote(str(record.folder))}"
        ) from None
    except SystemExit:  # what Lightning makes of a KeyboardInterrupt
        raise KeyboardInterrupt from None
    except RuntimeError as error:
        if record.stop.made and "DataLoader worker" in str(error):  # the signal went to all
            raise KeyboardInterrupt from None
        if "find_unused_parameters" not in str(error):
            raise
        raise ValueError(
            "some weights have no part in the network's output, which several processes do not "
            "bear; give --trainer.strategy ddp_find_unused_parameters_true"
        ) from error


def build_task(built: Namespace) -> Task:
    """The network with all that trains it, from the instantiated configuration."""
    if built.check_data and is_first_process():
        check_data(built.data)
    torch.manual_seed(built.seed)
    return TASKS[built.task].build(built)


def is_first_process() -> bool:
    """Whether this process is the one that writes; known before the others are connected."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def new_folder(config: Namespace) -> Path:
    """A new folder for the run; only the first process makes it, as only that one writes."""
    output_dir, name = Path(config.output_dir), default_name(config)
    return create_run_folder(output_dir, name) if is_first_process() else output_dir / name


def make_trainer(config: Namespace, writers: tuple["DescribeRun", SaveRun]) -> Trainer:
    """Lightning's trainer with our callbacks; those that write come last."""
    callbacks: list[Callback] = [SeedEachStep(config.seed), FiniteLoss(), Progress()]
    if config.ema_decay is not None:
        callbacks.append(AveragedWeights(config.ema_decay))
    folder = writers[0].folder
    return Trainer(
        **config.trainer.as_dict(),
        callbacks=[*callbacks, *writers],
        logger=TensorBoardLogger(folder, name="", version="tensorboard"),
        plugins=[WholeCheckpointIO()],
        default_root_dir=folder,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class DescribeRun(Callback):
    """Write what a run is when its training begins, and say it in a few lines.

    Args:
        folder: The run's folder.
        parser: What read the configuration.
        config: The whole configuration.
    """

    def __init__(self, folder: Path, parser: ConfigParser, config: Namespace) -> None:
        self.folder, self.parser, self.config = folder, parser, config

    def on_train_start(self, trainer: Trainer, task: Any) -> None:
        """Write and say it."""
        if trainer.is_global_zero:
            self._write(task.network)
            for line in self._remarks(trainer, task.network):
                print(line)

    def _write(self, network: Any) -> None:
        write_whole(self.folder / "config.yaml", self.parser.write(self.config))
        write_environment(self.folder, self.config.seed)
        report = network.surgery_report
        write_whole(self.folder / "surgery.txt", f"{report}\n")
        write_whole(self.folder / "surgery.json", json.dumps(report.to_dict(), indent=1) + "\n")
        if network.weights_report is not None:
            write_whole(self.folder / "start_weights.txt", f"{network.weights_report}\n")

    def _remarks(self, trainer: Trainer, network: Any) -> Iterator[str]:
        millions = sum(p.numel() for p in network.parameters()) / 1e6
        name = default_name(self.config)
        yield f"{name}: {millions:.1f} M parameters; everything goes to {self.folder}"
        if network.weights_report is not None:
            yield f"weights: {network.weights_report}"
        steps, warmup = trainer.estimated_stepping_batches, self.config.schedule.warmup_steps
        if warmup >= steps:
            yield f"note: the warm-up of {warmup} steps does not end in this run of {steps}"
        if trainer.world_size > 1 and any(isinstance(m, WhitenedLayer) for m in network.modules()):
            yield (
                "note: each process whitens with the statistics of its own images, and those of "
                "the first process are kept"
            )


def check_data(data: RunData) -> None:
    """Read some samples of both splits before hours are spent on them.

    Raises:
        ValueError: If something is wrong with one.
    """
    for name, samples in (("training", data.train_set), ("validation", data.val_set)):
        problems = data.problems(samples)
        if problems:
            more = f" (and {len(problems) - 1} more problems)" if problems[1:] else ""
            raise ValueError(f"{name} data: {problems[0]}{more}")


def hush() -> None:
    """Leave out what Lightning says about itself."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for words in QUIET:
        warnings.filterwarnings("ignore", message=f"(?s).*{words}")
    threading.excepthook = _thread_failed


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """TensorBoard raises again, in the main thread, what its writer ran into: a full disk."""
    if type(failure.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(failure)
