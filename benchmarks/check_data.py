"""Time the data doctor on Cityscapes-size pairs against bare decoding of the same files.

    decoding   Pillow opens both files of a pair and decodes their pixels, and nothing else
    reading    both as arrays, image in red green blue, as training reads them
    doctor     `segdeconv.data.check.examine`: reading, and all that the data doctor looks at

One process is timed by processor time. All cores are timed by the clock, each from the start of a
loader's processes to the last pair, with the same loader for all three. Drawn scenes are written to
a temporary folder first, unless --root names a Cityscapes folder; files are read once before.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from _common import (
    draw_cityscapes,
    environment,
    interleaved,
    ratio,
    result_path,
    spread,
    timing_parser,
    with_range,
    write_result,
)
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from segdeconv.data.check import examine
from segdeconv.data.cityscapes import Cityscapes
from segdeconv.data.pairs import PairedImages
from segdeconv.data.readers import read_image, read_labels
from segdeconv.data.workers import init_worker, usable_cores
from segdeconv.tables import markdown_table

EXAMPLES = """\
examples:
  python benchmarks/check_data.py
  python benchmarks/check_data.py --root data/cityscapes --pairs 100
"""


def decode(dataset: PairedImages, index: int) -> None:
    """Decode both files of a pair."""
    for path in files_of(dataset, index):
        Image.open(path).load()


def read(dataset: PairedImages, index: int) -> None:
    """Read both files of a pair into arrays."""
    image, labels = files_of(dataset, index)
    read_image(image)
    read_labels(labels)


def files_of(dataset: PairedImages, index: int) -> tuple[Path, Path]:
    """Image and label map."""
    labels = dataset.label_paths[index]
    assert labels is not None
    return dataset.image_paths[index], labels


WORK: dict[str, Callable[[Any, int], object]] = {
    "decoding": decode,
    "reading": read,
    "doctor": examine,
}


class Worked(Dataset[object]):
    """What some work on each pair returns."""

    def __init__(self, dataset: PairedImages, work: Callable[[Any, int], object]) -> None:
        self.dataset, self.work = dataset, work

    def __getitem__(self, index: int) -> object:
        return self.work(self.dataset, index)


def as_it_is(value: Any) -> Any:
    """No batches."""
    return value


def in_processes(dataset: PairedImages, name: str, indices: Sequence[int], workers: int) -> float:
    """Seconds until all pairs have been worked on."""
    start = time.perf_counter()
    loader: Iterable[object] = DataLoader(
        Worked(dataset, WORK[name]),
        batch_size=None,
        sampler=indices,
        num_workers=workers,
        collate_fn=as_it_is,
        worker_init_fn=init_worker,
    )
    for _ in loader:
        pass
    return time.perf_counter() - start


def measure(dataset: PairedImages, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds per pair and quotients, in one process and on all cores."""
    indices = range(min(options.pairs, len(dataset)))

    def over_all(name: str) -> Callable[[], None]:
        return lambda: [WORK[name](dataset, index) for index in indices] and None

    calls = {name: over_all(name) for name in WORK}
    rounds: dict[str, dict[str, list[float]]] = {
        "one process, processor time": interleaved(calls, options.seconds, max_rounds=10)
    }
    clocked: dict[str, list[float]] = {name: [] for name in WORK}
    shuffled = random.Random(0)
    end = time.perf_counter() + options.seconds
    while len(clocked["doctor"]) < 3 or time.perf_counter() < end:
        for name in shuffled.sample(list(WORK), len(WORK)):
            clocked[name].append(in_processes(dataset, name, indices, options.workers))
    rounds[f"{options.workers} processes, clock"] = clocked
    return {
        how: {
            "seconds per pair": {
                name: spread([value / len(indices) for value in values])
                for name, values in times.items()
            },
            "quotients": {
                f"doctor / {name}": ratio(times["doctor"], times[name])
                for name in ("decoding", "reading")
            },
        }
        for how, times in rounds.items()
    }


def as_text(rows: dict[str, Any], about: str) -> str:
    """The figures for reading."""
    parts = [
        "# The data doctor against decoding",
        f"{about}. Milliseconds per pair and quotients taken round by round: medians (minimum - "
        "maximum over the rounds). What the rows mean: `python benchmarks/check_data.py --help`.",
    ]
    for how, row in rows.items():
        table = [[name, with_range(t, ".3g", 1e3)] for name, t in row["seconds per pair"].items()]
        table += [[name, with_range(q, ".3f")] for name, q in row["quotients"].items()]
        parts += [f"## {how[0].upper()}{how[1:]}", markdown_table(["what", "ms, quotient"], table)]
    return "\n\n".join(parts)


def parse() -> argparse.Namespace:
    """Command line."""
    parser = timing_parser(__doc__, EXAMPLES, seconds=60)
    parser.add_argument("--root", type=Path, help="a Cityscapes folder, in place of drawn scenes")
    parser.add_argument("--pairs", type=int, default=16, help="pairs of its training split (16)")
    cores = usable_cores()
    parser.add_argument("--workers", type=int, default=cores, help=f"processes ({cores})")
    return parser.parse_args()


def main() -> None:
    """Run what the command line asks for."""
    options = parse()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() if options.root is None else nullcontext() as folder:
        if folder is not None:
            size = (64, 128) if options.tiny else (1024, 2048)
            draw_cityscapes(folder, "train", options.pairs, options.seed, size, options.workers)
        dataset = Cityscapes(options.root or folder, "train")
        sizes = [[p.stat().st_size for p in files_of(dataset, n)] for n in range(len(dataset))]
        megabytes = [sum(kind) / len(sizes) / 1e6 for kind in zip(*sizes, strict=True)]
        height, width = dataset[0]["mask"].shape
        about = (
            f"{min(options.pairs, len(dataset))} {'drawn' if folder else 'real'} pairs of "
            f"{width}x{height} pixels, PNG; an image has {megabytes[0]:.2f} MB, a label map "
            f"{megabytes[1]:.2f} MB on average"
        )
        rows = measure(dataset, options)
    text = as_text(rows, about)
    print(text)
    out = result_path(options, "check-data", whole=not options.tiny and options.root is None)
    if out:
        facts = environment(options.seed) | {"pairs": about}
        write_result(out, {"environment": facts, "rows": rows}, text)


if __name__ == "__main__":
    main()
