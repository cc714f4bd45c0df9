"""HTTP itself: heads, framing, pipelining, connections."""

import contextlib
import socket
import threading
import time

import httpx
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tests.attacks.attack import Target, attack

HEAD = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n"
_CONNECTION = "pdserve.services.http.connection:LimitedProtocol"
IMPATIENT = ("--header-timeout-s", "1", "--body-timeout-s", "1")


@attack(without={f"{_CONNECTION}.data_received": HttpToolsProtocol.data_received})
def a_head_that_does_not_end(target: Target) -> None:
    """It is refused once it is over the limit, and not kept."""
    with target.watch() as seen:
        answer = target.raw(HEAD + b"X-Endless: " + b"a" * 30_000_000, timeout_s=5)
    assert answer.startswith(b"HTTP/1.1 431 ") or not answer, answer[:80]  # a reset may have outrun it
    assert seen.grown_mb < 20


@attack(
    options=IMPATIENT,
    without={f"{_CONNECTION}._time_is_up": lambda self: None},
)
def heads_that_come_in_drops(target: Target) -> None:
    """Each connection is closed when the time for a head is over, however much comes meanwhile."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(target.connection(timeout_s=15)) for _ in range(20)]
        for connection in opened:
            connection.sendall(HEAD + b"X-Slow: ")
        target.good()
        for connection in opened:
            assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")


def _drained(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while connection.recv(1 << 20):
            pass


@attack(without={f"{_CONNECTION}._waits": lambda self: False})
def requests_sent_ahead_without_an_end(target: Target) -> None:
    """What a connection sends before its turn is neither parsed nor read; others are answered meanwhile."""
    with target.watch() as seen, target.connection() as connection:
        reader = threading.Thread(target=_drained, args=(connection,), daemon=True)
        reader.start()
        over = time.monotonic() + 4
        with contextlib.suppress(TimeoutError):
            connection.settimeout(1)
            for _ in range(80):
                connection.sendall((HEAD + b"\r\n") * 2500)
                if time.monotonic() > over:
                    break
        target.good()
    assert seen.grown_mb < 40


@attack(
    options=("--max-connections", "20", "--header-timeout-s", "30"),
    without={"pdserve.services.http.places:Places.enter": lambda self, connection, address: True},
)
def more_connections_than_there_are_places(target: Target) -> None:
    """Those above the number may ask for the health, and nothing else, until there are places again."""
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(target.connection()).sendall(HEAD)
        answer = target.raw(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 503 "), answer[:80]
        health = httpx.get(f"{target.running.url}/v2/health/ready", trust_env=False, timeout=30)
        assert health.status_code == 200
    over = time.monotonic() + 20
    while target.raw(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")[9:12] != b"200":
        assert time.monotonic() < over
    target.good()


@attack(
    options=IMPATIENT,
    without={
        f"{_CONNECTION}._start_write_timer": lambda self: None,
        f"{_CONNECTION}._time_is_up": lambda self: None,
    },
)
def answers_that_nobody_reads(target: Target) -> None:
    """Who does not read his answers is cut off."""
    before = target.files()
    request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            opened = stack.enter_context(target.connection())
            opened.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                opened.send(request)
        target.until(lambda: target.files() >= before + 10)
        target.good()
        target.until(lambda: target.files() < before + 10)


@attack(options=IMPATIENT, without={f"{_CONNECTION}._start_timer": lambda self: None})
def connections_that_say_nothing(target: Target) -> None:
    """They are closed."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(target.connection(timeout_s=20)) for _ in range(50)]
        target.good()
        for connection in opened:
            assert connection.recv(1) == b""
