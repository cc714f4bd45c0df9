"""Request bodies, parsed by type; answers and errors as responses; OpenAPI of both."""

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, cast

import orjson
from pydantic import TypeAdapter
from starlette.requests import Request
from starlette.responses import Response

from pdserve.errors import ImageError, PdserveError, RequestError
from pdserve.services.base64_text import Decoded, Text, strict, with_blanks
from pdserve.services.http.forms import read_form
from pdserve.services.http.json_body import JsonBody, read_json
from pdserve.services.parsing import IN_A_THREAD, Bounds, Buffer
from pdserve.services.service import check_count
from pdserve.settings import ServerSettings

if TYPE_CHECKING:
    from pdserve.services.protocols import Protocol

log = logging.getLogger("pdserve")


# Characters of a data: URL before its base64.
_LONGEST_HEAD = 1024
# Bytes of answers that are encoded before the event loop goes on: some milliseconds of work.
_ENCODED_AT_ONCE = 256 * 1024


def read_images(
    request: Request, body: bytes, limits: ServerSettings, bounds: Bounds = IN_A_THREAD
) -> list[bytes | PdserveError]:
    """The images of a /v1 request, in order, by the body's type. Raises RequestError, BodyTooLargeError."""
    kind = media_type(request)
    if kind == "multipart/form-data":
        files, _ = read_form(request.headers.get("content-type", ""), body, limits)
        return cast("list[bytes | PdserveError]", files)
    if kind == "application/json":
        wanted = '{"images": [base64, …]}'
        read = json_object(body, bounds, wanted)
        images = read.content.get("images")
        if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
            raise RequestError(f"The body must be a JSON object {wanted}.")
        if not images:
            raise RequestError("The list of images is empty.")
        return json_images(read, images, limits)
    if not body:
        raise ImageError("The body is empty; send an image file.")
    if bytes(body[:16]).lstrip()[:1] in (b"{", b"["):  # which begins no image file
        raise RequestError(
            f"The body looks like JSON, and its Content-Type is {kind or 'missing'}, so that it is read as "
            "an image file; send the header `Content-Type: application/json`."
        )
    return [body]


def is_parsed(request: Request) -> bool:
    """Whether a /v1 request's body is more than one image."""
    return media_type(request) in ("multipart/form-data", "application/json")


def media_type(request: Request) -> str:
    """The Content-Type without its parameters, in small letters; empty where there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def json_object(body: Buffer, bounds: Bounds, wanted: str, *, numbers: bool = False) -> JsonBody:
    """A body whose content is a JSON object; ``wanted`` shows its form in errors.

    ``numbers``: see `read_json`. Raises RequestError, BodyTooLargeError.
    """
    try:
        read = read_json(body, bounds, numbers=numbers)
    except ValueError as error:
        raise RequestError(f"The body is no JSON; send {wanted}.") from error
    if not isinstance(read.content, dict):
        raise RequestError(f"The body must be a JSON object {wanted}.")
    return read


def json_images(read: JsonBody, texts: Sequence[str], limits: ServerSettings) -> list[bytes | PdserveError]:
    """Images in base64, or ``data:`` URLs of it, to bytes; an ImageError in the place of what is neither.

    They are counted before they are decoded. Raises RequestError, BodyTooLargeError.
    """
    check_count(texts, limits)
    try:
        return [cast("bytes", from_base64(read.taken(text))) for text in texts]
    except orjson.JSONDecodeError as error:
        raise RequestError("The body is no JSON: a text in it is not well-formed.") from error


def from_base64(text: Text | Decoded) -> Buffer | PdserveError:
    """A base64 string, or a ``data:`` URL of one; an ImageError where it is neither."""
    if isinstance(text, Decoded):
        return text.data
    image = strict(text)
    if image is not None:
        return image
    head = text[:_LONGEST_HEAD]
    if not isinstance(head, str):
        head = str(head, "utf-8", "replace")
    if head.startswith("data:"):
        at = head.find(",")
        if at < 0 or not head[:at].endswith(";base64"):
            return ImageError("The data: URL is not base64.")
        text = text[len(head[: at + 1].encode()) :] if not isinstance(text, str) else text[at + 1 :]
    try:
        return with_blanks(text)
    except ValueError:
        return ImageError("The image is not base64.")


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


async def encode_results(answers: Sequence[Any]) -> bytes:
    """``{"results": […]}`` of a request's images, as `encode` writes it.

    Image by image, between which the event loop goes on: one may have thousands of entries.
    """
    encoded: list[bytes] = []
    since_last = 0
    for answer in answers:
        encoded.append(encode(to_json(answer)))
        since_last += len(encoded[-1])
        if since_last > _ENCODED_AT_ONCE:
            since_last = 0
            await asyncio.sleep(0)
    return b'{"results":[%s]}' % b",".join(encoded)


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
    path: str,
    protocol: "Protocol | None",
    status: int,
    code: str,
    text: str,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The answer to a request that failed as a whole, in the form of the route its path belongs to.

    ``protocol``: that route's, None where there is none.
    """
    if protocol is not None and protocol.errors:
        response: Response = resolve_name(protocol.errors)(status, code, text, headers)
        return response
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
    403: "The server was started without --gallery-writes, or the caller may change nothing there.",
    404: "There is no such entry, or model.",
    408: "The body did not come in time.",
    413: "Too many bytes, images or pixels.",
    422: "A field is missing, or is none of its type.",
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
