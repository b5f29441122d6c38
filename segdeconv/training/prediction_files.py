"""Files of predictions of an evaluation: where they go, and what cityscapesScripts says of them."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jsonargparse import Namespace
from tqdm import tqdm

from segdeconv.data.pairs import PairedImages
from segdeconv.metrics import SegmentationScores
from segdeconv.official import Comparison, check_official, official_scores
from segdeconv.training.mistakes import sentence
from segdeconv.training.processes import of_first, wait_for_all
from segdeconv.training.run_folder import check_writable


@contextmanager
def predictions_folder(config: Namespace, rank: int) -> Iterator[Path | None]:
    """The folder for files of predictions; None if none are wanted.

    The official figures need files: without ``save_predictions`` they lie in a temporary folder,
    the same for all processes, until the first one leaves.

    Raises:
        ValueError: If something is in the folder that is to have them.
        WriteError: If it takes no files.
    """
    if config.save_predictions:
        folder = Path(config.save_predictions)
        check_empty(folder)
        check_writable(folder, folder=True)
        wait_for_all()  # before one of the processes writes into it
        yield folder
    elif config.official:
        own = TemporaryDirectory(prefix="predictions-") if rank == 0 else nullcontext("")
        with own as name:
            yield Path(of_first(name))
    else:
        yield None


def check_empty(folder: Path) -> None:
    """Predictions go into a folder of their own, where they replace nothing.

    Raises:
        ValueError: If something is in it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"--save-predictions {folder}: the folder is not empty, and nothing is overwritten; "
            "give a new one"
        )


def can_be_scored(config: Namespace, samples: Any, count: int) -> bool:
    """Whether the first ``count`` samples have labels; predictions can be had without.

    Raises:
        ValueError: If what is asked for cannot be had of them.
    """
    if config.official:
        check_official(samples, count)
    if not isinstance(samples, PairedImages) or samples.has_labels(count):
        return True
    if config.save_predictions and not config.official:
        return False
    official = " and leave --official out" if config.official else ""
    raise ValueError(
        f"split {config.data.val_split} has no labels, so there is nothing to score; for its "
        f"predictions alone give --save-predictions FOLDER{official}"
    )


def about_files_alone(config: Namespace) -> str:
    """What to print in place of scores."""
    text = f"no scores and no report: split {config.data.val_split} has no labels"
    if config.data.dataset != "cityscapes":
        return text
    root = f" --data.root {config.data.root}" if config.data.root else ""
    return (
        f"{text}\nlook at the files before they are uploaded: python tools/check_submission.py "
        f"{config.save_predictions}{root} --split {config.data.val_split}"
    )


def compare_officially(
    scores: SegmentationScores, samples: Any, count: int, folder: Path
) -> tuple[dict[str, Any], str]:
    """What cityscapesScripts says of the files in ``folder``, as JSON types and as text.

    Where it fails, "failed" says why: an evaluation that took hours is not lost with it.
    """
    files = [folder / f"{name}.png" for name in samples.names[:count]]
    try:
        with tqdm(total=count, desc="cityscapesScripts", unit="image", disable=None) as bar:
            official = official_scores(samples.label_paths[:count], files, bar.update)
    except Exception as error:  # whatever it raises
        reason = sentence(error)
        return {"failed": reason}, f"cityscapesScripts failed: {reason}"
    comparison = Comparison(scores, official)
    return comparison.to_dict(), str(comparison)
