"""What may change when a run goes on, and whether there is anything left to do."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

# Where and how it runs, not what it computes (rounding aside).
FREE = {
    *("config", "output_dir", "threads", "check_data", "write_report", "save_every_n_steps"),
    *("data.root", "data.num_workers", "data.val_batch_size"),
    *("model.compile", "model.channels_last"),
    *("trainer.accelerator", "trainer.strategy", "trainer.devices", "trainer.num_nodes"),
    *("trainer.precision", "trainer.deterministic", "trainer.benchmark", "trainer.max_time"),
    *("trainer.log_every_n_steps", "trainer.num_sanity_val_steps", "trainer.detect_anomaly"),
}
UPWARDS = {"trainer.max_epochs", "trainer.max_steps"}


def check_complete(checkpoint: Mapping[str, Any], folder: Path) -> None:
    """Look whether the last checkpoint of the run in ``folder`` says how far the run had come.

    Raises:
        ValueError: If it does not, as those that were saved by versions before that was kept.
    """
    if "recorded_step" not in checkpoint.get("callbacks", {}).get("SaveRun", {}):
        raise ValueError(
            f"the last checkpoint of {folder} does not say how far the run had come, so it was "
            f"saved by an earlier version; {_start_anew(folder)}"
        )


def _start_anew(folder: Path) -> str:
    weights = folder / "weights.safetensors"
    if not weights.is_file():  # written at the first validation
        return "start a new run"
    return f"start a new run, with --model.weights {weights} if it is to begin where this one is"


def check_changes(recorded: Namespace, config: Namespace, folder: Path) -> None:
    """Compare the configuration of a run with that it is to go on with.

    Optimiser and schedule come out of the checkpoint, so that most changes would have no effect.

    Raises:
        ValueError: If a key has changed that is neither `FREE` nor longer than before.
    """
    before, now = dict(recorded.items()), dict(config.items())
    for key in sorted(now.keys() - FREE):
        old, new = before.get(key), now[key]
        if key in UPWARDS and _limit(new) < _limit(old):
            limit = "no such limit" if _limit(old) == math.inf else old
            raise ValueError(
                f"{key}={new} would end the run early: {folder} has {limit}; leave it out, a "
                "resumed run can only be made longer"
            )
        if key not in UPWARDS and old != new:
            raise ValueError(
                f"{key} cannot change when a run goes on: {folder} has {old}, not {new}; leave it "
                f"out, or {_start_anew(folder)}"
            )


def finished(checkpoint: Mapping[str, Any], trainer: Namespace) -> str | None:
    """Where a run ended, in words, if it has trained and validated all that it was to.

    Args:
        checkpoint: The last one of the run.
        trainer: Group "trainer" of the configuration.
    """
    record, step = checkpoint["callbacks"]["SaveRun"], checkpoint["global_step"]
    trained = step >= _limit(trainer.max_steps) or record["epochs"] >= _limit(trainer.max_epochs)
    validated = record["recorded_step"] == step or trainer.limit_val_batches == 0
    return f"epoch {record['epochs']}, step {step}" if trained and validated else None


def _limit(value: int | None) -> float:
    return math.inf if value in (None, -1) else float(value)
