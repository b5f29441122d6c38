"""Two processes: one run folder, each image counted once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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
