"""From a command line and YAML files to a typed configuration.

The constructors are the schema: a key of a config is an argument of the dataclass or class that
stands for its group, with its type and its docstring. A config may name others in ``base`` (paths
relative to itself); they are read before it, several ``--config`` in their order, and what is on
the command line comes last.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from lightning.pytorch import Trainer

from segdeconv.training.data_module import SegmentationData
from segdeconv.training.mistakes import UsageError
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
OTHER_KEYS = {"config", "print_config"}


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
