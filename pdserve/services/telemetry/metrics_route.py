"""``/metrics``: on the service's own port, and on one of its own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from pdserve.services.telemetry.metrics import Metrics
from pdserve.services.telemetry.middleware import App, Receive, Scope, Send
from pdserve.settings import ServerSettings

PATH = "/metrics"


def exposed(app: App, metrics: Metrics) -> App:
    """The same ASGI application, but GET /metrics is answered here."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != PATH:
            return await app(scope, receive, send)
        if scope["method"] not in ("GET", "HEAD"):
            return await _answer(send, 405, b"Method Not Allowed\n", "text/plain", ("allow", "GET, HEAD"))
        accept = b",".join(value for name, value in scope["headers"] if name == b"accept")
        text, media_type = metrics.exposition(accept.decode("latin-1"))
        await _answer(send, 200, text, media_type)
        return None

    return application


@contextlib.asynccontextmanager
async def metrics_door(metrics: Metrics, settings: ServerSettings, stop: asyncio.Event) -> AsyncIterator[int]:
    """Serve /metrics on ``settings.prometheus_port`` and nothing else; yields the port.

    Without a key and without TLS, as Prometheus asks by default. Raises SettingsError for a port in use.
    """
    from pdserve.services.http.server import http_door

    plain = settings.model_copy(update={"tls_cert": None, "tls_key": None})
    port = settings.prometheus_port or 0
    async with http_door(exposed(_nothing_else, metrics), plain, port, stop) as bound:
        yield bound


async def _nothing_else(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await _answer(send, 404, f"Not Found; the numbers are at {PATH}\n".encode(), "text/plain")


async def _answer(send: Send, status: int, body: bytes, media_type: str, *more: tuple[str, str]) -> None:
    headers = {"content-type": media_type, "content-length": str(len(body)), **dict(more)}
    start: dict[str, Any] = {"type": "http.response.start", "status": status}
    start["headers"] = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send(start)
    await send({"type": "http.response.body", "body": body})
