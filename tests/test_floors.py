"""The floors stay floors: who may import whom, and what no file may speak of."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "segdeconv"
MODULES = sorted(PACKAGE.rglob("*.py"))

FLOORS = [  # bottom to top; a room imports from lower floors, and from files of its own folder
    {"registry", "tables"},  # below the rest
    {"whitening", "metrics", "losses"},
    {"operators", "data"},
    {"surgery", "inference", "pictures", "official", "analysis"},
    {"models", "grafting", "report"},
    {"export"},
    {"training"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# library -> the only places in the package that may know it
HOMES = {
    "lightning": "training/",
    "pytorch_lightning": "nowhere, it is called lightning",
    "jsonargparse": "training/",
    "albumentations": "data/transforms.py",
    "cityscapesscripts": "official.py",
}


def name_of(path):
    return path.relative_to(PACKAGE).as_posix()


def imports(source):
    """Every imported name, ``from a import b`` as ``a.b``; those inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            dots = "." * node.level
            yield from (f"{dots}{node.module or ''}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def trespasses(name, source):
    """What is wrong with the imports of the package's file ``name``, one sentence each."""
    room = name.split("/")[0].removesuffix(".py")
    if room != "__init__" and room not in FLOOR:
        yield f"{room} has no floor; add it to FLOORS"
        return
    for imported in imports(source):
        top, *rest = imported.split(".")
        if imported.startswith("."):
            yield f"{imported} is relative"
        elif top in HOMES and not name.startswith(HOMES[top]):
            yield f"{top} belongs to {HOMES[top]}"
        elif top == "segdeconv" and room != "__init__":
            other = rest[0] if rest else "__init__"
            if other not in FLOOR:
                yield f"{imported} comes from the package's __init__"
            elif other != room and FLOOR[other] >= FLOOR[room]:
                yield f"{room} (floor {FLOOR[room]}) may not import {other} (floor {FLOOR[other]})"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down(path):
    assert not list(trespasses(name_of(path), path.read_text()))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("metrics.py", "from segdeconv.models import create_model"),
        ("operators/deconv.py", "def f():\n    import segdeconv.data.labels"),
        ("surgery.py", "from segdeconv import Deconv2d"),
        ("surgery.py", "import segdeconv"),
        ("models/smp.py", "from .weights import load"),
        ("models/smp.py", "from . import weights"),
        ("data/camvid.py", "import albumentations as A"),
        ("inference.py", "from lightning.pytorch import Trainer"),
        ("attic.py", ""),
    ],
)
def test_this_would_be_noticed(name, source):
    assert list(trespasses(name, source))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("training/task.py", "import lightning\nfrom segdeconv.training.callbacks import EMA"),
        ("data/transforms.py", "import albumentations as A"),
        ("models/__init__.py", "from segdeconv import surgery\nimport segdeconv.registry"),
    ],
)
def test_this_is_allowed(name, source):
    assert not list(trespasses(name, source))


def test_every_folder_of_the_package_is_a_package():
    folders = {path.parent for path in MODULES}
    assert [name_of(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_package_itself_loads_none_of_the_heavy_libraries():
    heavy = "{'torch', 'lightning', 'timm', 'albumentations', 'segmentation_models_pytorch'}"
    code = f"import sys, segdeconv; print(sorted({heavy} & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert run.stdout.strip() == "[]"


def test_every_public_name_loads():
    import segdeconv

    assert [name for name in segdeconv.__all__ if not hasattr(segdeconv, name)] == []
    assert not hasattr(segdeconv, "no_such_name")


# Files speak of the project, not of a machine it lay on or of how it came about.
FOREIGN = re.compile(
    r"\.\./shared\b|(?<![\w.])/(work|root|home/\w+)/"
    r"|\bissues? #?\d\d?\b|\bcontract\.md\b|\bagents?\b",
    re.IGNORECASE,
)
TEXT = {".py", ".md", ".cfg", ".toml", ".yaml", ".yml", ".json", ".txt", ".csv", ".html", ""}


def project_files():
    folders = ("segdeconv", "tests", "tools", "configs", "benchmarks", "docs", ".ci")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    files += (path for path in ROOT.glob("*.*") if path.name != ".git")  # of a worktree, a file
    return sorted(path for path in files if path.is_file() and "__pycache__" not in path.parts)


def test_files_speak_of_nothing_outside_the_project():
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in project_files()
        if path.suffix in TEXT and path != Path(__file__)
        for match in FOREIGN.finditer(path.read_text(encoding="utf-8"))
    ]
    assert found == []
