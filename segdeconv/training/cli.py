"""From a command line and YAML files to a typed configuration, and one sentence for a mistake.

The constructors are the schema: a key of a config is an argument of the dataclass or class that
stands for its group, with its type and its docstring. A config may name others in ``base`` (paths
relative to itself); they are read before it, several ``--config`` in their order, and what is on
the command line comes last.
"""

import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from segdeconv.training.callbacks import RunStopped
from segdeconv.training.data_module import SegmentationData
from segdeconv.training.optimization import OptimizerOptions, ScheduleOptions
from segdeconv.training.task import LossOptions, NetworkOptions

TRAINER_KEYS = {
    "accelerator",
    "strategy",
    "devices",
    "num_nodes",
    "precision",
    "max_epochs",
    "max_steps",
    "max_time",
    "limit_train_batches",
    "limit_val_batches",
    "val_check_interval",
    "check_val_every_n_epoch",
    "num_sanity_val_steps",
    "log_every_n_steps",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "deterministic",
    "benchmark",
    "detect_anomaly",
}


class UsageError(ValueError):
    """A mistake in the command line or in a config."""


class ConfigParser:
    """The parser of a run's configuration, with a short help.

    Args:
        help_text: What ``--help`` prints; ``--help-all`` prints every key.
    """

    def __init__(self, help_text: str = "") -> None:
        self.help_text = help_text
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
        skip = set(signature(Trainer).parameters) - TRAINER_KEYS
        self.parser.add_class_arguments(Trainer, "trainer", skip=skip, instantiate=False)

    def read(self, arguments: Sequence[str]) -> Namespace:
        """The configuration that the arguments describe.

        Raises:
            UsageError: If a key, a value or a file is wrong.
        """
        if "--help" in arguments or "-h" in arguments:
            print(self.help_text)
            raise SystemExit(0)
        if "--help-all" in arguments:
            self.parser.print_help()
            raise SystemExit(0)
        arguments = list(_with_bases(arguments))
        self._check_keys(arguments)
        try:
            config = self.parser.parse_args(arguments)
        except ArgumentError as error:
            raise UsageError(_one_sentence(error.message)) from error
        del config["base"]
        return config

    def write(self, config: Namespace) -> str:
        """The whole configuration as YAML, to be read again."""
        return str(self.parser.dump(config, skip_unset=False, skip_validation=True))

    def _check_keys(self, arguments: Sequence[str]) -> None:
        """Refuse a key that does not exist, naming the nearest one that does."""
        known = [key for key in self.parser.get_defaults().keys() if key != "config"]
        for key, source in _given_keys(arguments):
            parts = key.replace("-", "_").split(".")
            starts = [".".join(parts[: end + 1]) for end in range(len(parts))]
            is_group = any(name.startswith(key + ".") for name in known)
            if is_group or any(start in known for start in starts) or key in OTHER_KEYS:
                continue
            near = get_close_matches(key, known, n=1, cutoff=0.5) or _same_leaf(key, known)
            hint = f"; did you mean {near[0]}?" if near else "; --help-all lists all keys"
            raise UsageError(f"{source}: unknown key {key}{hint}")


OTHER_KEYS = {"config", "print_config"}


def _same_leaf(key: str, known: Sequence[str]) -> list[str]:
    leaves = {name.rsplit(".", 1)[-1]: name for name in known}
    near = get_close_matches(key.rsplit(".", 1)[-1], leaves, n=1)
    return [leaves[leaf] for leaf in near]


def _with_bases(arguments: Sequence[str]) -> Iterator[str]:
    """The arguments, with each config's bases in front of it."""
    waiting = False
    for argument in arguments:
        if waiting or argument.startswith("--config="):
            for path in _chain(Path(argument.removeprefix("--config=")), ()):
                yield from ("--config", str(path))
            waiting = False
        elif argument == "--config":
            waiting = True
        else:
            yield argument
    if waiting:
        raise UsageError("--config needs a file, such as --config configs/quickstart.yaml")


def _chain(path: Path, users: tuple[Path, ...]) -> Iterator[Path]:
    """The config's bases, then the config."""
    if path in users:
        raise UsageError(f"{path} is its own base; take it out of `base`")
    bases = _load(path).get("base") or []
    for base in [bases] if isinstance(bases, str) else bases:
        yield from _chain(path.parent / base, (*users, path))
    yield path


def _load(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        near = get_close_matches(str(path), map(str, Path("configs").rglob("*.yaml")), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"no config {path}{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the config {path}: {error}") from error
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f", line {place.line + 1}" if place else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise UsageError(f"{path}{line}: {problem}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds no keys; a config looks like configs/quickstart.yaml")
    return content


def _given_keys(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each dotted key that is given, with where it stands."""
    previous = ""
    for argument in arguments:
        if previous == "--config":
            for key in _leaves(_load(Path(argument))):
                yield key, argument
        elif argument.startswith("--") and argument != "--":
            yield argument[2:].split("=")[0].rstrip("+"), "command line"
        previous = argument


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, name + ".")
        else:
            yield name


def _one_sentence(message: str) -> str:
    """The parser's report of a wrong value, without its inner structure."""
    lines = [line.strip().lstrip("- ") for line in message.splitlines() if line.strip()]
    key = re.match(r'Parser key "(.+?)"', lines[0])
    for line, reason in pairwise(lines):
        if key and line.startswith("Problem with given class_path"):
            name = line.split("'")[1]
            return f"{key.group(1)}: {name}: {reason}"
    wanted, given = [], ""
    for line in lines:
        if line.startswith("Expected"):
            want, _, value = line.removeprefix("Expected ").partition(". Got value: ")
            want = re.sub(r"^an? (?:<class ')?(?:typing\.)?([^'>]+(?:'.*)??)(?:'>)?$", r"\1", want)
            wanted.append(re.sub(r"^Literal\[(.*)\]$", r"one of \1", want))
            given = value or given
        elif line.startswith("Given value:"):
            given = line.removeprefix("Given value:").strip()
    wanted = [want for want in dict.fromkeys(wanted) if want != "NoneType"]
    if not key or not wanted:
        return " ".join(lines)
    return f"{key.group(1)}: expected {' or '.join(wanted)}" + (f", got {given}" if given else "")


def run_tool(tool: Callable[[list[str]], None], arguments: Sequence[str] | None = None) -> int:
    """Run ``tool`` and give the program's exit code: one sentence for a user's mistake.

    A mistake is a ``ValueError``, an ``OSError`` or what Lightning calls a misconfiguration;
    anything else is ours and keeps its traceback. ``--debug`` shows all tracebacks.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        tool([argument for argument in given if argument != "--debug"])
    except RunStopped as stopped:
        print(f"stopped; {stopped}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("stopped at once", file=sys.stderr)
        return 130
    except (ValueError, OSError, MisconfigurationException, torch.OutOfMemoryError) as error:
        if debug:
            traceback.print_exc()
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def sentence(error: BaseException) -> str:
    """What to tell the user; out of a loader's process, the sentence below its traceback."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of GPU memory; lower data.batch_size or data.crop_size"
    text = str(error).strip()
    if text.startswith("Caught ") and "worker process" in text:
        text = text.splitlines()[-1].split(": ", 1)[-1]
    return text or type(error).__name__
