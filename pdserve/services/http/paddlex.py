"""PaddleX's serving protocol: a route for each kind of pipeline, an image in JSON in, the answer in JSON out.

As the server of PaddleX 3.7.2 speaks it (``paddlex --serve``): fields and their types, the envelope of
answers and errors, statuses. What is different here on purpose is listed in docs/guide/paddlex.md.
"""

import json
import logging
import uuid
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
import pybase64
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from pdserve.errors import ImageError, PdserveError, RequestError
from pdserve.services.http.bodies import read_body, unless_gone
from pdserve.services.http.image_urls import ImageFetcher, is_address
from pdserve.services.http.json_body import JsonBody, read_json
from pdserve.services.http.messages import (
    encode,
    from_base64,
    json_response,
    log_failures,
    media_type,
    message,
    operation,
)
from pdserve.services.http.paddlex_operations import OPERATIONS, Drawing, Operation, Served
from pdserve.services.parsing import Bounds, Buffer, parsed
from pdserve.services.protocols import Context, Route
from pdserve.services.repository import AmbiguousError, listed
from pdserve.services.service import Answering, Service
from pdserve.vision.draw import draw_labels, draw_objects
from pdserve.vision.resize import opencv
from pdserve.vision.types import Image8

log = logging.getLogger("pdserve")

# Faults of one request that are named; it may have thousands.
_MOST_FAULTS = 100
# A body of up to this many bytes that is no JSON is read again, to say where.
_SHORT = 64 * 1024
# Pixels of the longest side that libjpeg writes.
_LONGEST_SIDE = 65_500
_QUALITY = 75
_LONGEST_LOG_ID = 200


@dataclass(frozen=True)
class NoResult:
    """An answer without a result: health, or an error, whose code is the HTTP status."""

    logId: str  # noqa: N815 - the protocol's name
    errorCode: int  # noqa: N815
    errorMsg: str  # noqa: N815


class FieldsError(RequestError):
    """Fields that are missing or of a wrong type; the message is JSON, a list of them as pydantic says it."""

    code = "fields"
    http_status = 422

    def __init__(self, faults: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(f"{len(faults)} fields are missing or wrong.")
        self.message = json.dumps(faults)


@dataclass
class Exchange:
    """A request and what is known of it so far; ``log_id``: the caller's, or a new one."""

    log_id: str
    fields: Any = None

    @classmethod
    def new(cls) -> "Exchange":
        """One of which nothing is known yet."""
        return cls(str(uuid.uuid4()))


def health(context: Context) -> Iterator[Route]:
    """PaddleX's health: whether the services would answer."""

    async def show(_: Request) -> Response:
        if context.services.ready:
            return json_response(NoResult(str(uuid.uuid4()), 0, "Healthy"))
        return error_response(503, "", "The service is not ready.", {"Retry-After": "1"})

    described = operation("PaddleX", "Would a request be answered?", NoResult, (503,), failure=NoResult)
    yield Route("GET", "/health", show, described)


def routes(context: Context) -> Iterator[Route]:
    """The routes of the pipelines that the services are; PaddleX's names no service in them."""
    fetcher = ImageFetcher(context.entrance)
    for each in OPERATIONS:
        able = {name: service for name, service in context.services if each.serves(Served.of(service))}
        for path in each.paths if able else ():
            yield Route("POST", path, partial(_answer, fetcher, context, each, able), _described(each))


def the_only(able: Mapping[str, Answering]) -> Answering:
    """The service that answers an operation. Raises AmbiguousError where there are several."""
    if len(able) > 1:
        raise AmbiguousError(
            f"{listed(list(able))} answer this, and the protocol has no names; ask /v1, which has."
        )
    return next(iter(able.values()))


async def _answer(
    fetcher: ImageFetcher,
    context: Context,
    wanted: Operation,
    able: Mapping[str, Answering],
    request: Request,
) -> Response:
    exchange = Exchange.new()
    try:
        service = the_only(able)
        body = await read_body(request, context.entrance)
        image = await parsed(partial(_parse, request, body, wanted, exchange), len(body))
        del body  # what was parsed are copies, and the request may take a while
        work = _result(service, wanted, exchange.fields, _fetched(fetcher, image, request))
        result = await unless_gone(request.receive, work)
    except PdserveError as error:
        return failure(exchange.log_id, error, request.scope["path"])
    return success(exchange.log_id, result)


async def _fetched(fetcher: ImageFetcher, image: Buffer | str, request: Request) -> bytes:
    """An image file; from its address, where that was sent."""
    return await fetcher.fetch(image, request.scope) if isinstance(image, str) else bytes(image)


async def _result(
    service: Answering, wanted: Operation, fields: Any, image: Awaitable[bytes]
) -> dict[str, Any]:
    data = await image
    top_k, parameters = wanted.parameters(fields)
    (answer,) = await service.answer([data], top_k, None, parameters)
    if isinstance(answer, PdserveError):
        raise answer
    result = wanted.result(answer)
    if fields.visualize is not False and isinstance(service, Service):
        picture = await service.look(data, partial(_drawn, wanted.drawing(answer)))
        if isinstance(picture, PdserveError):
            raise picture
        result["image"] = picture
    return result


def _parse(
    request: Request, body: bytes, wanted: Operation, exchange: Exchange, bounds: Bounds
) -> Buffer | str:
    """The image of a request; its other fields go to the exchange. Raises RequestError."""
    read = read_fields(request, body, wanted.fields, exchange, bounds)
    return image_of(read, exchange.fields.image, "image")


def read_fields(
    request: Request, body: bytes, fields: type[BaseModel], exchange: Exchange, bounds: Bounds
) -> JsonBody:
    """Read a body into an exchange. Raises FieldsError, BodyTooLargeError."""
    if not body:
        raise FieldsError([_fault("missing", "body", "Field required")])
    kind = media_type(request)
    if not (kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))):
        # PaddleX's framework then takes the body for bytes, which are no object.
        raise FieldsError([_fault("model_attributes_type", "body", _NO_OBJECT)])
    try:
        read = read_json(body, bounds)
    except ValueError:
        where = f"body{_place(body)}"
        raise FieldsError([_fault("json_invalid", where, "JSON decode error")]) from None
    content = read.content
    if isinstance(content, dict):
        given = content.get("logId")
        if isinstance(given, str) and 0 < len(given) <= _LONGEST_LOG_ID and not read.is_long(given):
            exchange.log_id = given
    try:
        exchange.fields = fields.model_validate(content, from_attributes=True)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)[:_MOST_FAULTS]
        raise FieldsError(
            [_fault(e["type"], _dotted(("body", *e["loc"])), e["msg"]) for e in found]
        ) from None
    return read


_NO_OBJECT = "Input should be a valid dictionary or object to extract fields from"


def _fault(kind: str, where: str, text: str) -> dict[str, str]:
    return {"type": kind, "loc": where, "msg": text}


def _place(body: bytes) -> str:
    """Where a short body stops being JSON, in characters."""
    if len(body) <= _SHORT:
        try:
            json.loads(body)
        except json.JSONDecodeError as error:
            return f"[{error.pos}]"
        except (ValueError, RecursionError):
            pass
    return ""


def _dotted(places: Sequence[str | int]) -> str:
    """A field's place: names with dots between them, numbers in brackets."""
    path = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in places)
    return path.removeprefix(".")


def image_of(read: JsonBody, text: str, field: str) -> Buffer | str:
    """An image of a request, from base64, or its address. Raises RequestError, ImageError."""
    if is_address(text):
        return text
    try:
        image = from_base64(read.taken(text))
    except orjson.JSONDecodeError as error:
        raise RequestError("The body is no JSON: a text in it is not well-formed.") from error
    if isinstance(image, PdserveError):
        raise image
    if not image:
        raise ImageError(f"{field} is empty; send an image file in base64.")
    return image


def success(log_id: str, result: Mapping[str, Any]) -> Response:
    """The answer of a request that was carried out."""
    content = {"logId": log_id, "result": result, "errorCode": 0, "errorMsg": "Success"}
    return Response(encode(content), media_type="application/json")


def failure(log_id: str, error: PdserveError, path: str) -> Response:
    """The answer of a request that was not."""
    log_failures([error], path)
    status = error.http_status
    later = {"Retry-After": "1"} if status == 503 else None
    return json_response(NoResult(log_id, status, message(error)), status, later)


def error_response(status: int, code: str, text: str, headers: Mapping[str, str] | None = None) -> Response:
    """The answer of a request that no route has seen; ``code`` is not PaddleX's."""
    return json_response(NoResult(str(uuid.uuid4()), status, text), status, headers)


def _drawn(drawing: Drawing, image: Image8) -> str:
    """A JPEG of the image with the answer drawn on it, in base64. Raises ImageError."""
    if max(image.shape) > _LONGEST_SIDE:
        raise ImageError(
            f"The image has {image.shape[1]}×{image.shape[0]} pixels, and a JPEG has at most {_LONGEST_SIDE} "
            "in a row; send visualize: false."
        )
    draw: Any = draw_labels if drawing.labels is not None else draw_objects
    picture = draw(image, drawing.objects if drawing.labels is None else drawing.labels).picture
    cv2 = opencv()
    picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    file = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
    return pybase64.b64encode_as_string(file)


def _described(wanted: Operation) -> dict[str, Any]:
    return operation(
        "PaddleX",
        wanted.summary,
        wanted.answer_model,
        (400, 408, 413, 422, 500, 503, 504),
        failure=NoResult,
        body={"application/json": wanted.fields},
    )
