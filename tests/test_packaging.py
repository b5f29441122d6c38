"""The metadata says what the files hold, and README's commands are those that are tested."""

import ast
import configparser
import re
import runpy
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import segdeconv

ROOT = Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
LOWER_BOUNDS = runpy.run_path(str(ROOT / ".ci" / "lower_bounds.py"))
REQUIREMENTS = LOWER_BOUNDS["requirements"]()
QUICK_START, TESTS = runpy.run_path(str(ROOT / ".ci" / "readme_commands.py"))["readme_commands"]()


def bounds(requirement):
    return {
        specifier.operator: specifier.version for specifier in Requirement(requirement).specifier
    }


@pytest.mark.parametrize("requirement", REQUIREMENTS)
def test_a_dependency_has_a_lower_and_an_upper_bound_around_the_installed_version(requirement):
    assert {">=", "<"} <= set(bounds(requirement))
    name = Requirement(requirement).name
    try:
        installed = version(name)
    except ModuleNotFoundError:
        pytest.skip(f"{name} is not installed here")
    assert Requirement(requirement).specifier.contains(installed, prereleases=True)


@pytest.mark.parametrize("requirement", REQUIREMENTS)
def test_the_lowest_version_that_gets_tested_is_the_lower_bound(requirement):
    pinned = Requirement(LOWER_BOUNDS["lowest"](requirement))
    assert pinned.name == Requirement(requirement).name
    assert pinned.extras == Requirement(requirement).extras
    assert str(pinned.specifier) == f"=={bounds(requirement)['>=']}"


def libraries_imported(folder):
    """Top-level names of all that the modules in ``folder`` import from outside."""
    names = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names.add(node.module.split(".")[0])
            elif isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
    return names - set(sys.stdlib_module_names) - {"segdeconv"}


COMES_WITH_TORCH = {"triton"}  # its builds for CUDA on Linux; nothing else than kernels.py needs it


@pytest.mark.parametrize("folder", ["segdeconv", "tools"])
def test_what_is_imported_is_a_declared_dependency_not_a_dependency_of_one(folder):
    wanted = {canonicalize_name(Requirement(requirement).name) for requirement in REQUIREMENTS}
    providers = packages_distributions()
    undeclared = [
        name
        for name in sorted(libraries_imported(folder) - COMES_WITH_TORCH)
        if not wanted & {canonicalize_name(provider) for provider in providers.get(name, [])}
    ]
    assert undeclared == []


def test_the_extras_are_dev_docs_export_official_and_webdataset():
    extras = SETUP["options.extras_require"]
    assert set(extras) == {"dev", "docs", "export", "official", "webdataset"}
    of_docs = [line for line in extras["docs"].split("\n") if line and not line.startswith("#")]
    assert set(of_docs) <= set(extras["dev"].split("\n"))  # a test builds the site


def test_the_version_is_read_from_the_package_and_stands_first_in_the_changelog():
    assert SETUP["metadata"]["version"] == "attr: segdeconv.__version__"
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest and newest[1] == segdeconv.__version__
    assert str(Version(segdeconv.__version__)) == segdeconv.__version__


def test_pyproject_holds_the_build_system_and_tools_only():
    # with a [project] table setuptools ignores or refuses the metadata of setup.cfg
    assert set(tomllib.loads((ROOT / "pyproject.toml").read_text())) == {"build-system", "tool"}


def test_the_licence_is_there_in_full():
    assert SETUP["metadata"]["license"] == "Apache-2.0"
    text = (ROOT / SETUP["metadata"]["license_files"]).read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "segdeconv" / "py.typed").exists()
    assert "py.typed" in SETUP["options.package_data"]["segdeconv"]


def test_plain_pytest_leaves_out_what_is_slow_or_needs_a_gpu_or_data():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert "-m 'not slow and not gpu and not data'" in options["addopts"]


def test_readme_has_two_commands_that_each_install_from_a_plain_clone():
    for command in (QUICK_START, TESTS):
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert "pip install . &&" in QUICK_START and "tools/train.py" in QUICK_START
    assert "pip install '.[dev]' &&" in TESTS and "pytest" in TESTS


def test_readme_names_only_files_that_exist():
    readme = (ROOT / "README.md").read_text()
    named = set(re.findall(r"\b(?:tools|configs|docs|benchmarks)/[\w./-]*\w", readme))
    assert {"tools/train.py", "configs/quickstart.yaml"} <= named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("command", [QUICK_START, TESTS], ids=["quick start", "tests"])
def test_readme_commands_are_whole_shell_commands(command):
    subprocess.run(["bash", "-n", "-c", command], check=True)


def test_ci_runs_the_commands_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    assert ".ci/readme_commands.py" in script and "for number in 1 2" in script
    for number, command in enumerate((QUICK_START, TESTS), start=1):
        printed = subprocess.run(
            [sys.executable, ".ci/readme_commands.py", str(number)],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        assert printed.stdout == command
