"""The tools as a user runs them, in this process."""

import importlib.util
from pathlib import Path
from shutil import copytree

import pytest
import yaml

from segdeconv.training.mistakes import run_tool

TOOLS = Path(__file__).parents[2] / "tools"


def load(name):
    spec = importlib.util.spec_from_file_location(f"tool_{name}", TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def load_tool():
    return load


@pytest.fixture
def tool(capsys, monkeypatch, tmp_path):
    """``tool("train", "--key", value)`` gives exit code, standard output and standard error."""

    def run(name, *arguments):
        capsys.readouterr()
        monkeypatch.setattr("sys.argv", [f"tools/{name}.py", *map(str, arguments)])
        code = run_tool(load(name).main)
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return code, shown.out, shown.err

    monkeypatch.chdir(tmp_path)
    return run


@pytest.fixture
def expect():
    """``expect(tool(…), code, "word", …)``: a failure that is one sentence with these words."""

    def check(result, code, *words):
        found, _, err = result
        assert found == code, err
        sentence = err.strip().splitlines()
        assert len(sentence) == 1 and sentence[0].startswith("error: "), err
        assert [word for word in words if word not in sentence[0]] == [], sentence[0]

    return check


@pytest.fixture
def config_file(tiny_config, tmp_path):
    """A config of a very small network on very small images, as a file."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tiny_config))
    return path


@pytest.fixture(scope="session")
def train_once(tiny_config, tmp_path_factory):
    """Train with some options, once for all tests; gives the run's folder."""
    runs = {}

    def run(*options):
        if options not in runs:
            folder = tmp_path_factory.mktemp("once")
            path = folder / "config.yaml"
            path.write_text(yaml.safe_dump({**tiny_config, "output_dir": str(folder)}))
            assert run_tool(load("train").main, ["--config", str(path), *map(str, options)]) == 0
            runs[options] = folder / "run"
        return runs[options]

    return run


@pytest.fixture
def trained(train_once, tool):
    """A finished run in runs/run, to look at or to go on with."""
    return copytree(train_once(), Path("runs/run"))


@pytest.fixture
def tiny_copy(tiny_camvid, tmp_path):
    """A copy of the tiny data set that a test may damage."""
    return copytree(tiny_camvid, tmp_path / "camvid")
