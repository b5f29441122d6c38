"""Folders of exports: nothing is replaced that is not one, and none is left half written."""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from segdeconv.models.pretrained import EXPORTED, format_of
from segdeconv.models.pretrained import FORMAT as PRETRAINED
from segdeconv.models.weights import plain_tensors

FORMATS = {"safetensors": "model.safetensors", "onnx": "model.onnx", "program": "model.pt2"}
ENCODER = "segdeconv encoder"  # "format" of its config.json

Normalization = tuple[Sequence[float], Sequence[float]]


@contextmanager
def new_folder(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill, which gets the name ``folder`` when all went well, and vanishes otherwise.

    Raises:
        ValueError: Something is there that may not be replaced.
    """
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise ValueError(
                f"{folder} is there already; --overwrite replaces it, --out names another folder"
            )
        if format_of(folder) not in (ENCODER, EXPORTED, PRETRAINED):
            raise ValueError(f"{folder} is no export, and is not replaced; name another with --out")
    elif folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name another folder with --out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part, old = (folder.parent / f".{folder.name}.{os.getpid()}.{n}" for n in ("part", "old"))
    part.mkdir()
    try:
        yield part
        if folder.exists():
            folder.replace(old)
        part.replace(folder)
        shutil.rmtree(old, ignore_errors=True)
    except Exception as error:
        if shutil.disk_usage(folder.parent).free < 2**20:  # each library has its own error for it
            reason = os.strerror(errno.ENOSPC)
            raise OSError(errno.ENOSPC, f"could not write {folder}: {reason}") from error
        raise
    finally:
        if old.exists() and not folder.exists():  # stopped between the two names
            old.replace(folder)
        shutil.rmtree(part, ignore_errors=True)


def write_config(part: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Say in config.json what is in the folder."""
    (part / "config.json").write_text(json.dumps({"format": kind, **content}, indent=2) + "\n")


def save(state: Mapping[str, Tensor], part: Path) -> None:
    """Write tensors as the folder's safetensors file."""
    save_file(plain_tensors(state), part / FORMATS["safetensors"], metadata={"format": "pt"})
