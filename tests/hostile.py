"""Servers on the loopback that mean harm to whoever asks them; each answer is bounded in bytes and time."""

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Handler = BaseHTTPRequestHandler
Answer = Callable[[Handler], None]

CONTROLS = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eforged\nline"
"""What sets a terminal's title, clears it, turns the text and makes a second line."""
ESCAPED = r"\x1b]0;owned\x07\x1b[2J\x9b31m\u202eforged\nline"


@dataclass
class Hostile:
    """``url``; the paths and headers that it was asked with; the MB that it could send."""

    url: str
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    sent_mb: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@contextmanager
def hostile(answer: Callable[[Handler, Hostile], None]) -> Iterator[Hostile]:
    """A server that answers every request with ``answer``."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with suppress(OSError):  # who asks may go away
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                server.seen.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
                answer(self, server)

        do_POST = do_CONNECT = do_GET  # noqa: N815 - http.server's names

        def log_message(self, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    httpd.handle_error = lambda request, address: None  # type: ignore[method-assign]
    server = Hostile(f"http://127.0.0.1:{httpd.server_address[1]}")
    thread = threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def reply(handler: Handler, body: bytes = b"", status: int = 200, **headers: str) -> None:
    """An ordinary answer; underscores of the headers' names become hyphens."""
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    if "Content_Length" not in headers:
        handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def endless(handler: Handler, server: Hostile, status: int = 200) -> None:
    """A body without a length that goes on, up to 1 GB or 60 s."""
    handler.send_response(status)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.close_connection = True
    until = time.monotonic() + 60
    while server.sent_mb < 1000 and time.monotonic() < until and not server.over.is_set():
        handler.wfile.write(bytes(1 << 20))
        server.sent_mb += 1


def trickle(handler: Handler, server: Hostile, body: bool = True) -> None:
    """A byte each twentieth of a second, of a body or of a header, for up to 60 s."""
    if body:
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
    else:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    for _ in range(1200):
        handler.wfile.write(b"x")
        handler.wfile.flush()
        if server.over.wait(0.05):
            return


def bomb(megabytes: int) -> bytes:
    """Zeros, compressed a thousandfold."""
    return gzip.compress(bytes(megabytes << 20), 1)
