"""The pipeline protocol over HTTP: JSON in and out as the published gateway (grpc-gateway) does it."""

import base64
import binascii
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import orjson
from google.protobuf import json_format
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from pdserve.errors import RequestError
from pdserve.formats.protos import message
from pdserve.services.http.bodies import read_body, unless_gone
from pdserve.services.http.messages import (
    GatewayError,
    gateway_json,
    operation,
    parameter,
)
from pdserve.services.pipeline_protocol import PipelineRequest, answer
from pdserve.services.protocols import PIPELINE_PATH, Context, Route

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
    service = context.service

    async def pipeline(request: Request) -> Response:
        # Any method will do; it is in the path because Paddle Serving's clients put it there.
        name = request.scope["path"].split("/", 2)[1]
        asked = parse(name, await read_body(request, context.entrance))
        got = await unless_gone(request.receive, answer(service, asked))
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


def parse(name: str, body: bytes) -> PipelineRequest:
    """A body -> a request. An empty body is an empty request, and text after the object is ignored.

    Raises MalformedError.
    """
    try:
        content = _load(body)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"the body is no JSON: {error}") from error
    if not isinstance(content, dict | None):
        raise MalformedError("the body is no JSON object")
    try:
        fields = PipelineFields.model_validate(content or {})
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, wrong["loc"]))
        raise MalformedError(f"{where}: {wrong['msg']}") from error
    return PipelineRequest(
        name,
        [key or "" for key in fields.key or ()],
        [value or "" for value in fields.value or ()],
        [_tensor(tensor or {}) for tensor in fields.tensors or ()],
        fields.logid,
    )


def _load(body: bytes) -> Any:
    """Read JSON as the published gateway does: more leniently than orjson does, where that refuses it."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    text = body.decode("utf-8", "replace").lstrip(" \t\r\n")
    return _DECODER.raw_decode(text)[0] if text else None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")  # Python would take NaN and Infinity


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def _tensor(content: dict[str, Any]) -> Any:
    tensor = message("baidu.paddle_serving.pipeline_serving.Tensor")()
    try:
        for name in ("byte_data", "byteData"):  # which ParseDict would read whatever it held
            base64.b64decode(content.get(name) or "", validate=True)
        json_format.ParseDict(content, tensor, ignore_unknown_fields=True)
    except (json_format.ParseError, binascii.Error, TypeError, ValueError, RecursionError) as error:
        raise MalformedError(f"a tensor cannot be read: {str(error)[:200]}") from error
    return tensor
