"""The HTTP routes as targets of a load."""

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pdserve.clients.address import Address
from pdserve.tools.bench.connection import HttpConnection, request_head
from pdserve.tools.bench.http_answers import check_pipeline, check_v1
from pdserve.tools.bench.messages import Post


@dataclass(frozen=True)
class HttpTarget:
    """A route over HTTP. ``requests`` are whole, head and body; ``check`` raises for a bad answer."""

    route: str
    server: Address
    requests: Sequence[bytes] = field(repr=False)
    check: Callable[[int, bytes], None] = field(repr=False)
    batch: int = 1
    tls: ssl.SSLContext | None = None

    def connect(self) -> "HttpClient":
        """A new client."""
        return HttpClient(self)


class HttpClient:
    """One client of a route; see pdserve.tools.bench.target.Connection."""

    def __init__(self, target: HttpTarget) -> None:
        self._connection = HttpConnection(target.server, target.tls)
        self._requests = target.requests
        self._check = target.check

    async def ask(self, number: int, timeout_s: float) -> None:
        requests = self._requests
        self._check(*await self._connection.exchange(requests[number % len(requests)], timeout_s))

    async def close(self) -> None:
        self._connection.close()


def http_target(
    route: str,
    server: Address,
    posts: Sequence[Post],
    batch: int = 1,
    headers: Sequence[tuple[str, str]] = (),
    tls: ssl.SSLContext | None = None,
) -> HttpTarget:
    """The target of a route; ``headers`` go with each request, ``tls`` is for https."""

    def whole(post: Post) -> bytes:
        own = (("Content-Type", post.media_type), ("Content-Length", str(len(post.body))))
        return request_head(server, "POST", post.path, (*own, *headers)) + post.body

    check = check_pipeline if route == "pipeline" else check_v1
    return HttpTarget(route, server, [whole(post) for post in posts], check, batch, tls)
