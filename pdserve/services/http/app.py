"""The HTTP door: ``/v1/…``, health, OpenAPI, and the pipeline protocol's route.

Bodies are read with a limit before anything is parsed, and parsed by hand: a request body here is a
picture or carries several, and the routes take three forms of it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from pdserve import __version__
from pdserve.errors import BodyTooLargeError, ClosedError, PdserveError, RequestError
from pdserve.services.auth import describe_keys
from pdserve.services.http import openapi, pipeline_json
from pdserve.services.http.bodies import SlowBodyError, read_body, read_images
from pdserve.services.http.disconnect import unless_gone
from pdserve.services.http.responses import described, json_response, log_failures, result
from pdserve.services.service import Answering
from pdserve.services.telemetry.middleware import App, Receive, Scope, Send
from pdserve.services.telemetry.request import HEADER
from pdserve.settings import ServerSettings

log = logging.getLogger("pdserve.http")

Endpoint = Callable[[Request], Awaitable[Response]]


def build_app(
    service: Answering, settings: ServerSettings, more: Callable[[FastAPI], None] = lambda app: None
) -> App:
    """The ASGI application of one service; ``more`` adds routes of the service's own under /v1."""
    app = FastAPI(
        title="pdserve",
        version=__version__,
        description=f"{service.kind}: send pictures, get labels.",
        redirect_slashes=False,
    )

    @app.get("/v2", tags=["health"], summary="What server is this?")
    async def metadata() -> dict[str, Any]:
        return {"name": "pdserve", "version": __version__, "extensions": [service.kind]}

    @app.get("/v2/health/live", tags=["health"], summary="Is the process up?")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", tags=["health"], **openapi.ready_route())
    async def ready() -> Response:
        return json_response({"ready": service.ready}, 200 if service.ready else 503)

    v1_path = f"/v1/{service.kind}"

    @app.post(v1_path, tags=[service.kind], **openapi.images_route(service.kind))
    async def v1(request: Request) -> Response:
        top_k = _top_k(request)
        images = read_images(request, await read_body(request, settings), settings)
        answers = await unless_gone(request.receive, service.answer(images, top_k))
        log_failures(answers, v1_path)
        status = _status(answers)
        return json_response({"results": [result(service, a) for a in answers]}, status, _later(status))

    more(app)  # before the route that takes any two segments

    @app.post("/{name}/{method}", tags=["pipeline protocol"], **openapi.pipeline_route())
    async def pipeline(request: Request) -> Response:
        # Any method will do; it is in the path because Paddle Serving's clients put it there.
        name = _pipeline_name(request.scope["path"])
        if name is None:
            raise HTTPException(404)
        body = await read_body(request, settings)
        return await unless_gone(request.receive, pipeline_json.handle(service, name, body))

    async def refuse(request: Request, error: Exception) -> Response:
        return refusal(request.scope, error)

    for kind in (PdserveError, HTTPException, ClientDisconnect, Exception):
        app.add_exception_handler(kind, refuse)
    if settings.api_key is not None or settings.api_key_file is not None:
        describe_keys(app)
    at_once = _AtOnce(app, v1_path, v1, pipeline)
    return with_cors(at_once, settings.cors_origins) if settings.cors_origins else at_once


class _AtOnce:
    """The application, but the two routes that carry pictures skip its router and what it does around.

    That takes twice as long as all the rest of what the server does for a request.
    """

    def __init__(self, app: FastAPI, v1_path: str, v1: Endpoint, pipeline: Endpoint) -> None:
        self._app = app
        self._v1_path = v1_path
        self._v1, self._pipeline = v1, pipeline
        routes = {getattr(route, "endpoint", None): route for route in app.routes}
        self._routes = {endpoint: routes[endpoint] for endpoint in (v1, pipeline)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        if scope["path"] == self._v1_path:
            endpoint = self._v1
        elif _pipeline_name(scope["path"]) is not None:
            endpoint = self._pipeline
        else:
            return await self._app(scope, receive, send)
        scope["route"] = self._routes[endpoint]  # by which requests are counted
        try:
            response = await endpoint(Request(scope, receive))
        except asyncio.CancelledError:  # the time to finish in is over
            response = refusal(scope, ClosedError("The server is stopping; ask again in a moment."))
        except Exception as error:
            if not isinstance(error, (PdserveError, HTTPException, ClientDisconnect)):
                log.exception("%s failed", scope["path"])
            response = refusal(scope, error)
        return await response(scope, receive, send)


def refusal(scope: Scope, error: Exception) -> Response:
    """The answer to a request that failed as a whole, in the form of its route."""
    path, headers = scope["path"], {}
    status, code, message = 500, "error", "internal error"
    if isinstance(error, PdserveError):
        log_failures([error], path)
        status = error.http_status
        code, message = described(error).values()
        headers = _later(status) or _closing(scope, error)
    elif isinstance(error, HTTPException):
        status, message = error.status_code, error.detail
        code = message.lower().replace(" ", "_")
        headers = dict(error.headers or {})
    elif isinstance(error, ClientDisconnect):
        return Response(status_code=400)  # which nobody will read
    if not path.startswith(("/v1/", "/v2/")):
        return pipeline_json.failed(status, message, headers)
    return json_response({"error": {"code": code, "message": message}}, status, headers)


def with_cors(app: App, origins: Sequence[str]) -> App:
    """The same application for pages of other origins too. A key is a header, so no cookies are needed."""
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=["Retry-After", HEADER],
    )


def _pipeline_name(path: str) -> str | None:
    """The service that a path of the pipeline protocol names; None for another path."""
    parts = path.split("/", 4)
    if len(parts) != 3 or not parts[1] or not parts[2] or parts[1] in ("v1", "v2"):
        return None
    return parts[1]


def _later(status: int) -> dict[str, str]:
    return {"Retry-After": "1"} if status == 503 else {}


def _closing(scope: Scope, error: PdserveError) -> dict[str, str]:
    """Whether to close the connection: where nobody can say what comes next on it."""
    waits = any(name == b"expect" for name, _ in scope["headers"])
    if isinstance(error, SlowBodyError) or (isinstance(error, BodyTooLargeError) and waits):
        return {"Connection": "close"}
    return {}


def _top_k(request: Request) -> int | None:
    if not request.scope["query_string"]:
        return None
    text = request.query_params.get("top_k")
    if text is None:
        return None
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise RequestError(f"top_k is {text[:20]!r}; it must be a whole number above 0, of 9 digits at most.")
    return int(text)


def _status(answers: Sequence[Any]) -> int:
    """200 as long as one image has an answer; else what the first image's error says."""
    errors = [a for a in answers if isinstance(a, PdserveError)]
    return errors[0].http_status if errors and len(errors) == len(answers) else 200
