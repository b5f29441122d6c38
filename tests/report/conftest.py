"""Folders of runs whose every number is known."""

import csv
import json
from types import SimpleNamespace

import pytest
import yaml

NAMES = ("road", "sky & clouds", "<b>pole</b>")
COLOURS = ((128, 64, 128), (70, 130, 180), (0, 0, 0))
CONFUSION = [[80, 10, 10], [0, 50, 0], [6, 0, 0]]
IOU = dict(zip(NAMES, (80 / 106, 50 / 60, 0.0), strict=True))


def scores(epoch, shift=0.0):
    return {
        "epoch": epoch,
        "step": 10 * epoch,
        "miou": sum(IOU.values()) / 3 + shift,
        "mean_accuracy": 0.6,
        "pixel_accuracy": 130 / 156,
        "mean_category_iou": None,
        "class_iou": {name: value + shift for name, value in IOU.items()},
        "class_accuracy": dict(zip(NAMES, (0.8, 1.0, 0.0), strict=True)),
        "category_iou": {},
        "confusion": CONFUSION,
    }


def write_run(folder, operator="deconv", seed=0, shift=0.0, lr=0.1, epochs=4):
    """A run of segmentation: mIoU rises by 0.1 an epoch, which takes 20 s and 10 steps."""
    folder.mkdir(parents=True)
    config = {
        "name": folder.name,
        "seed": seed,
        "task": "segmentation",
        "model": {"arch": "unet", "encoder": "resnet18", "operator": operator},
        "data": {"dataset": "camvid", "root": f"/data/{seed}", "val_split": "val"},
        "optimizer": {"name": "sgd", "lr": lr},
        "trainer": {"max_epochs": epochs},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    rows = [
        {
            "epoch": epoch,
            "step": 10 * epoch,
            "lr": lr / epoch,
            "train_loss": 2 / epoch,
            "val_loss": 3 / epoch,
            "miou": 0.1 * epoch + shift,
            "mean_accuracy": 0.15 * epoch,
            "pixel_accuracy": "" if epoch == 1 else 0.2 * epoch,
            "images_per_second": 4.0 + epoch,
            "seconds": 20.0,
            **{f"iou/{name}": value for name, value in IOU.items()},
        }
        for epoch in range(1, epochs + 1)
    ]
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    best = {**scores(epochs, shift), "miou": rows[-1]["miou"]}
    (folder / "metrics.json").write_text(json.dumps({"best": best, "last": best}))
    (folder / "surgery.txt").write_text(f"{operator} on SmpModel: 2 swapped\n")
    row = {"name": "conv1", "kind": "Conv2d", "action": "swapped", "reason": "now Deconv2d"}
    (folder / "surgery.json").write_text(json.dumps({"rows": [row]}))
    about = {"commit": "abc", "versions": {"torch": "2.15.0"}, "command": ["train.py", "--x"]}
    (folder / "environment.json").write_text(json.dumps({**about, "gpus": [], "processor": "P"}))
    return folder


@pytest.fixture(scope="session")
def make_run():
    return write_run


@pytest.fixture(scope="session")
def known():
    """What the files of these runs hold."""
    return SimpleNamespace(names=NAMES, colours=COLOURS, confusion=CONFUSION, iou=IOU)


@pytest.fixture
def run_folder(tmp_path):
    return write_run(tmp_path / "my_run")
