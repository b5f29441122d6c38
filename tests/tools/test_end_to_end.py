"""docs/pretrain-and-deploy.md, command by command, on a few images."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PAGE = Path(__file__).parents[2] / "docs" / "pretrain-and-deploy.md"
CONFIGS = Path(__file__).parents[2] / "configs"
SHORT = ("--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--data.num_workers", "0")
SMALLER = {
    "classifier": ("--data.batch_size", "20", *SHORT),
    "segmenter": ("--data.batch_size", "2", "--data.resize", "[32, 32]", *SHORT),
}


def commands():
    return re.findall(r"^    python tools/(\w+)\.py (.*)", PAGE.read_text(), re.MULTILINE)


def test_the_guide_leads_from_a_classifier_to_predictions_by_onnx(
    tool, small_sets, tiny_camvid, tmp_path
):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    shutil.copytree(small_sets, "data")
    shutil.copytree(tiny_camvid, "data/camvid")
    shutil.copytree(CONFIGS, "configs")
    said = {}
    for name, arguments in commands():
        given = shlex.split(arguments)
        run = given[given.index("--name") + 1] if "--name" in given else None
        code, out, err = tool(name, *given, *SMALLER.get(run, ()))
        assert code == 0, f"{name} {arguments}: {err}"
        said[name, run] = out
    start = Path("runs/segmenter/start_weights.txt").read_text()
    assert "tensors into the encoder; not in the file: network.decoder" in start
    assert "Sky" in said["eval", None]
    photos = sorted(path.stem for path in Path("data/camvid/val/images").iterdir())
    seen = [np.array(Image.open(path)) for path in sorted(Path("seen/ids").glob("*.png"))]
    assert len(seen) == len(photos) and all(ids.max() < 11 for ids in seen)


def test_an_encoder_for_small_images_is_refused_in_a_sentence(
    tool, small_sets, tiny_camvid, expect
):
    shutil.copytree(CONFIGS, "configs")
    config = "configs/cifar10/resnet18_deconv.yaml"
    given = ("--data.root", small_sets, *SMALLER["classifier"], "--name", "small")
    assert tool("train", "--config", config, *given)[0] == 0
    given = ("--data.root", tiny_camvid, *SMALLER["segmenter"])
    weights = ("--model.weights", "runs/small/weights.safetensors")
    config = "configs/camvid/unet_resnet18_cpu_deconv.yaml"
    expect(tool("train", "--config", config, *given, *weights), 1, "small_input")
