"""Photographs in tar files (WebDataset shards), streamed from disk or from anywhere else.

A shard is a tar file in which the files of a sample stand together: `0001.jpg`, `0001.cls`.  What
can be streamed is what the library webdataset opens: paths, http(s) and cloud URLs, and commands.

In an epoch each shard is read by one loader process of one training process, so each sample is seen
once.  Shards come in an order drawn from (seed, epoch), samples through a buffer that is shuffled
by the same numbers, and each sample's augmentation is drawn from its key: the same run gives the
same batches.  A worker gives whole batches; what is left over in each of them is put together at
the end (`together`), so that an epoch has as many steps as its samples fill.
"""

import io
import random
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import IterableDataset, default_collate, get_worker_info

from segdeconv.data.classes import ClassNames
from segdeconv.data.photos import PhotoTransform

SKIPPED: dict[str, Any] = {}  # in the place of a batch that a resumed run has had
ENDINGS = ("jpg", "jpeg", "png", "webp", "ppm", "bmp")  # of an image in a shard


def _library() -> Any:
    try:
        import webdataset
    except ImportError as error:
        raise ValueError(
            "tar shards are read by the library webdataset, which is not installed; "
            "pip install 'segdeconv[webdataset]', or pip install webdataset"
        ) from error
    return webdataset


class Shards(IterableDataset[dict[str, Any]]):
    """Batches out of the shards of one split: {"image": (N, 3, H, W), "label": (N,) int64, "name"}.

    Args:
        shards: Files or URLs of each split, braces expanded: {"train": "imagenet-{000..146}.tar"}.
            Relative paths lie in ``root``.
        length: Number of samples of each split: {"train": 1281167, "val": 50000}.
        num_classes: Number of classes.
        class_names: File with a name per line; None: classes are called by their numbers.
        root: Folder of the shards; None: the current one.
        split: Which of the splits.
        transform: What is done with an image.
        label: Ending of the file that holds a sample's label, as a number in text.
        buffer: Samples out of which the next one is drawn in training.

    Raises:
        ValueError: webdataset is not installed; no such split; shards that are missing.
    """

    photos = True
    channels = 3

    def __init__(
        self,
        shards: dict[str, str | list[str]],
        length: dict[str, int],
        num_classes: int,
        class_names: str | None = None,
        root: str | None = None,
        split: str = "train",
        transform: PhotoTransform | None = None,
        label: str = "cls",
        buffer: int = 2000,
    ) -> None:
        for key, table in (("shards", shards), ("length", length)):
            if split not in table:
                raise ValueError(
                    f"data.options.{key} says nothing of the split {split!r}; it has "
                    f"{', '.join(table)}"
                )
        self.urls = _expand(shards[split], root)
        self.length, self.split = length[split], split
        self.label_set = ClassNames("the shards", _names(class_names, num_classes))
        self.transform, self.label_key, self.buffer = transform, label, buffer
        self.plan = Plan()

    def __len__(self) -> int:
        return self.length

    def samples(self, urls: Iterable[str]) -> Iterator[dict[str, Any]]:
        """The raw samples of shards, in their order.

        Raises:
            ValueError: A shard that cannot be opened or read to its end.
        """
        wds = _library()
        for url in urls:
            try:
                stream = _Watched(wds.gopen(url))
                files = wds.tariterators.tar_file_expander(iter([{"url": url, "stream": stream}]))
                yield from wds.tariterators.group_by_keys(files)
                stream.check_end()
            except Exception as error:  # of tar, of a compression, of a stream, of a command
                reason = str(error.args[0] if error.args else error).split("\n")[0]
                raise ValueError(
                    f"cannot read the shard {url} ({reason or type(error).__name__}); it is "
                    "missing, damaged or cut short: copy it again, or take it out of "
                    "data.options.shards"
                ) from error

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Batches of this loader process, the last of them smaller."""
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        plan = self.plan
        raw = self.samples(plan.urls(self.urls, number, workers))
        if plan.seed is not None:
            raw = _shuffled(raw, self.buffer, random.Random(f"{plan.seed} {plan.epoch} {number}"))
        had = plan.skipped(number, workers)
        for place, batch in enumerate(_batches(raw, plan.batch_size)):
            if place < had and len(batch) == plan.batch_size:
                yield SKIPPED
            else:
                yield default_collate([self.decode(sample) for sample in batch])

    def decode(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Image and label of a raw sample.

        Raises:
            ValueError: A sample without image or label, or whose image or label cannot be read.
        """
        where = f"sample {sample['__key__']} of {sample['__url__']}"
        ending = next((each for each in ENDINGS if each in sample), None)
        if ending is None or self.label_key not in sample:
            has = ", ".join(key for key in sample if not key.startswith("__"))
            raise ValueError(
                f"{where} has {has}; expected an image ({', '.join(ENDINGS)}) and a label "
                f"({self.label_key}; give data.options.label if it is called otherwise)"
            )
        try:
            label = int(sample[self.label_key])
        except ValueError:
            text = sample[self.label_key][:40]
            raise ValueError(f"{where}: its label is {text!r}; expected a number in text") from None
        self.label_set.check([label], where)
        image = _read_image(sample[ending], where)
        if self.transform is None:
            return {"image": image, "label": label, "name": sample["__key__"]}
        if self.plan.seed is not None:
            key = zlib.crc32(sample["__key__"].encode())
            seeds = np.random.SeedSequence((self.plan.seed, self.plan.epoch, key))
            self.transform.set_random_seed(int(seeds.generate_state(1)[0]))
        return {"image": self.transform(image), "label": label, "name": sample["__key__"]}


class _Watched:
    """A stream of a tar file that knows whether it came to its end.

    Python's tarfile takes a file that is cut within a header for a whole one.
    """

    def __init__(self, stream: Any) -> None:
        self.stream, self.head, self.tail = stream, b"", b""

    def read(self, size: int = -1) -> bytes:
        data: bytes = self.stream.read(size)
        self.head = self.head or data[:6]
        self.tail = (self.tail + data[-1024:])[-1024:]
        return data

    def check_end(self) -> None:
        """Read what is left, and look for the two empty blocks that end a tar file.

        Raises:
            EOFError: If they are not there; of a compressed file nothing is known.
        """
        while self.read(2**20):
            pass
        self.stream.close()
        packed = self.head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ"))
        if not packed and (any(self.tail) or len(self.tail) < 1024):
            raise EOFError("its end mark is missing")


@dataclass(frozen=True)
class Plan:
    """Which part of the shards a pass reads, and in which order.

    Attributes:
        batch_size: Samples per batch.
        seed: Seed of the order; None: that of the files.
        epoch: Number of the pass.
        rank: This training process.
        world_size: Number of training processes.
        skip: Batches that this training process has had of the pass.
    """

    batch_size: int = 1
    seed: int | None = None
    epoch: int = 0
    rank: int = 0
    world_size: int = 1
    skip: int = 0

    def urls(self, urls: list[str], worker: int, workers: int) -> list[str]:
        """The shards of one loader process."""
        order = list(urls)
        if self.seed is not None:
            random.Random(f"{self.seed} {self.epoch}").shuffle(order)
        return order[self.rank :: self.world_size][worker::workers]

    def skipped(self, worker: int, workers: int) -> int:
        """Whole batches that one loader process had given at least: they take turns."""
        return len(range(worker, self.skip, workers))


def together(
    batches: Iterable[dict[str, Any]], batch_size: int, skip: int = 0
) -> Iterator[dict[str, Any]]:
    """The whole batches at once, then what the smaller ones hold together.

    Args:
        batches: Out of `Shards`.
        batch_size: Samples of a whole one.
        skip: How many are left out from the start.
    """
    rest: list[dict[str, Any]] = []
    given = 0
    for batch in batches:
        if batch and len(batch["image"]) < batch_size:
            rest.append(batch)
            continue
        given += 1
        if given > skip:
            yield batch
    if rest:
        joined = {key: _joined([batch[key] for batch in rest]) for key in rest[0]}
        for start in range(batch_size * max(0, skip - given), len(joined["image"]), batch_size):
            yield {key: value[start : start + batch_size] for key, value in joined.items()}


def _joined(parts: list[Any]) -> Any:
    """Tensors one behind the other, or lists."""
    return torch.cat(parts) if isinstance(parts[0], torch.Tensor) else list(chain(*parts))


def _expand(given: str | list[str], root: str | None) -> list[str]:
    """Every file or URL that is meant.

    Raises:
        ValueError: If there is none, or a file is missing.
    """
    patterns = [given] if isinstance(given, str) else given
    urls: list[str] = _library().shardlists.expand_urls("::".join(patterns))
    places = [url if ":" in url else str(Path(root or ".") / url) for url in urls]
    missing = [place for place in places if ":" not in place and not Path(place).is_file()]
    if missing or not places:
        raise ValueError(
            f"{len(missing)} of {len(places)} shards are not there"
            + (f" (first: {missing[0]})" if missing else "")
            + "; see data.options.shards, and docs/data.md"
        )
    return places


def _names(path: str | None, count: int) -> tuple[str, ...]:
    if path is None:
        return tuple(str(number) for number in range(count))
    names = tuple(Path(path).read_text().split("\n"))
    names = tuple(name.strip() for name in names if name.strip())
    if len(names) != count:
        raise ValueError(f"{path} names {len(names)} classes, and num_classes is {count}")
    return names


def _batches(samples: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """Lists of ``size``, the last of them shorter."""
    while batch := list(islice(samples, size)):
        yield batch


def _shuffled(
    samples: Iterator[dict[str, Any]], size: int, generator: random.Random
) -> Iterator[dict[str, Any]]:
    """Samples in the order in which they are drawn out of a buffer of ``size``."""
    buffer: list[dict[str, Any]] = []
    for sample in samples:
        if len(buffer) < size:
            buffer.append(sample)
            continue
        place = generator.randrange(size)
        buffer[place], sample = sample, buffer[place]
        yield sample
    generator.shuffle(buffer)
    yield from buffer


def _read_image(data: bytes, where: str) -> NDArray[np.uint8]:
    """(H, W, 3) uint8."""
    try:
        return np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{where}: its image cannot be read ({reason})") from error
