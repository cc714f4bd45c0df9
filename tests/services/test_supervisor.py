"""What a supervisor hears by systemd's protocol: ready, reloading, stopping, and that the event loop runs."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pdserve.services.supervisor import Supervisor
from tests.running import start

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs sockets of AF_UNIX")

Message = dict[str, str]
ABSTRACT = "@" if sys.platform == "linux" else "/"


class Manager:
    """Listens as systemd does; ``kind`` is "@" for the abstract name space."""

    def __init__(self, folder: Path, kind: str = "/") -> None:
        name = str(folder / "notify")
        self.name = f"@pdserve-test-{os.getpid()}-{time.monotonic_ns()}" if kind == "@" else name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + self.name[1:] if kind == "@" else name)

    def hear(self, timeout_s: float = 60) -> Message:
        """The next message."""
        self._socket.settimeout(timeout_s)
        return dict(line.split("=", 1) for line in self._socket.recv(4096).decode().splitlines())

    def hear_nothing(self) -> bool:
        """Whether no message waits."""
        self._socket.setblocking(False)
        try:
            self._socket.recv(4096)
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with closing(Manager(tmp_path)) as opened:
        yield opened


@pytest.mark.posix
def test_a_server_says_what_it_does(tiny_home: Path, tmp_path: Path) -> None:
    """From its start over a reload, and one that fails, to its end; in the abstract name space."""
    keys = tmp_path / "keys.txt"
    keys.write_text("a" * 32)
    with closing(Manager(tmp_path, ABSTRACT)) as manager:
        environ = {"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "0"}
        with start(tiny_home, "--model", "tiny", "--api-key", str(keys), **environ) as server:
            assert "STATUS" in manager.hear()
            ready = manager.hear()
            assert ready["READY"] == "1"
            assert ready["STATUS"].startswith(
                f"classification at http://127.0.0.1:{server.http_port} and gRPC"
            )
            for content in ("b" * 32, ""):  # an empty file of keys is not taken
                keys.write_text(content)
                before = time.monotonic_ns() // 1000
                server.interrupt(signal.SIGHUP)
                reloading = manager.hear()
                assert reloading["RELOADING"] == "1"
                assert before <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
                assert manager.hear() == {"READY": "1"}
            assert "not reloaded" in server.log
            server.interrupt(signal.SIGTERM)
            assert manager.hear()["STOPPING"] == "1"
            assert server.wait() == 0
        assert manager.hear_nothing()


def run(manager: Manager, **environ: str) -> list[Message]:
    """A server's life of a tenth of a second; what the manager heard."""

    async def live() -> None:
        supervisor = Supervisor({"NOTIFY_SOCKET": manager.name, **environ})
        supervisor.ready("ready")
        await asyncio.sleep(0.1)
        supervisor.stopping()

    asyncio.run(live())
    heard = []
    while not heard or "STOPPING" not in heard[-1]:
        heard.append(manager.hear(5))
    return heard


def test_the_watchdog_hears_twice_in_its_time(manager: Manager) -> None:
    environ = {"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "200000", "WATCHDOG_PID": str(os.getpid())}

    async def live() -> None:
        Supervisor(environ).ready("ready")
        first = await asyncio.to_thread(manager.hear)
        assert first["READY"] == "1"  # before it is ready nobody waits for a word
        began = time.monotonic()
        for _ in range(4):
            assert await asyncio.to_thread(manager.hear) == {"WATCHDOG": "1"}
        assert time.monotonic() - began >= 0.25  # three pauses of a tenth of a second, but for rounding

    asyncio.run(live())


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "20000", "WATCHDOG_PID": "1"},  # another process's
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "-5"},
    ],
)
def test_no_watchdog_hears_nothing(manager: Manager, environ: dict[str, str]) -> None:
    assert [list(each) for each in run(manager, **environ)] == [["READY", "STATUS"], ["STOPPING", "STATUS"]]


def test_a_loop_that_stands_still_is_not_alive(manager: Manager) -> None:
    async def live() -> None:
        Supervisor({"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "20000"}).ready("ready")
        await asyncio.sleep(0)
        assert [list(manager.hear(5)), list(manager.hear(5))] == [["READY", "STATUS"], ["WATCHDOG"]]
        time.sleep(0.1)  # as an engine would that runs in the loop
        assert manager.hear_nothing()

    asyncio.run(live())


def test_reloads_at_once_end_with_the_last(manager: Manager) -> None:
    supervisor = Supervisor({"NOTIFY_SOCKET": manager.name})
    with supervisor.reloading():
        assert "RELOADING" in manager.hear(5)
        with supervisor.reloading():
            assert "RELOADING" in manager.hear(5)
        assert manager.hear_nothing()
    assert manager.hear(5) == {"READY": "1"}


@pytest.mark.parametrize("name", ["", "@", "vsock:2:1234", "relative", "/nobody/is/here", "/" + "x" * 200])
def test_without_a_supervisor_nothing_happens(name: str, caplog: pytest.LogCaptureFixture) -> None:
    async def live() -> None:
        supervisor = Supervisor({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1000"})
        supervisor.starting("loading")
        supervisor.ready("ready")
        await asyncio.sleep(0.02)
        supervisor.stopping()

    asyncio.run(live())
    said: list[Any] = [each.message for each in caplog.records if "NOTIFY_SOCKET" in each.message]
    assert len(said) == (1 if name.startswith("/") else 0)  # once, and not at each word
