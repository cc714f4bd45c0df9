"""What a parser may not do, however odd its input: fail in an unknown way, take memory or time without
end, write, start or ask anything.
"""

import os
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

# Parsers import these where they need them; inside the bounds below that would take most of the memory.
import cv2
import faiss  # noqa: F401
import numpy as np
from PIL import Image

from pdserve.errors import PdserveError

if sys.platform != "win32":
    import resource

T = TypeVar("T")

Image.init()
cv2.resize(np.zeros((256, 256, 3), np.uint8), (99, 99))  # which starts its threads

MEMORY = 256 << 20
SECONDS = 10
LONGEST_MESSAGE = 2_000
_NO_MEMORY = ("bad_alloc", "nsufficient memory")


def outcome(
    run: Callable[[], T],
    *refusals: type[Exception],
    folder: Path | None = None,
    memory: int = MEMORY,
) -> T | None:
    """What ``run`` returns, None where it refuses with one of the errors; fails for all else.

    ``folder`` is where it may write; ``memory`` the bytes that it may take, where the system can bound
    them. A PdserveError is to have a message that can be shown.
    """
    with _bounded(memory), _watched(folder):
        try:
            return run()
        except refusals as error:
            refusal = error
    if isinstance(refusal, PdserveError):
        _check_text(refusal.message)
    _check_causes(refusal)
    return None


def _check_text(text: str) -> None:
    """It can be printed, on one line, and is no longer than a person reads."""
    assert 0 < len(text) <= LONGEST_MESSAGE, f"a message of {len(text)} characters: {text[:200]!r}…"
    # Of the categories, Cc are control characters and Cs lone surrogates.
    odd = {c for c in text if unicodedata.category(c) in ("Cc", "Cs")}
    assert not odd, f"a message with {odd}: {text!r}"


def _check_causes(error: Exception) -> None:
    """An allocation that failed within the bounds here would have succeeded elsewhere."""
    cause: BaseException | None = error
    while cause is not None:
        refused = isinstance(cause, MemoryError) or any(said in str(cause) for said in _NO_MEMORY)
        assert not refused, f"it stopped for want of memory only: {cause!r}"
        cause = cause.__cause__ or cause.__context__


class _TooLongError(BaseException):
    """Not an Exception: a parser that catches those must not catch this."""


@contextmanager
def _bounded(memory: int) -> Iterator[None]:
    """Bound the address space and the processor's seconds, on systems that can."""
    if sys.platform != "linux":
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _TooLongError

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGPROF, stop)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + memory, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    except _TooLongError:
        raise AssertionError(f"it was not done after {SECONDS} seconds of the processor") from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, before)


# Python's audit events (see "Audit events table" in its documentation) that no parser has a reason for.
_NEVER = (
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "pickle.find_class",
    "socket.bind",
    "socket.connect",
    "socket.getaddrinfo",
    "subprocess.Popen",
    "urllib.Request",
)
_CHANGES = (
    "os.chmod",
    "os.chown",
    "os.link",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.symlink",
    "os.truncate",
    "os.utime",
)
_deeds: list[str] | None = None
_allowed: Path | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _deeds is None:
        return
    if event in _NEVER:
        _deeds.append(f"{event}{arguments!r:.200}")
    elif event in _CHANGES or (event == "open" and _writes(arguments)):
        for path in arguments[:2] if event in ("os.rename", "os.link", "os.symlink") else arguments[:1]:
            if not _may_write(path):
                _deeds.append(f"{event}{arguments!r:.200}")


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    if isinstance(mode, str):
        return any(c in mode for c in "wax+")
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))


def _may_write(path: Any) -> bool:
    if isinstance(path, int):
        return True  # what was opened before was looked at then
    place = Path(path if isinstance(path, str) else str(path, "utf-8", "replace"))
    if "__pycache__" in place.parts:  # a module that is imported now
        return True
    return _allowed is not None and place.resolve().is_relative_to(_allowed)


@contextmanager
def _watched(folder: Path | None) -> Iterator[None]:
    """Fail where the block writes outside ``folder``, starts a process, opens a socket or unpickles."""
    global _deeds, _allowed
    deeds: list[str] = []
    _deeds, _allowed = deeds, folder and folder.resolve()
    try:
        yield
    finally:
        _deeds = None
    assert not deeds, f"it did what no parser does: {deeds}"


sys.addaudithook(_hook)
