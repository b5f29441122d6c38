"""Two processes: one run folder, each image counted once."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from segdeconv.data.labels import CAMVID
from segdeconv.training.task import SegmentationTask

ROOT = Path(__file__).parents[2]


def train(tmp_path, config, *arguments):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tools" / "train.py"), "--config", str(path)]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# the encoder's last blocks run, but nothing uses what they give
STRATEGY = ("--trainer.strategy", "ddp_find_unused_parameters_true")
TWO = ("--trainer.devices", 2, *STRATEGY, "--data.batch_size", 1)


@pytest.mark.slow
def test_two_processes_share_one_folder_and_count_each_of_five_images_once(tmp_path, tiny_config):
    out = train(tmp_path, tiny_config, *TWO, "--ema_decay", 0.9)
    assert "those of the first process are kept" in out
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]
    scores = json.loads((tmp_path / "runs" / "run" / "metrics.json").read_text())["last"]
    assert sum(map(sum, scores["confusion"])) == 5 * (40 - 2) * 48  # two rows are void
    assert (tmp_path / "runs" / "run" / "weights.safetensors").exists()


@pytest.mark.slow
def test_a_process_without_validation_shards_waits_for_the_other_one(tmp_path, small_sets):
    pytest.importorskip("webdataset")
    shards = {"train": ["train-0.tar", "train-1.tar"], "val": "val-0.tar"}
    config = {
        "task": "classification",
        "name": "run",
        "model": {"name": "tu-test_resnet"},
        "data": {
            "dataset": "webdataset",
            "root": str(small_sets / "shards"),
            "options": {"shards": shards, "length": {"train": 4, "val": 5}, "num_classes": 2},
            "train_split": "train",
            "val_split": "val",
            "batch_size": 1,
            "crop_size": 32,
            "num_workers": 0,
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "devices": 2, "strategy": "ddp"},
    }
    train(tmp_path, config)
    scores = json.loads((tmp_path / "runs" / "run" / "metrics.json").read_text())["last"]
    assert sum(map(sum, scores["confusion"])) == 5


@pytest.fixture
def one_process(tmp_path):
    """A group of this process alone."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_no_forward_of_a_validation_waits_for_other_processes(one_process):
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    wrapped = DistributedDataParallel(network)
    task = SegmentationTask(network, CAMVID)
    task.trainer = SimpleNamespace(strategy=SimpleNamespace(model=wrapped))
    assert wrapped.will_sync_module_buffers()
    task.on_validation_start()
    with torch.no_grad():
        wrapped.eval()(torch.randn(1, 3, 4, 4))
    assert not wrapped.will_sync_module_buffers()
    task.on_validation_end()
    assert wrapped.will_sync_module_buffers()
