"""From a command line and YAML files to a typed configuration.

The constructors are the schema: a key of a config is an argument of the dataclass or class that
stands for its group, with its type and its docstring. A config may name others in ``base`` (paths
relative to itself); they are read before it, several ``--config`` in their order, and what is on
the command line comes last.
"""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from inspect import signature
from itertools import pairwise
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from lightning.pytorch import Trainer

from segdeconv.training.command_line import given_keys, with_bases
from segdeconv.training.data_module import SegmentationData
from segdeconv.training.mistakes import UsageError
from segdeconv.training.optimization import OptimizerOptions, ScheduleOptions
from segdeconv.training.publishing import run_arguments
from segdeconv.training.ranges import check_ranges
from segdeconv.training.run_folder import find_run
from segdeconv.training.task import LossOptions, NetworkOptions

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
OTHER_KEYS = {"config", "print_config"}


class ConfigParser:
    """The parser of a run's configuration; ``--help-all`` prints every key."""

    def __init__(self) -> None:
        # not a subclass: jsonargparse makes parsers of the same type for values that are objects
        self.parser = ArgumentParser(exit_on_error=False, add_help=False)
        self.add_argument = self.parser.add_argument
        self.instantiate = self.parser.instantiate
        self.add_argument("--config", action="config", help="YAML file; may be given several times")
        self.add_argument("--base", type=str | list[str] | None, help="configs to read before this")
        self.add_argument("--name", type=str | None, help="name of the run's folder")
        self.add_argument("--output_dir", type=str, default="runs", help="folder of all runs")
        self.add_argument("--seed", type=int, default=0, help="of weights, order, augmentations")
        self.add_argument(
            "--threads",
            type=int | None,
            help="processor threads that calculate; null: torch's choice, which is every core",
        )
        self.add_argument("--check_data", type=bool, default=True, help="look at files first")
        self.add_argument(
            "--ema_decay",
            type=float | None,
            help="decay per step of averaged weights, such as 0.999; null: no average is kept",
        )
        self.add_argument(
            "--save_every_n_steps",
            type=int,
            default=0,
            help="also save last.ckpt each so many optimiser steps; 0: after validations only",
        )
        self.parser.add_class_arguments(NetworkOptions, "model")
        self.parser.add_class_arguments(SegmentationData, "data")
        self.parser.link_arguments("seed", "data.seed")
        self.parser.add_class_arguments(LossOptions, "loss")
        self.parser.add_class_arguments(OptimizerOptions, "optimizer")
        self.parser.add_class_arguments(ScheduleOptions, "schedule")
        skip = set(signature(Trainer).parameters) - TRAINER_KEYS.keys()
        self.parser.add_class_arguments(Trainer, "trainer", skip=skip, instantiate=False)

    def read(self, arguments: Sequence[str]) -> Namespace:
        """The configuration that the arguments describe.

        Raises:
            UsageError: If a key, a value or a file is wrong.
        """
        if "--help-all" in arguments:
            self.parser.print_help()
            raise SystemExit(0)
        arguments = list(with_bases(arguments))
        self._check_keys(arguments)
        try:
            config = self.parser.parse_args(arguments)
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

    def open_run(self, run: str, changes: Sequence[str]) -> tuple[Path, Namespace]:
        """The folder of the run that is called ``run``, and its configuration with the changes.

        Raises:
            ValueError: If there is no such run, or a key, a value or a file is wrong.
        """
        folder = find_run(Path(self.read(changes).output_dir), run)
        return folder, self.read_run(folder, changes)

    def write(self, config: Namespace) -> str:
        """The whole configuration as YAML, to be read again."""
        return str(self.parser.dump(config, skip_unset=False, skip_validation=True))

    def _check_keys(self, arguments: Sequence[str]) -> None:
        """Refuse a key that does not exist, naming the nearest one that does."""
        known = [key for key in self.parser.get_defaults().keys() if key != "config"]
        for key, value, source in given_keys(arguments):
            is_group = any(name.startswith(key + ".") for name in known)
            if is_group and not isinstance(value, Mapping):
                what = "nothing" if value is None else repr(value)
                raise UsageError(
                    f"{source}: {key} is a group of keys and holds {what}; give keys below it, "
                    "or take it out"
                )
            parts = key.replace("-", "_").split(".")
            starts = [".".join(parts[: end + 1]) for end in range(len(parts))]
            if is_group or any(start in known for start in starts) or key in OTHER_KEYS:
                continue
            near = get_close_matches(key, known, n=1, cutoff=0.5) or _same_leaf(key, known)
            hint = f"; did you mean {near[0]}?" if near else "; --help-all lists all keys"
            raise UsageError(f"{source}: unknown key {key}{hint}")


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
