"""Answers and errors as HTTP responses: JSON, an error in the form of its route, and their OpenAPI models."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import orjson
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
