"""The process of a command: its standard streams, and what Ctrl-C does to it.

Until the command itself begins, Ctrl-C ends the process at once, since nothing is there to be kept. Then the
first raises KeyboardInterrupt, so that what is open is closed, and the second ends the process at once.
"""

import io
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from pdserve.errors import OutputError

INTERRUPTED = 130  # the exit code of shells for what Ctrl-C has ended: 128 + SIGINT
_NOTHING_DONE = "nothing was done yet; type the same command to start again."

_pressed = 0
_begun = False
_said = False
_kept = _NOTHING_DONE


def prepare() -> None:
    """Open what is closed of the standard streams, and take Ctrl-C over from Python."""
    # Not where a shell has had it ignored, for a command in the background.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
    _open_streams()


def begin(kept: str) -> None:
    """The command itself begins; ``kept`` is what Ctrl-C leaves of it, and how to go on: half a sentence."""
    global _begun, _kept
    _begun, _kept = True, kept


def was_interrupted() -> bool:
    """Whether Ctrl-C was pressed, also where a library has taken the exception for one of its own."""
    return _pressed > 0


def interrupted_sentence() -> str:
    """What is said of an interrupted command that says nothing itself."""
    return f"Interrupted; {_kept}"


def end(status: int) -> None:
    """End with an exit code other than 0; after Ctrl-C without waiting for threads that still work."""
    if not _pressed:
        if status:
            sys.exit(status)
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, OutputError):
            stream.flush()
    if "multiprocessing" in sys.modules:
        import multiprocessing

        for child in multiprocessing.active_children():
            child.terminate()
    os._exit(status)


def conclude() -> None:
    """The command has ended, and says what there is to say: Ctrl-C has nothing more to interrupt."""
    global _said
    _said = True


def end_interrupted() -> NoReturn:
    """End at once, with what can be said without any module, unless it is said."""
    text = "" if _said else f"pdserve: {interrupted_sentence()}\n"
    with suppress(OSError):
        # A progress display has hidden the cursor.
        os.write(2, (("\x1b[?25h" if _begun and os.isatty(2) else "") + text).encode())
    os._exit(INTERRUPTED)


def _interrupted(number: int, frame: FrameType | None) -> None:
    global _pressed
    _pressed += 1
    if not _begun or _said or _pressed > 1:
        end_interrupted()
    warnings.simplefilter("ignore")  # of what is broken off: coroutines that nobody awaits any more
    raise KeyboardInterrupt


def _open_streams() -> None:
    """Have something at the numbers of closed standard streams, and no encoding that ends in a traceback.

    Else the next file that is opened gets such a number, and what a library prints goes into it. Whoever
    reads or writes there gets the error of a closed stream still.
    """
    for number, (name, mode, flags) in enumerate(
        (("stdin", "r", os.O_WRONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_RDWR))
    ):
        try:
            os.fstat(number)
        except OSError:
            # It gets the lowest free number, which is this one.
            os.set_inheritable(os.open(os.devnull, flags), True)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not where a test has put another in its place
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdout, io.TextIOWrapper):
        out = sys.stdout
        encoding, errors = out.encoding, out.errors
        # With PYTHONUNBUFFERED nothing is kept back, else nothing but what is no whole line.
        by_line, at_once = out.line_buffering, out.write_through
        output = _Output(out.detach(), encoding, errors, line_buffering=by_line, write_through=at_once)
        sys.stdout = sys.__stdout__ = output  # type: ignore[misc]


class _Output(io.TextIOWrapper):
    """Standard output, whose errors are said as what they are, whichever library writes there."""

    def write(self, text: str) -> int:
        with _output_errors():
            return super().write(text)

    def flush(self) -> None:
        with _output_errors():
            super().flush()


@contextmanager
def _output_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # its reader has gone, and needs no words
        raise
    except OSError as error:
        raise OutputError(
            f"Standard output takes nothing more: {error.strerror or error}; the rest of the answer is lost. "
            "Give it a file, or /dev/null."
        ) from error
