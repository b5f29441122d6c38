"""Optimisers, parameter groups and learning rate schedules.

The poly schedule with a floor is mmsegmentation's (`PolyLR`), stepped per optimiser step:
``lr(t) = (lr - min_lr) (1 - t / T)^power + min_lr``.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from segdeconv.training.ranges import check_ranges

NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.modules.instancenorm._InstanceNorm,
)


@dataclass
class OptimizerOptions:
    """Optimiser and its parameter groups.

    Args:
        name: SGD with momentum, or AdamW.
        lr: Peak learning rate for the whole batch (no scaling by batch size or devices is done).
        momentum: Momentum of SGD.
        nesterov: Nesterov momentum in SGD.
        betas: Averaging factors of AdamW.
        weight_decay: L2 penalty (SGD) or decoupled decay (AdamW).
        decay_norms_and_biases: Whether weight decay also acts on norms' parameters and on biases;
            yes in the mmsegmentation recipe, no in many classification recipes.
        encoder_lr_factor: Learning rate of the encoder relative to `lr`.
        aux_lr_factor: Learning rate of the auxiliary head relative to `lr`.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 5e-4
    decay_norms_and_biases: bool = True
    encoder_lr_factor: float = 1.0
    aux_lr_factor: float = 1.0

    def __post_init__(self) -> None:
        check_ranges(
            "optimizer",
            vars(self),
            lr="0 or more",
            momentum="0 to 1",
            betas="0 to 1",
            weight_decay="0 or more",
            encoder_lr_factor="0 or more",
            aux_lr_factor="0 or more",
        )


@dataclass
class ScheduleOptions:
    """Learning rate over the run, per optimiser step.

    Args:
        name: Shape of the decay after the warm-up.
        power: Exponent of "poly".
        min_lr: Floor that the decay ends at, in units of `optimizer.lr`'s; the same for all groups.
        warmup_steps: Optimiser steps of linear rise from `warmup_factor` to 1.
        warmup_factor: Share of the learning rate that the warm-up starts from.
    """

    name: Literal["poly", "cosine", "constant"] = "poly"
    power: float = 0.9
    min_lr: float = 0.0
    warmup_steps: int = 0
    warmup_factor: float = 1e-3

    def __post_init__(self) -> None:
        check_ranges(
            "schedule",
            vars(self),
            power="0 or more",
            min_lr="0 or more",
            warmup_steps="0 or more",
            warmup_factor="0 to 1",
        )


def parameter_groups(
    network: nn.Module,
    options: OptimizerOptions,
    encoder: Iterable[nn.Parameter] = (),
    aux_head: Iterable[nn.Parameter] = (),
) -> list[dict[str, Any]]:
    """Groups of the trainable parameters, each with its own learning rate and weight decay.

    Args:
        network: Its parameters with ``requires_grad`` are taken, each once.
        options: See `OptimizerOptions`.
        encoder: Those of the parameters that belong to the encoder.
        aux_head: Those of the parameters that belong to the auxiliary head.
    """
    factors = dict.fromkeys(encoder, options.encoder_lr_factor)
    factors |= dict.fromkeys(aux_head, options.aux_lr_factor)
    free = set() if options.decay_norms_and_biases else _norms_and_biases(network)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        if parameter.requires_grad:
            decay = 0.0 if parameter in free else options.weight_decay
            groups.setdefault((factors.get(parameter, 1.0), decay), []).append(parameter)
    return [
        {"params": members, "lr": factor * options.lr, "weight_decay": decay}
        for (factor, decay), members in groups.items()
    ]


def _norms_and_biases(network: nn.Module) -> set[nn.Parameter]:
    return {
        parameter
        for module in network.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(module, NORMS) or name.endswith("bias")
    }


def make_optimizer(
    groups: list[dict[str, Any]], options: OptimizerOptions
) -> torch.optim.Optimizer:
    """The optimiser that `options` name, over `groups` of `parameter_groups`."""
    if options.name == "sgd":
        return torch.optim.SGD(
            groups, lr=options.lr, momentum=options.momentum, nesterov=options.nesterov
        )
    return torch.optim.AdamW(groups, lr=options.lr, betas=options.betas)


def lr_factor(step: int, total: float, options: ScheduleOptions, floor: float = 0.0) -> float:
    """Learning rate at ``step``, as a share of the peak.

    Args:
        step: Optimiser steps taken, 0 to ``total``.
        total: Optimiser steps of the whole run.
        options: See `ScheduleOptions`; `min_lr` is not read.
        floor: Share of the peak that the decay ends at, 0 to 1.
    """
    left = max(0.0, 1 - step / total)
    decay: float = {
        "poly": left**options.power,
        "cosine": 0.5 * (1 + math.cos(math.pi * (1 - left))),
        "constant": 1.0,
    }[options.name]
    rise = 1.0
    if step < options.warmup_steps:
        start = options.warmup_factor
        rise = start + (1 - start) * step / options.warmup_steps
    return rise * (floor + (1 - floor) * decay)


def make_schedule(
    optimizer: torch.optim.Optimizer, options: ScheduleOptions, total: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """A schedule to step once per optimiser step.

    Raises:
        ValueError: If `min_lr` is above the learning rate of a group.
    """
    factors: list[Callable[[int], float]] = []
    for group in optimizer.param_groups:
        if options.min_lr > group["lr"] > 0:
            raise ValueError(
                f"schedule.min_lr={options.min_lr:g} is above the learning rate {group['lr']:g} "
                "that it is the floor of; lower schedule.min_lr or raise optimizer.lr"
            )
        floor = options.min_lr / group["lr"] if group["lr"] else 0.0
        factors.append(lambda step, floor=floor: lr_factor(step, total, options, floor))  # type: ignore[misc]
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
