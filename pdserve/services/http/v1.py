"""``POST /v1/{kind}``: images in, the service's answers out as JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from pydantic import ConfigDict, Field, create_model
from starlette.requests import Request
from starlette.responses import Response

from pdserve.errors import PdserveError, RequestError
from pdserve.pipelines import SERVICES, ServiceEntry
from pdserve.services.http.bodies import read_body, unless_gone
from pdserve.services.http.messages import (
    ErrorAnswer,
    encode_results,
    is_parsed,
    log_failures,
    operation,
    parameter,
    read_images,
)
from pdserve.services.parsing import parsed
from pdserve.services.protocols import Context, Route


def routes(context: Context) -> Iterator[Route]:
    """The route of the service's kind."""
    service, settings = context.service, context.settings
    entry = SERVICES[service.kind]
    path = entry.route

    async def v1(request: Request) -> Response:
        top_k = _top_k(request)
        body = await read_body(request, context.entrance)
        size = len(body) if is_parsed(request) else 0
        images = await parsed(partial(read_images, request, body, settings), size)
        del body  # what was parsed are copies, and the request may take a while
        answers = await unless_gone(request.receive, service.answer(images, top_k))
        log_failures(answers, path)
        status = _status(answers)
        later = {"Retry-After": "1"} if status == 503 else None
        return Response(await encode_results(answers), status, later, "application/json")

    yield Route("POST", path, v1, _operation(entry))


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


@dataclass(frozen=True)
class ImagesJson:
    """A request in JSON."""

    images: Annotated[list[str], Field(min_length=1, description="base64, or data: URLs of it")]


@dataclass(frozen=True)
class ImagesForm:
    """A request as a form."""

    images: Annotated[list[bytes], Field(min_length=1)]


def _operation(entry: ServiceEntry) -> dict[str, Any]:
    each: Any = entry.answer_type() | ErrorAnswer
    results: Any = create_model(
        f"{entry.kind.capitalize()}Results",
        __config__=ConfigDict(json_schema_serialization_defaults_required=True),
        results=(list[each], Field(description="one for each image, in order")),
    )
    top_k = parameter(
        "top_k", Annotated[int, Field(ge=1)], "how many labels, or gallery entries for each object"
    )
    return operation(
        entry.kind,
        f"{entry.kind.capitalize()} of one image or several",
        results,
        (400, 408, 413, 500, 503, 504),
        failure=results | ErrorAnswer,
        parameters=[top_k] if entry.top_k else [],
        body={
            "image/*": bytes,
            "application/octet-stream": bytes,
            "multipart/form-data": ImagesForm,
            "application/json": ImagesJson,
        },
    )
