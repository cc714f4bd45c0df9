"""Answers and errors as HTTP responses, and what OpenAPI says of them."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import orjson
from pydantic import TypeAdapter
from starlette.responses import Response

from pdserve.errors import PdserveError

log = logging.getLogger("pdserve")

# gRPC's numbers, which the published gateway gives in the body beside the HTTP status.
_GATEWAY_CODES = {400: 3, 401: 16, 404: 5, 408: 4, 413: 8, 500: 13, 503: 14, 504: 4}


@dataclass(frozen=True)
class Error:
    """What went wrong: a code for programs, a sentence for people."""

    code: str
    message: str


@dataclass(frozen=True)
class ErrorAnswer:
    """The answer to a request, or for one of its images, that failed."""

    error: Error


@dataclass(frozen=True)
class GatewayError:
    """The answer of Paddle Serving's HTTP gateway to a request that it does not pass on."""

    error: str
    code: int
    message: str
    details: list[dict[str, Any]]


def message(error: PdserveError) -> str:
    """The message for callers. That of a fault of the server may name its files; it is for the log only."""
    if error.http_status == 500:
        return f"The server failed ({error.code}); its log says at what."
    return error.message


def encode(content: Any) -> bytes:
    """JSON of dictionaries, lists, texts, numbers and dataclasses. A lone surrogate becomes "?"."""
    try:
        return orjson.dumps(content)
    except orjson.JSONEncodeError:  # a surrogate that a caller sent cannot be UTF-8
        return _LENIENT.encode(content).encode("utf-8", "replace")


_LENIENT = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=asdict)


def to_json(answer: Any) -> Any:
    """One image's answer, or its error, as a value that `encode` takes."""
    if isinstance(answer, PdserveError):
        return ErrorAnswer(Error(answer.code, message(answer)))
    return answer


def log_failures(answers: Sequence[Any], what: str) -> None:
    """Log the errors among a request's answers that are the server's; callers see none of their text."""
    for text in {a.message for a in answers if isinstance(a, PdserveError) and a.http_status == 500}:
        log.error("%s: %s", what, text)


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in JSON."""
    return Response(encode(content), status, dict(headers or {}), "application/json")


def gateway_json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """The same as Paddle Serving's gateway writes it: safe to paste into HTML."""
    body = encode(content)
    for character in b"<>&":
        body = body.replace(bytes((character,)), b"\\u%04x" % character)
    return Response(body, status, dict(headers or {}), "application/json")


def error_response(
    path: str, status: int, code: str, text: str, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer to a request that failed as a whole, in the form of the route its path belongs to."""
    if not path.startswith(("/v1/", "/v2/")):
        of_pipeline = path.count("/") == 2
        if status in (404, 405):
            plain = {"X-Content-Type-Options": "nosniff"}
            if headers and not of_pipeline:
                plain |= headers
            return Response(f"{text}\n", status, plain, "text/plain; charset=utf-8")
        if of_pipeline:
            error = GatewayError(text, _GATEWAY_CODES.get(status, 2), text, [])
            return gateway_json(error, status, headers)
    return json_response(ErrorAnswer(Error(code, text)), status, headers)


_FAILURES = {
    400: "The request is malformed, or no image can be read.",
    403: "The server was started without --gallery-writes.",
    404: "There is no such entry.",
    408: "The body did not come in time.",
    413: "Too many bytes, images or pixels.",
    500: "The server failed; its log says at what.",
    503: "The server cannot answer now: its queue is full, it is rebuilding its engine, or stopping.",
    504: "The deadline passed.",
}


def operation(
    tag: str,
    summary: str,
    answer: Any,
    failures: Sequence[int] = (),
    *,
    failure: Any = ErrorAnswer,
    body: Mapping[str, Any] | None = None,
    parameters: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The OpenAPI operation of a route. ``answer``, ``failure``: types; ``body``: types by media type."""
    responses = {200: {"model": answer, "description": "The answer."}}
    responses |= {status: {"model": failure, "description": _FAILURES[status]} for status in failures}
    extra: dict[str, Any] = {"parameters": parameters} if parameters else {}
    if body:
        extra["requestBody"] = {"content": {kind: {"schema": schema(each)} for kind, each in body.items()}}
    return {"tags": [tag], "summary": summary, "responses": responses, "openapi_extra": extra}


def schema(of: Any) -> dict[str, Any]:
    """The JSON schema of a type that refers to no other; a schema stays as it is."""
    return of if isinstance(of, dict) else TypeAdapter(of).json_schema()


def parameter(name: str, of: Any, description: str, place: str = "query") -> dict[str, Any]:
    """A parameter of an operation, in the query or (required) in the path."""
    found = {"name": name, "in": place, "schema": schema(of), "description": description}
    return found | {"required": place == "path"}
