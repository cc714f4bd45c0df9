"""The HTTP door: ``/v1/…``, health, OpenAPI, and the pipeline protocol's route.

Bodies are read with a limit before anything is parsed, and parsed by hand: a request body here is a
picture or carries several, and the routes take three forms of it.
"""

import base64
import binascii
import json
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from pdserve import __version__
from pdserve.errors import BodyTooLargeError, ImageError, PdserveError, RequestError
from pdserve.services import gateway, openapi
from pdserve.services.results import described, result
from pdserve.services.service import Service
from pdserve.settings import ServerSettings

log = logging.getLogger("pdserve.http")


def build_app(service: Service, settings: ServerSettings) -> FastAPI:
    """The application of one service."""
    app = FastAPI(
        title="pdserve",
        version=__version__,
        description=f"{service.kind}: send pictures, get labels.",
        redirect_slashes=False,
    )

    @app.get("/v2/health/live", tags=["health"], summary="Is the process up?")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", tags=["health"], summary="Would a request be answered?")
    async def ready() -> Response:
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    @app.post(f"/v1/{service.kind}", tags=[service.kind], **openapi.images_route(service.kind))
    async def v1(request: Request) -> Response:
        top_k = _top_k(request.query_params.get("top_k"))
        images = await _images(
            request, await read_body(request, settings.max_body_bytes), settings.max_images
        )
        answers = await service.answer(images, top_k)
        return JSONResponse({"results": [result(service, a) for a in answers]}, _status(answers))

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


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body. Raises BodyTooLargeError as soon as more than ``limit`` bytes are announced or come."""
    too_large = BodyTooLargeError(
        f"The body is larger than the limit of {limit} bytes; send less at once or raise max_body_bytes."
    )
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise too_large
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise too_large
        chunks.append(chunk)
    return b"".join(chunks)


def _top_k(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise RequestError(f"top_k is {text!r}; it must be a whole number above 0.")
    return int(text)


async def _images(request: Request, body: bytes, max_images: int) -> list[bytes | PdserveError]:
    """The images of a /v1 request, in order, by the body's type. Raises RequestError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return list(await _from_form(request, body, max_images))
    if kind == "application/json":
        return _from_json(body)
    if not body:
        raise ImageError("The body is empty; send an image file.")
    return [body]


async def _from_form(request: Request, body: bytes, max_images: int) -> Sequence[bytes]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        parser = MultiPartParser(request.headers, stream(), max_files=max_images + 1, max_fields=16)
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise RequestError(f"The multipart form cannot be read: {error}.") from error
    try:
        files = [part for part in form.getlist("images") if isinstance(part, UploadFile)]
        if not files:
            raise RequestError("The form has no file in a field called images.")
        return [await file.read() for file in files]
    finally:
        await form.close()


def _from_json(body: bytes) -> list[bytes | PdserveError]:
    wanted = 'a JSON object {"images": [base64, …]}'
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The body is no JSON; send {wanted}.") from error
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise RequestError(f"The body must be {wanted}.")
    if not images:
        raise RequestError("The list of images is empty.")
    return [_from_base64(image) for image in images]


def _from_base64(text: str) -> bytes | PdserveError:
    """A base64 string, or a ``data:`` URL of one."""
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            return ImageError("The data: URL is not base64.")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return ImageError("The image is not base64.")


def _status(answers: Sequence[Any]) -> int:
    """200 as long as one image has an answer; else what the first image's error says."""
    errors = [a for a in answers if isinstance(a, PdserveError)]
    return errors[0].http_status if errors and len(errors) == len(answers) else 200
