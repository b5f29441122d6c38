"""The training task: its loss, its metric, and that it never mixes up sizes or classes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segdeconv.data.labels import CAMVID
from segdeconv.losses import cross_entropy
from segdeconv.metrics import scores_from_confusion
from segdeconv.training.task import LossOptions, NetworkOptions, SegmentationTask, build_network


class Network(nn.Module):
    def __init__(self, aux=False):
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 1)
        self.head = nn.Conv2d(4, 11, 1)
        self.aux_head = nn.Conv2d(4, 11, 1) if aux else None

    def forward(self, images):
        features = self.encoder(images)
        logits = self.head(features)
        if self.aux_head is not None and self.training:
            return logits, self.aux_head(features)
        return logits


class Logged(SegmentationTask):
    """Keeps what it logs; there is no trainer."""

    lr = 0.1

    def log_dict(self, dictionary, **_):
        self.logged = {name: float(value) for name, value in dictionary.items()}

    @property
    def trainer(self):
        return type("Trainer", (), {"sanity_checking": False})


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def batch(count=2, size=(6, 8), label_size=None):
    mask = torch.randint(0, 11, (count, *(label_size or size)))
    mask[:, 0] = 255
    return {"image": torch.randn(count, 3, *size), "mask": mask}


def test_the_auxiliary_loss_is_added_with_its_weight():
    network, sample = Network(aux=True), batch()
    task = Logged(network, CAMVID, LossOptions(aux_weight=0.4))
    logits, aux = network(sample["image"])
    expected = cross_entropy(logits, sample["mask"]) + 0.4 * cross_entropy(aux, sample["mask"])
    assert task.training_step(sample, 0).item() == pytest.approx(expected.item(), rel=1e-6)
    assert task.logged["train/loss"] == pytest.approx(expected.item(), rel=1e-6)


def test_a_batch_without_a_labelled_pixel_gives_no_loss_and_no_gradient():
    task, sample = Logged(Network(aux=True), CAMVID), batch()
    sample["mask"][:] = 255
    loss = task.training_step(sample, 0)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in task.parameters())


def test_losses_and_class_weights_reach_the_loss():
    weights = [1.0] * 10 + [3.0]
    task = Logged(Network(), CAMVID, LossOptions({"dice": 2.0}, {}, weights))
    assert task.loss.names == {"dice": 2.0}
    assert task.loss.class_weights.tolist() == weights


def test_validation_scores_the_whole_set_at_the_size_of_its_labels():
    network = Network().eval()
    task = Logged(network, CAMVID).eval()
    batches = [batch(2, (6, 8), (12, 16)), batch(1, (6, 8), (12, 16))]
    confusion = torch.zeros(11, 11, dtype=torch.long)
    for number, sample in enumerate(batches):
        task.validation_step(sample, number)
        logits = F.interpolate(network(sample["image"]), (12, 16), mode="bilinear")
        valid = sample["mask"] != 255
        pairs = sample["mask"][valid] * 11 + logits.argmax(1)[valid]
        confusion += pairs.bincount(minlength=121).view(11, 11)
    task.on_validation_epoch_end()
    assert torch.equal(task.scores.confusion, confusion)
    assert task.logged["val/miou"] == scores_from_confusion(confusion).miou


def test_the_validation_loss_is_the_mean_over_images():
    task, batches = Logged(Network(), CAMVID).eval(), [batch(3), batch(1)]
    for sample in batches:
        task.validation_step(sample, 0)
    one, other = (task.loss(task(s["image"]), s["mask"]).item() for s in batches)
    task.on_validation_epoch_end()
    assert task.logged["val/loss"] == pytest.approx((3 * one + other) / 4, rel=1e-6)


def test_a_second_validation_does_not_count_the_first():
    task = Logged(Network(), CAMVID).eval()
    sample = batch()
    for _ in range(2):
        task.validation_step(sample, 0)
        task.on_validation_epoch_end()
        assert task.scores.confusion.sum() == (sample["mask"] != 255).sum()


def test_the_mean_training_loss_is_that_since_the_last_validation():
    task, samples = Logged(Network(), CAMVID), [batch(), batch()]
    for _ in range(2):
        losses = [task.training_step(sample, 0).item() for sample in samples]
        task.validation_step(samples[0], 0)
        task.on_validation_epoch_end()
        assert task.logged["train/mean_loss"] == pytest.approx(sum(losses) / 2, rel=1e-6)
    task.validation_step(samples[0], 0)
    task.on_validation_epoch_end()
    assert "train/mean_loss" not in task.logged
    assert math.isfinite(task.logged["val/loss"])


SMALL = {
    "arch": "unet",
    "encoder": "tu-mobilenetv3_small_050",
    "arch_options": {"encoder_depth": 2, "decoder_channels": [12, 8]},
}


def test_the_network_has_the_classes_of_the_data_set():
    network = build_network(NetworkOptions(operator="batchnorm", **SMALL), CAMVID)
    assert network(torch.randn(2, 3, 16, 16)).shape == (2, 11, 16, 16)
    same = NetworkOptions(operator="batchnorm", num_classes=11, **SMALL)
    assert build_network(same, CAMVID).config["num_classes"] == 11


def test_another_number_of_classes_is_refused():
    words = "model.num_classes=19, but the data set's label set 'CamVid' has 11 classes"
    with pytest.raises(ValueError, match=words):
        build_network(NetworkOptions(num_classes=19, **SMALL), CAMVID)


def test_layers_that_are_never_called_are_not_trained():
    options = {"encoder_depth": 3, "decoder_channels": [8, 8, 8]}
    small = NetworkOptions("unet", "resnet18", "batchnorm", arch_options=options)
    network = build_network(small, CAMVID)
    assert not any(p.requires_grad for p in network.encoder.layer3.parameters())
    assert all(p.requires_grad for p in network.encoder.layer2.parameters())


def test_a_frozen_encoder_learns_nothing_and_keeps_its_statistics():
    options = NetworkOptions(operator="deconv", freeze_encoder=True, **SMALL)
    network = build_network(options, CAMVID).train()
    before = {name: value.clone() for name, value in network.encoder.state_dict().items()}
    network(torch.randn(2, 3, 16, 16)).sum().backward()
    after = network.encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in network.encoder_parameters())


def test_channels_last_is_a_matter_of_layout_only():
    plain = NetworkOptions(operator="batchnorm", **SMALL)
    torch.manual_seed(1)
    one = SegmentationTask(build_network(plain, CAMVID), CAMVID).eval()
    plain.channels_last = True
    torch.manual_seed(1)
    other = build_network(plain, CAMVID)
    other = SegmentationTask(other, CAMVID, channels_last=True).eval()
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(one(images), other(images), rtol=1e-4, atol=1e-5)
    weights = [p for p in other.parameters() if p.ndim == 4 and p.shape[1] > 1]
    assert any(not p.is_contiguous() for p in weights)
