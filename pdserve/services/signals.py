"""Signals to a server: one stops it, a second ends it at once, SIGHUP reloads; and a stop that always ends.

Requests have ``grace_s`` to finish at a stop, and what comes after them a little more. When that is over the
process ends, whatever still runs: a thread in an engine, a model that is being loaded, an answer that nobody
reads. Files are written so that this can come at any time.
"""

import asyncio
import contextlib
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from pdserve.vision.decoder import shared

log = logging.getLogger("pdserve")

AFTER_GRACE_S = 1.5
"""What comes after the last request, closing engines for one, may take so long."""

# Two signals within less are one: a terminal's, which reaches a parent too that passes it on.
_ONE_SIGNAL_S = 0.5
# The last words may wait for a log that nobody reads.
_LAST_WORDS_S = 0.5


class End:
    """The end of the process, at the latest ``grace_s`` and a little after a stop began.

    ``exit_code`` is asked for when it comes to that.
    """

    def __init__(self, grace_s: float, exit_code: Callable[[], int]) -> None:
        self._seconds = grace_s + AFTER_GRACE_S
        self._exit_code = exit_code
        self._timer: threading.Timer | None = None
        self._since = math.inf

    @property
    def began(self) -> bool:
        """Whether a stop has begun."""
        return self._timer is not None

    @property
    def lasts(self) -> bool:
        """Whether a stop has begun, some time ago."""
        return time.monotonic() - self._since > _ONE_SIGNAL_S

    def begin(self) -> None:
        """The stop begins now; a second time this does nothing."""
        if self._timer is None:
            self._timer = threading.Timer(self._seconds, self.now, ("with work that had not finished",))
            self._timer.daemon = True
            self._since = time.monotonic()
            self._timer.start()

    def now(self, how: str) -> None:
        """End the process, without waiting for anything."""
        last = threading.Thread(target=self._last_words, args=(how,), daemon=True)
        last.start()
        last.join(_LAST_WORDS_S)
        os._exit(self._exit_code())

    def reached(self) -> None:
        """The stop came to its end by itself, unless a thread is left, for which Python would wait."""
        left = [each for each in threading.enumerate() if not each.daemon]
        if self._timer and left == [threading.main_thread()]:
            self._timer.cancel()

    def _last_words(self, how: str) -> None:
        log.warning("stopped, %s", how)
        logging.shutdown()
        shared().close()


@contextlib.contextmanager
def handled(stop: Callable[[], object], reload: Callable[[], object], end: End) -> Iterator[None]:
    """Handle signals: SIGINT and SIGTERM (and Ctrl-Break) stop, then end at once; SIGHUP reloads.

    ``stop`` and ``reload`` are called on the running event loop. Once a stop has begun a second signal ends
    the process until it is over.
    """
    loop = asyncio.get_running_loop()

    def stopping(*_: object) -> None:
        if end.lasts:
            end.now("at once, as a second signal asked")
        end.begin()
        loop.call_soon_threadsafe(stop)

    def reloading(*_: object) -> None:
        loop.call_soon_threadsafe(reload)

    wanted = dict.fromkeys(("SIGINT", "SIGTERM", "SIGBREAK"), stopping) | {"SIGHUP": reloading}
    before = {}
    for name, handle in wanted.items():
        if number := getattr(signal, name, None):
            before[number] = signal.getsignal(number)
            signal.signal(number, handle)
    # A signal wakes Python code only when the loop runs; on Windows the loop may sleep on.
    wake = asyncio.create_task(_tick()) if sys.platform == "win32" else None
    try:
        yield
    finally:
        if wake:
            wake.cancel()
        for number, handler in before.items():
            if not end.began:
                signal.signal(number, handler)
            elif signal.getsignal(number) is reloading:  # there is nothing left to reload
                signal.signal(number, signal.SIG_IGN)


async def _tick() -> None:
    while True:
        await asyncio.sleep(0.2)
