"""PaddleX's serving protocol: a route for each kind of pipeline, an image in JSON in, the answer in JSON out.

As the server of PaddleX 3.7.2 speaks it (``paddlex --serve``): fields and their types, the envelope of
answers and errors, statuses. What is different here on purpose is listed in docs/guide/paddlex.md.
"""

import uuid
from collections.abc import Awaitable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

import pybase64
from starlette.requests import Request
from starlette.responses import Response

from pdserve.errors import ImageError, PdserveError
from pdserve.services.http.bodies import read_body, unless_gone
from pdserve.services.http.image_urls import ImageFetcher
from pdserve.services.http.messages import (
    json_response,
    operation,
)
from pdserve.services.http.paddlex_envelope import (
    Exchange,
    NoResult,
    error_response,
    failure,
    image_of,
    read_fields,
    success,
)
from pdserve.services.http.paddlex_gallery import Galleries
from pdserve.services.http.paddlex_gallery import routes as gallery_routes
from pdserve.services.http.paddlex_operations import OPERATIONS, Drawing, Operation, Served
from pdserve.services.parsing import Bounds, Buffer, parsed
from pdserve.services.protocols import Context, Route
from pdserve.services.repository import AmbiguousError, listed
from pdserve.services.service import Answering, Service
from pdserve.vision.draw import draw_labels, draw_objects
from pdserve.vision.resize import opencv
from pdserve.vision.types import Image8

# Pixels of the longest side that libjpeg writes.
_LONGEST_SIDE = 65_500
_QUALITY = 75


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
        galleries = Galleries() if able and each.galleries else None
        for path in each.paths if able else ():
            endpoint = partial(_answer, fetcher, context, each, able, galleries)
            yield Route("POST", path, endpoint, _described(each))
        if galleries:
            yield from gallery_routes(context, partial(the_only, able), each.galleries, galleries, fetcher)


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
    galleries: Galleries | None,
    request: Request,
) -> Response:
    exchange = Exchange.new()
    try:
        service = the_only(able)
        body = await read_body(request, context.entrance)
        image = await parsed(partial(_parse, request, body, wanted, exchange), len(body))
        del body  # what was parsed are copies, and the request may take a while
        work = _result(service, wanted, exchange.fields, _fetched(fetcher, image, request), galleries)
        result = await unless_gone(request.receive, work)
    except PdserveError as error:
        return failure(exchange.log_id, error, request.scope["path"])
    return success(exchange.log_id, result)


async def _fetched(fetcher: ImageFetcher, image: Buffer | str, request: Request) -> bytes:
    """An image file; from its address, where that was sent."""
    return await fetcher.fetch(image, request.scope) if isinstance(image, str) else cast("bytes", image)


async def _result(
    service: Answering,
    wanted: Operation,
    fields: Any,
    image: Awaitable[bytes],
    galleries: Galleries | None,
) -> dict[str, Any]:
    data = await image
    top_k, parameters = wanted.parameters(fields)
    if galleries and fields.indexKey is not None:
        parameters = replace(parameters, index=await galleries.get(fields.indexKey, service))
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
