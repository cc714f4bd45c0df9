"""One HTTP connection: HTTP/1.1 on the C parser of httptools, with bounds on size and time.

A connection may take ``header_timeout_s`` for the head of a request, and as long again for the rest of a body
whose request is answered already; a head may have ``max_header_bytes``. What may come without an end (a
header, a chunk's extension, trailers) is bounded likewise, and so is the time in which a caller does not read
its answer. The time for a body that is read is bounded by its reader (bodies.py).

A request is parsed when the one before it on its connection has its answer: what a caller sends ahead stays
unread, most of it in the system's buffers. Connections are counted (places.py).
"""

import asyncio
import re
from http import HTTPStatus
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from pdserve.services.http.browsers import POLICY
from pdserve.services.http.places import Places
from pdserve.settings import ServerSettings


class _Flow(FlowControl):
    """Reads nothing while a request waits for the answer to the one before it."""

    held = False

    def resume_reading(self) -> None:
        if not self.held:
            super().resume_reading()


class LimitedProtocol(HttpToolsProtocol):
    """One connection. A subclass has the ``settings``, and the ``places`` of all connections."""

    settings: ClassVar[ServerSettings]
    places: ClassVar[Places]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._in_head = True  # of a request, or between two
        self._started = False
        self._unclear = 0  # bytes since the parser last made something of what came
        self._too_large = False
        self._upgrade = False
        self._ahead = b""  # what has come and is not parsed yet, from _at on
        self._at = 0
        self._body_left = 0  # of a body whose length was said
        self._answered: RequestResponseCycle | None = None  # the request that is being answered, or was last
        self._only_health = False
        self._no_place = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    # Connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport)
        self._only_health = not self.places.enter(self, self.client[0] if self.client else None)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self.places.leave(self)
        self._stop_timer()
        self._stop_write_timer()
        self._ahead = b""
        self.pipeline.clear()  # nobody is there to be answered
        if self._answered and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()
        super().connection_lost(exc)

    def drop(self) -> None:
        """See `Connection.drop`."""
        if not self.transport.is_closing():
            self.transport.close()

    def shutdown(self) -> None:
        self.pipeline.clear()
        if self._answered and not self._answered.response_complete:
            self._answered.keep_alive = False
        super().shutdown()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def _close(self) -> None:
        """Close when all is written; what the caller does not read in time is dropped."""
        self.transport.close()
        self._start_write_timer()

    def data_received(self, data: bytes) -> None:
        if self._no_place:
            return
        self._unset_keepalive_if_required()
        self._ahead, self._at = self._ahead[self._at :] + data if self._ahead else data, 0
        self._parse()

    def _parse(self) -> None:
        """Parse what has come, as far as the next request while one has no answer."""
        while self._at < len(self._ahead) and not self._waits() and not self.transport.is_closing():
            end = self._end_of_piece()
            piece = self._ahead if not self._at and end == len(self._ahead) else self._ahead[self._at : end]
            self._at = end
            self._parse_piece(piece)
        if self._at >= len(self._ahead) or self.transport.is_closing():
            self._ahead, self._at = b"", 0
        if self._ahead:
            self.flow.pause_reading()
        held, self.flow.held = self.flow.held, bool(self._ahead)  # type: ignore[attr-defined]
        if held and not self._ahead and len(self.cycle.body) <= HIGH_WATER_LIMIT:
            self.flow.resume_reading()

    def _waits(self) -> bool:
        """Whether the next request has to wait for the answer of the one before it."""
        return self._in_head and self.cycle is not None and not self.cycle.response_complete

    def _end_of_piece(self) -> int:
        """Where to stop parsing: not behind the request that is coming, or not far."""
        if self._body_left:
            return min(len(self._ahead), self._at + self._body_left)
        # A head ends so, and so do chunks, which may have it inside them as well.
        least = 0 if self._in_head else _CHUNKS_AT_ONCE
        end = self._ahead.find(b"\r\n\r\n", self._at + least)
        return end + 4 if end >= 0 else len(self._ahead)

    def _parse_piece(self, data: bytes) -> None:
        self._unclear += len(data)
        try:
            self._feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self._too_large:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            elif self._no_place:
                self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
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
        self.places.begins(self)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._unclear = 0
        size, length = len(self.url), b"0"
        for name, value in self.headers:
            size += len(name) + len(value) + 4
            if name == b"content-length":
                length = value
        if size > self.settings.max_header_bytes:
            self._too_large = True
            raise ValueError("a head over the limit")
        self._upgrade = self.parser.should_upgrade()
        if self._upgrade and self.parser.get_method() != b"CONNECT":
            return
        if self._upgrade:
            raise ValueError("a tunnel")
        if self._only_health and not self.url.startswith(_HEALTH):
            self._no_place = True
            raise ValueError("no place")
        self._body_left = int(length)
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()
        if self._only_health:
            self.cycle.keep_alive = False
        self.headers = []  # for trailers, which must not pass for headers

    def on_body(self, body: bytes) -> None:
        self._unclear = 0
        if self._body_left:
            self._body_left -= len(body)
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
        if not self.pipeline and self._in_head and self.cycle.response_complete:
            self.places.ends(self)
        if self._ahead and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self._parse()
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
            if status == HTTPStatus.SERVICE_UNAVAILABLE:
                lines.append(b"retry-after: 1")
            lines += [b"content-length: %d" % len(body), b"connection: close", b"", body]
            self.transport.write(b"\r\n".join(lines))
        if self._no_place:
            # Closing now would make the caller's machine throw the answer away, as its body is unread.
            self.loop.call_later(_READ_ON_S, self.drop)
        else:
            self._close()


# A request that is one but for its method, which the parser does not know.
_REQUEST_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ \S+ HTTP/1\.[01]\r\n")

# What may be asked without a place.
_HEALTH = b"/v2/health/"
# Of chunks, whose end only the parser knows, so many bytes are parsed at once; a few requests may be in them.
_CHUNKS_AT_ONCE = 256
# How long a caller without a place may take to read that, and to send what nobody reads.
_READ_ON_S = 1.0

_REASONS = {
    HTTPStatus.BAD_REQUEST: "This is no HTTP request.\n",
    HTTPStatus.METHOD_NOT_ALLOWED: "Method Not Allowed\n",
    HTTPStatus.SERVICE_UNAVAILABLE: "All connections are in use; ask again in a moment.\n",
    HTTPStatus.REQUEST_TIMEOUT: "The head of the request did not come within {0.header_timeout_s:g} s.\n",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "The head of the request is larger than the limit of "
    "{0.max_header_bytes} bytes.\n",
}
