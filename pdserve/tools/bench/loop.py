"""The process of a load generator: its event loop, Ctrl-C, how many connections it may have."""

import asyncio
import signal
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from pdserve.errors import UsageError

Result = TypeVar("Result")


def in_loop(work: Coroutine[Any, Any, Result]) -> Result:
    """``asyncio.run``, on uvloop where it is installed: half the cost per request."""
    if sys.platform != "win32":
        try:
            import uvloop
        except ImportError:
            pass
        else:
            return uvloop.run(work)
    return asyncio.run(work)


@contextmanager
def stopped_by_interrupt() -> Iterator[asyncio.Event]:
    """An event that the first Ctrl-C sets; the second ends everything at once, as it always does."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    before = signal.getsignal(signal.SIGINT)

    def interrupted(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        loop.call_soon_threadsafe(stop.set)

    signal.signal(signal.SIGINT, interrupted)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def make_room(connections: int) -> None:
    """Let this process have so many connections open. Raises UsageError where the system forbids it."""
    if sys.platform == "win32":
        return
    import resource

    need = connections + 64
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= need:
        return
    if hard != resource.RLIM_INFINITY and hard < need:
        raise UsageError(
            f"{connections} connections are more than this system lets a process have open ({hard}); "
            "take fewer with --clients or --max-in-flight."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))
