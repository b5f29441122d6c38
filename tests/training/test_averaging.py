"""The average is the formula's, integers are not averaged, and training does not notice it."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from segdeconv.training.averaging import AveragedWeights, weights_of


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("counter", torch.zeros((), dtype=torch.long))

    def step(self, number):
        with torch.no_grad():
            self.weight.fill_(float(number))
            self.mean.fill_(-float(number))
            self.counter += 1


@pytest.fixture
def parts():
    callback = AveragedWeights(0.9)
    task = SimpleNamespace(network=Counting())
    trainer = SimpleNamespace(global_step=0, callbacks=[callback])
    callback.on_fit_start(trainer, task)
    return callback, trainer, task


def train(callback, trainer, task, steps):
    for number in range(1, steps + 1):
        task.network.step(number)
        trainer.global_step = number
        callback.on_train_batch_end(trainer, task)


def test_floats_follow_the_moving_average_and_integers_are_copied(parts):
    train(*parts, steps=30)
    expected = 1.0
    for step in range(1, 31):
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    average = parts[0].average
    assert average["weight"].tolist() == pytest.approx([expected] * 3, rel=1e-5)
    assert average["counter"] == 30  # an averaged integer would stay at 1


def test_a_batch_without_an_optimiser_step_is_not_averaged(parts):
    callback, trainer, task = parts
    train(*parts, steps=3)
    before = callback.average["weight"].clone()
    task.network.step(100)
    callback.on_train_batch_end(trainer, task)  # gradients are being accumulated
    assert torch.equal(callback.average["weight"], before)


def test_validation_sees_the_average_and_training_goes_on_from_its_own_weights(parts):
    callback, trainer, task = parts
    train(*parts, steps=5)
    average = callback.average["weight"].clone()
    version = task.network.weight._version
    callback.on_validation_start(trainer, task)
    assert torch.equal(task.network.weight, average)
    assert task.network.weight._version > version  # layers that keep a merged kernel notice it
    callback.on_validation_end(trainer, task)
    assert task.network.weight.tolist() == [5.0] * 3
    assert torch.equal(callback.average["weight"], average)


def test_a_checkpoint_keeps_both(parts):
    callback, trainer, task = parts
    train(*parts, steps=5)
    checkpoint = {}
    callback.on_save_checkpoint(trainer, task, checkpoint)
    again = AveragedWeights(0.9)
    again.on_load_checkpoint(trainer, task, checkpoint)
    again.on_fit_start(trainer, task)
    assert torch.equal(again.average["weight"], callback.average["weight"])
    assert again.average["weight"] is not callback.average["weight"]


def test_the_weights_to_keep_are_the_average_where_there_is_one(parts):
    callback, trainer, task = parts
    train(*parts, steps=2)
    assert weights_of(trainer, task) is callback.average
    alone = weights_of(SimpleNamespace(callbacks=[]), task)
    assert torch.equal(alone["weight"], task.network.weight)


@pytest.mark.parametrize("decay", [0.0, 1.0, 2.0])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(ValueError, match="expected a number between 0 and 1"):
        AveragedWeights(decay)
