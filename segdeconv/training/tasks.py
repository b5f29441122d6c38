"""What a run can train, by name: the groups of its configuration and what is built of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jsonargparse import Namespace

from segdeconv.registry import Registry
from segdeconv.training.base_data import RunData
from segdeconv.training.base_task import Task
from segdeconv.training.classification import (
    ClassificationLossOptions,
    ClassifierOptions,
)
from segdeconv.training.classification import build_task as build_classification
from segdeconv.training.classification_data import ClassificationData
from segdeconv.training.data_module import SegmentationData
from segdeconv.training.task import LossOptions, NetworkOptions
from segdeconv.training.task import build_task as build_segmentation


@dataclass(frozen=True)
class TaskKind:
    """One row of the table of tasks.

    Attributes:
        model: Dataclass of the group "model".
        data: Class of the group "data".
        loss: Dataclass of the group "loss".
        build: The task, from the instantiated configuration.
        run_name: Name of a run that was given none, from the configuration.
    """

    model: type[Any]
    data: type[RunData]
    loss: type[Any]
    build: Callable[[Namespace], Task]
    run_name: Callable[[Namespace], str]


TASKS = Registry[TaskKind](
    "task",
    segmentation=TaskKind(
        model=NetworkOptions,
        data=SegmentationData,
        loss=LossOptions,
        build=build_segmentation,
        run_name=lambda config: "_".join(
            (config.model.arch, config.model.encoder, config.model.operator)
        ),
    ),
    classification=TaskKind(
        model=ClassifierOptions,
        data=ClassificationData,
        loss=ClassificationLossOptions,
        build=build_classification,
        run_name=lambda config: "_".join(
            (config.data.dataset, config.model.name, config.model.operator)
        ),
    ),
)
