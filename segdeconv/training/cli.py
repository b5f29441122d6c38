"""From a command line and YAML files to a typed configuration, and one sentence for a mistake.

The constructors are the schema: a key of a config is an argument of the dataclass or class that
stands for its group, with its type and its docstring. A config may name others in ``base`` (paths
relative to itself); they are read before it, several ``--config`` in their order, and what is on
the command line comes last.
"""

import os
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
from segdeconv.training.ranges import check_ranges
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
        skip = set(signature(Trainer).parameters) - TRAINER_KEYS.keys()
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
        return self.read(["--config", str(folder / "config.yaml"), *changes])

    def write(self, config: Namespace) -> str:
        """The whole configuration as YAML, to be read again."""
        return str(self.parser.dump(config, skip_unset=False, skip_validation=True))

    def _check_keys(self, arguments: Sequence[str]) -> None:
        """Refuse a key that does not exist, naming the nearest one that does."""
        known = [key for key in self.parser.get_defaults().keys() if key != "config"]
        for key, value, source in _given_keys(arguments):
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
    given = _load(path).get("base") or []
    bases = given if isinstance(given, list) else [given]
    for base in bases:
        if not isinstance(base, str):
            raise UsageError(f"{path}: base names {base!r}; expected a file, or a list of files")
        yield from _chain(path.parent / base, (*users, path))
    yield path


class _EachKeyOnce(yaml.SafeLoader):
    """YAML whose mappings have each key once; PyYAML takes the last one in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                problem = f"the key {key.value} stands twice in one group"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _load(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(), _EachKeyOnce)  # a SafeLoader
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


def _given_keys(arguments: Sequence[str]) -> Iterator[tuple[str, Any, str]]:
    """Each dotted key that is given, what a file gives it, and where it stands."""
    previous = ""
    for argument in arguments:
        if previous == "--config":
            for key, value in _leaves(_load(Path(argument))):
                yield key, value, argument
        elif argument.startswith("--") and argument != "--":
            yield argument[2:].split("=")[0].rstrip("+"), {}, "command line"
        previous = argument


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, name + ".")
        else:
            yield name, value


def _one_sentence(message: str) -> str:
    """The parser's report of a wrong value, without its inner structure."""
    lines = [line.strip().lstrip("- ") for line in message.splitlines() if line.strip()]
    key = re.match(r'Parser key "(.+?)"', lines[0])
    if key and "Unable to load config" in message:
        return f"{key.group(1)} is a group of keys; give one of them, such as --{key.group(1)}.KEY"
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

    A mistake is a ``ValueError``, an ``OSError``, what Lightning calls a misconfiguration, or
    whatever a library raises when the user's values reach it. What this package raises otherwise is
    our own mistake and keeps its traceback. ``--debug``, or SEGDECONV_DEBUG=1 in the environment,
    shows all tracebacks.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given or bool(os.environ.get("SEGDECONV_DEBUG"))
    try:
        tool([argument for argument in given if argument != "--debug"])
    except RunStopped as stopped:
        print(f"stopped; {stopped}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("stopped at once", file=sys.stderr)
        return 130
    except Exception as error:
        expected = isinstance(error, MISTAKES)
        if not expected and not _out_of_a_library(error):
            error.add_note("This is a mistake in segdeconv; please report it with these lines.")
            raise
        if debug:
            traceback.print_exc()
        hint = "" if expected or debug else " (--debug shows where)"
        print(f"error: {sentence(error)}{hint}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


MISTAKES = (ValueError, OSError, MisconfigurationException, torch.OutOfMemoryError)


def _out_of_a_library(error: Exception) -> bool:
    """Whether the function that raised ``error`` is an installed package's, and not ours."""
    if isinstance(error, AssertionError):
        return False
    path = traceback.extract_tb(error.__traceback__)[-1].filename
    if "worker process" in str(error):  # raised again; the text holds the worker's traceback
        path = re.findall(r'File "(.+?)", line', str(error))[-1]
    return "site-packages" in path and not Path(path).is_relative_to(Path(__file__).parents[1])


def sentence(error: BaseException) -> str:
    """What to tell the user; out of a loader's process, the sentence below its traceback."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of GPU memory; lower data.batch_size or data.crop_size"
    text = str(error).strip()
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename}: {error.strerror}"
    if text.startswith("Caught ") and "worker process" in text:
        text = text.splitlines()[-1].split(": ", 1)[-1]
    text = " ".join(text.split())
    if not isinstance(error, MISTAKES):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) < 400 else f"{text[:400]} …"
