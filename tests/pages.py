"""What the pages of the documentation tell a reader to type, and how the tests type it.

Every fence of README, docs/ and configs/README.md has a language. Shell commands are run as they
stand, Python is executed, in the order of the page and in one folder, on data sets of a few small
images; so what a test changes of them, or leaves out, stands in the tables below. Benchmarks
measure, and are asked for their options only; several processes are started by a slow test.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "configs/README.md"]

NOT_RUN = {  # beginning of a command -> why the tests do not run it
    "python3 -m venv": "installs; .ci/run does it in a fresh clone",
    "source activate": "changes the reader's own shell",
    "python -m pytest": "it runs these tests",
    "ruff ": "a step of .ci/run",
    "mypy": "a step of .ci/run",
    "mkdocs serve": "runs until it is stopped; tests/test_site.py builds the site",
    "mkdocs build": "tests/test_site.py does",
    "tensorboard ": "runs until it is stopped",
}

REPLACED = {  # in commands and Python: what would take a data set, a GPU, or minutes
    "--config FILE": "--config configs/quickstart.yaml",
    "/data/cityscapes": "data/cityscapes",
    "--train 100 --val 20": "--train 3 --val 2 --size 64 128 --workers 0",
    "--train 400 --val 40 --size 512 1024": "--train 4 --val 2 --size 64 128 --workers 0",
    "torch.randn(2, 3, 512, 1024)": "torch.randn(2, 3, 64, 96)",
    'encoder="resnet50"': 'encoder="resnet18"',
}

TRAIN = {
    "trainer.max_epochs": 1,
    "trainer.max_steps": 2,
    "trainer.accelerator": "cpu",
    "trainer.precision": 32,
    "data.num_workers": 0,
}
SEGMENT = {**TRAIN, "data.batch_size": 2, "data.crop_size": "[64, 64]", "write_report": "false"}
CLASSIFY = {**TRAIN, "data.batch_size": 2, "write_report": "false"}
SMALL = {  # what is put behind a training: part of its config's path -> keys
    "configs/quickstart": {
        **SEGMENT,
        "write_report": "true",
        "data.options": "{length: {train: 4, val: 2}, size: [64, 96]}",
    },
    "configs/folder": {**SEGMENT, "write_report": "true"},
    "configs/camvid": {**SEGMENT, "data.resize": "[32, 48]", "data.crop_size": "[32, 48]"},
    "configs/cityscapes": {
        **SEGMENT,
        "trainer.max_epochs": "null",
        "model.encoder": "tu-resnet10t",
        "name": "deeplabv3plus_resnet50_deconv",  # as with the encoder of the config
    },
    "configs/cifar10/resnet18": {**CLASSIFY, "data.batch_size": 20},
    "configs/cifar10/small": CLASSIFY,
    "configs/imagenet": {**CLASSIFY, "data.crop_size": 32, "model.name": "tu-test_resnet"},
    "runs/": {**TRAIN, "write_report": "false"},
    "grafted": {**SEGMENT, "data.crop_size": "[32, 48]"},
}
MORE = {  # what is put behind other tools
    "graft": ["--images", "2", "--data.num_workers", "0"],
    "reproduce": ["--dry-run"],
    "check_data": ["--workers", "0"],
    "inspect_run": ["--images", "2", "--data.num_workers", "0"],
    "predict": ["--data.num_workers", "0"],
    "eval": ["--data.num_workers", "0", "--report", "none"],  # drawing takes longer than scoring
}

PROGRAMS = "python3?|pip|torchrun|source|export|git|ruff|mypy|mkdocs|tensorboard|\\.ci/run"
COMMAND = re.compile(rf"\s*(\$ )?({PROGRAMS})( |$)")
FENCE = re.compile(r'^```(\w*)(?: title="(.+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:(?<=\n\n)|(?<=\A))(?: {4}.*\n)(?: {4}.*\n|\n(?= {4}))*")


@dataclass(frozen=True)
class Block:
    """A piece of a page: its language, the line it begins in, its text, the file that it is."""

    kind: str
    line: int
    text: str
    title: str | None = None


def blocks(page):
    """The fences of a page in their order, and its indented commands as fences of "bash"."""
    text = page.read_text()
    found = [
        Block(match[1], text[: match.start()].count("\n") + 1, match[3], match[2])
        for match in FENCE.finditer(text)
    ]
    rest = FENCE.sub(lambda match: "\n" * match[0].count("\n"), text)  # keeps the numbers of lines
    for match in INDENTED.finditer(rest):
        kind = "bash" if COMMAND.match(match[0]) else "text"
        found.append(Block(kind, rest[: match.start()].count("\n") + 1, match[0]))
    return sorted(found, key=lambda block: block.line)


def commands(text):
    """The commands of a shell block, one a line, without comments, as in an active environment."""
    joined = re.sub(r"(\\|(?<=&&))\n\s*", " ", text).replace(".venv/bin/", "")
    lines = [line.strip() for part in joined.splitlines() for line in part.split(" && ")]
    return [line for line in lines if shlex.split(line, comments=True)]


def replaced(text):
    """The text as the tests run it."""
    for old, new in REPLACED.items():
        text = text.replace(old, new)
    return text


def smaller(words):
    """What is put behind a command of tools/train.py so that it takes a second."""
    if "--resume" in words:
        return []
    config = words[words.index("--config") + 1]
    rows = [keys for part, keys in SMALL.items() if part in config]
    assert len(rows) == 1, f"{config}: exactly one row of SMALL in tests/pages.py is to fit"
    return [item for key, value in rows[0].items() for item in (f"--{key}", str(value))]
