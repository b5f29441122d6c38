"""Graft a trained batch-norm network for a run to go on from."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from segdeconv.export import new_folder
from segdeconv.grafting import GraftReport, graft
from segdeconv.models import SegmentationModel
from segdeconv.training.cli import ConfigParser
from segdeconv.training.data_module import SegmentationData
from segdeconv.training.evaluation import load_network
from segdeconv.training.ranges import check_ranges
from segdeconv.training.run_folder import save_weights, write_whole
from segdeconv.training.task import NetworkOptions, build_network

WEIGHTS = "model.safetensors"


def graft_run(
    parser: ConfigParser, config: Namespace, images: int, out: Path, trained: Path | None = None
) -> GraftReport:
    """Graft a network, and write its weights with a config that trains it on.

    Args:
        parser: What read the configuration.
        config: A run's configuration.  Its operator is what is grafted, "deconv" if it is
            "batchnorm".
        images: How many to calibrate on, taken as training takes them.
        out: New folder for model.safetensors, config.yaml and report.txt.
        trained: Weights of the batch-norm network; None: those that the configuration starts from,
            of which an encoder's are enough.

    Returns:
        What grafting did.

    Raises:
        ValueError: If there are no weights or images, or the network cannot be grafted.
    """
    check_ranges("", {"images": images}, images="1 or more")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if trained is None and config.model.weights is None:
        raise ValueError(
            "nothing says what to graft; name the folder of a batch-norm run, or give the weights "
            "of a batch-norm network: --model.weights FILE"
        )
    if config.model.operator == "batchnorm":
        config.model.operator = "deconv"
    built = parser.instantiate(config)
    with new_folder(out) as part:
        batches = calibration_batches(built.data, images)
        network = trained_network(built, trained, batches)
        options = built.model.operator_options or {}  # a config may say null
        report = graft(network, batches, built.model.operator, **options)
        if not report.holds:
            raise ValueError(f"the network cannot be grafted: {report.verdict}")
        save_weights(part / WEIGHTS, network.state_dict())
        if report.skip:
            config.model.operator_options = {**options, "skip": [*report.skip]}
        check_written(config, built, part / WEIGHTS, network, batches[0])
        config.name, config.model.weights = out.resolve().name, str(out / WEIGHTS)
        write_whole(part / "config.yaml", parser.write(config))
        write_whole(part / "report.txt", f"{report}\n")
    return report


def check_parent(parser: ConfigParser, folder: Path) -> None:
    """Look whether a run's network has batch norms.

    Raises:
        ValueError: If it has whitening layers, or other norms.
    """
    operator = parser.read_run(folder).model.operator
    if operator != "batchnorm":
        raise ValueError(
            f"{folder} is a run with operator {operator!r}; graft takes one with 'batchnorm' "
            "and keeps its function"
        )


def calibration_batches(data: SegmentationData, images: int) -> list[Tensor]:
    """About so many training images in batches; all of them if there are fewer."""
    count = -(-images // data.batch_size)
    return [batch["image"] for batch in islice(data.train_dataloader(), count)]


def trained_network(built: Any, trained: Path | None, batches: list[Tensor]) -> SegmentationModel:
    """The batch-norm network in evaluation mode, on the CPU."""
    options: NetworkOptions = replace(
        built.model, operator="batchnorm", operator_options={}, compile=False, channels_last=False
    )
    if trained is not None:
        return load_network(options, built.data.label_set, trained)
    torch.manual_seed(built.seed)
    network = build_network(options, built.data.label_set).eval()
    assert network.weights_report is not None
    settle_norms(network, network.weights_report.fresh, batches)
    return network


@torch.no_grad()
def settle_norms(network: nn.Module, fresh: tuple[str, ...], batches: list[Tensor]) -> None:
    """Give the untrained parts' batch norms the statistics of the batches.

    Without, they normalise nothing in evaluation, and what is grafted would grow from layer to
    layer.
    """
    norms = [
        module
        for part in fresh
        for module in network.get_submodule(part).modules()
        if isinstance(module, _BatchNorm)
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the average over all batches
        norm.train()
    for images in batches if norms else ():
        network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def check_written(
    config: Namespace, built: Any, weights: Path, network: nn.Module, images: Tensor
) -> None:
    """Build the network that a run will build from the files, and compare it on a batch.

    Raises:
        RuntimeError: If it computes something else.
    """
    options = replace(
        built.model,
        operator_options=config.model.operator_options,
        weights=str(weights),
        compile=False,
    )
    again = build_network(options, built.data.label_set).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(images), network(images), rtol=1e-3, atol=1e-3)
