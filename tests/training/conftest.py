"""Runs small enough to be repeated."""

import pytest
import yaml

from segdeconv.training.cli import ConfigParser
from segdeconv.training.mistakes import run_tool
from segdeconv.training.run import train
from segdeconv.training.run_folder import find_run


def train_in(folder, config, *arguments, resume=None):
    """Train in this process, in ``folder``; exit code and the run's folder."""
    made = []

    def tool(given):
        parser = ConfigParser()
        earlier = None if resume is None else find_run(folder, str(resume))
        source = folder / "config.yaml" if earlier is None else earlier / "config.yaml"
        if earlier is None:
            source.write_text(yaml.safe_dump({**config, "output_dir": str(folder)}))
        config_read = parser.read(["--config", str(source), *given])
        made.append(folder / config_read.name)
        train(parser, config_read, earlier)

    code = run_tool(tool, [str(argument) for argument in arguments])
    return code, made[0] if made else None


@pytest.fixture
def three_epochs(tiny_config):
    return {**tiny_config, "trainer": {**tiny_config["trainer"], "max_epochs": 3}}


@pytest.fixture
def run(three_epochs, tmp_path):
    """``run("--key", value, …)`` trains three epochs of five steps; exit code and folder."""
    return lambda *arguments, **options: train_in(tmp_path, three_epochs, *arguments, **options)


@pytest.fixture(scope="module")
def straight(tiny_config, tmp_path_factory):
    """Folder of a run that was never stopped."""
    config = {**tiny_config, "trainer": {**tiny_config["trainer"], "max_epochs": 3}}
    code, folder = train_in(tmp_path_factory.mktemp("straight"), config)
    assert code == 0
    return folder


@pytest.fixture
def classify(small_sets, tmp_path):
    """``classify("--key", value, …)`` trains a classifier for three epochs of five steps."""
    config = {
        "task": "classification",
        "name": "run",
        "model": {"name": "tu-test_resnet", "operator_options": {"block": 8}},
        "data": {"dataset": "cifar10", "root": str(small_sets), "batch_size": 20, "num_workers": 0},
        "loss": {"mixup": 0.2, "cutmix": 1.0, "label_smoothing": 0.1},
        "optimizer": {"lr": 0.02},
        "trainer": {"max_epochs": 3, "accelerator": "cpu"},
    }
    return lambda *arguments, **options: train_in(tmp_path, config, *arguments, **options)
