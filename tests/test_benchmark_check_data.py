"""The doctor's benchmark runs, and writes its figures with where they were measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_doctors_time_is_set_against_that_of_decoding(tmp_path):
    out = tmp_path / "doctor"
    command = ["benchmarks/check_data.py", "--tiny", "--seconds", "0", "--pairs", "2"]
    done = subprocess.run(
        [sys.executable, *command, "--workers", "2", "--out", str(out)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(out.with_suffix(".json").read_text())
    assert set(record["rows"]) == {"one process, processor time", "2 processes, clock"}
    for row in record["rows"].values():
        assert set(row["seconds per pair"]) == {"decoding", "reading", "doctor"}
        assert all(each["median"] > 0 for each in row["seconds per pair"].values())
    assert record["environment"]["command"].startswith("python benchmarks/check_data.py --tiny")
    assert "128x64 pixels" in out.with_suffix(".md").read_text()
