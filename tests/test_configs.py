"""Every config under configs/ is what its header says, is built, and trains two steps."""

import re
from pathlib import Path

import pytest
import yaml

from segdeconv.training.cli import ConfigParser
from segdeconv.training.run import train

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
RECIPES = [path for path in CONFIGS if path.parent.name == "recipes"]
RUNS = [path for path in CONFIGS if path not in RECIPES]
DECONV = [path for path in RUNS if path.stem.endswith("_deconv")]


def name_of(path):
    return path.relative_to(ROOT / "configs").as_posix()


@pytest.fixture(scope="module")
def parser():
    return ConfigParser()


@pytest.fixture
def tiny(tmp_path, tiny_camvid, small_sets):
    """Overrides that make a run of any config a matter of seconds."""

    def options(path):
        given = small(path) if classifies(path) else segmenting(path)
        given |= {"data.num_workers": 0, "data.batch_size": 2, "trainer.precision": 32}
        given |= {"trainer.max_steps": 2, "trainer.max_epochs": "null"}
        given |= {"trainer.val_check_interval": "null", "trainer.check_val_every_n_epoch": 1}
        given |= {"trainer.accelerator": "cpu", "output_dir": tmp_path, "name": "run"}
        given["write_report"] = "false"
        return [item for key, value in given.items() for item in (f"--{key}", str(value))]

    def small(path):
        given = {"data.root": small_sets, "model.name": "tu-test_resnet"}
        if "imagenet" in name_of(path):
            given |= {"data.root": small_sets / "imagenet", "data.crop_size": 32}
        if "shards" in path.name:
            shards = "{train: 'train-{0..1}.tar', val: val-0.tar}"
            length = "{train: 8, val: 5}"
            given["data.options"] = f"{{shards: {shards}, length: {length}, num_classes: 2}}"
            given["data.root"] = small_sets / "shards"
        return given

    def segmenting(path):
        content = yaml.safe_load(path.read_text())
        sizes = {"crop_size": "[64, 64]", "resize": "null", "val_resize": "null"}
        given = {f"data.{key}": value for key, value in sizes.items()}
        given |= {"data.val_batch_size": 1, "data.root": "null"}
        given |= {"data.dataset": "synthetic", "data.shorter_side": "null"}
        given["data.options"] = "{length: {train: 4, val: 1}, size: [64, 96]}"
        if "camvid" in name_of(path):
            given |= {"data.dataset": "camvid", "data.root": tiny_camvid, "data.options": "null"}
        if content["model"]["encoder"] == "resnet50" and content["model"]["arch"] in SMALLER:
            given["model.encoder"] = "resnet18"
        return given

    return options


def classifies(path):
    return path.relative_to(ROOT / "configs").parts[0] in CLASSIFIED


CLASSIFIED = ("cifar10", "cifar100", "mnist", "fashion_mnist", "imagenet")
SMALLER = ("deeplabv3", "deeplabv3plus", "pspnet", "unet")


def run_two_steps(parser, path, options):
    folder = train(parser, parser.read(["--config", str(path), *options]))
    assert (folder / "weights.safetensors").exists()


def test_there_are_configs():
    assert len(RUNS) >= 39
    assert {path.parent.name for path in RUNS if classifies(path)} == set(CLASSIFIED)
    for arch in ("fcn", "deeplabv3", "deeplabv3plus", "pspnet", "unet"):
        assert sum(path.stem.startswith(f"{arch}_resnet50") for path in RUNS) >= 4


@pytest.mark.parametrize("path", RUNS, ids=name_of)
def test_a_config_opens_as_a_record_with_the_command_that_runs_it(path):
    header = re.match(r"(#.*\n)+", path.read_text())[0]
    assert f"# Run:    python tools/train.py --config {path.relative_to(ROOT)}" in header
    assert re.search(r"^# Cost: +\S", header, re.MULTILINE)
    assert re.search(r"^# Result: +\S", header, re.MULTILINE)


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_a_config_is_read(parser, path):
    parser.instantiate(parser.read(["--config", str(path)]))


@pytest.mark.parametrize("path", DECONV, ids=name_of)
def test_twins_differ_in_the_operator_alone(parser, path):
    twin = path.with_name(path.name.replace("_deconv", "_batchnorm"))
    configs = [parser.read(["--config", str(each)]) for each in (path, twin)]
    assert [config.model.operator for config in configs] == ["deconv", "batchnorm"]
    for config in configs:
        del config["config"], config["model.operator"], config["model.operator_options"]
    assert configs[0] == configs[1]


QUICK = [
    *[name_of(path) for path in RUNS if classifies(path) and path in DECONV],
    "quickstart.yaml",
    "folder_example.yaml",
    "camvid/unet_resnet18_cpu_deconv.yaml",
    "cityscapes/mmsegmentation/deeplabv3plus_resnet50_deconv.yaml",
    "cityscapes/mmsegmentation/pspnet_resnet50_batchnorm.yaml",
    "cityscapes/released/fcn_resnet50_deconv.yaml",
]


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=() if name_of(path) in QUICK else pytest.mark.slow) for path in RUNS],
    ids=name_of,
)
def test_every_shipped_config_trains_two_steps(parser, path, tiny):
    run_two_steps(parser, path, tiny(path))
