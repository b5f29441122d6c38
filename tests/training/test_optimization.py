"""Schedules against their formulas, parameter groups against what they should hold."""

import math

import pytest
import torch
from torch import nn

from segdeconv.training.optimization import (
    OptimizerOptions,
    ScheduleOptions,
    lr_factor,
    make_optimizer,
    make_schedule,
    parameter_groups,
)


def rates(options, lr=0.01, total=40):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = make_schedule(optimizer, options, total)
    seen = []
    for _ in range(total + 1):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_poly_with_a_floor_is_that_of_mmsegmentation():
    # PolyLR: (base - eta_min) (1 - t / T)^power + eta_min
    expected = [(0.01 - 1e-4) * (1 - t / 40) ** 0.9 + 1e-4 for t in range(41)]
    assert rates(ScheduleOptions("poly", 0.9, 1e-4)) == pytest.approx(expected, rel=1e-12)


def test_cosine_is_that_of_torch():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40, eta_min=1e-3)
    expected = []
    for _ in range(41):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rates(ScheduleOptions("cosine", min_lr=1e-3)) == pytest.approx(expected, rel=1e-9)


def test_the_warm_up_rises_linearly_and_meets_the_decay():
    options = ScheduleOptions("constant", warmup_steps=10, warmup_factor=0.1)
    seen = rates(options, lr=1.0)
    assert seen[0] == pytest.approx(0.1)
    assert seen[5] == pytest.approx(0.55)
    assert seen[10:] == [1.0] * 31


def test_steps_past_the_end_stay_at_the_floor():
    assert lr_factor(50, 40, ScheduleOptions("poly"), floor=0.2) == pytest.approx(0.2)
    assert lr_factor(50, 40, ScheduleOptions("cosine")) == pytest.approx(0.0)
    assert math.isclose(lr_factor(0, 40, ScheduleOptions("poly")), 1.0)


def test_each_group_keeps_its_own_rate_above_the_common_floor():
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.1, 0.01)]
    optimizer = torch.optim.SGD(groups)
    schedule = make_schedule(optimizer, ScheduleOptions("poly", 1.0, min_lr=1e-3), 2)
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.0505, 0.0055])


def test_a_floor_above_the_learning_rate_is_refused():
    with pytest.raises(ValueError, match=r"schedule.min_lr=0.1 is above the learning rate 0.01"):
        rates(ScheduleOptions(min_lr=0.1))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.decoder = nn.Conv2d(4, 4, 1)
        self.aux_head = nn.Conv2d(4, 4, 1, bias=False)
        self.shared = self.decoder
        self.frozen = nn.Conv2d(1, 1, 1).requires_grad_(False)


def groups_of(network, **options):
    return {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in parameter_groups(
            network,
            OptimizerOptions(lr=1.0, weight_decay=0.5, **options),
            network.encoder.parameters(),
            network.aux_head.parameters(),
        )
        for parameter in group["params"]
    }


def test_every_trainable_parameter_is_in_one_group_and_frozen_ones_in_none():
    network = Network()
    options = OptimizerOptions(encoder_lr_factor=0.1, decay_norms_and_biases=False)
    groups = parameter_groups(network, options, network.encoder.parameters())
    members = [parameter for group in groups for parameter in group["params"]]
    trainable = [p for p in network.parameters() if p.requires_grad]
    assert len(members) == len(set(members)) == len(trainable)


def test_encoder_and_auxiliary_head_have_their_own_learning_rates():
    network = Network()
    found = groups_of(network, encoder_lr_factor=0.1, aux_lr_factor=10.0)
    assert found[id(network.encoder[0].weight)] == (0.1, 0.5)
    assert found[id(network.decoder.weight)] == (1.0, 0.5)
    assert found[id(network.aux_head.weight)] == (10.0, 0.5)


def test_weight_decay_leaves_out_norms_and_biases_only_when_asked():
    network = Network()
    small = (network.encoder[1].weight, network.encoder[1].bias, network.decoder.bias)
    assert {groups_of(network)[id(p)][1] for p in small} == {0.5}
    spared = groups_of(network, decay_norms_and_biases=False)
    assert {spared[id(p)][1] for p in small} == {0.0}
    assert spared[id(network.decoder.weight)][1] == 0.5


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_the_optimiser_is_the_one_that_is_named(name, kind):
    network = Network()
    options = OptimizerOptions(name=name, lr=0.3, momentum=0.8, betas=(0.8, 0.9))
    optimizer = make_optimizer(parameter_groups(network, options), options)
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["lr"] == 0.3
    expected = ("momentum", 0.8) if name == "sgd" else ("betas", (0.8, 0.9))
    assert optimizer.param_groups[0][expected[0]] == expected[1]
