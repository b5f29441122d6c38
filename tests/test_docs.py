"""What the docs name exists: tests, files, options, and names of the whitening code."""

import re
from pathlib import Path

import pytest

from segdeconv.training.cli import ConfigParser
from segdeconv.training.tasks import TASKS

ROOT = Path(__file__).resolve().parent.parent
DOCS = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]
TESTS = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
LAYERS = "\n".join(
    path.read_text()
    for folder in ("whitening", "operators")
    for path in sorted((ROOT / "segdeconv" / folder).glob("*.py"))
)


def quoted(doc):
    return set(re.findall(r"`([^`\n]+)`", doc.read_text()))


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.name)
def test_every_test_that_a_page_names_exists(doc):
    named = {name for name in quoted(doc) if re.fullmatch(r"test_\w+", name)}
    assert {name for name in named if f"def {name}(" not in TESTS} == set()


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.name)
def test_every_file_that_a_page_names_exists(doc):
    folders = "benchmarks|configs|docs|segdeconv|tests|tools"
    named = {name for name in quoted(doc) if re.fullmatch(rf"({folders})/[\w./-]*", name)}
    assert {name for name in named if not (ROOT / name).exists()} == set()


@pytest.fixture(scope="module")
def options():
    """Every option of the tools and benchmarks, and every key of a configuration."""
    programs = [*(ROOT / "tools").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    programs.append(ROOT / "segdeconv" / "training" / "command_line.py")
    known = {name for path in programs for name in re.findall(OPTION, path.read_text())}
    keys = {key for task in TASKS for key in ConfigParser()._keys(task)}
    groups = {key.rpartition(".")[0] for key in keys}
    return known | {f"--{key}" for key in keys | groups}


OPTION = r"(?<![\w-])--[a-z][\w.-]*\w"
OF_OTHERS = {"--nproc_per_node", "--strict", "--check"}  # of torchrun, mkdocs and ruff


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.name)
def test_every_option_that_a_page_names_exists(doc, options):
    named = {name for code in quoted(doc) for name in re.findall(OPTION, code)} - OF_OTHERS
    below = re.compile(r"--(data|model)\.(options|operator_options|arch_options)\.")
    unknown = {name for name in named if name not in options and not below.match(name)}
    assert unknown == set()


def test_the_mathematics_names_code_that_exists():
    page = quoted(ROOT / "docs" / "network-deconvolution.md")
    private = {name for name in page if re.fullmatch(r"_[a-zA-Z]\w+|[a-z]+_[a-z_]+", name)}
    private -= {name for name in private if name.startswith("test_")}
    assert {name for name in private if not re.search(rf"\b{name}\b", LAYERS)} == set()
