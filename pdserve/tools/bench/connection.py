"""One HTTP/1.1 connection as a load generator wants it: requests are written as they lie in memory.

Between the socket and a parser in C there is nothing but this file, for what the generator takes of the
processor, the server beside it lacks.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Sequence

import httptools

from pdserve import __version__
from pdserve.clients.address import Address
from pdserve.tools.bench.target import FailedError


def request_head(server: Address, method: str, path: str, headers: Sequence[tuple[str, str]] = ()) -> bytes:
    """The head of a request, to its empty line."""
    fixed = (("Host", server.netloc), ("User-Agent", f"pdserve-bench/{__version__}"), ("Accept", "*/*"))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in (*fixed, *headers))]
    return "\r\n".join((*lines, "", "")).encode("latin-1")


class HttpConnection(asyncio.Protocol):
    """A connection to one server, one exchange at a time; opened by the first, and anew after it broke.

    It goes straight to the server, whatever proxy the environment names.
    """

    def __init__(self, server: Address, tls: ssl.SSLContext | None = None) -> None:
        self._server = server
        self._tls = tls
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    async def exchange(self, request: bytes, timeout_s: float) -> tuple[int, bytes]:
        """Send a request, whole, and wait for the answer: its status and body. Raises FailedError."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[int, bytes]] = loop.create_future()
        deadline = loop.call_later(timeout_s, self._fail, answer, "timeout")
        try:
            transport = self._transport
            if transport is None or transport.is_closing():
                transport = await self._open(timeout_s)
            self._begin(answer)
            transport.write(request)
            return await answer
        except BaseException:
            # An answer that still comes would be taken for that of the next request.
            self.close()
            raise
        finally:
            deadline.cancel()
            self._answer = None

    def close(self) -> None:
        """Break the connection; the next exchange opens it anew."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    async def _open(self, timeout_s: float) -> asyncio.Transport:
        loop = asyncio.get_running_loop()
        host = self._server.host
        opening = loop.create_connection(
            lambda: self, host, self._server.port, ssl=self._tls, server_hostname=host if self._tls else None
        )
        try:
            transport, _ = await asyncio.wait_for(opening, timeout_s)
        except TimeoutError as error:  # two kinds until Python 3.11
            raise FailedError("timeout", "no connection", no_connection=True) from error
        except OSError as error:
            raise FailedError(_kind(error), str(error), no_connection=True) from error
        self._transport = transport
        return transport

    def _begin(self, answer: "asyncio.Future[tuple[int, bytes]]") -> None:
        self._answer = answer
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._has_end = False
        self._in_body = False

    @staticmethod
    def _fail(answer: "asyncio.Future[tuple[int, bytes]]", kind: str, detail: str = "") -> None:
        if not answer.done():
            answer.set_exception(FailedError(kind, detail))

    # What the transport calls.

    def data_received(self, data: bytes) -> None:
        if self._answer is None:  # an answer that nobody asked for
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(self._answer, "no HTTP", str(error))

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._answer is None:
            return
        if error is not None:
            self._fail(self._answer, _kind(error), str(error))
        elif self._in_body and not self._has_end:
            self._complete()  # of an answer without a length, the end of the connection is the end
        else:
            self._fail(self._answer, "connection closed")

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        self._has_end |= name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        self._in_body = True

    def on_body(self, part: bytes) -> None:
        self._body.append(part)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() < 200:  # "continue" and the like come before the answer
            self._has_end = self._in_body = False
            return
        if not self._parser.should_keep_alive() and self._transport is not None:
            self._transport.close()
            self._transport = None
        self._complete()

    def _complete(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((self._parser.get_status_code(), b"".join(self._body)))


def _kind(error: Exception) -> str:
    """What a broken connection is counted under."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionResetError | BrokenPipeError | ConnectionAbortedError):
        return "connection reset"
    if isinstance(error, ssl.SSLError):
        return "TLS"
    if isinstance(error, socket.gaierror):
        return "no such host"
    if f"[Errno {errno.ECONNREFUSED}]" in str(error):  # one error for all addresses of a name has no kind
        return "connection refused"
    number = error.errno if isinstance(error, OSError) else None
    return f"connection {errno.errorcode.get(number or 0, type(error).__name__)}"
