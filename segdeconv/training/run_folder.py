"""What a run leaves on disk, and how to find and read it again.

    runs/NAME/
        config.yaml             the whole configuration, defaults included
        surgery.txt, .json      what the operator replaced, removed, kept and skipped
        environment.json        versions, hardware, commit, command line, seed
        metrics.csv             one row per validation
        metrics.json            per-class scores of the best and of the last validation
        weights.safetensors     of the best validation (averaged weights, where they are kept)
        checkpoints/            best.ckpt and last.ckpt, to resume from
        tensorboard/

A file is written beside its place and then renamed into it, so that a full disk or a kill in the
middle leaves the earlier file whole.
"""

import errno
import io
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from segdeconv.models.pretrained import is_exported, is_pretrained
from segdeconv.models.weights import best_fit, has_statistics, is_whitened, plain_tensors
from segdeconv.training.command_line import check_run
from segdeconv.training.mistakes import WriteError

PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "segmentation-models-pytorch",
    "timm",
    "albumentations",
    "numpy",
)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file so that ``path`` holds its old content or the new one, never a part.

    Raises:
        WriteError: If the disk does not take it; the old file is then as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        kept = "; the earlier one is whole" if path.is_file() else ""
        raise _write_error(path, error.errno, kept) from error
    finally:
        with suppress(OSError):  # on a disk that may not be written there is none
            part.unlink()


def write_new(path: Path, content: bytes | str) -> None:
    """`write_whole` into a folder that need not be there.

    Raises:
        WriteError: If the folder cannot be made, or the disk does not take the file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _write_error(path, error.errno) from error
    write_whole(path, content)


def check_writable(path: Path, folder: bool = False) -> None:
    """Look whether something could be written, before hours are spent on it.

    Nothing is left behind; that a disk is full is not seen.

    Args:
        path: Its place.
        folder: Whether it is a folder, which may be there already, and not a file.

    Raises:
        WriteError: If it could not.
    """
    place = path if folder else path.parent
    while not place.exists() and place != place.parent:
        place = place.parent
    if path.is_dir() and not folder:
        raise _write_error(path, errno.EISDIR)
    if not place.is_dir():
        raise _write_error(path, errno.EEXIST)
    if not os.access(place, os.W_OK | os.X_OK):
        read_only = os.statvfs(place).f_flag & os.ST_RDONLY
        raise _write_error(path, errno.EROFS if read_only else errno.EACCES)


def _write_error(path: Path, number: int | None, more: str = "") -> WriteError:
    number = number or errno.EIO
    in_the_way = number in (errno.EEXIST, errno.ENOTDIR)
    reason = "a file is in the way" if in_the_way else os.strerror(number)
    return WriteError(number, f"could not write {path}: {reason}{more}")


class WholeCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written whole or not at all, read with `weights_only`."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write ``checkpoint`` to ``path``."""
        # to memory first: torch's own writer reports a full disk as a RuntimeError about zip files
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_new(Path(path), buffer.getvalue())

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read the checkpoint at ``path``; it holds data only, never code."""
        return read_checkpoint(Path(path))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint file's content, on the CPU.

    Raises:
        ValueError: If it is no checkpoint, or holds more than plain data.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
    except FileNotFoundError:
        raise ValueError(f"no checkpoint {path}; has the run saved one yet?") from None
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}); "
            "it is damaged or was not written by this program"
        ) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The network's weights in a .safetensors file or a checkpoint of a run (averaged if kept)."""
    if path.suffix == ".safetensors":
        if not path.exists():
            raise ValueError(f"no weights {path}; has the run finished a validation yet?")
        try:
            path.open("rb").close()  # safetensors says "no such file" of one it may not read
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or no safetensors file ({error})") from error
    return weights_in(read_checkpoint(path))


def weights_in(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The network's weights in a checkpoint of a run (averaged if kept)."""
    if "averaged_weights" in checkpoint:
        return checkpoint["averaged_weights"]  # type: ignore[no-any-return]
    return {
        name.removeprefix("network."): value
        for name, value in checkpoint.get("state_dict", checkpoint).items()
        if name.startswith("network.") or "state_dict" not in checkpoint
    }


def check_fit(network: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Compare names and shapes of weights from ``path`` with those of ``network``.

    Raises:
        ValueError: If they are those of another network.
    """
    own = network.state_dict()
    missing = [name for name in own if name not in weights]
    extra = [name for name in weights if name not in own]
    other = [n for n in own if n in weights and own[n].shape != weights[n].shape]
    if missing or extra or other:
        first = (missing or extra or other)[0]
        config = getattr(network, "config", None)
        wanted = f", {_described(config)}" if config else ""
        found = _what_it_holds(network, weights) if config else "another network"
        raise ValueError(
            f"{path} does not fit the network of the config{wanted}: {len(missing)} names missing, "
            f"{len(extra)} unexpected, {len(other)} of another shape (first: {first}); "
            f"it holds {found}"
        )


def _described(config: Mapping[str, Any]) -> str:
    name = f"{config['arch']} with encoder {config['encoder']}" if "arch" in config else ""
    return f"{name or config['name']} and operator {config['operator']}"


def _what_it_holds(network: Any, weights: Mapping[str, Tensor]) -> str:
    """What weights that do not fit are, as far as their names tell, and what to do with them."""
    if is_whitened(weights) and not has_statistics(network):
        return "a network that whitens; give --model.operator deconv"
    if has_statistics(network) and not is_whitened(weights):
        if any(name.endswith("running_var") for name in weights):
            return (
                "a network with batch norms: give --model.operator batchnorm, or make it one that "
                "whitens with tools/graft.py"
            )
        return "a network without statistics of whitening; give the operator that it has"
    fit = best_fit(network, weights)
    if fit.complete:
        what = "an encoder alone" if fit.part == "encoder" else "the library's own network"
        return f"{what}; train from it with: python tools/train.py --model.weights FILE"
    return "another network"


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write weights as safetensors."""
    write_whole(path, save(plain_tensors(weights)))


def create_run_folder(output_dir: Path, name: str) -> Path:
    """A new folder ``output_dir/name``; a taken name gets -2, -3, … behind it."""
    if name in (".", "..") or Path(name).name != name:
        raise ValueError(f"name={name}: expected the plain name of a folder in {output_dir}")
    check_writable(output_dir / name, folder=True)
    output_dir.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = output_dir / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def find_run(output_dir: Path, run: str) -> Path:
    """Folder of an earlier run: a path, or "last" for the newest in ``output_dir`` to go on with.

    A folder of `save_pretrained` stands in for a run.

    Raises:
        ValueError: If it is no run folder.
    """
    if run == "last":
        configs = sorted(output_dir.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime)
        folders = [path.parent for path in configs]
        saved = [path for path in folders if (path / "checkpoints" / "last.ckpt").is_file()]
        if not saved:
            what = "has saved a checkpoint yet" if folders else "yet"
            raise ValueError(f"no run in {output_dir} {what}; give the folder of one")
        return saved[-1]
    check_run(Path(run))
    return Path(run)


def results_folder(folder: Path) -> Path:
    """Where results about a run go: into its folder.

    Folders of `save_pretrained` and exported networks are there to be handed on, so theirs are put
    beside them.
    """
    if not (is_pretrained(folder) or is_exported(folder)):
        return folder
    return Path(os.path.normpath(folder / "..")) / f"{folder.resolve().name}_results"


def environment(seed: int) -> dict[str, Any]:
    """What a result depends on besides its config."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "seed": seed,
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": {name: version(name) for name in PACKAGES},
        "cores": os.cpu_count(),
        "processor": _processor(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
    }


def write_environment(folder: Path, seed: int) -> None:
    """Write environment.json; what a resumed run's earlier parts wrote moves to "earlier"."""
    path = folder / "environment.json"
    now = environment(seed)
    if path.exists():
        try:
            before = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged ({error}); move it away to go on without it"
            ) from error
        now["earlier"] = [*before.pop("earlier", []), before]
    write_whole(path, json.dumps(now, indent=2) + "\n")


def _git(*arguments: str) -> str | None:
    folder = Path(__file__).parent
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
    except OSError:  # no git here
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found.group(1) if found else platform.processor()
