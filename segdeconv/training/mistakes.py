"""One sentence, and an exit code, for what goes wrong at a tool."""

import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

OF_LIBRARIES = ("MisconfigurationException", "OutOfMemoryError")
"""Names of Lightning's and torch's errors that are the user's to mend; a tool knows them without
loading either."""

DIVERGED = "nothing was saved since it was one"
"""Part of what is said of a run whose loss or weights are no numbers any more."""

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UsageError(ValueError):
    """A mistake in the command line or in a config."""


class WriteError(OSError):
    """A file or folder that cannot be written; says so itself, name included."""


class RunStopped(Exception):
    """The user asked the run to stop; its last checkpoint is saved."""


def run_tool(
    tool: Callable[[list[str]], None],
    arguments: Sequence[str] | None = None,
    output: str = "",
) -> int:
    """Run ``tool`` and give the program's exit code: one sentence for a user's mistake.

    A mistake is a ``ValueError``, an ``OSError``, what Lightning calls a misconfiguration, or
    whatever a library raises when the user's values reach it. What this package raises otherwise is
    our own mistake and keeps its traceback. ``--debug``, or SEGDECONV_DEBUG=1 in the environment,
    shows all tracebacks.

    A tool imports what it needs itself, within `loading`.

    Args:
        tool: Its main function.
        arguments: For it; None: those of the program.
        output: Options that say where it writes, for messages.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given or bool(os.environ.get("SEGDECONV_DEBUG"))
    try:
        tool([argument for argument in given if argument != "--debug"])
        sys.stdout.flush()
    except RunStopped as stopped:
        print(f"stopped; {stopped}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("stopped at once", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            return 141  # as programs end whose output goes to `head`
        expected = _is_expected(error)
        if not expected and not _out_of_a_library(error):
            error.add_note("This is a mistake in segdeconv; please report it with these lines.")
            raise
        if debug:
            traceback.print_exc()
        hint = "" if expected or debug else " (--debug shows where)"
        print(f"error: {sentence(error)}{_advice(error, output)}{hint}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


@contextmanager
def loading() -> Iterator[None]:
    """Within this, Ctrl-C ends the program: loading torch, Lightning and the like takes seconds.

    As an exception it would be swallowed by some of them, whose import then fails in other ways.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # not where it is ignored, as in the background
        signal.signal(signal.SIGINT, _end_at_once)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    print("stopped at once", file=sys.stderr, flush=True)
    os._exit(130)


def _output_is_closed() -> bool:
    """Whether nobody reads what is printed any more; nothing further is written, then."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _is_expected(error: BaseException) -> bool:
    return isinstance(error, ValueError | OSError) or type(error).__name__ in OF_LIBRARIES


def _out_of_a_library(error: Exception) -> bool:
    """Whether the function that raised ``error`` is an installed package's, and not ours."""
    if isinstance(error, AssertionError):
        return False
    path = traceback.extract_tb(error.__traceback__)[-1].filename
    if "worker process" in str(error):  # raised again; the text holds the worker's traceback
        path = re.findall(r'File "(.+?)", line', str(error))[-1]
    return "site-packages" in path and not Path(path).is_relative_to(Path(__file__).parents[1])


def _advice(error: BaseException, output: str) -> str:
    """What to do about a place that takes no files."""
    if not isinstance(error, OSError):
        return ""
    full = error.errno in DISK_FULL
    if not full and not isinstance(error, WriteError) and error.errno != errno.EROFS:
        return ""
    elsewhere = f"name another place with {output}" if output else "write elsewhere"
    return f"; free some space, or {elsewhere}" if full else f"; {elsewhere}"


def sentence(error: BaseException) -> str:
    """What to tell the user; out of a loader's process, the sentence below its traceback."""
    if type(error).__name__ == "OutOfMemoryError":
        return (
            "out of GPU memory; to train, lower data.batch_size or data.crop_size; to evaluate or "
            "predict, give --slide, smaller windows with --crop, or --memory cpu"
        )
    text = str(error).strip()
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if text.startswith("Caught ") and "worker process" in text:
        text = text.splitlines()[-1].split(": ", 1)[-1]
    text = " ".join(text.split())
    if not _is_expected(error):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) < 400 else f"{text[:400]} …"
