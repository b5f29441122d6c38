"""The page docs/using-a-run.md, run as it is written, on a tiny run."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from segdeconv.training.cli import ConfigParser
from segdeconv.training.run import train

PAGE = Path(__file__).parents[1] / "docs" / "using-a-run.md"


@pytest.fixture
def run_folder(tiny_config, tmp_path, monkeypatch):
    """The run that the page speaks of, and an image, in the folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    config = {**tiny_config, "name": "unet_resnet18_deconv"}
    config["trainer"] = {**config["trainer"], "max_steps": 2}
    Path("config.yaml").write_text(yaml.safe_dump(config))
    parser = ConfigParser()
    train(parser, parser.read(["--config", "config.yaml"]))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    Image.fromarray(pixels).save("image.png")


def test_the_code_of_the_page_runs_and_its_comparisons_hold(run_folder, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert ["onnx" in block for block in blocks] == [False] * 3 + [True] * 2 + [False] * 2
    names = {}
    for block in blocks:
        if "onnx" in block:
            pytest.importorskip("onnxruntime")
            pytest.importorskip("onnxscript")
        exec(block, names)
        shown = capsys.readouterr().out
        if "load_weights" in block:
            assert "tensors into the model" in shown
        if "export_network" in block:
            assert "model.pt2: differs by" in shown
    assert names["classes"].shape == (1, 40, 48)
    assert names["other"].weights_report.part == "encoder"
    assert names["again"].about.dataset == "CamVid" and Path("my_model/README.md").is_file()
    assert Path("deploy/model.onnx").stat().st_size > 10_000
