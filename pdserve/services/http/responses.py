"""Answers and errors as JSON answers carry them."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from pdserve.errors import PdserveError
from pdserve.services.service import Answering

log = logging.getLogger("pdserve")

# Text may hold a lone surrogate that a caller sent, which cannot be UTF-8: encode it with "replace".
encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def message(error: PdserveError) -> str:
    """What a caller is told of an error. One of the server's own may name its files; that is for the log."""
    if error.http_status == 500:
        return f"The server failed ({error.code}); its log says at what."
    return error.message


def described(error: PdserveError) -> Mapping[str, str]:
    """``{"code", "message"}``."""
    return {"code": error.code, "message": message(error)}


def result(service: Answering, answer: Any) -> Mapping[str, Any]:
    """One image's answer in the service's own form, or ``{"error": …}``."""
    if isinstance(answer, PdserveError):
        return {"error": described(answer)}
    return service.result(answer)


def log_failures(answers: Sequence[Any], what: str) -> None:
    """Say in the log what callers are not told: the errors among a request's answers that are ours."""
    for text in {a.message for a in answers if isinstance(a, PdserveError) and a.http_status == 500}:
        log.error("%s: %s", what, text)


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in JSON."""
    body = encode(content).encode("utf-8", "replace")
    return Response(body, status, dict(headers or {}), "application/json")
