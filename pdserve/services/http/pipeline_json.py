"""The pipeline protocol over HTTP: JSON in and out as the published gateway (grpc-gateway) does it."""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Any

from fastapi import Response
from google.protobuf import json_format

from pdserve.formats.protos import message
from pdserve.services.http import base64_json
from pdserve.services.http.responses import encode
from pdserve.services.pipeline_protocol import PipelineRequest, answer
from pdserve.services.service import Answering

# gRPC's numbers, which the gateway gives in the body beside the HTTP status.
_CODES = {400: 3, 401: 16, 404: 5, 408: 4, 413: 8, 500: 13, 503: 14, 504: 4}
_INT64 = re.compile(r"-?(0|[1-9]\d*)")


class _MalformedError(Exception):
    """The body is no JSON, or a field has the wrong type; the text goes to the caller."""


async def handle(service: Answering, name: str, body: bytes) -> Response:
    """Answer one request to ``/{name}/{method}``."""
    try:
        request = parse(name, body)
    except _MalformedError as error:
        return failed(400, str(error))
    response = await answer(service, request)
    return _json(
        {
            "err_no": response.err_no,
            "err_msg": response.err_msg,
            "key": list(response.key),
            "value": list(response.value),
            "tensors": [],
        }
    )


def failed(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    """An answer for what is not even a request: no such route, a wrong verb, a malformed body."""
    if status in (404, 405):
        plain = {"X-Content-Type-Options": "nosniff"}
        return Response(f"{text}\n", status, plain, "text/plain; charset=utf-8")
    body = {"error": text, "code": _CODES.get(status, 2), "message": text, "details": []}
    return _json(body, status, headers)


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    text = encode(content)
    for character in "<>&":  # the gateway's JSON is safe to paste into HTML
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Response(text.encode("utf-8", "replace"), status, dict(headers or {}), "application/json")


def parse(name: str, body: bytes) -> PipelineRequest:
    """A body -> a request. An empty body is an empty request, and what follows the object is ignored.

    Raises _MalformedError.
    """
    try:
        content = base64_json.load(body, "value", _load, base64_json.from_base64)
    except (ValueError, RecursionError) as error:
        raise _MalformedError(f"the body is no JSON: {error}") from error
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise _MalformedError(f"the body is a JSON {_kind(content)}, not an object")
    for field in ("name", "method", "clientip"):
        if not isinstance(content.get(field), str | None):
            raise _MalformedError(f"{field} is a JSON {_kind(content[field])}, not a string")
    return PipelineRequest(
        name,
        _strings(content, "key"),
        _strings(content, "value", (str, bytes)),
        [_tensor(tensor) for tensor in _list(content, "tensors")],
        _logid(content.get("logid")),
    )


def _load(body: bytes) -> Any:
    text = body.decode("utf-8", "replace").lstrip(" \t\r\n")
    return _DECODER.raw_decode(text)[0] if text else None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")  # Python would take NaN and Infinity


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def _kind(value: object) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "bool", type(None): "null"}
    return names.get(type(value), "number")


def _list(content: Mapping[str, Any], field: str) -> list[Any]:
    value = content.get(field)
    if not isinstance(value, list | None):
        raise _MalformedError(f"{field} is a JSON {_kind(value)}, not an array")
    return value or []


def _strings(content: Mapping[str, Any], field: str, kinds: tuple[type, ...] = (str,)) -> list[Any]:
    values = _list(content, field)
    for value in values:
        if value is not None and not isinstance(value, kinds):
            raise _MalformedError(f"{field} holds a JSON {_kind(value)}, not only strings")
    return [value or "" for value in values]


def _logid(value: object) -> int:
    """An int64, or its digits in a string, as protobuf's JSON mapping writes 64 bits."""
    if value is None:
        return 0
    if isinstance(value, str) and _INT64.fullmatch(value.strip()):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise _MalformedError(f"logid is {json.dumps(value)[:40]}, not a whole number of 64 bits")
    return value


def _tensor(content: object) -> Any:
    if not isinstance(content, dict | None):
        raise _MalformedError(f"tensors holds a JSON {_kind(content)}, not only objects")
    tensor = message("baidu.paddle_serving.pipeline_serving.Tensor")()
    try:
        for field in ("byte_data", "byteData"):  # which ParseDict would read whatever it held
            base64.b64decode((content or {}).get(field) or "", validate=True)
        json_format.ParseDict(content or {}, tensor, ignore_unknown_fields=True)
    except (json_format.ParseError, binascii.Error, TypeError, ValueError, RecursionError) as error:
        raise _MalformedError(f"a tensor cannot be read: {str(error)[:200]}") from error
    return tensor
