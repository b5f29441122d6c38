"""What processes that read images are to be."""

import os
import signal

import cv2


def init_worker(worker_id: int) -> None:
    """Set up a loader's process: one thread, and Ctrl-C is the main process's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)


def usable_cores() -> int:
    """Processor cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores or 1
