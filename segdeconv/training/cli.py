"""From a command line and YAML files to a typed configuration.

The constructors are the schema: a key of a config is an argument of the dataclass or class that
stands for its group, with its type and its docstring. The groups model, data and loss are those of
the config's `task` (see `segdeconv.training.tasks`). A config may name others in ``base`` (paths
relative to itself); they are read before it, several ``--config`` in their order, and what is on
the command line comes last.
"""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from lightning.pytorch import Trainer

from segdeconv.models.pretrained import is_exported, is_pretrained
from segdeconv.training.command_line import given_keys, last_given, with_bases
from segdeconv.training.mistakes import UsageError
from segdeconv.training.optimization import OptimizerOptions, ScheduleOptions
from segdeconv.training.publishing import run_arguments
from segdeconv.training.ranges import check_ranges
from segdeconv.training.run_folder import find_run
from segdeconv.training.tasks import TASKS

TRAINER_KEYS = {  # of Lightning's Trainer, with the range of those that are numbers
    "accelerator": None,
    "strategy": None,
    "devices": None,
    "num_nodes": "1 or more",
    "precision": None,
    "max_epochs": "1 or more, or -1 for no limit",
    "max_steps": "1 or more, or -1 for no limit",
    "max_time": None,
    "limit_train_batches": "above 0",
    "limit_val_batches": "0 or more",
    "val_check_interval": "above 0",
    "check_val_every_n_epoch": "1 or more",
    "num_sanity_val_steps": "-1 or more",
    "log_every_n_steps": "1 or more",
    "accumulate_grad_batches": "1 or more",
    "gradient_clip_val": "0 or more",
    "gradient_clip_algorithm": None,
    "deterministic": None,
    "benchmark": None,
    "detect_anomaly": None,
}
OUTER_KEYS = {
    "seed": "0 to 4294967295",
    "threads": "1 or more",
    "save_every_n_steps": "0 or more",
    "ema_decay": "0 to 1",
}
# To Lightning 2 is two batches and 0.5 half of them, 1 is one batch and 1.0 all of them. Its own
# annotation does not say which is tried first: typing keeps one Optional[Union[...]] for all orders
# of its members, whichever library made it first, and where float is first 1 becomes 1.0.
LIMIT_KEYS = ("limit_train_batches", "limit_val_batches")
OTHER_KEYS = {"config", "print_config"}
DEFAULT_TASK = "segmentation"  # of the runs that were made before there were others


class ConfigParser:
    """The parser of a run's configuration; ``--help-all`` prints every key."""

    def __init__(self) -> None:
        self._parsers: dict[str, ArgumentParser] = {}
        self._more: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def add_argument(self, *names: Any, **options: Any) -> None:
        """Add a key of one tool, as jsonargparse's `add_argument` does."""
        self._more.append((names, options))
        self._parsers.clear()

    def of(self, task: str) -> ArgumentParser:
        """The parser with the groups of a task."""
        if task not in self._parsers:
            self._parsers[task] = make_parser(task)
            for names, options in self._more:
                self._parsers[task].add_argument(*names, **options)
        return self._parsers[task]

    def instantiate(self, config: Namespace) -> Namespace:
        """The configuration with the objects that its groups describe."""
        return self.of(config.task).instantiate(config)  # type: ignore[no-any-return]

    def read(self, arguments: Sequence[str]) -> Namespace:
        """The configuration that the arguments describe.

        Raises:
            UsageError: If a key, a value or a file is wrong.
        """
        arguments = list(with_bases(arguments))
        task = _task_of(arguments)
        if "--help-all" in arguments:
            self.of(task).print_help()
            raise SystemExit(0)
        self._check_keys(arguments, task)
        try:
            config = self.of(task).parse_args(arguments)
        except ArgumentError as error:
            raise UsageError(_one_sentence(error.message)) from error
        for group, keys in (("", OUTER_KEYS), ("trainer", TRAINER_KEYS)):
            ranges = {name: words for name, words in keys.items() if words}
            values = config[group] if group else config
            check_ranges(group, values.as_dict(), **ranges)
        del config["base"]
        return config

    def read_run(self, folder: Path, changes: Sequence[str] = ()) -> Namespace:
        """The configuration of the run in ``folder``, and what the arguments ``changes`` change.

        Raises:
            UsageError: If a key, a value or a file is wrong.
        """
        return self.read([*run_arguments(folder), *changes])

    def open_run(
        self, run: str, changes: Sequence[str], task: str | None = None
    ) -> tuple[Path, Namespace]:
        """The folder of the run that is called ``run``, and its configuration with the changes.

        Args:
            run: A folder, or "last".
            changes: Arguments of the command line.
            task: The only task whose runs are of use; None: any.

        Raises:
            ValueError: If there is no such run, or a key, a value or a file is wrong.
        """
        if "--help-all" in changes:
            self.read(changes)
        # not by reading the changes: they may be of keys that only the run's own task has
        output_dir, _ = last_given(list(with_bases(changes)), "output_dir", "runs")
        folder = find_run(Path(str(output_dir)), run)
        own, _ = last_given(run_arguments(folder), "task", DEFAULT_TASK)
        if task not in (None, own):
            weights = folder if is_pretrained(folder) else folder / "weights.safetensors"
            start = f", and tools/train.py --model.weights {weights} starts from its encoder"
            raise UsageError(
                f"{folder} is a run of task {own}, and this tool is for {task}; tools/eval.py "
                f"takes both{'' if is_exported(folder) else start}"
            )
        given, source = last_given(list(with_bases(changes)), "task", own)
        if given != own:
            raise UsageError(
                f"{source}: task is {given!r}, but {folder} is a run of task {own}, which cannot "
                "change; leave it out"
            )
        return folder, self.read_run(folder, changes)

    def write(self, config: Namespace) -> str:
        """The whole configuration as YAML, to be read again."""
        return str(self.of(config.task).dump(config, skip_unset=False, skip_validation=True))

    def _keys(self, task: str) -> list[str]:
        return [key for key in self.of(task).get_defaults().keys() if key != "config"]

    def _check_keys(self, arguments: Sequence[str], task: str) -> None:
        """Refuse a key that does not exist, naming the nearest one that does."""
        known = self._keys(task)
        for key, value, source in given_keys(arguments):
            is_group = any(name.startswith(key + ".") for name in known)
            if is_group and not isinstance(value, Mapping):
                what = "nothing" if value is None else repr(value)
                raise UsageError(
                    f"{source}: {key} is a group of keys and holds {what}; give keys below it, "
                    "or take it out"
                )
            if not (is_group or _is_key(key, known)):
                raise UsageError(f"{source}: unknown key {key}; {self._hint(key, task)}")

    def _hint(self, key: str, task: str) -> str:
        """What a user may have meant by a key that the task does not have."""
        for other in TASKS:
            if other != task and _is_key(key, self._keys(other)):
                return f"it is one of task {other}, and this is task {task}"
        known = self._keys(task)
        near = get_close_matches(key, known, n=1, cutoff=0.5) or _same_leaf(key, known)
        return f"did you mean {near[0]}?" if near else "--help-all lists all keys"


def make_parser(task: str) -> ArgumentParser:
    """The parser of a run's configuration.

    Args:
        task: Row of `segdeconv.training.tasks.TASKS`, which gives the groups model, data and loss.
    """
    kind = TASKS[task]
    # not a subclass: jsonargparse makes parsers of the same type for values that are objects
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    add = parser.add_argument
    add("--config", action="config", help="YAML file; may be given several times")
    add("--base", type=str | list[str] | None, help="configs to read before this")
    add("--task", type=str, default=DEFAULT_TASK, help=", ".join(TASKS))
    add("--name", type=str | None, help="name of the run's folder")
    add("--output_dir", type=str, default="runs", help="folder of all runs")
    add("--seed", type=int, default=0, help="of weights, order, augmentations")
    add(
        "--threads",
        type=int | None,
        help="processor threads that calculate; null: torch's choice, which is every core",
    )
    add("--check_data", type=bool, default=True, help="look at files first")
    add("--write_report", type=bool, default=True, help="report.html at the end of training")
    add(
        "--ema_decay",
        type=float | None,
        help="decay per step of averaged weights, such as 0.999; null: no average is kept",
    )
    add(
        "--save_every_n_steps",
        type=int,
        default=0,
        help="also save last.ckpt each so many optimiser steps; 0: after validations only",
    )
    parser.add_class_arguments(kind.model, "model")
    parser.add_class_arguments(kind.data, "data")
    parser.link_arguments("seed", "data.seed")
    parser.add_class_arguments(kind.loss, "loss")
    parser.add_class_arguments(OptimizerOptions, "optimizer")
    parser.add_class_arguments(ScheduleOptions, "schedule")
    skip = set(signature(Trainer).parameters) - TRAINER_KEYS.keys() | set(LIMIT_KEYS)
    parser.add_class_arguments(Trainer, "trainer", skip=skip, instantiate=False)
    for key in LIMIT_KEYS:
        add(f"--trainer.{key}", type=int | float | None, help="batches: 2; a share of them: 0.5")
    return parser


def _is_key(key: str, known: Sequence[str]) -> bool:
    """Whether a key, or one that it lies below, is known."""
    parts = key.replace("-", "_").split(".")
    starts = [".".join(parts[: end + 1]) for end in range(len(parts))]
    return key in OTHER_KEYS or any(start in known for start in starts)


def _task_of(arguments: Sequence[str]) -> str:
    """The task that the arguments and the configs among them give.

    Raises:
        UsageError: If there is no such task.
    """
    task, source = last_given(arguments, "task", DEFAULT_TASK)
    if task not in TASKS:
        raise UsageError(f"{source}: task is {task!r}; expected one of {', '.join(TASKS)}")
    return str(task)


def _same_leaf(key: str, known: Sequence[str]) -> list[str]:
    leaves = {name.rsplit(".", 1)[-1]: name for name in known}
    near = get_close_matches(key.rsplit(".", 1)[-1], leaves, n=1)
    return [leaves[leaf] for leaf in near]


def _one_sentence(message: str) -> str:
    """The parser's report of a wrong value, without its inner structure."""
    lines = [line.strip().lstrip("- ") for line in message.splitlines() if line.strip()]
    key = re.match(r'Parser key "(.+?)"', lines[0])
    if key is None:
        return " ".join(lines)
    name = key.group(1)
    if "Unable to load config" in message:
        return f"{name} is a group of keys; give one of them, such as --{name}.KEY"
    for line, reason in pairwise(lines):
        if line.startswith("Problem with given class_path"):
            type_name = line.split("'")[1]
            return f"{name}: {type_name}: {reason}"
    wanted, given = _wanted_and_given(lines)
    if not wanted:
        return " ".join(lines)
    return f"{name}: expected {' or '.join(wanted)}" + (f", got {given}" if given else "")


def _wanted_and_given(lines: Sequence[str]) -> tuple[list[str], str]:
    """Types that the parser would have taken, each once, and the value that it was given."""
    wanted, given = [], ""
    for line in lines:
        if line.startswith("Expected"):
            want, _, value = line.removeprefix("Expected ").partition(". Got value: ")
            want = re.sub(r"^an? (?:<class ')?(?:typing\.)?([^'>]+(?:'.*)??)(?:'>)?$", r"\1", want)
            wanted.append(re.sub(r"^Literal\[(.*)\]$", r"one of \1", want))
            given = value or given
        elif line.startswith("Given value:"):
            given = line.removeprefix("Given value:").strip()
    return [want for want in dict.fromkeys(wanted) if want != "NoneType"], given
