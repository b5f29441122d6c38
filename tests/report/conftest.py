"""Folders of runs whose every number is known."""

import copy
import csv
import json
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

from segdeconv.analysis import observing, receptive_field
from segdeconv.report.findings import field_record, first_layer, layer_details, layer_numbers
from segdeconv.surgery import convert

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


@pytest.fixture(scope="session")
def inspected():
    """An inspection of a small network and its plain twin, the network, and its images."""
    torch.manual_seed(0)
    images = torch.nn.functional.avg_pool2d(torch.randn(6, 3, 34, 34), 3, 1) * 3
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    white = copy.deepcopy(plain)
    convert(white, "deconv", block=8)
    white.train()(images)
    networks = [network.eval().requires_grad_(False) for network in (white, plain)]
    own, twin = (inspection_of(network, images) for network in networks)
    data = {"format": 1, **own, "twin": {**twin, "run": "its twin"}}
    return SimpleNamespace(data=data, network=networks[0], images=images)


@pytest.fixture(scope="session")
def inspect():
    return inspection_of


def inspection_of(network, images):
    """One arm of an inspection, all of its layers in detail."""
    with observing(network) as called, torch.no_grad():
        network(images)
    return {
        "run": "<b>run</b>",
        "weights": "weights.safetensors",
        "checkpoint": "best",
        "step": 40,
        "seen": "6 images of val, evenly spread",
        "caps": {"columns": 256, "patches": 8192},
        "layers": {name: layer_numbers(each) for name, each in called.items()},
        "details": {name: layer_details(each) for name, each in called.items()},
        "first_layer": {"name": "0", **first_layer(called["0"])},
        "left_out": {"idle": "never called"},
        "fields": [field_record("logits", receptive_field(network, images), 6, "32 x 32")],
        "no_fields": [],
    }
