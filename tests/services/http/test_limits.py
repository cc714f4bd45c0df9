"""HTTP as it comes over a wire: heads and bodies that never end, callers that do not read, odd requests."""

import asyncio
import contextlib
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pdserve.services.http.server import http_listener
from pdserve.settings import ServerSettings
from tests.services.listeners import Listeners, listeners
from tests.services.watching import until

HEADER_S, BODY_S, HEAD_BYTES, PART_BYTES, BODY_BYTES = 0.4, 0.6, 4096, 20_000, 1_000_000
POST = b"POST /v1/classification HTTP/1.1\r\nHost: x\r\n"
OLD = b"POST /imagenet/prediction HTTP/1.1\r\nHost: x\r\n"
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def opened() -> Iterator[Listeners]:
    with listeners(
        header_timeout_s=HEADER_S, body_timeout_s=BODY_S, max_header_bytes=HEAD_BYTES,
        max_body_bytes=BODY_BYTES, max_part_bytes=PART_BYTES, keep_alive_s=1, max_images=3,
    ) as opened:  # fmt: skip
        yield opened


@contextlib.contextmanager
def connected(opened: Listeners) -> Iterator[socket.socket]:
    port = int(opened.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        yield connection


def rest(connection: socket.socket) -> bytes:
    """All that still comes, until the server closes."""
    out = b""
    with contextlib.suppress(ConnectionResetError):  # what was sent after the end is unread
        while more := connection.recv(65536):
            out += more
    return out


def dripped(connection: socket.socket, bits: Iterator[bytes]) -> bytes:
    """Send the bits one by one with short pauses; what comes back until the server closes."""
    out = b""
    try:
        for bit in bits:
            connection.sendall(bit)
            if select.select([connection], [], [], 0.05)[0]:
                more = connection.recv(65536)
                if not more:
                    return out
                out += more
    except (ConnectionResetError, BrokenPipeError):
        return out
    return out + rest(connection)


def endless(bit: bytes) -> Iterator[bytes]:
    """The same again and again; a server that takes a minute of it would take it for ever."""
    for _ in range(1200):
        yield bit
    raise AssertionError("the server takes it without an end")


def with_body(head: bytes, body: bytes, length: int | None = None) -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % (len(body) if length is None else length) + body


# Heads


def test_a_connection_that_says_nothing_is_closed(opened: Listeners) -> None:
    with connected(opened) as connection:
        assert rest(connection) == b""


def test_a_head_that_comes_in_drops(opened: Listeners) -> None:
    with connected(opened) as connection:
        connection.sendall(POST)
        answer = dripped(connection, endless(b"x"))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"did not come within 0.4 s" in answer


@pytest.mark.parametrize("begun", [b"\r\n", b"G", b"GET / HTTP/1.1\r\n", POST + b"X-Filler: "])
def test_a_head_that_stops(opened: Listeners, begun: bytes) -> None:
    with connected(opened) as connection:
        connection.sendall(begun)
        assert rest(connection).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * HEAD_BYTES + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        LIVE + b"X-Filler: " + b"a" * HEAD_BYTES + b"\r\n\r\n",
        LIVE + b"A: b\r\n" * HEAD_BYTES + b"\r\n",
        LIVE + b"X-Endless: " + b"a" * 100_000,
        b"\r\n" * 50_000,
    ],
    ids=["path", "header", "many headers", "no end", "blank lines"],
)
def test_a_head_over_the_limit(opened: Listeners, head: bytes) -> None:
    with connected(opened) as connection:
        connection.sendall(head)
        answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 431 ") or not answer  # a reset may have outrun it
    with connected(opened) as connection:
        for at in range(0, len(head), 1000):
            with contextlib.suppress(OSError):
                connection.sendall(head[at : at + 1000])
            if select.select([connection], [], [], 0.01)[0]:
                break
        assert connection.recv(65536).startswith(b"HTTP/1.1 431 ")


def test_a_head_within_the_limit(opened: Listeners) -> None:
    with connected(opened) as connection:
        connection.sendall(
            LIVE + b"X-Filler: " + b"a" * (HEAD_BYTES - 200) + b"\r\nConnection: close\r\n\r\n"
        )
        assert rest(connection).startswith(b"HTTP/1.1 200 ")


def test_an_idle_connection_is_closed_after_its_time(opened: Listeners) -> None:
    with connected(opened) as connection:
        connection.sendall(LIVE + b"\r\n")
        answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1") == 1


def test_a_head_may_stop_while_the_request_before_it_is_answered() -> None:
    """Its time begins when that has its answer."""
    with listeners(header_timeout_s=0.3) as opened, connected(opened) as connection:
        asked = len(opened.service.asked)
        connection.sendall(with_body(POST, b"slow") + b"GET /v2")
        until(lambda: len(opened.service.asked) > asked)
        assert select.select([connection], [], [], 1.0)[0] == []  # several times the limit
    until(lambda: opened.service.cancelled == 1)


# Bodies


@pytest.mark.parametrize("head", [POST, OLD])
@pytest.mark.parametrize(
    "framing", [b"Content-Length: 1000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n3e8\r\n"]
)
def test_a_body_that_stops(opened: Listeners, head: bytes, framing: bytes) -> None:
    with connected(opened) as connection:
        connection.sendall(head + framing + b"abc")
        answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"did not come within 0.6 s" in answer
    assert b"connection: close" in answer.lower()


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_comes_in_drops(opened: Listeners, chunked: bool) -> None:
    """Some bytes in time are not enough; a part must come."""
    asked = len(opened.service.asked)
    framing = b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Content-Length: 900000\r\n\r\n"
    with connected(opened) as connection:
        connection.sendall(POST + framing)
        answer = dripped(connection, endless(b"1\r\nx\r\n" if chunked else b"x"))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert len(opened.service.asked) == asked


def test_a_slow_body_whose_parts_come_in_time_is_taken(opened: Listeners) -> None:
    part, count = 20_000, 8
    with connected(opened) as connection:
        connection.sendall(POST + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % (part * count))
        for _ in range(count):
            time.sleep(0.1)  # the whole takes longer than body_timeout_s
            connection.sendall(b"x" * part)
        answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"size":160000' in answer


@pytest.mark.parametrize("head", [POST, OLD])
def test_a_body_announced_too_large_is_refused_before_it_comes(opened: Listeners, head: bytes) -> None:
    for length in (BODY_BYTES + 1, 10**40):
        with connected(opened) as connection:
            connection.sendall(head + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % length)
            answer = rest(connection)
        assert answer.startswith((b"HTTP/1.1 413 ", b"HTTP/1.1 400 "))
        assert b"100 Continue" not in answer


def test_who_sends_too_large_a_body_all_the_same_reads_the_refusal(opened: Listeners) -> None:
    with httpx.Client(base_url=opened.url, trust_env=False, timeout=30) as client:
        for _ in range(2):  # the connection goes on
            response = client.post("/v1/classification", content=bytes(20 * BODY_BYTES))
            assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")


def test_the_rest_of_a_refused_body_is_not_waited_for_without_an_end(opened: Listeners) -> None:
    with connected(opened) as connection:
        connection.sendall(POST + b"Content-Length: 5000000\r\n\r\n")
        assert dripped(connection, endless(b"x")).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("begun", "bit"),
    [(b"1;", b"x" * 1000), (b"0\r\n", b"A: b\r\n" * 200), (b"0\r\nA: ", b"x" * 1000)],
    ids=["an extension", "many trailers", "a trailer"],
)
def test_chunks_with_something_endless(opened: Listeners, begun: bytes, bit: bytes) -> None:
    with connected(opened) as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n" + begun)
        assert dripped(connection, endless(bit)) == b""


def test_trailers_are_no_headers(opened: Listeners) -> None:
    with connected(opened) as connection:
        connection.sendall(
            POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"2\r\nab\r\n0\r\nX-Request-ID: from-a-trailer\r\n\r\n"
        )  # fmt: skip
        answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"from-a-trailer" not in answer


# Forms


def form(*parts: bytes) -> bytes:
    return b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"


IMAGE = b'Content-Disposition: form-data; name="images"; filename="a"\r\n'


@pytest.mark.parametrize(
    ("part", "status", "words"),
    [
        (IMAGE + b"\r\n" + b"x" * PART_BYTES, 200, '"size":20000'),
        (IMAGE + b"\r\n" + b"x" * (PART_BYTES + 1), 413, "limit of 20000 bytes"),
        (b"Content-Disposition: form-data; name=a\r\n\r\n" + b"x" * (PART_BYTES + 1), 413, "20000 bytes"),
        (IMAGE + b"A: " + b"b" * 8200 + b"\r\n\r\nx", 400, "header length exceeded"),
        (b"A: b\r\n\r\nx", 400, "Missing Content-Disposition"),
    ],
    ids=["at the limit", "a file over it", "a field over it", "a long head", "no name"],
)
def test_parts_of_a_form(opened: Listeners, part: bytes, status: int, words: str) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    with httpx.Client(base_url=opened.url, trust_env=False, timeout=30) as client:
        response = client.post("/v1/classification", content=form(part), headers=kind)
    assert response.status_code == status
    assert words in response.text


# Answers


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """An application that answers ``GET /N`` with N bytes."""
    body = bytes(int(scope["path"][1:]))
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextlib.contextmanager
def answering(**settings: Any) -> Iterator[int]:
    """Serve that on a free port, in a thread; the port."""
    ready, over = threading.Event(), threading.Event()
    ports: list[int] = []

    async def serve() -> None:
        given = ServerSettings(name="x", grace_s=1, **settings)
        async with http_listener(answer, given, 0, asyncio.Event()) as port:
            ports.append(port)
            ready.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(20)
        yield ports[0]
    finally:
        over.set()
        thread.join(20)


def sockets() -> int:
    """How many this process has open, the server's in its thread among them."""
    count = 0
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += each.readlink().name.startswith("socket:")
    return count


def unread(port: int, size: int, *headers: bytes) -> socket.socket:
    """Ask for so many bytes, and take none of them."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", port))
    connection.sendall(b"\r\n".join((b"GET /%d HTTP/1.1" % size, b"Host: x", *headers, b"", b"")))
    return connection


@pytest.mark.skipif(sys.platform != "linux", reason="counts sockets in /proc")
@pytest.mark.parametrize("headers", [(), (b"Connection: close",)])
def test_callers_that_do_not_read_their_answers_are_cut_off(headers: tuple[bytes, ...]) -> None:
    """Those that the server still has to write to, and those that it has written off as closed."""
    with answering(body_timeout_s=0.5, keep_alive_s=0.2) as port, contextlib.ExitStack() as stack:
        before = sockets()
        # Linux itself holds some 2.8 MB of an answer; these leave it a little, more, or nothing.
        clients = [
            stack.enter_context(unread(port, size, *headers)) for size in range(2_300_000, 3_400_000, 50_000)
        ]
        for client in clients:  # it is being answered
            assert client.recv(12) == b"HTTP/1.1 200"
        until(lambda: sockets() == before + len(clients))
