"""What a server says about itself: health, name and version, metrics, the OpenAPI document and its page."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from importlib import resources as package_files
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

from pdserve import __version__
from pdserve.services.http.browsers import PAGE_POLICY, WRITE_HEADER, with_policy
from pdserve.services.http.hosts import allowed_hosts, require_host
from pdserve.services.http.messages import encode, json_response, operation, parameter
from pdserve.services.http.oip import EXTENSIONS
from pdserve.services.http.server import http_listener
from pdserve.services.protocols import METRICS_PATH, Context, Receive, Route, Scope, Send, resources
from pdserve.services.repository import Listed
from pdserve.services.telemetry.metrics import Metrics
from pdserve.settings import ServerSettings


@dataclass(frozen=True)
class Metadata:
    """The server; ``extensions`` are those of the Open Inference Protocol."""

    name: str
    version: str
    extensions: list[str]
    service: str = field(metadata={"description": "the kind of service, as in /v1/{kind}"})


@dataclass(frozen=True)
class SeveralMetadata:
    """The server, where it has several services."""

    name: str
    version: str
    extensions: list[str]
    services: list[Listed] = field(metadata={"description": "asked at /v1/{kind}/{name}"})


def health(context: Context) -> Iterator[Route]:
    """Liveness and readiness, as the Open Inference Protocol has them."""
    services = context.services

    async def live(_: Request) -> Response:
        return json_response({"live": True})

    async def ready(_: Request) -> Response:
        return json_response({"ready": services.ready}, 200 if services.ready else 503)

    flag = dict[str, bool]
    yield Route("GET", "/v2/health/live", live, operation("health", "Is the process up?", flag))
    would = operation("health", "Would a request be answered?", flag, (503,), failure=flag)
    yield Route("GET", "/v2/health/ready", ready, would)


def routes(context: Context) -> Iterator[Route]:
    """Name and version, metrics, the OpenAPI document and a page that shows it."""

    services = context.services
    kind = Metadata if services.alone else SeveralMetadata

    async def metadata(_: Request) -> Response:
        extensions = list(EXTENSIONS)
        if services.alone:
            return json_response(Metadata("pdserve", __version__, extensions, context.service.kind))
        return json_response(SeveralMetadata("pdserve", __version__, extensions, services.index()))

    async def metrics(request: Request) -> Response:
        return _metrics(context.metrics, request)

    described = functools.cache(lambda: encode(document(context)))

    async def openapi(_: Request) -> Response:
        # A new response each time: middleware writes into its headers.
        # In a thread: making the document imports FastAPI, which takes long.
        return Response(await asyncio.to_thread(described), media_type="application/json")

    async def docs(_: Request) -> Response:
        return HTMLResponse(_PAGE, headers={"Content-Security-Policy": PAGE_POLICY})

    async def start(_: Request) -> Response:
        return Response(_START, media_type="text/javascript")

    async def redoc(_: Request) -> Response:
        return RedirectResponse("docs")

    yield Route("GET", "/v2", metadata, operation("health", "What server is this?", kind))
    yield Route("GET", METRICS_PATH, metrics)
    yield Route("GET", "/openapi.json", openapi)
    yield Route("GET", "/docs", docs)
    yield Route("GET", "/redoc", redoc)
    yield Route("GET", "/docs/start.js", start)
    for name in _PAGE_FILES:
        yield Route("GET", f"/docs/{name}", functools.partial(_page_file, name))


def _metrics(metrics: Metrics, request: Request) -> Response:
    body, media_type = metrics.exposition(request.headers.get("accept", ""))
    return Response(body, media_type=media_type)


@contextlib.asynccontextmanager
async def metrics_listener(
    metrics: Metrics, settings: ServerSettings, stop: asyncio.Event
) -> AsyncIterator[int]:
    """Serve /metrics alone on ``settings.prometheus_port``; yields the port.

    Without a key and without TLS, as Prometheus asks by default; for the hosts of the service's own port.
    Raises SettingsError for a port in use.
    """

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        response: Response
        if scope["path"] != METRICS_PATH:
            response = PlainTextResponse(f"Not Found; the numbers are at {METRICS_PATH}\n", 404)
        elif scope["method"] not in ("GET", "HEAD"):
            response = PlainTextResponse("Method Not Allowed\n", 405, {"Allow": "GET, HEAD"})
        else:
            response = _metrics(metrics, Request(scope))
        await response(scope, receive, send)

    plain = settings.model_copy(update={"tls_cert": None, "tls_key": None})
    app = require_host(application, allowed_hosts(settings, keyed=False), lambda path: None)
    async with http_listener(with_policy(app), plain, settings.prometheus_port or 0, stop) as port:
        yield port


def document(context: Context) -> dict[str, Any]:
    """The OpenAPI 3.1 document of all routes that have an operation."""
    # Imported where it is used: it describes routes, and does not run them.
    from fastapi.openapi.utils import get_openapi
    from fastapi.routing import APIRoute

    described = [
        (resource, APIRoute(route.path, route.endpoint, methods=[method], **route.operation))
        for resource in resources(context)
        for method, route in resource.routes.items()
        if route.operation is not None and method == route.method
    ]
    found = get_openapi(
        title="pdserve",
        version=__version__,
        description=f"{_kinds(context)}: images in, answers out.",
        routes=[route for _, route in described],
    )
    if context.settings.api_key is None and context.settings.api_key_file is None:
        for resource, described_route in described:
            for method in described_route.methods or ():
                if resource.routes[method].writes:
                    each = found["paths"][resource.path][method.lower()]
                    each["parameters"] = [*each.get("parameters", ()), _WRITE_PARAMETER]
        return found
    found.setdefault("components", {})["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    found["security"] = [{"bearer": []}, {"header": []}]
    for resource, _ in described:
        for each in found["paths"][resource.path].values():
            if resource.protocol.open:
                each["security"] = []
            else:
                each["responses"]["401"] = _UNAUTHORIZED
    return found


def _kinds(context: Context) -> str:
    return ", ".join(dict.fromkeys(each.kind for _, each in context.services))


# With a default, so that Swagger UI sends it.
_WRITE_PARAMETER = parameter(WRITE_HEADER, str, "no stranger's web page can send it", "header") | {
    "required": True,
    "schema": {"type": "string", "minLength": 1, "default": "1"},
}
_UNAUTHORIZED = {
    "description": "No key was sent, or a wrong one.",
    "headers": {"WWW-Authenticate": {"schema": {"type": "string"}}},
    "content": {"application/json": {"schema": {"type": "object"}}},
}


# Swagger UI as the package fastapi-offline ships it; nothing is loaded from elsewhere, and behind a path
# prefix the relative addresses still hold.
_PAGE_FILES = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>pdserve</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="service-desc" type="application/json" href="openapi.json">
</head>
<body>
<div id="page"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
# A file, since the page's policy runs no script that stands in the page.
_START = """SwaggerUIBundle({
  url: document.querySelector("link[rel=service-desc]").href,
  dom_id: "#page", validatorUrl: null, deepLinking: true
})
"""


async def _page_file(name: str, _: Request) -> Response:
    def read() -> bytes:
        return (package_files.files("fastapi_offline") / "static" / name).read_bytes()

    body = await asyncio.to_thread(read)  # which imports the package, and FastAPI
    return Response(body, media_type=_PAGE_FILES[name], headers={"Cache-Control": "max-age=86400"})
