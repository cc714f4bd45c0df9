"""The HTTP application: each request to the endpoint of its route, each error to the form of its route."""

import asyncio
import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pdserve.errors import BodyTooLargeError, ClosedError, PdserveError
from pdserve.services.auth import Keys, require_key
from pdserve.services.budget import Entrance
from pdserve.services.http.bodies import SlowBodyError, release
from pdserve.services.http.browsers import check_write, with_policy
from pdserve.services.http.hosts import allowed_hosts, require_host
from pdserve.services.http.messages import error_response, log_failures, message
from pdserve.services.protocols import (
    PIPELINE_PATH,
    App,
    Context,
    Protocol,
    Receive,
    Resource,
    Scope,
    Send,
    resources,
)
from pdserve.services.repository import Repository
from pdserve.services.service import Answering
from pdserve.services.telemetry.metrics import HEADER, Metrics
from pdserve.services.telemetry.middleware import telemetry
from pdserve.services.telemetry.tracing import Tracer
from pdserve.settings import ServerSettings

log = logging.getLogger("pdserve.http")

# Of a path; none of ours has more.
_MOST_SEGMENTS = 12


def build_app(
    service: Answering | Repository,
    settings: ServerSettings,
    metrics: Metrics,
    *,
    options: Any = None,
    keys: Keys | None = None,
    tracer: Tracer | None = None,
    entrance: Entrance | None = None,
) -> App:
    """The ASGI application of a service: all HTTP protocols, behind CORS, keys, the
    check of the host, telemetry and what browsers are told.

    ``options``: the service's own settings. ``keys``: callers must show one of them. ``entrance``: the
    process's, where other doors share it. Raises SettingsError for an allowed host that is no name.
    """
    services = Repository.of(service, settings.name)
    first = next(each for _, each in services)
    context = Context(first, entrance or Entrance(settings), metrics, options, services)
    table = RouteTable(resources(context))
    services.on_change(lambda: table.fill(resources(context)))
    keyed = keys is not None
    app: App = Dispatcher(table, functools.partial(check_write, keyed=keyed, origins=settings.cors_origins))
    if settings.cors_origins:
        app = _with_cors(app, settings.cors_origins)
    if keys:
        app = require_key(app, keys, table.find, settings.cors_origins)
    app = require_host(app, allowed_hosts(settings, keyed=keyed), table.find)
    app = telemetry(app, table.find, metrics, access=settings.log_format == "json", tracer=tracer)
    return with_policy(app, table.find)


class RouteTable:
    """The resources of a service, or of several, by path."""

    def __init__(self, found: Iterable[Resource]) -> None:
        self.fill(found)

    def fill(self, found: Iterable[Resource]) -> None:
        """Have these, and no others."""
        self._by_path = {resource.path: resource for resource in found}
        self._pipeline = self._by_path.pop(PIPELINE_PATH, None)
        # Those with any text in a segment, by how many segments they have.
        self._templates: dict[int, list[tuple[list[str], Resource]]] = {}
        for path, resource in self._by_path.items():
            if "{" in path:
                parts = path.split("/")
                self._templates.setdefault(len(parts), []).append((parts, resource))

    def nothing(self, path: str) -> str:
        """What is said of a path that is none of them."""
        own = [each for each in self._by_path.values() if each.path.startswith("/v1/")]
        asked = [each.path for each in own if each.protocol.predicts][:20]
        return (
            f"There is nothing at {path[:100]}; images go by POST to {' or '.join(asked)}, and /docs shows "
            "the other routes."
        )

    def find(self, path: str) -> Resource | None:
        """The resource at a path; None where there is none."""
        resource = self._by_path.get(path)
        if resource is None:
            if path.startswith("/v2/"):
                return self._matching(path)
            parts = path.split("/", 4)
            if len(parts) == 3 and parts[1] and parts[2] and parts[1] not in ("v1", "v2"):
                return self._pipeline
        return resource

    def _matching(self, path: str) -> Resource | None:
        parts = path.split("/", _MOST_SEGMENTS)
        for template, resource in self._templates.get(len(parts), ()):
            if all(
                part and (part == own or own.startswith("{"))
                for part, own in zip(parts[1:], template[1:], strict=True)
            ):
                return resource
        return None


class Dispatcher:
    """An ASGI application that answers each request by its route.

    Starlette's and FastAPI's routers would take a request twice as long as all the rest of it.
    """

    def __init__(self, table: RouteTable, check_write: Callable[[Scope], None] = lambda scope: None) -> None:
        """``check_write`` raises RequestError for a request of a route that writes, and may not."""
        self._table = table
        self._check_write = check_write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        resource = self._table.find(scope["path"])
        protocol = resource.protocol if resource else None
        try:
            response = await self._answer(resource, scope, receive)
        except asyncio.CancelledError:  # the time to finish in is over
            closed = ClosedError("The server is stopping; ask again in a moment.")
            response = _refusal(scope, protocol, closed)
        except (PdserveError, HTTPException) as error:
            response = _refusal(scope, protocol, error)
        except ClientDisconnect:
            response = Response(status_code=400)  # the caller has gone
        except Exception:
            log.exception("%s failed", scope["path"])
            response = error_response(scope["path"], protocol, 500, "error", "internal error")
        finally:
            release(scope)  # before the answer is sent: nothing of the body is left then
        await response(scope, receive, send)

    async def _answer(self, resource: Resource | None, scope: Scope, receive: Receive) -> Response:
        if resource is None:
            raise HTTPException(404, self._table.nothing(scope["path"]))
        route = resource.routes.get(scope["method"])
        if route is None:
            allowed = ", ".join(resource.routes)
            text = f"{scope['path']} takes {allowed}, and no {scope['method'][:20]}."
            raise HTTPException(405, text, headers={"Allow": allowed})
        if route.writes:
            self._check_write(scope)
        return await route.endpoint(Request(scope, receive))


def _refusal(scope: Scope, protocol: Protocol | None, error: PdserveError | HTTPException) -> Response:
    """The answer to a request that failed as a whole."""
    path = scope["path"]
    if isinstance(error, HTTPException):
        phrase = HTTPStatus(error.status_code).phrase
        # Beside our own routes the text is that of Paddle Serving's gateway.
        text = error.detail if path.startswith(("/v1/", "/v2/")) else phrase
        code = phrase.lower().replace(" ", "_")
        return error_response(path, protocol, error.status_code, code, text, error.headers)
    log_failures([error], path)
    headers = {"Retry-After": "1"} if error.http_status == 503 else _closing(scope, error)
    return error_response(path, protocol, error.http_status, error.code, message(error), headers)


def _closing(scope: Scope, error: PdserveError) -> dict[str, str]:
    """Close the connection where the rest of a body may still come on it."""
    waits = any(name == b"expect" for name, _ in scope["headers"])
    if isinstance(error, SlowBodyError) or (isinstance(error, BodyTooLargeError) and waits):
        return {"Connection": "close"}
    return {}


def _with_cors(app: App, origins: Sequence[str]) -> App:
    """The same application for pages of other origins too. A key is a header, so no cookies are needed."""
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=["Retry-After", HEADER],
    )
