"""Several processes: those that torchrun started a tool in, or that Lightning trains in."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


@contextmanager
def joined_processes() -> Iterator[int]:
    """Let the processes that torchrun started know of one another; the rank of this one.

    One process alone is rank 0 and joins nothing. What is exchanged are sums of small tensors in
    main memory, so gloo serves on GPUs as well, and processes may share one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0
        return
    dist.init_process_group("gloo")
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def rank_and_world_size() -> tuple[int, int]:
    """Number of this process and of all that are joined: (0, 1) for one alone."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def wait_for_all() -> None:
    """Go on when every process has come here."""
    if rank_and_world_size()[1] > 1:
        dist.barrier()


def of_first(value: T) -> T:
    """The first process's ``value``, in every process."""
    box = [value]
    if rank_and_world_size()[1] > 1:
        dist.broadcast_object_list(box)
    return box[0]
