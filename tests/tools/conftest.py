"""The tools as a user runs them, in this process."""

import importlib.util
from pathlib import Path

import pytest
import yaml

from segdeconv.training.cli import run_tool

TOOLS = Path(__file__).parents[2] / "tools"


def load(name):
    spec = importlib.util.spec_from_file_location(f"tool_{name}", TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
def config_file(tiny_camvid, tmp_path):
    """A config of a very small network on very small images, as a file."""
    content = {
        "name": "run",
        "model": {
            "arch": "unet",
            "encoder": "tu-mobilenetv3_small_050",
            "operator": "deconv",
            "operator_options": {"block": 8},
            "arch_options": {"encoder_depth": 2, "decoder_channels": [12, 8]},
        },
        "data": {
            "dataset": "camvid",
            "root": str(tiny_camvid),
            "batch_size": 2,
            "crop_size": [24, 32],
            "num_workers": 0,
        },
        "optimizer": {"lr": 0.05},
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def tiny_copy(tiny_camvid, tmp_path):
    """A copy of the tiny data set that a test may damage."""
    from shutil import copytree

    return Path(copytree(tiny_camvid, tmp_path / "camvid"))
