"""Runs small enough to be repeated."""

import pytest
import yaml

from segdeconv.training.cli import ConfigParser, run_tool
from segdeconv.training.run import train
from segdeconv.training.run_folder import find_run


@pytest.fixture
def config_file(tiny_camvid, tmp_path):
    """A config of a very small network on very small images, as a file."""
    content = {
        "output_dir": str(tmp_path / "runs"),
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
        "trainer": {"max_epochs": 3, "accelerator": "cpu"},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def run(config_file, tmp_path):
    """Train in this process: ``run("--key", value, …)``; returns exit code and folder."""

    def go(*arguments, resume=None):
        folders = []

        def tool(given):
            parser = ConfigParser()
            earlier = None if resume is None else find_run(tmp_path / "runs", str(resume))
            source = config_file if earlier is None else earlier / "config.yaml"
            config = parser.read(["--config", str(source), *given])
            folders.append(tmp_path / "runs" / config.name)
            train(parser, config, earlier)

        code = run_tool(tool, [str(argument) for argument in arguments])
        return code, folders[0] if folders else None

    return go
