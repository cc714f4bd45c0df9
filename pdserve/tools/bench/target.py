"""What a load is aimed at: a route of a server, and the requests that are sent to it in turn."""

from typing import Protocol

from pdserve.clients.address import Address


class FailedError(Exception):
    """A request got no good answer.

    ``kind`` is what it is counted under: ``503 overloaded`` (HTTP status and the answer's code), a gRPC
    status's name, ``err_no 10000``, ``timeout``, ``connection refused``, ``connection reset``,
    ``connection closed`` and the like. ``detail`` is the server's message. ``no_connection``: the server
    was not even reached.
    """

    def __init__(self, kind: str, detail: str = "", *, no_connection: bool = False) -> None:
        super().__init__(kind)
        self.kind = kind
        self.detail = detail
        self.no_connection = no_connection


class Connection(Protocol):
    """One client's connection. It opens at the first request, and again at the next after it broke."""

    async def ask(self, number: int, timeout_s: float) -> None:
        """Send the request of that number (they go round) and wait for a good answer, to all its images.

        Raises FailedError for anything else. Nothing is tried twice.
        """

    async def close(self) -> None:
        """Close it."""


class Target(Protocol):
    """A route of a server. ``batch`` is the number of images in a request."""

    @property
    def route(self) -> str:
        """v1, json, form, pipeline or grpc."""

    @property
    def server(self) -> Address:
        """Where the server is."""

    @property
    def batch(self) -> int:
        """Images in a request."""

    def connect(self) -> Connection:
        """A new client."""
