"""The pipeline protocol over HTTP: JSON in and out as the published gateway (grpc-gateway) does it."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import pybase64
from google.protobuf import json_format
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from pdserve.errors import RequestError
from pdserve.formats.protos import message
from pdserve.services import base64_text
from pdserve.services.base64_text import Decoded, Text
from pdserve.services.http.bodies import read_body, unless_gone
from pdserve.services.http.json_body import JsonBody, read_json
from pdserve.services.http.messages import (
    GatewayError,
    gateway_json,
    operation,
    parameter,
)
from pdserve.services.parsing import IN_A_THREAD, Bounds, Buffer, parsed
from pdserve.services.pipeline_protocol import PipelineRequest, answer, check_entries
from pdserve.services.protocols import PIPELINE_PATH, Context, Route
from pdserve.services.tensors import MAX_RANK, NUMBERS, Tensor
from pdserve.settings import ServerSettings

_INT64 = re.compile(r"-?(0|[1-9]\d*)")


class MalformedError(RequestError):
    """The body is no JSON, or a field has the wrong type."""


def _int64(value: object) -> int:
    """An int64, or its digits in a string, as protobuf's JSON mapping writes 64 bits; None is 0."""
    if value is None:
        return 0
    number = int(value) if isinstance(value, str) and _INT64.fullmatch(value.strip()) else value
    if type(number) is not int or not -(2**63) <= number < 2**63:
        raise ValueError(f"{json.dumps(value)[:40]} is not a whole number of 64 bits")
    return number


class PipelineFields(BaseModel):
    """A request of the pipeline protocol: for each key the base64 of an image file."""

    model_config = ConfigDict(strict=True)

    name: str | None = None
    method: str | None = None
    key: list[str | None] | None = None
    value: list[str | None] | None = None
    tensors: list[dict[str, Any] | None] | None = None
    logid: Annotated[int, BeforeValidator(_int64, json_schema_input_type=int | str | None)] = 0
    clientip: str | None = None


@dataclass(frozen=True)
class PipelineAnswer:
    """An answer of the pipeline protocol: values by key, in two lists."""

    err_no: int = field(metadata={"description": "0 for success"})
    err_msg: str
    key: list[str]
    value: list[str]
    tensors: list[dict[str, Any]]


def routes(context: Context) -> Iterator[Route]:
    """The route of the pipeline protocol."""
    services, limits = context.services, context.settings

    async def pipeline(request: Request) -> Response:
        # Any method will do; it is in the path because Paddle Serving's clients put it there.
        name = request.scope["path"].split("/", 2)[1]
        body = await read_body(request, context.entrance)
        asked = await parsed(lambda bounds: parse(name, body, limits, bounds), len(body))
        got = await unless_gone(request.receive, answer(services, asked, limits))
        return gateway_json(PipelineAnswer(got.err_no, got.err_msg, list(got.key), list(got.value), []))

    segment = Annotated[str, Field(min_length=1)]
    described = operation(
        "pipeline protocol",
        "Paddle Serving's pipeline protocol",
        PipelineAnswer,
        (400, 408, 413, 500, 503),
        failure=GatewayError,
        parameters=[
            parameter("name", segment, "the service's name", "path"),
            parameter("method", segment, "any", "path"),
        ],
        body={"application/json": PipelineFields},
    )
    yield Route("POST", PIPELINE_PATH, pipeline, described)


def parse(name: str, body: bytes, limits: ServerSettings, bounds: Bounds = IN_A_THREAD) -> PipelineRequest:
    """A body -> a request. An empty body is an empty request, and text after the object is ignored.

    Raises MalformedError, BodyTooLargeError.
    """
    try:
        read = read_json(body, bounds, lenient=True)
    except ValueError as error:
        raise MalformedError(f"the body is no JSON: {error}") from error
    content = read.content
    if not isinstance(content, dict | None):
        raise MalformedError("the body is no JSON object")
    try:
        fields = PipelineFields.model_validate(content or {})
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, wrong["loc"]))
        raise MalformedError(f"{where}: {wrong['msg']}") from error
    keys, tensors = fields.key or [], fields.tensors or []
    check_entries(keys, tensors, limits)
    try:
        # Values without a key are not looked at.
        values = [read.taken(value or "", lenient=True) for value in (fields.value or [])[: len(keys)]]
        read_tensors = [_tensor(tensor or {}, read) for tensor in tensors]
    except json.JSONDecodeError as error:
        raise MalformedError(f"the body is no JSON: {error.msg}") from error
    return PipelineRequest(name, [key or "" for key in keys], values, read_tensors, fields.logid)


def _tensor(content: dict[str, Any], read: JsonBody) -> Tensor:
    """A tensor. Raises MalformedError, and ValueError for a text that is no JSON."""
    data: Buffer = b""
    content = dict(content)
    tensor = message("baidu.paddle_serving.pipeline_serving.Tensor")()
    try:
        for name in ("byte_data", "byteData"):  # which ParseDict would read whatever it held
            if isinstance(text := content.get(name), str):
                taken = read.taken(text)
                found = taken.data if isinstance(taken, Decoded) else base64_text.strict(taken)
                if found is None:
                    raise ValueError("its bytes are no base64")
                data, content[name] = found, ""
        json_format.ParseDict(content, tensor, ignore_unknown_fields=True)
    except (json_format.ParseError, TypeError, ValueError, RecursionError) as error:
        raise MalformedError(f"a tensor cannot be read: {str(error)[:200]}") from error
    return Tensor(
        tensor.name,
        tensor.elem_type,
        tensor.shape[:MAX_RANK],
        len(tensor.shape),
        len(tensor.lod),
        {name: len(getattr(tensor, name)) for name in NUMBERS.values()},
        [_plain(read.taken(text, lenient=True)) for text in tensor.str_data],
        data,
    )


def _plain(text: Text | Decoded) -> Text:
    return pybase64.b64encode(text.data) if isinstance(text, Decoded) else text
