"""The HTTP listener: uvicorn on a bound socket, with bounds on size and time, and TLS.

It speaks HTTP/1.1 on the C parser of httptools. A connection may take ``header_timeout_s`` for the head of
a request, and as long again for the rest of a body whose request is answered already; a head may have
``max_header_bytes``. What may come without an end (a header, a chunk's extension, trailers) is bounded
likewise, and so is the time in which a caller does not read its answer. The time for a body that is read is
bounded by its reader (bodies.py).
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from http import HTTPStatus
from typing import Any, ClassVar

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pdserve.services.http.browsers import POLICY
from pdserve.services.net import bind, check_tls
from pdserve.services.protocols import App
from pdserve.settings import ServerSettings


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # server.py handles the process's signals


@contextlib.asynccontextmanager
async def http_listener(
    app: App, settings: ServerSettings, port: int, stop: asyncio.Event
) -> AsyncIterator[int]:
    """Serve an ASGI application; yields the port. Sets ``stop`` when uvicorn ends by itself.

    On leaving it takes no more requests and gives those that run ``grace_s`` to finish; what runs then is
    cancelled. Raises SettingsError for a port in use, an address of another machine, or a certificate that
    cannot be read.
    """
    config = _config(app, settings)
    opened = bind(settings.host, port)
    server = _Server(config)
    running = asyncio.create_task(server.serve(sockets=[opened]))
    running.add_done_callback(lambda _: stop.set())  # a listener that failed must not look open
    while not server.started and not running.done():
        await asyncio.sleep(0.01)
    try:
        yield opened.getsockname()[1]
    finally:
        server.should_exit = True
        await running


def _config(app: App, settings: ServerSettings) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        http=type("Protocol", (LimitedProtocol,), {"settings": settings}),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=settings.keep_alive_s,  # type: ignore[arg-type]  # a fraction does as well
        timeout_graceful_shutdown=settings.grace_s,  # type: ignore[arg-type]
    )
    config.load()
    config.ssl = check_tls(settings).context
    return config


class LimitedProtocol(HttpToolsProtocol):
    """One connection. A subclass has the ``settings``."""

    settings: ClassVar[ServerSettings]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._in_head = True  # of a request, or between two
        self._started = False
        self._unclear = 0  # bytes since the parser last made something of what came
        self._too_large = False
        self._upgrade = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    # Connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_write_timer()
        super().connection_lost(exc)

    def _close(self) -> None:
        """Close when all is written; what the caller does not read in time is dropped."""
        self.transport.close()
        self._start_write_timer()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._unclear += len(data)
        try:
            self._feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self._too_large:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            elif isinstance(error, httptools.HttpParserInvalidMethodError) and _REQUEST_LINE.match(data):
                self._refuse(HTTPStatus.METHOD_NOT_ALLOWED)
            else:
                self._refuse(HTTPStatus.BAD_REQUEST)
            return
        if self._unclear > self.settings.max_header_bytes:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif self._in_head and (self._started or self._unclear) and self._head_timer is None:
            self._start_timer()

    def _feed(self, data: bytes) -> None:
        left: bytes | memoryview = data
        while left:
            try:
                self.parser.feed_data(left)
                return
            except httptools.HttpParserUpgrade as upgrade:
                # Java's client offers HTTP/2 with its first request and sends the body on. The parser
                # takes that for the other protocol, so it is given the request without the offer.
                head = self._head_without_upgrade()
                left = memoryview(left)[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.feed_data(head)

    def _head_without_upgrade(self) -> bytes:
        lines = [b"%s %s HTTP/1.1" % (self.parser.get_method(), self.url)]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip() for token in value.split(b",")]
                value = b", ".join(token for token in tokens if token.lower() != b"upgrade")
            if name != b"upgrade":
                lines.append(name + b": " + value)
        return b"\r\n".join(lines) + b"\r\n\r\n"

    # Parser

    def on_message_begin(self) -> None:
        self._started = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._unclear = 0
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.settings.max_header_bytes:
            self._too_large = True
            raise ValueError("a head over the limit")
        self._upgrade = self.parser.should_upgrade()
        if self._upgrade and self.parser.get_method() != b"CONNECT":
            return
        if self._upgrade:
            raise ValueError("a tunnel")
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()
        self.headers = []  # for trailers, which must not pass for headers

    def on_body(self, body: bytes) -> None:
        self._unclear = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unclear = 0
        if self._upgrade:
            return
        self._in_head, self._started = True, False
        super().on_message_complete()
        if self._head_timer:  # it ran for the rest of an unread body
            self._stop_timer()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        unread = not self.pipeline and self.cycle.more_body
        super().on_response_complete()
        if self.transport.is_closing():
            self._close()
        elif unread:
            # Closing now would make the caller's machine throw the answer away; read on for a while.
            self._unset_keepalive_if_required()
            self._start_timer()

    # Timers

    def _start_timer(self) -> None:
        self._stop_timer()
        self._head_timer = self.loop.call_later(self.settings.header_timeout_s, self._time_is_up)

    def _stop_timer(self) -> None:
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None

    def _time_is_up(self) -> None:
        self._head_timer = None
        if not self._in_head or not (self._started or self._unclear):
            self._close()
        elif self.cycle and not self.cycle.response_complete:
            self._start_timer()  # part of the next request, while this one is being answered
        else:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_write_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_write_timer()

    def _start_write_timer(self) -> None:
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.settings.body_timeout_s, self.transport.abort)

    def _stop_write_timer(self) -> None:
        if self._write_timer:
            self._write_timer.cancel()
            self._write_timer = None

    # Refusals

    def send_400_response(self, msg: str) -> None:
        self._refuse(HTTPStatus.BAD_REQUEST)

    def _refuse(self, status: HTTPStatus) -> None:
        """Answer with the status, unless another request's answer is due, and close."""
        self._stop_timer()
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            body = _REASONS[status].format(self.settings).encode()
            lines = [b"HTTP/1.1 %d %s" % (status, status.phrase.encode())]
            lines += [name + b": " + value for name, value in self.server_state.default_headers]
            lines += [b"content-type: text/plain; charset=utf-8", *(b": ".join(each) for each in POLICY)]
            lines += [b"content-length: %d" % len(body), b"connection: close", b"", body]
            self.transport.write(b"\r\n".join(lines))
        self._close()


# A request that is one but for its method, which the parser does not know.
_REQUEST_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ \S+ HTTP/1\.[01]\r\n")

_REASONS = {
    HTTPStatus.BAD_REQUEST: "This is no HTTP request.\n",
    HTTPStatus.METHOD_NOT_ALLOWED: "Method Not Allowed\n",
    HTTPStatus.REQUEST_TIMEOUT: "The head of the request did not come within {0.header_timeout_s:g} s.\n",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "The head of the request is larger than the limit of "
    "{0.max_header_bytes} bytes.\n",
}
