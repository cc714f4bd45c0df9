"""The HTTP door: ``/v1/…``, health, OpenAPI, and the pipeline protocol's route.

Bodies are read with a limit before anything is parsed, and parsed by hand: a request body here is a
picture or carries several, and the routes take three forms of it.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from pdserve import __version__
from pdserve.errors import PdserveError, RequestError
from pdserve.services import gateway, openapi
from pdserve.services.bodies import read_body, read_images
from pdserve.services.results import described, result
from pdserve.services.service import Service
from pdserve.settings import ServerSettings

log = logging.getLogger("pdserve.http")


def build_app(
    service: Service, settings: ServerSettings, more: Callable[[FastAPI], None] = lambda app: None
) -> FastAPI:
    """The application of one service; ``more`` adds routes of the service's own under /v1."""
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

    @app.get("/v2/health/ready", tags=["health"], summary="Would a request be answered?")
    async def ready() -> Response:
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    @app.post(f"/v1/{service.kind}", tags=[service.kind], **openapi.images_route(service.kind))
    async def v1(request: Request) -> Response:
        top_k = _top_k(request.query_params.get("top_k"))
        images = await read_images(
            request, await read_body(request, settings.max_body_bytes), settings.max_images
        )
        answers = await service.answer(images, top_k)
        return JSONResponse({"results": [result(service, a) for a in answers]}, _status(answers))

    more(app)  # before the route that takes any two segments

    @app.post("/{name}/{method}", tags=["pipeline protocol"], **openapi.pipeline_route())
    async def pipeline(name: str, method: str, request: Request) -> Response:
        # Any method will do; it is in the path because Paddle Serving's clients put it there.
        if not _is_pipeline(request):
            raise HTTPException(404)
        return await gateway.handle(service, name, await read_body(request, settings.max_body_bytes))

    @app.exception_handler(PdserveError)
    async def known(request: Request, error: PdserveError) -> Response:
        if error.http_status == 500:  # full queues and late answers are no news to a log
            log.error("%s %s: %s", request.method, request.url.path, error.message, exc_info=error)
        headers = {"Retry-After": "1"} if error.http_status == 503 else None
        if _is_pipeline(request):
            return gateway.failed(error.http_status, error.message, headers)
        return JSONResponse({"error": described(error)}, error.http_status, headers)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        if _is_pipeline(request):
            return gateway.failed(error.status_code, error.detail, error.headers)
        body = {"error": {"code": error.detail.lower().replace(" ", "_"), "message": error.detail}}
        return JSONResponse(body, error.status_code, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # which nobody will read

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> Response:
        # Starlette logs the traceback; the answer says nothing of our insides.
        if _is_pipeline(request):
            return gateway.failed(500, "internal error")
        return JSONResponse({"error": {"code": "error", "message": "internal error"}}, 500)

    return app


def _is_pipeline(request: Request) -> bool:
    return not request.url.path.startswith(("/v1/", "/v2/"))


def _top_k(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise RequestError(f"top_k is {text!r}; it must be a whole number above 0.")
    return int(text)


def _status(answers: Sequence[Any]) -> int:
    """200 as long as one image has an answer; else what the first image's error says."""
    errors = [a for a in answers if isinstance(a, PdserveError)]
    return errors[0].http_status if errors and len(errors) == len(answers) else 200
