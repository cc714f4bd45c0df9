"""How the HTTP clients connect and read: a request within a time in all, an answer within bounds.

httpx bounds the time of each read and not of all, and reads whatever comes. Here the time that is left goes
down to the socket, so that an answer that trickles, its headers too, ends in time; bodies are counted
while they come, before and after they are decompressed.
"""

import json
import ssl
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpcore
import httpx

from pdserve.errors import ClientError
from pdserve.proxies import Proxy, find_proxy

MAX_ANSWER_BYTES = 64 << 20
"""The most of an answer that a client reads, decompressed: ten times what 64 images of 1,000 labels take."""
MAX_ERROR_BYTES = 1 << 20
"""The most that is read of the answer to a request that failed."""
MAX_VALUES = 4_000_000
"""The most values of a JSON answer: each takes some 60 bytes of memory where it takes two to be sent."""

_ENCODINGS = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # zlib's wbits
_COUNTED_FROM = 1 << 20


class AnswerTooLargeError(ClientError):
    """``limit``: in bytes, decompressed."""

    def __init__(self, source: str, limit: int) -> None:
        super().__init__(f"{source} answers with more than {limit / (1 << 20):g} MiB, the limit.")


class Body:
    """Collects an answer's body, decompressed, within ``limit`` bytes; ``source`` is what messages name."""

    def __init__(self, headers: Mapping[str, str], limit: int, source: str) -> None:
        self._limit, self._source = limit, source
        self._parts: list[bytes] = []
        self._size = 0
        encoding = headers.get("content-encoding", "").strip().lower()
        if encoding not in ("", "identity", *_ENCODINGS):
            raise ClientError(f"{source} answers in the encoding {encoding!r}, which was not asked for.")
        self._inflate = zlib.decompressobj(_ENCODINGS[encoding]) if encoding in _ENCODINGS else None
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            raise AnswerTooLargeError(source, limit)

    def add(self, data: bytes) -> None:
        """Take what came. Raises AnswerTooLargeError beyond the limit, ClientError for broken compression."""
        if self._inflate is None:
            self._take(data)
            return
        try:
            while data and not self._inflate.eof:
                # One byte more than there may be, so that it is noticed.
                self._take(self._inflate.decompress(data, self._limit - self._size + 1))
                data = self._inflate.unconsumed_tail
        except zlib.error as error:
            raise ClientError(f"{self._source} answers with broken compression ({error}).") from error

    def _take(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._limit:
            self._parts.clear()
            raise AnswerTooLargeError(self._source, self._limit)
        self._parts.append(data)

    def content(self) -> bytes:
        """All of it."""
        return b"".join(self._parts)


def parse_json(content: bytes | str, source: str) -> Any:
    """An answer's JSON; None where it is none. Raises ClientError for more values than are read."""
    if len(content) > _COUNTED_FROM:
        text = content if isinstance(content, bytes) else content.encode("utf-8", "replace")
        if sum(map(text.count, (b",", b"[", b"{"))) > MAX_VALUES:
            raise ClientError(f"{source} answers with more than {MAX_VALUES:,} values, the limit.")
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


class _Left(threading.local):
    """Until when the request of this thread is to be done, by the monotonic clock; None: no bound."""

    until: float | None = None

    def of(self, timeout: float | None, error: type[Exception]) -> float | None:
        """The time that a step may take, in seconds."""
        if self.until is None:
            return timeout
        left = self.until - time.monotonic()
        if left <= 0:
            raise error("out of time")
        return left if timeout is None else min(left, timeout)


_left = _Left()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Bound all that this thread's requests over a `Transport` take, together."""
    before = _left.until
    _left.until = time.monotonic() + seconds
    try:
        yield
    finally:
        _left.until = before


class _Stream(httpcore.NetworkStream):
    """A connection whose reads and writes end with the request's time."""

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left.of(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _left.of(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _left.of(timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Backend(httpcore.SyncBackend):
    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        left = _left.of(timeout, httpcore.ConnectTimeout)
        return _Stream(super().connect_tcp(host, port, left, local_address, socket_options))


class Transport(httpx.BaseTransport):
    """Connections of threads that share them, each request through the environment's proxy for its host.

    ``verify``: the TLS settings; None for httpx's own. Raises UsageError for a proxy that cannot be
    used.
    """

    def __init__(self, verify: ssl.SSLContext | None = None) -> None:
        self._verify = verify
        self._pools: dict[Proxy | None, httpcore.ConnectionPool] = {}
        self._lock = threading.Lock()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        proxy = find_proxy(request.url.scheme, request.url.host, request.url.port)
        with self._lock:
            pool = self._pools.get(proxy) or self._pools.setdefault(proxy, self._pool(proxy))
        url = request.url
        with _translated():
            answer = pool.handle_request(
                httpcore.Request(
                    request.method,
                    httpcore.URL(
                        scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
                    ),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        return httpx.Response(
            answer.status,
            headers=answer.headers,
            stream=_Answer(answer.stream),
            extensions=dict(answer.extensions),
        )

    def _pool(self, proxy: Proxy | None) -> httpcore.ConnectionPool:
        named: dict[str, Any] = {
            "ssl_context": self._verify,
            "max_connections": 100,
            "max_keepalive_connections": 20,
            "keepalive_expiry": 5,
            "network_backend": _Backend(),
        }
        if proxy is None:
            return httpcore.ConnectionPool(**named)
        url = httpx.URL(proxy.url)
        kind = httpcore.SOCKSProxy if url.scheme.startswith("socks") else httpcore.HTTPProxy
        auth = (url.username.encode(), url.password.encode()) if url.username or url.password else None
        at = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=b"/")
        return kind(proxy_url=at, proxy_auth=auth, **named)

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()


class _Answer(httpx.SyncByteStream):
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __iter__(self) -> Iterator[bytes]:
        with _translated():
            yield from self._inner

    def close(self) -> None:
        self._inner.close()


@contextmanager
def _translated() -> Iterator[None]:
    """httpcore's errors as httpx's, which have the same names."""
    try:
        yield
    except (
        httpcore.NetworkError,
        httpcore.ProtocolError,
        httpcore.ProxyError,
        httpcore.TimeoutException,
        httpcore.UnsupportedProtocol,
    ) as error:
        raise getattr(httpx, type(error).__name__)(str(error)) from error
