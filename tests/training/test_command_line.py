"""What a tool answers before it loads anything."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


def run(name, *arguments, cwd=None):
    """The tool in a process of its own, and the heavy libraries that it loaded."""
    code = (
        "import runpy, sys; path = sys.argv[1]; sys.argv[:] = sys.argv[1:]\n"
        "try: runpy.run_path(path, run_name='__main__')\n"
        "finally: print(sorted({'torch', 'lightning', 'numpy'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(TOOLS / f"{name}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.mark.parametrize("name", ["train", "eval", "predict", "export", "check_data"])
def test_help_loads_none_of_the_heavy_libraries(name):
    done = run(name, "--help")
    assert done.returncode == 0 and done.stdout.startswith(f"usage: python tools/{name}.py")
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train"], 2, "give a config: python tools/train.py --config"),
        (["train", "--config", "configs/quikstart.yaml"], 2, "no config configs/quikstart.yaml"),
        (["train", "--config", "twice.yaml"], 2, "line 2: the key seed stands twice"),
        (["check_data", "--config"], 2, "--config needs a file"),
        (["eval", "nowhere"], 1, "nowhere is not the folder of a run"),
        (["eval", "runs/quik"], 1, "there is none; did you mean runs/quick?"),
        (["eval", "quick"], 1, "did you mean runs/quick?"),
        (["eval", "runs"], 1, "runs is not the folder of a run: it has no config.yaml"),
        (["train", "--config", "runs/quick/confg.yaml"], 2, "did you mean runs/quick/config.yaml?"),
        (["eval", "last", "val"], 2, "val: expected one run and then options"),
        (["export", "--argmax"], 2, "name the folder of a run first"),
        (["predict", "last"], 2, "name the folder of a run, then images"),
    ],
)
def test_a_mistake_that_needs_no_library_is_found_without_one(arguments, code, words, tmp_path):
    (tmp_path / "twice.yaml").write_text("seed: 1\nseed: 2\n")
    (tmp_path / "runs/quick").mkdir(parents=True)
    (tmp_path / "runs/quick/config.yaml").write_text("seed: 1\n")
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("error: ") and words in done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stdout == "[]\n"


@pytest.mark.parametrize("seconds", [0.3, 1.0])
def test_ctrl_c_while_the_libraries_load_is_a_line(seconds, tmp_path):
    command = [sys.executable, str(TOOLS / "check_data.py"), "--data.dataset", "synthetic"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        start_new_session=True,
    )
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out, err) == (130, "", "stopped at once\n")


def test_a_reader_that_has_enough_is_no_error():
    tool = f"{sys.executable} {TOOLS / 'train.py'} --help | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", tool], capture_output=True, text=True)
    assert done.stdout.splitlines()[1] in ("0", "141") and done.stderr == ""
