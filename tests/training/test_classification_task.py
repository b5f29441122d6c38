"""Classifiers are trained, stopped, resumed and scored as segmentation is."""

import csv
import json
import os
import re
import signal

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segdeconv.data.classes import ClassNames
from segdeconv.training.callbacks import FiniteLoss
from segdeconv.training.classification import (
    ClassificationLossOptions,
    ClassificationTask,
    ClassifierOptions,
    build_classifier,
)
from segdeconv.training.cli import ConfigParser
from segdeconv.training.mistakes import UsageError

CLASSES = ClassNames("seven", tuple("abcdefg"))


class Logged(ClassificationTask):
    """Keeps what it logs; there is no trainer."""

    lr = 0.1

    def log_dict(self, dictionary, **_):
        self.logged = {name: float(value) for name, value in dictionary.items()}

    @property
    def trainer(self):
        return type("Trainer", (), {"sanity_checking": False})


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 7))


def batch(count=9):
    return {"image": torch.randn(count, 3, 2, 2), "label": torch.arange(count) % 6}


def test_the_scores_are_those_of_a_plain_loop(network):
    task, batches = Logged(network, CLASSES).eval(), [batch(), batch(5)]
    right = top5 = seen = 0
    of_class = {label: [0, 0] for label in range(7)}
    losses = []
    for number, sample in enumerate(batches):
        task.validation_step(sample, number)
        for image, label in zip(sample["image"], sample["label"].tolist(), strict=True):
            logits = network(image[None])[0]
            losses.append(F.cross_entropy(logits, torch.tensor(label)).item())
            order = logits.argsort(descending=True).tolist()
            right, top5, seen = right + (order[0] == label), top5 + (label in order[:5]), seen + 1
            of_class[label][0] += order[0] == label
            of_class[label][1] += 1
    task.on_validation_epoch_end()
    scores = task.scores.to_dict(CLASSES.class_names)
    assert scores["top1"] == pytest.approx(right / seen)
    assert scores["top5"] == pytest.approx(top5 / seen)
    expected = [hits / count if count else None for hits, count in of_class.values()]
    *found, last = scores["class_accuracy"].values()
    assert found == pytest.approx(expected[:6]) and last is None and expected[6] is None
    assert scores["mean_accuracy"] == pytest.approx(sum(expected[:6]) / 6)
    assert task.logged["val/loss"] == pytest.approx(sum(losses) / seen, rel=1e-5)


def test_labels_are_smoothed_in_training_alone(network):
    task, sample = Logged(network, CLASSES, ClassificationLossOptions(0.2)), batch()
    log = F.log_softmax(network(sample["image"]), 1)
    target = F.one_hot(sample["label"], 7) * 0.8 + 0.2 / 7
    expected = -(target * log).sum(1).mean().item()
    assert task.training_step(sample, 0).item() == pytest.approx(expected, rel=1e-5)


def test_mixed_images_have_the_labels_of_their_parts():
    class Seen(nn.Module):
        def forward(self, images):
            self.images = images
            return torch.zeros(len(images), 7, requires_grad=True)

    sample = batch(6)
    sample["image"] = sample["label"].float().view(-1, 1, 1, 1).expand(-1, 3, 8, 8).clone()
    task, kinds = Logged(Seen(), CLASSES, ClassificationLossOptions(0, 1.0, 1.0)), set()
    for seed in range(20):
        torch.manual_seed(seed)
        assert task.training_step(sample, 0).item() == pytest.approx(torch.tensor(7.0).log().item())
        values = [len(image.unique()) for image in task.network.images]
        kinds.add("cutmix" if 2 in values else "mixup")
    assert kinds == {"mixup", "cutmix"}


def test_the_encoder_has_a_learning_rate_of_its_own():
    options = ClassifierOptions("tu-test_resnet", operator="batchnorm")
    task = Logged(build_classifier(options, CLASSES, 3), CLASSES)
    head = {id(parameter) for parameter in task.network.network.fc.parameters()}
    encoder = {id(parameter) for parameter in task.part("encoder")}
    assert not encoder & head
    assert encoder | head == {id(parameter) for parameter in task.network.parameters()}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_classes": 10}, "model.num_classes=10, but seven has 7 classes"),
        ({"in_channels": 3}, "model.in_channels=3, but images of seven have 1"),
        ({"name": "resnet81"}, "unknown network 'resnet81'; did you mean"),
    ],
)
def test_a_network_that_is_not_that_of_the_data_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        build_classifier(ClassifierOptions(**options), CLASSES, 1)


# --------------------------------------------------------------------------------------- whole runs


def state(folder):
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    momenta = checkpoint["optimizer_states"][0]["state"]
    return {
        **checkpoint["state_dict"],
        **{f"momentum {index}": each["momentum_buffer"] for index, each in momenta.items()},
        **{f"mean {name}": value for name, value in checkpoint["averaged_weights"].items()},
    }


def assert_same(one, other):
    left, right = state(one), state(other)
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


@pytest.fixture
def interrupt_at(monkeypatch):
    def at(step):
        original, left = FiniteLoss.on_train_batch_end, [signal.SIGINT]

        def hook(self, trainer, *rest):
            if trainer.global_step == step and left:
                os.kill(os.getpid(), left.pop())
            original(self, trainer, *rest)

        monkeypatch.setattr(FiniteLoss, "on_train_batch_end", hook)

    return at


FOLDER = ("--data.dataset", "image_folder", "--data.crop_size", 32, "--data.batch_size", 2)
FOLDER += ("--data.val_split", "val", "--data.auto_augment", "trivial", "--model.name")
FOLDER += ("tu-test_resnet",)
SHARDS = "{shards: {train: 'train-{0..1}.tar', val: val-0.tar}, length: {train: 8, val: 5}, "
STREAM = (*FOLDER, "--data.dataset", "webdataset", "--data.options", SHARDS + "num_classes: 2}")


@pytest.mark.parametrize(
    ("options", "where", "step"),
    [((), "", 7), (FOLDER, "imagenet", 6), (STREAM, "shards", 6)],
    ids=["batches of CIFAR", "photographs", "shards"],
)
def test_stopping_in_mid_epoch_and_resuming_changes_nothing(
    classify, interrupt_at, small_sets, options, where, step, capsys
):
    options = ("--ema_decay", 0.9, "--data.root", small_sets / where, *options)
    if where:
        options += ("--data.num_workers", 2)
    code, straight = classify("--name", "straight", *options)
    assert code == 0, capsys.readouterr().err
    interrupt_at(step)
    code, stopped = classify("--name", "stopped", *options)
    assert code == 130 and f"step {step} is saved" in capsys.readouterr().err
    if where == "shards":
        assert classify("--data.num_workers", 1, resume=stopped)[0] == 1
        words = "in the middle of an epoch of shards, whose order depends on the number of workers"
        assert words in capsys.readouterr().err
    assert classify(resume=stopped)[0] == 0
    assert_same(straight, stopped)


def test_a_run_leaves_its_figures_and_says_them(classify, capsys):
    code, folder = classify("--trainer.max_epochs", 1)
    assert code == 0
    assert "top-1" in capsys.readouterr().out
    (row,) = csv.DictReader((folder / "metrics.csv").open())
    scores = json.loads((folder / "metrics.json").read_text())["best"]
    assert float(row["top1"]) == scores["top1"] and float(row["top5"]) == scores["top5"]
    assert float(row["accuracy/class 3"]) == scores["class_accuracy"]["class 3"]


def test_it_learns(classify):
    plain = ("--loss.mixup", 0, "--loss.cutmix", 0, "--loss.label_smoothing", 0)
    _, folder = classify("--trainer.max_epochs", 12, "--data.padding", 0, *plain)
    assert json.loads((folder / "metrics.json").read_text())["best"]["top1"] >= 0.7


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar100"])
def test_the_network_takes_channels_and_classes_of_the_data(classify, name):
    code, folder = classify("--data.dataset", name, "--trainer.max_steps", 1)
    assert code == 0
    weights = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    convolutions = [value for value in weights.values() if value.ndim == 4]
    assert convolutions[0].shape[1] == (3 if name == "cifar100" else 1)
    assert weights["network.network.fc.weight"].shape[0] == (100 if name == "cifar100" else 10)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data.dataset", "cifar"], "unknown data set 'cifar'; did you mean 'cifar10'"),
        (["--data.train_split", "val"], "CIFAR-10 has no split 'val'"),
        (["--data.crop_size", 32], "data.crop_size has no effect on cifar10"),
        (["--data.dataset", "image_folder", "--data.padding", 1], "padding has no effect on image"),
        (["--data.mean", "[0.5]"], "data.mean has 1 numbers, and images of cifar10 have 3"),
        (["--data.root", "nowhere"], "CIFAR-10 needs data_batch_1, .*; nothing is downloaded"),
        (["--data.root", "null"], "needs its folder; give --data.root FOLDER"),
        (["--data.options", "{x: 1}"], "data.options.x: data set 'cifar10' has no such option"),
        (["--data.batch_size", 101], "100 training images do not fill one step of 1 x 101"),
        (["--loss.mixup", -1], "loss.mixup=-1.0: expected 0 or more"),
        (["--loss.label_smoothing", 2], "loss.label_smoothing=2.0: expected 0 to 1"),
        (["--model.num_classes", 5], "model.num_classes=5, but CIFAR-10 has 10 classes"),
        (["--data.dataset", "webdataset"], "needs data.options.shards, data.options.length, data"),
    ],
)
def test_a_mistake_is_a_sentence(classify, capsys, arguments, words):
    code, _ = classify(*arguments)
    err = capsys.readouterr().err
    assert code in (1, 2) and len(err.splitlines()) == 1 and re.search(words, err), err


def test_wrong_lengths_of_shards_are_said(classify, small_sets, capsys):
    base = (*STREAM, "--data.root", small_sets / "shards", "--trainer.max_epochs", 1)
    for length, words in (
        ("{train: 12, val: 5}", "fill 4 steps of 2, and 12 samples in all should fill 6"),
        ("{train: 8, val: 6}", "hold 5 samples, and not 6"),
        ("{train: 8, val: 2}", "samples or more, and not 2"),
    ):
        options = SHARDS.replace("{train: 8, val: 5}", length) + "num_classes: 2}"
        assert classify(*base, "--data.options", options)[0] == 1
        assert words in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- parser


def test_a_key_of_another_task_is_said_with_it():
    words = "unknown key model.arch; it is one of task segmentation, and this is task classifi"
    with pytest.raises(UsageError, match=words):
        ConfigParser().read(["--task", "classification", "--model.arch", "unet"])
    with pytest.raises(UsageError, match="it is one of task classification"):
        ConfigParser().read(["--model.small_input", "true"])


def test_an_unknown_task_is_refused_with_those_that_there_are(tmp_path):
    (tmp_path / "a.yaml").write_text("task: detection")
    with pytest.raises(UsageError, match=r"a.yaml: task is 'detection'; expected one of classif"):
        ConfigParser().read(["--config", str(tmp_path / "a.yaml")])


def test_a_config_without_a_task_segments(tmp_path):
    (tmp_path / "a.yaml").write_text("seed: 1")
    assert ConfigParser().read(["--config", str(tmp_path / "a.yaml")]).task == "segmentation"
    config = ConfigParser().read(["--config", str(tmp_path / "a.yaml"), "--task=classification"])
    assert config.task == "classification" and config.model.name == "resnet18"
