"""What can be said of a tool's command line before torch and Lightning are loaded.

They take seconds; help, a run that is not there and a config that cannot be read need none of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from segdeconv.training.mistakes import UsageError

PREDICTION_HELP = """\
  --checkpoint best           best, last, or a file of weights (.safetensors, .ckpt)
  --onnx FILE                 run this ONNX file instead of the weights (needs onnxruntime)
  --device auto               cpu, cuda, cuda:1, …; auto takes a GPU if there is one
  --tta                       scales 0.5 to 1.75 and mirror images; probabilities are averaged
  --scales 0.75 1 1.25        these scales; --flip for mirror images
  --slide                     sliding windows of the size of the training crop
  --crop 512 1024             their height and width
  --stride 341 682            from one to the next, down and across; default: 2/3 of the window
  --blend uniform             or smooth: how windows are weighted where they overlap
  --tile-batch 1              windows per forward, of each image
  --precision float32         or bfloat16, float16: autocast
  --memory device             or cpu: logits are added up in main memory; or rows: and only for one
                              row of windows at a time, for images of any size\
"""


def show_help(text: str, arguments: Sequence[str]) -> None:
    """Print ``text`` and end the program if the arguments ask for it."""
    if "--help" in arguments or "-h" in arguments:
        print(text, flush=True)
        raise SystemExit(0)


def take_names(
    text: str, arguments: Sequence[str], usage: str, inputs: bool = False
) -> tuple[str, list[str], list[str]]:
    """Take apart the arguments of a tool that begin with a run.

    Args:
        text: The tool's help, for those who ask for it or give no argument at all.
        arguments: All of them.
        usage: What to say when names are missing.
        inputs: Whether further names follow that of the run; at least one, then.

    Returns:
        The run ("" where only all keys are asked for), the other names, and the options.

    Raises:
        UsageError: If names are missing, or the run is not there.
    """
    show_help(text, arguments or ["--help"])
    names = list(takewhile(lambda argument: not argument.startswith("-"), arguments))
    options = list(arguments[len(names) :])
    if "--help-all" in options:
        return "", [], options
    if len(names) < 1 + inputs:
        raise UsageError(usage)
    if names[1:] and not inputs:
        raise UsageError(f"{names[1]}: expected one run and then options, which begin with --")
    if names[0] != "last":
        check_run(Path(names[0]))
    return names[0], names[1:], options


def check_run(folder: Path) -> None:
    """Look whether this is the folder of a run, or one of `save_pretrained` in place of one.

    Raises:
        ValueError: If it is not.
    """
    if any((folder / name).is_file() for name in ("config.yaml", "config.json")):
        return
    if folder.exists():
        raise ValueError(f"{folder} is not the folder of a run: it has no config.yaml")
    places = (folder.parent, Path("runs"))
    runs = {path.parent.name: path.parent for at in places for path in at.glob("*/config.yaml")}
    near = get_close_matches(folder.name, runs, n=1)
    hint = f"did you mean {runs[near[0]]}?" if near else "name one of tools/train.py, or last"
    raise ValueError(f"{folder} is not the folder of a run: there is none; {hint}")


def with_bases(arguments: Sequence[str]) -> Iterator[str]:
    """The arguments, with each config's bases in front of it.

    Raises:
        UsageError: If a config cannot be read.
    """
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
        known = [*path.parent.glob("*.yaml"), *Path("configs").rglob("*.yaml")]
        near = get_close_matches(str(path), map(str, known), n=1)
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


def given_keys(arguments: Sequence[str]) -> Iterator[tuple[str, Any, str]]:
    """Each dotted key that is given, what a file gives it, and where it stands."""
    previous = ""
    for argument in arguments:
        if previous == "--config":
            for key, value in _leaves(_load(Path(argument))):
                yield key, value, argument
        elif argument.startswith("--") and argument != "--":
            yield argument[2:].split("=")[0].rstrip("+"), {}, "command line"
        previous = argument


def last_given(arguments: Sequence[str], key: str, default: Any) -> tuple[Any, str]:
    """The value that counts of a key outside of all groups, and where it stands.

    Args:
        arguments: With the bases of all configs.
        key: Its name.
        default: What it is where nothing gives it.
    """
    value, source, previous = default, "", ""
    for argument in arguments:
        if previous == "--config":
            content = _load(Path(argument))
            value, source = (content[key], argument) if key in content else (value, source)
        elif previous == f"--{key}" or argument.startswith(f"--{key}="):
            value, source = argument.removeprefix(f"--{key}="), "command line"
        previous = argument
    return value, source


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, name + ".")
        else:
            yield name, value
