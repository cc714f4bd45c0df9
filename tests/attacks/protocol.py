"""HTTP itself: heads, framing, pipelining, connections."""

import contextlib

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
