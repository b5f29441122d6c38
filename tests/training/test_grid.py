"""A grid of runs: what is missing is trained, what stops goes on, what diverges is reported."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from segdeconv.training.grid import Grid, Job, curve

ROOT = Path(__file__).parents[2]

# Stands in for tools/train.py: as long as the file `slow` is there it trains until it is stopped.
TRAIN = """
import pathlib, signal, sys, time
given = sys.argv[1:]
if "--resume" in given:
    folder = pathlib.Path(given[given.index("--resume") + 1])
else:
    folder = pathlib.Path(given[given.index("--output_dir") + 1]) / given[given.index("--name") + 1]
    folder.mkdir()
with (folder.parent / "calls").open("a") as calls:
    calls.write(" ".join([folder.name, *given[:2]]) + "\\n")
if "--fail" in given:
    sys.exit("error: no such data")
if "--diverge" in given:
    print("error: the loss is nan at step 3; nothing was saved since it was one: lower the rate")
    sys.exit(1)
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
(folder / "began").touch()
while (folder.parent / "slow").exists() and not stopped:
    time.sleep(0.01)
if stopped:
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    sys.exit(130)
(folder / "metrics.csv").write_text("epoch,seconds,top1\\n1,2.0,0.25\\n2,3.0,0.5\\n")
"""


@pytest.fixture
def tool(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(TRAIN)
    return path


@pytest.fixture
def job(tmp_path):
    (tmp_path / "runs").mkdir()
    return lambda name, *arguments: Job(tmp_path / "runs" / name, ("--seed", "0", *arguments))


def calls(tmp_path):
    return (tmp_path / "runs" / "calls").read_text().splitlines()


@pytest.mark.parametrize("parallel", [1, 2])
def test_every_run_is_trained_once(tool, job, tmp_path, parallel):
    jobs, ended = [job("a"), job("b"), job("c")], []
    for _ in range(2):
        Grid(tool, parallel).train(jobs, lambda each: ended.append(each.folder.name))
    assert sorted(ended) == ["a", "b", "c"] == sorted(call.split()[0] for call in calls(tmp_path))
    assert all(each.finished and each.failure is None for each in jobs)
    assert curve(jobs[0].folder, "top1") == {
        "epoch": [1.0, 2.0],
        "seconds": [2.0, 5.0],
        "top1": [0.25, 0.5],
    }


def test_what_diverges_is_kept_as_such_and_the_others_go_on(tool, job, tmp_path):
    jobs = [job("a", "--diverge"), job("b")]
    for _ in range(2):
        Grid(tool).train(jobs)
    assert jobs[0].failure.startswith("the loss is nan at step 3") and not jobs[0].finished
    assert jobs[1].finished
    assert len(calls(tmp_path)) == 2


def test_a_mistake_ends_the_grid_with_its_sentence(tool, job, tmp_path):
    with pytest.raises(ValueError, match=r"a failed, see .*a.log: error: no such data"):
        Grid(tool).train([job("a", "--fail"), job("b")])
    assert len(calls(tmp_path)) == 1


def test_a_run_of_other_arguments_is_not_taken_for_this_one(tool, job):
    Grid(tool).train([job("a")])
    words = r"a was trained with other arguments \(--lr 1 would be new\)"
    with pytest.raises(ValueError, match=words):
        Grid(tool).train([job("a", "--lr", "1")])


def test_a_folder_without_a_checkpoint_is_begun_anew(tool, job, tmp_path):
    (tmp_path / "runs" / "a").mkdir()
    Grid(tool).train([job("a")])
    assert job("a").finished and calls(tmp_path) == ["a --seed 0"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_grid_that_is_stopped_goes_on_where_it_was(tool, job, tmp_path, number):
    slow = tmp_path / "runs" / "slow"
    slow.touch()
    script = f"""
        import signal
        from pathlib import Path
        from segdeconv.training.grid import Grid, Job
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        runs = Path({str(tmp_path / "runs")!r})
        Grid(Path({str(tool)!r}), 2).train([Job(runs / n, ("--seed", "0")) for n in "abc"])
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    while not all((tmp_path / "runs" / name / "began").exists() for name in "ab"):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    assert b"KeyboardInterrupt" in process.communicate(timeout=30)[1]
    assert not (tmp_path / "runs" / "c").exists()
    slow.unlink()
    Grid(tool).train([job(name) for name in "abc"])
    last = [call.split()[:2] for call in calls(tmp_path)[2:]]
    assert last == [["a", "--resume"], ["b", "--resume"], ["c", "--seed"]]


def test_what_is_noted_of_a_run_is_how_it_was_started(tool, job):
    Grid(tool).train([job("a", "--x", "1")])
    content = json.loads(job("a").record.read_text())
    assert content == {"arguments": ["--seed", "0", "--x", "1"], "failed": None}
