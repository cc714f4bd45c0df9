"""The doors of a service in this process, without a network, and how long their event loop stands still."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc

from pdserve.errors import ImageError
from pdserve.services.budget import Entrance
from pdserve.services.grpc import health, oip
from pdserve.services.grpc.intake import Intake
from pdserve.services.grpc.pipeline import methods
from pdserve.services.http.app import build_app
from pdserve.services.repository import Repository
from pdserve.services.service import Service
from pdserve.services.telemetry.metrics import Metrics
from pdserve.settings import ServerSettings
from tests.services.hostile_bodies import Hostile
from tests.services.watching import FakeService

_CHUNK = 64 * 1024


class EveryService(FakeService, Service):
    """A service that has all routes, whose embedder finds nothing, and whose index is nowhere."""

    embedder = cast("Any", SimpleNamespace(name="tiny"))
    index = cast("Any", SimpleNamespace(folder=Path("nowhere"), loaded=None))
    loaded = cast("Any", False)  # for those who look at its models
    cold = False

    async def embed(self, images: Any, timeout_s: float | None = None) -> Any:
        return [ImageError("no image") for _ in images]


class Blocked:
    """``longest_s``: the longest that the loop stood still, in seconds, while this process was at work."""

    longest_s = 0.0


@contextlib.asynccontextmanager
async def watched() -> AsyncIterator[Blocked]:
    """Watch the running loop.

    Time in which this process did not run is the machine's doing: of each gap between two ticks, what counts
    is the smaller of the clock's time and of the processor's time of all threads.
    """
    seen = Blocked()

    async def tick() -> None:
        wall, work = time.perf_counter(), time.process_time()
        while True:
            await asyncio.sleep(0.001)
            wall, before, work, worked = time.perf_counter(), wall, time.process_time(), work
            seen.longest_s = max(seen.longest_s, min(wall - before, work - worked))

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.005)
    try:
        yield seen
        await asyncio.sleep(0.002)  # so that what the end took counts too
    finally:
        ticking.cancel()


class Doors:
    """HTTP and gRPC of one service."""

    def __init__(self, **settings: Any) -> None:
        self.settings = ServerSettings(name="imagenet", max_inflight_bytes=4 << 30, **settings)
        self.metrics = Metrics()
        entrance = Entrance(self.settings)
        service = EveryService(self.metrics)
        options = SimpleNamespace(gallery_writes=True)
        self._app = build_app(service, self.settings, self.metrics, options=options, entrance=entrance)
        intake, services = Intake(entrance), Repository.of(service)
        self._rpc: Any = {
            "": methods(services, intake)["inference"].stream_unary,
            "ModelInfer": oip.inference(services, intake)["ModelInfer"].stream_unary,
        }
        self._check: Any = health.methods(services, intake)["Check"].stream_unary

    async def send(
        self, hostile: Hostile, body: bytes, more: Sequence[tuple[bytes, bytes]] = (), query: bytes = b""
    ) -> str:
        """Send a request; its HTTP status, or the name of its gRPC status, or ``err_no_N``.

        ``more``: further headers; ``query``: in place of the request's own.
        """
        if not hostile.path.startswith("/"):
            return await self._call(hostile.path, body)
        parts = [body[at : at + _CHUNK] for at in range(0, len(body), _CHUNK)] or [b""]
        parts.reverse()
        headers = [(b"content-length", b"%d" % len(body)), (b"host", b"localhost")]
        headers.append((b"content-type", hostile.content_type.encode()))
        headers += (*hostile.headers, *more)
        # What a browser's page cannot send; the gallery wants it.
        headers.append((b"x-requested-with", b"test"))
        scope = {"type": "http", "method": hostile.method, "path": hostile.path, "headers": headers,
                 "query_string": query or hostile.query(), "client": ("127.0.0.1", 1),
                 "server": ("127.0.0.1", 1), "scheme": "http"}  # fmt: skip
        status = 0

        async def receive() -> Any:
            if not parts:
                await asyncio.sleep(3600)
            await asyncio.sleep(0)
            return {"type": "http.request", "body": parts.pop(), "more_body": bool(parts)}

        async def send(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)

        await self._app(cast("Any", scope), receive, send)
        return str(status)

    async def check(self, body: bytes) -> str:
        """Send a message to gRPC's health check; the name of its status."""
        try:
            await self._check(None, _Call(body))
        except grpc.aio.AbortError as error:
            return str(error)
        return "OK"

    async def _call(self, method: str, body: bytes) -> str:
        try:
            response = await self._rpc[method](None, _Call(body))
        except grpc.aio.AbortError as error:
            return str(error)
        return "OK" if method else f"err_no_{response.err_no}"


class _Call:
    """A call's context, as far as a handler looks at it."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def read(self) -> bytes:
        return self._body

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def trailing_metadata(self) -> tuple[()]:
        return ()

    def time_remaining(self) -> None:
        return None

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing: Any = ()) -> None:
        raise grpc.aio.AbortError(code.name)
