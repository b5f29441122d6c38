"""The guides run in test_pages; here is the step of theirs that must fail."""

import shutil
from pathlib import Path

CONFIGS = Path(__file__).parents[2] / "configs"
SHORT = ("--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--data.num_workers", "0")
SMALLER = {
    "classifier": ("--data.batch_size", "20", *SHORT),
    "segmenter": ("--data.batch_size", "2", "--data.resize", "[32, 32]", *SHORT),
}


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
