"""The HTTP routes: their requests, one client's connection, and whether an answer is good.

``v1``, ``json`` and ``form`` are the three forms of ``POST /v1/{service}``: the body is an image file, a JSON
object, a multipart form. ``pipeline`` is Paddle Serving's HTTP route, with the messages that its own clients
send; a published server answers them too.

What the generator takes of the processor, a server on the same machine lacks. So requests are bytes made
before the load starts, and between the socket and a parser in C there is nothing but this file. With a tiny
model on two cores a request costs the generator 0.06 ms of CPU. With aiohttp it costs 0.2 ms, and one client
measures 20 % fewer requests per second; with httpx 0.9 ms, and 59 % fewer.
"""

import asyncio
import base64
import errno
import json
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httptools

from pdserve import __version__
from pdserve.clients.address import Address
from pdserve.clients.credentials import Access, tls_context
from pdserve.errors import UsageError
from pdserve.pipelines import SERVICES
from pdserve.tools.bench.run import FailedError, Target

_BOUNDARY = "pdserve-bench-e2f1c94d7a60"


@dataclass(frozen=True)
class Post:
    """An HTTP request without its host: path, Content-Type, body."""

    path: str
    media_type: str
    body: bytes


def posts(
    route: str, batches: Sequence[Sequence[bytes]], service: str, name: str | None = None
) -> list[Post]:
    """The HTTP requests of a route, each of a batch of image files.

    ``name``: the service's on route pipeline, where it is not the guide's. Raises UsageError for several
    images in a ``v1`` request.
    """
    if route == "v1" and any(len(images) > 1 for images in batches):
        raise UsageError("A request of route v1 is one image; for --batch take json, form, pipeline or grpc.")
    path = f"/{name or SERVICES[service].name}/prediction" if route == "pipeline" else f"/v1/{service}"
    media_type, body = _BODIES[route]
    return [Post(path, media_type, body(images)) for images in batches]


def to_base64(image: bytes) -> str:
    return base64.b64encode(image).decode("ascii")


def pipeline_keys(images: Sequence[bytes]) -> list[str]:
    """The guide's clients call their image ``image``."""
    return ["image"] if len(images) == 1 else [f"image_{i}" for i in range(len(images))]


def _json(images: Sequence[bytes]) -> bytes:
    return json.dumps({"images": [to_base64(image) for image in images]}).encode()


def _form(images: Sequence[bytes]) -> bytes:
    parts = []
    for i, image in enumerate(images):
        head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="{i}"\r\n'
        parts += [head.encode(), b"Content-Type: application/octet-stream\r\n\r\n", image, b"\r\n"]
    return b"".join((*parts, f"--{_BOUNDARY}--\r\n".encode()))


def _pipeline(images: Sequence[bytes]) -> bytes:
    content = {"key": pipeline_keys(images), "value": [to_base64(image) for image in images]}
    return json.dumps(content).encode()


_BODIES: dict[str, tuple[str, Callable[[Sequence[bytes]], bytes]]] = {
    "v1": ("application/octet-stream", lambda images: images[0]),
    "json": ("application/json", _json),
    "form": (f"multipart/form-data; boundary={_BOUNDARY}", _form),
    "pipeline": ("application/json", _pipeline),
}
ROUTES = tuple(_BODIES)


def http_target(route: str, server: Address, made: Sequence[Post], batch: int, access: Access) -> Target:
    """A route with its requests. Raises UsageError for authorities that cannot be read."""

    def whole(post: Post) -> bytes:
        own = {"Content-Type": post.media_type, "Content-Length": str(len(post.body))}
        return request_head(server, "POST", post.path, own | access.headers) + post.body

    tls = tls_context(access.ca) if server.scheme == "https" else None
    check = check_pipeline if route == "pipeline" else check_v1
    requests = [whole(post) for post in made]
    return Target(route, server, batch, lambda: HttpConnection(server, tls, requests, check))


def check_v1(status: int, body: bytes) -> None:
    """An answer of /v1. Raises FailedError for one that is no result for every image."""
    # Almost every answer is good and ends here, unparsed: the generator has to be cheap.
    if status == 200 and body.startswith(b'{"results":') and b'"error"' not in body:
        return
    content = _object(body)
    results = content.get("results")
    if isinstance(results, list):
        errors = [each["error"] for each in results if isinstance(each, dict) and "error" in each]
        if status == 200 and not errors:  # a label that says "error"
            return
        raise _failed(status, errors[0] if errors else None)
    if status == 200:
        raise FailedError("200 no answer", body[:80].decode("utf-8", "replace"))
    raise _failed(status, content.get("error"))


def check_pipeline(status: int, body: bytes) -> None:
    """An answer of Paddle Serving's route. Raises FailedError for an ``err_no`` and for HTTP errors."""
    content = _object(body)
    if status != 200:
        raise _failed(status, {"message": content.get("message", "")})
    number = content.get("err_no")
    if number is None:
        raise FailedError("200 no answer", body[:80].decode("utf-8", "replace"))
    if number != 0:
        raise FailedError(f"err_no {number}", str(content.get("err_msg", "")))


def _failed(status: int, error: object) -> FailedError:
    described = error if isinstance(error, dict) else {}
    return FailedError(f"{status} {described.get('code', '')}".strip(), str(described.get("message", "")))


def _object(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def request_head(server: Address, method: str, path: str, headers: dict[str, str]) -> bytes:
    """The head of a request, to its empty line."""
    fixed = {"Host": server.netloc, "User-Agent": f"pdserve-bench/{__version__}", "Accept": "*/*"}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in (fixed | headers).items())]
    return "\r\n".join((*lines, "", "")).encode("latin-1")


class HttpConnection(asyncio.Protocol):
    """A connection to one server, one exchange at a time; the first opens it, as does the next after a break.

    It goes straight to the server, whatever proxy the environment names. For `ask`: ``requests``, whole, head
    and body, and ``check``, which raises for a bad answer.
    """

    def __init__(
        self,
        server: Address,
        tls: ssl.SSLContext | None = None,
        requests: Sequence[bytes] = (),
        check: Callable[[int, bytes], None] = check_v1,
    ) -> None:
        self._server = server
        self._tls = tls
        self._requests = requests
        self._check = check
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    async def ask(self, number: int, timeout_s: float) -> None:
        request = self._requests[number % len(self._requests)]
        self._check(*await self.exchange(request, timeout_s))

    async def close(self) -> None:
        self._break()

    async def exchange(self, request: bytes, timeout_s: float) -> tuple[int, bytes]:
        """Send a request, whole, and wait for the answer: its status and body. Raises FailedError."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[int, bytes]] = loop.create_future()
        deadline = loop.call_later(timeout_s, self._fail, answer, "timeout")
        try:
            transport = self._transport
            if transport is None or transport.is_closing():
                transport = await self._open(timeout_s)
            self._answer = answer
            self._parser = httptools.HttpResponseParser(self)
            self._body: list[bytes] = []
            self._has_end = self._in_body = False
            transport.write(request)
            return await answer
        except BaseException:
            # A late answer would be taken for that of the next request.
            self._break()
            raise
        finally:
            deadline.cancel()
            self._answer = None

    def _break(self) -> None:
        """Abort the connection; the next exchange opens a new one."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    async def _open(self, timeout_s: float) -> asyncio.Transport:
        host, port = self._server.host, self._server.port
        name = host if self._tls else None
        try:
            async with asyncio.timeout(timeout_s):
                transport, _ = await asyncio.get_running_loop().create_connection(
                    lambda: self, host, port, ssl=self._tls, server_hostname=name
                )
        except TimeoutError as error:
            raise FailedError("timeout", "no connection", no_connection=True) from error
        except OSError as error:
            raise FailedError(error_kind(error), str(error), no_connection=True) from error
        self._transport = transport
        return transport

    @staticmethod
    def _fail(answer: "asyncio.Future[tuple[int, bytes]]", kind: str, detail: str = "") -> None:
        if not answer.done():
            answer.set_exception(FailedError(kind, detail))

    # Called by the transport.

    def data_received(self, data: bytes) -> None:
        if self._answer is None:  # an answer without a request
            self._break()
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
            self._fail(self._answer, error_kind(error), str(error))
        elif self._in_body and not self._has_end:
            self._complete()  # an answer without a length ends with the connection
        else:
            self._fail(self._answer, "connection closed")

    # Called by the parser.

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


def error_kind(error: Exception) -> str:
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
