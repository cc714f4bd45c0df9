"""The envelope of PaddleX's serving protocol: requests in JSON, answers and errors, each with a log id."""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from pdserve.errors import BodyTooLargeError, ImageError, PdserveError, RequestError
from pdserve.services.http.image_urls import is_address
from pdserve.services.http.json_body import JsonBody, read_json
from pdserve.services.http.messages import (
    encode,
    from_base64,
    json_response,
    log_failures,
    media_type,
    message,
)
from pdserve.services.parsing import Bounds, Buffer

Result = TypeVar("Result")

# Faults of one request that are named; it may have thousands.
_MOST_FAULTS = 100
# Of a list or a mapping in a request: each may be at fault twice, and all faults are found in one call.
_MOST_ENTRIES = 2_000
# A body of up to this many bytes that is no JSON is read again, to say where.
_SHORT = 64 * 1024
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


class Envelope(BaseModel, Generic[Result]):
    """An answer; ``image``, where it was not asked for, is left out."""

    logId: str  # noqa: N815
    result: Result
    errorCode: Literal[0] = 0  # noqa: N815
    errorMsg: Literal["Success"] = "Success"  # noqa: N815


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
        for name, value in content.items():
            if isinstance(value, list | dict) and len(value) > _MOST_ENTRIES:
                raise BodyTooLargeError(
                    f"{name[:100]} has {len(value)} entries, more than {_MOST_ENTRIES}; "
                    "send several requests."
                )
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
