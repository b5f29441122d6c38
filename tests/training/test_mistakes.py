"""What goes wrong at a tool is a sentence and an exit code; what is our fault is not hidden."""

import errno

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from segdeconv.training.mistakes import RunStopped, UsageError, WriteError, run_tool


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UsageError("a typo"), 2, "error: a typo"),
        (ValueError("a wish"), 1, "error: a wish"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (MisconfigurationException("no such device"), 1, "error: no such device"),
        (torch.OutOfMemoryError("CUDA …"), 1, "lower data.batch_size"),
        (RunStopped("step 3 is saved"), 130, "stopped; step 3 is saved"),
        (KeyboardInterrupt(), 130, "stopped at once"),
    ],
)
def test_a_mistake_is_a_sentence_and_an_exit_code_without_a_traceback(error, code, words, capsys):
    def tool(_):
        raise error

    assert run_tool(tool, []) == code
    shown = capsys.readouterr().err
    assert words in shown and "Traceback" not in shown


def test_what_a_library_makes_of_a_users_value_is_a_sentence_too(capsys):
    assert run_tool(lambda _: torch.nn.Conv2d(3, 4, 1)(torch.ones(1, 5, 2, 2)), []) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: RuntimeError: ") and "5 channels" in shown
    assert len(shown.splitlines()) == 1 and shown.endswith("(--debug shows where)\n")


def test_the_environment_may_ask_for_tracebacks(capsys, monkeypatch):
    monkeypatch.setenv("SEGDECONV_DEBUG", "1")
    assert run_tool(lambda _: torch.nn.Linear(2, 3)(torch.ones(5)), []) == 1
    assert "Traceback" in capsys.readouterr().err


def test_debug_shows_the_traceback_and_is_not_given_to_the_tool(capsys):
    def tool(arguments):
        assert arguments == ["x"]
        raise ValueError("a wish")

    assert run_tool(tool, ["--debug", "x"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyError("ours"), AssertionError()])
def test_a_mistake_of_ours_keeps_its_traceback_and_asks_for_a_report(error):
    def tool(_):
        raise error

    with pytest.raises(type(error)) as caught:
        run_tool(tool, [])
    assert "please report it" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (WriteError(errno.ENOSPC, "could not write a: full"), "a: full; free some space, or name"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "a.png"), "free some space, or name another"),
        (WriteError(errno.EACCES, "could not write a: no"), "a: no; name another place with --out"),
        (OSError(errno.EROFS, "Read-only file system", "a"), "system; name another place with"),
        (PermissionError(errno.EACCES, "Permission denied", "photo.png"), "photo.png: Permission"),
    ],
)
def test_a_place_that_takes_no_files_comes_with_advice(error, words, capsys):
    def tool(_):
        raise error

    assert run_tool(tool, [], output="--out") == 1
    shown = capsys.readouterr().err
    assert words in shown and "Errno" not in shown and len(shown.splitlines()) == 1
    assert ("--out" in shown) == ("photo" not in shown)  # a file to read may be elsewhere
