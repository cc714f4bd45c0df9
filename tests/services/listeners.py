"""Both listeners, as the server opens them, before a service that needs no model."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pdserve.errors import DeadlineError, EngineError, PdserveError
from pdserve.services.auth import KeyInterceptor, Keys
from pdserve.services.budget import Entrance
from pdserve.services.grpc.server import build_server
from pdserve.services.http.app import build_app
from pdserve.services.http.server import http_listener
from pdserve.services.net import check_tls
from pdserve.services.telemetry.metrics import Metrics
from pdserve.services.telemetry.middleware import TelemetryInterceptor
from pdserve.settings import ServerSettings
from tests.services.watching import FakeService


class RecordingService(FakeService):
    """Notes how long callers would wait. The image ``late`` fails with the request's time."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.asked: list[tuple[int | None, float | None]] = []
        super().__init__(self.metrics)

    async def answer(
        self,
        images: Sequence[bytes | PdserveError],
        top_k: int | None = None,
        timeout_s: float | None = None,
        parameters: Any = None,
    ) -> list[Any]:
        self.asked.append((top_k, timeout_s))
        if b"late" in images:
            raise DeadlineError("The time was up.")
        if b"no engine" in images:
            raise EngineError("The engine failed.")
        return await super().answer(images, top_k, timeout_s)


@dataclass(frozen=True)
class Listeners:
    """Where they are, and what is behind them."""

    url: str
    target: str
    service: RecordingService
    keys: Keys | None


@contextlib.contextmanager
def listeners(**settings: Any) -> Iterator[Listeners]:
    """Open both listeners on free ports, in a thread, with these settings."""
    server = ServerSettings(name="imagenet", http_port=0, rpc_port=0, **{"grace_s": 1} | settings)
    service = RecordingService()
    keys = Keys.read(server)
    ready, stop = threading.Event(), threading.Event()
    ports: list[int] = []

    async def serve() -> None:
        entrance = Entrance(server)
        app = build_app(service, server, service.metrics, keys=keys, entrance=entrance)
        interceptors = (TelemetryInterceptor(service.metrics), *((KeyInterceptor(keys),) if keys else ()))
        async with http_listener(app, server, 0, asyncio.Event()) as http_port:
            rpc, rpc_port = build_server(service, entrance, 0, interceptors, check_tls(server).credentials)
            await rpc.start()
            ports.extend((http_port, rpc_port))
            ready.set()
            await asyncio.to_thread(stop.wait)
            await rpc.stop(server.grace_s)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(20)
        scheme = "https" if server.tls_cert else "http"
        yield Listeners(f"{scheme}://127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}", service, keys)
    finally:
        stop.set()
        thread.join(20)
