"""What a supervisor is told of the server: systemd (Type=notify), or another that has its protocol.

Of the environment (systemd.io and sd_notify(3), "Notifications")::

    NOTIFY_SOCKET     a datagram socket of AF_UNIX; "@NAME" is in Linux's abstract name space
    WATCHDOG_USEC     a word is wanted this often, in microseconds, or the process is taken for hung
    WATCHDOG_PID      and by whom; absent: by whoever reads it

A message is lines of ``NAME=VALUE``. Where no socket is named nothing is sent, and nothing here raises: a
server serves without a supervisor too.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

log = logging.getLogger("pdserve")

# A supervisor that does not read its socket costs so much at each change of state.
_SEND_S = 0.5


class Supervisor:
    """The supervisor of this process, by the environment; `ready` is called on the running event loop."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._watchdog_s = _watchdog_s(environ) if self._address else None
        self._watch: asyncio.Task[None] | None = None
        self._reloads = 0
        self._failed = False

    def starting(self, status: str) -> None:
        """Say what goes on before `ready`, for ``systemctl status``."""
        self._send(f"STATUS={status}")

    def ready(self, status: str) -> None:
        """The server answers. From now on the watchdog hears of the event loop, where it wants to."""
        self._send("READY=1", f"STATUS={status}")
        if self._watchdog_s and self._watch is None:
            self._watch = asyncio.create_task(self._alive(self._watchdog_s / 2))

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """A reload lasts as long as this is open, and has ended when the last of several has.

        It ends with READY whether it succeeded or not, since the server answers as before.
        """
        self._reloads += 1
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            yield
        finally:
            self._reloads -= 1
            if not self._reloads:
                self._send("READY=1")

    def stopping(self) -> None:
        """The stop begins. The watchdog hears of the loop until that ends."""
        self._send("STOPPING=1", "STATUS=finishing the requests that run")

    async def _alive(self, every_s: float) -> None:
        """Say that the event loop runs, half as long apart as the watchdog waits."""
        while True:
            self._send("WATCHDOG=1", wait_s=0)
            await asyncio.sleep(every_s)

    def _send(self, *lines: str, wait_s: float = _SEND_S) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
                to.settimeout(wait_s)
                to.connect(self._address)
                to.sendall("\n".join(lines).encode())
        except OSError as error:
            if not self._failed:
                log.warning("the supervisor at NOTIFY_SOCKET cannot be told %s: %s", lines[0], error)
            self._failed = True


def _address(text: str) -> str | None:
    """The socket's address; None where there is none, or one that is none of AF_UNIX (as ``vsock:``)."""
    if not hasattr(socket, "AF_UNIX") or not text.startswith(("/", "@")) or len(text) == 1:
        return None
    return "\0" + text[1:] if text.startswith("@") else text


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    """How often the watchdog wants a word from this process; None: never."""
    if environ.get("WATCHDOG_PID") not in (None, str(os.getpid())):
        return None
    try:
        seconds = int(environ.get("WATCHDOG_USEC", "0")) / 1e6
    except ValueError:
        return None
    return seconds if seconds > 0 else None
