"""Time an evaluation, part by part and as a whole, against the bare forward of its network.

Parts, each alone, of one image:

    decode        both files of a pair as arrays, in train ids (in the loader's processes)
    normalise     image and labels as tensors (there too)
    collate       a batch of one (there too)
    transfer      image and labels to the device, out of pinned memory (with --device cuda)
    upsample      of logits a quarter as large in each direction: part of the network's forward
    argmax        the class of the largest logit
    confidence    its probability, for a report
    metric        the confusion matrix of a prediction that is wrong along the borders of objects
    ... of noise  the same, of a prediction that changes from pixel to pixel
    observe       calibration and the score of the image, for a report
    torch's max, torchmetrics    what argmax and metric cost by these libraries' own functions

Whole, several images a round, from the start of the loader's processes, whose share is the smaller
the more --images there are:

    forward       the network over the same images, which lie on the device
    evaluation    `segdeconv.inference.evaluate` with the loader of tools/eval.py
    with report   the same, observed for a report

Goals: an evaluation takes no more than 1.1 of the bare forward, and the metric under 5 ms on CPU.
"main process" is the processor time of this process alone: what does not overlap with the network,
the start of the loader's processes included. On a machine that others use it says more than the
clock, which waits for them too. Drawn scenes are
written to a temporary folder first, unless --root names a Cityscapes folder.
"""

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from _common import (
    PRECISIONS,
    add_machine_options,
    autocast,
    clock,
    draw_cityscapes,
    environment,
    interleaved,
    keep_freed_memory,
    milliseconds,
    ratio,
    result_path,
    spread,
    timing_parser,
    with_range,
    write_result,
)
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_confusion_matrix

from segdeconv.inference import Prediction, confidence_of, evaluate, largest, resize_logits
from segdeconv.metrics import count_confusions
from segdeconv.models import create_model
from segdeconv.report import Observer
from segdeconv.tables import markdown_table
from segdeconv.training.data_module import SegmentationData
from segdeconv.training.loading import collate, default_workers

EXAMPLES = """\
examples:
  python benchmarks/evaluation.py
  python benchmarks/evaluation.py --root data/cityscapes --images 50 --network unet/resnet18
  python benchmarks/evaluation.py --device cuda --amp bf16 --channels-last --images 100
"""
NETWORKS = ("deeplabv3plus/mobilenet_v2", "deeplabv3plus/resnet50")
SIZE, TINY = (1024, 2048), (64, 128)
PRECISION_NAMES = {"none": "float32", "bf16": "bfloat16", "fp16": "float16"}  # of a `Prediction`
GOAL, METRIC_GOAL = 1.1, 5e-3


def build(name: str, options: argparse.Namespace) -> nn.Module:
    """The network called ARCH/ENCODER, with random weights, in evaluation mode."""
    torch.manual_seed(options.seed)
    arch, _, encoder = name.partition("/")
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    network = create_model(arch, encoder, 19, operator="batchnorm").eval()
    return network.to(options.device, memory_format=layout)


def parts(data: SegmentationData, device: str) -> dict[str, Callable[[], object]]:
    """What each part of the evaluation of an image does, the network's forward aside."""
    labels, samples, transform = data.label_set, data.val_set, data.eval_transform()
    image, mask = samples.load(0)
    sample = {**transform(image=image, mask=mask), "name": "a"}
    batch = collate([sample])
    size = (mask.shape[0], mask.shape[1])
    logits = torch.randn(1, labels.num_classes, *size, device=device)
    small = logits[..., ::4, ::4].contiguous()
    best, noise = largest(logits)
    confidence = confidence_of(logits, best)
    truth = batch["mask"].to(device, torch.uint8)
    predicted = truth.roll((3, 4), (1, 2)).clamp(max=labels.num_classes - 1)
    wide = predicted.long(), truth.long()
    ignored, observer = labels.ignore_index, Observer(labels.num_classes, labels.ignore_index)
    calls: dict[str, Callable[[], object]] = {
        "decode": lambda: samples.load(0),
        "normalise": lambda: transform(image=image, mask=mask),
        "collate": lambda: collate([sample]),
        "upsample": lambda: resize_logits(small, size),
        "argmax": lambda: largest(logits),
        "confidence": lambda: confidence_of(logits, best),
        "metric": lambda: count_confusions(predicted, truth, labels.num_classes, ignored),
        "... of noise": lambda: count_confusions(noise, truth, labels.num_classes, ignored),
        "observe": lambda: observer(["a"], predicted, confidence, truth),
        "torch's max": lambda: logits.max(1),
        "torchmetrics": lambda: multiclass_confusion_matrix(
            *wide, labels.num_classes, None, ignored, validate_args=False
        ),
    }
    if device != "cpu":
        pinned = [batch[name].pin_memory() for name in ("image", "mask")]
        calls["transfer"] = lambda: [each.to(device, non_blocking=True) for each in pinned]
    return calls


def forward(network: nn.Module, image: Tensor, options: argparse.Namespace) -> Tensor:
    """Logits of a batch on the device."""
    with torch.no_grad(), autocast(options.device, PRECISIONS[options.amp]):
        logits: Tensor = network(image)
    return logits


def whole(
    network: nn.Module, data: SegmentationData, options: argparse.Namespace
) -> dict[str, Callable[[], object]]:
    """What goes over all images."""
    labels = data.label_set
    settings = Prediction(precision=PRECISION_NAMES[options.amp])
    here = [batch["image"].to(options.device) for batch in data.val_dataloader(options.images)]

    def bare() -> None:
        for image in here:
            forward(network, image, options)

    def evaluation(observe: Any = None) -> None:
        loader = data.val_dataloader(options.images)
        evaluate(network, loader, labels, options.device, None, settings, observe)

    return {
        "forward": bare,
        "evaluation": evaluation,
        "with report": lambda: evaluation(Observer(labels.num_classes, labels.ignore_index)),
    }


def timed(
    calls: Mapping[str, Callable[[], object]], options: argparse.Namespace
) -> dict[str, dict[str, list[float]]]:
    """Seconds of each call by the clock, and of this process's processor time, round by round."""
    wall = clock("cuda") if options.device != "cpu" else time.perf_counter
    found: dict[str, dict[str, list[float]]] = {
        how: {name: [] for name in calls} for how in ("clock", "main process")
    }
    shuffled, end = random.Random(0), time.perf_counter() + options.seconds
    calls["forward"]()
    while len(found["clock"]["forward"]) < 3 or time.perf_counter() < end:
        for name in shuffled.sample(list(calls), len(calls)):
            start, used = wall(), time.process_time()
            calls[name]()
            found["clock"][name].append(wall() - start)
            found["main process"][name].append(time.process_time() - used)
    return found


def measure(name: str, data: SegmentationData, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds per image and quotients of one network: its forward, and whole evaluations."""
    calls = whole(build(name, options), data, options)
    return {
        how: {
            "seconds per image": {
                call: spread([value / options.images for value in values])
                for call, values in times.items()
            },
            "quotients": {
                f"{call} / forward": ratio(times[call], times["forward"])
                for call in ("evaluation", "with report")
            },
        }
        for how, times in timed(calls, options).items()
    }


def as_text(record: Mapping[str, Any], about: str) -> str:
    """The figures for reading."""
    sections = [
        "# Evaluation of large images against the forward of the network",
        f"{about}. Milliseconds per image and quotients taken round by round: medians (minimum - "
        "maximum over the rounds). What the rows mean: `python benchmarks/evaluation.py --help`.",
        "## Parts",
        markdown_table(
            ["part", "ms"], [[n, with_range(t, ".3g", 1e3)] for n, t in record["parts"].items()]
        ),
        f"metric under {1e3 * METRIC_GOAL:g} ms: "
        f"{_said(record['parts']['metric']['median'] < METRIC_GOAL)}",
    ]
    for name, row in record["networks"].items():
        sections.append(f"## {name}")
        for how, figures in row.items():
            table = [
                [n, with_range(t, ".4g", 1e3)] for n, t in figures["seconds per image"].items()
            ]
            table += [[n, with_range(q, ".3f")] for n, q in figures["quotients"].items()]
            sections.append(markdown_table([how, "ms, quotient"], table))
        verdicts = [
            f"- {quotient}, {how}: below {GOAL:g} {_said(values['median'] < GOAL)}"
            for how, figures in row.items()
            for quotient, values in figures["quotients"].items()
        ]
        sections.append("\n".join(verdicts))
    return "\n\n".join(sections)


def _said(reached: bool) -> str:
    return "reached" if reached else "NOT reached"


def parse() -> argparse.Namespace:
    """Command line."""
    parser = timing_parser(__doc__, EXAMPLES, seconds=60)
    add_machine_options(parser)
    parser.add_argument("--root", type=Path, help="a Cityscapes folder, in place of drawn scenes")
    parser.add_argument("--images", type=int, default=8, help="of its validation split (8)")
    workers = default_workers()
    parser.add_argument("--workers", type=int, default=workers, help=f"of the loader ({workers})")
    parser.add_argument(
        "--network", nargs="+", default=NETWORKS, metavar="ARCH/ENCODER", help=" ".join(NETWORKS)
    )
    parser.add_argument("--amp", default="none", choices=list(PRECISIONS), help="(none)")
    parser.add_argument("--channels-last", action="store_true", help="memory format of the maps")
    return parser.parse_args()


def main() -> None:
    """Run what the command line asks for."""
    options = parse()
    torch.set_num_threads(options.threads)
    kept, load = keep_freed_memory(), f"{os.getloadavg()[0]:.1f}" if os.name == "posix" else None
    networks = ["unet/resnet18"] if options.tiny else options.network
    with tempfile.TemporaryDirectory() if options.root is None else nullcontext() as folder:
        if folder is not None:
            size = TINY if options.tiny else SIZE
            draw_cityscapes(folder, "val", options.images, options.seed, size, options.workers)
        root = str(options.root or folder)
        data = SegmentationData("cityscapes", root, num_workers=options.workers)
        height, width = data.val_set.load(0)[1].shape
        about = (
            f"{options.images} {'drawn' if folder else 'real'} images of {width}x{height} pixels, "
            f"{options.workers} loader processes"
        )
        times = interleaved(
            parts(data, options.device), options.seconds, min_rounds=7, device=options.device
        )
        record: dict[str, Any] = {"parts": {name: spread(each) for name, each in times.items()}}
        for name, each in record["parts"].items():
            print(f"{name}: {milliseconds(each)} ms", flush=True)
        record["networks"] = {name: measure(name, data, options) for name in networks}
    text = as_text(record, about)
    print(text)
    whole_run = not options.tiny and options.root is None and networks == NETWORKS
    out = result_path(options, f"evaluation-{options.device}", whole_run)
    if out:
        facts = environment(options.seed) | {
            "images": about,
            "device": options.device,
            "amp": options.amp,
            "channels last": options.channels_last,
            "freed memory is kept": kept,
            "load average": load,
        }
        write_result(out, {"environment": facts, **record}, text)


if __name__ == "__main__":
    main()
