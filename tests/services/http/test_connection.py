"""What one connection may send ahead, how many there may be, and TLS handshakes that do not end."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from pdserve.services.http.connection import LimitedProtocol
from pdserve.services.http.places import HANDSHAKES, SPARE, Places
from pdserve.settings import ServerSettings
from tests.certificates import issue
from tests.services.listeners import Listeners, listeners
from tests.services.watching import until

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
ROUTE = "/v1/classification"


def post(body: bytes) -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (ROUTE.encode(), len(body)) + body


CHUNKED = (
    b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" % ROUTE.encode()
)


@contextlib.contextmanager
def connected(opened: Listeners) -> Iterator[socket.socket]:
    port = int(opened.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        yield connection


def statuses(connection: socket.socket, count: int) -> list[int]:
    """The statuses of the next answers."""
    data = b""
    while data.count(b"HTTP/1.1 ") < count or not data.endswith((b"}", b"\n")):
        more = connection.recv(1 << 20)
        if not more:
            break
        data += more
    return [int(head[:3]) for head in data.split(b"HTTP/1.1 ")[1:]]


@pytest.fixture(scope="module")
def opened() -> Iterator[Listeners]:
    with listeners() as opened:
        yield opened


# Sent ahead


class Transport(asyncio.Transport):
    """A connection's other end, which nobody reads."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.reading = True
        self.closed = False
        self.written: list[bytes] = []

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))


class Held:
    """An application that answers when it is let, and what connects to it."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.begun: list[str] = []
        self.ended: list[str] = []
        config = uvicorn.Config(self, lifespan="off", log_config=None, ws="none", date_header=False)
        config.load()
        self.state = uvicorn.server.ServerState()
        kind = type(
            "Protocol", (LimitedProtocol,), {"settings": ServerSettings(name="x"), "places": Places(9, 9)}
        )
        self.protocol: Any = kind(config=config, server_state=self.state, app_state={})
        self.transport = Transport()
        self.protocol.connection_made(self.transport)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.begun.append(scope["path"])
        await receive()
        await self.go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})
        self.ended.append(scope["path"])


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("unit", [LIVE, post(b"abc"), CHUNKED], ids=["get", "post", "chunked"])
def test_what_is_sent_ahead_is_not_parsed_and_not_read(unit: bytes) -> None:
    async def main() -> None:
        held = Held()
        held.protocol.data_received(unit * 5000)
        await turns()
        assert len(held.begun) == 1
        assert len(held.protocol.pipeline) < 5
        assert not held.transport.reading
        assert len(held.state.tasks) == 1
        held.go_on.set()
        await turns(100_000)
        assert len(held.ended) == 5000
        assert held.transport.reading
        assert not held.protocol.pipeline

    asyncio.run(main())


def test_a_caller_that_sends_ahead_and_leaves_is_not_answered(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        held = Held()
        held.protocol.data_received(post(b"abc") * 2)
        await turns()
        held.transport.closed = True
        held.protocol.connection_lost(None)
        held.go_on.set()
        await turns()
        assert held.begun == [ROUTE]
        assert held.transport.written == []
        assert not held.state.tasks

    asyncio.run(main())
    assert caplog.records == []


def test_requests_sent_ahead_are_answered_in_order(opened: Listeners) -> None:
    bad = b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n"
    with connected(opened) as connection:
        connection.sendall((LIVE + bad + post(b"abc") + CHUNKED) * 50)
        assert statuses(connection, 200) == [200, 404, 200, 200] * 50


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_requests_that_come_in_pieces(size: int, opened: Listeners) -> None:
    sent = post(b"abc") + CHUNKED + LIVE
    with connected(opened) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(sent), size):
            connection.sendall(sent[at : at + size])
        assert statuses(connection, 3) == [200, 200, 200]


# Places


class Counted:
    def __init__(self) -> None:
        self.dropped = False

    def drop(self) -> None:
        self.dropped = True


def test_the_connection_idle_for_longest_makes_room() -> None:
    places = Places(2, 2)
    first, second, third = Counted(), Counted(), Counted()
    assert places.enter(first, "10.0.0.1")
    assert places.enter(second, "10.0.0.2")
    places.begins(first)
    places.ends(first)
    assert places.enter(third, "10.0.0.3")
    assert (first.dropped, second.dropped) == (False, True)
    places.leave(second)  # when it is closed at last
    assert len(places) == 2


def test_where_all_are_busy_a_newcomer_has_a_spare_place() -> None:
    places = Places(1, 1)
    busy = Counted()
    places.enter(busy, "10.0.0.1")
    places.begins(busy)
    spare = [Counted() for _ in range(SPARE + 1)]
    assert not any(places.enter(each, "10.0.0.2") for each in spare)
    assert [each.dropped for each in spare] == [True] + [False] * SPARE
    assert not busy.dropped
    for each in (*spare, busy):
        places.leave(each)
    assert places.enter(Counted(), "10.0.0.2")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
    ],
)
def test_an_address_has_its_share(one: str, other: str, same: bool) -> None:
    places = Places(10, 1)
    first = Counted()
    places.enter(first, one)
    places.begins(first)
    assert places.enter(Counted(), other) is not same


def test_health_is_answered_where_all_places_are_taken() -> None:
    with listeners(max_connections=2, header_timeout_s=30) as opened, contextlib.ExitStack() as stack:
        busy = [stack.enter_context(connected(opened)) for _ in range(2)]
        for connection in busy:
            connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n")  # and no end
        until(lambda: "503" in str(httpx.get(f"{opened.url}/v2", trust_env=False, timeout=20)))
        health = httpx.get(f"{opened.url}/v2/health/ready", trust_env=False, timeout=20)
        assert (health.status_code, health.headers["connection"]) == (200, "close")
        refused = httpx.post(f"{opened.url}{ROUTE}", content=b"x" * 2_000_000, trust_env=False, timeout=20)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.text == "All connections are in use; ask again in a moment.\n"
        busy[0].close()
        until(lambda: httpx.get(f"{opened.url}/v2", trust_env=False, timeout=20).status_code == 200)


def test_idle_connections_make_room_for_a_request() -> None:
    with listeners(max_connections=2) as opened, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connected(opened)) for _ in range(2)]
        for connection in idle:
            connection.sendall(LIVE)
            assert statuses(connection, 1) == [200]
        assert (
            httpx.post(f"{opened.url}{ROUTE}", content=b"x", trust_env=False, timeout=20).status_code == 200
        )
        while idle[0].recv(100):  # the rest of its answer, up to the end of the connection
            pass
        idle[1].sendall(LIVE)
        assert statuses(idle[1], 1) == [200]


# TLS


def test_handshakes_that_stand_still_keep_nobody_out(tmp_path: Path) -> None:
    made = issue(tmp_path / "tls")
    context = ssl.create_default_context(cafile=str(made.ca))
    with listeners(tls_cert=made.cert, tls_key=made.key, header_timeout_s=2) as opened:
        address = f"https://127.0.0.1:{opened.url.rpartition(':')[2]}"
        with contextlib.ExitStack() as stack:
            stalled = [stack.enter_context(connected(opened)) for _ in range(HANDSHAKES + 20)]
            for connection in stalled:
                connection.sendall(b"\x16\x03\x01\x02\x00\x01")
            health = httpx.get(f"{address}/v2/health/live", verify=context, trust_env=False, timeout=20)
            assert health.status_code == 200
            for connection in stalled:  # pushed out, or their time is over
                with contextlib.suppress(ConnectionResetError):
                    assert connection.recv(1) == b""
