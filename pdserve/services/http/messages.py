"""Request bodies, parsed by type; answers and errors as responses; OpenAPI of both."""

import base64
import binascii
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import orjson
import pybase64
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header
from pydantic import TypeAdapter
from starlette.requests import Request
from starlette.responses import Response

from pdserve.errors import BodyTooLargeError, ImageError, PdserveError, RequestError
from pdserve.settings import ServerSettings

if TYPE_CHECKING:
    from pdserve.services.protocols import Protocol

log = logging.getLogger("pdserve")


# Fields of a form beside the images, and what one may hold.
_MAX_FIELDS = 16
_MAX_FIELD_BYTES = 64 * 1024
# What a line of a part's headers may have.
_MAX_HEADER_BYTES = 8 * 1024


def read_images(request: Request, body: bytes, limits: ServerSettings) -> list[bytes | PdserveError]:
    """The images of a /v1 request, in order, by the body's type. Raises RequestError."""
    kind = media_type(request)
    if kind == "multipart/form-data":
        files, _ = read_form(request, body, limits)
        return list(files)
    if kind == "application/json":
        wanted = '{"images": [base64, …]}'
        images = json_object(body, wanted).get("images")
        if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
            raise RequestError(f"The body must be a JSON object {wanted}.")
        if not images:
            raise RequestError("The list of images is empty.")
        return [from_base64(image) for image in images]
    if not body:
        raise ImageError("The body is empty; send an image file.")
    return [body]


def media_type(request: Request) -> str:
    """The Content-Type without its parameters, in small letters; empty where there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def read_form(
    request: Request, body: bytes, limits: ServerSettings
) -> tuple[list[bytes], dict[str, list[str]]]:
    """A multipart form's files in the field ``images``, at least one, and its text fields.

    Raises RequestError, BodyTooLargeError for more than ``max_images`` files or a part of more than
    ``max_part_bytes``.
    """
    max_images = limits.max_images
    files: list[bytes] = []
    fields: dict[str, list[str]] = {}
    file_count = text_count = 0
    for name, is_file, data in _parts(body, request.headers.get("content-type", "")):
        if len(data) > limits.max_part_bytes:
            raise BodyTooLargeError(
                f"A part of the form is larger than the limit of {limits.max_part_bytes} bytes; send smaller "
                "ones or raise max_part_bytes."
            )
        if is_file:
            file_count += 1
            if file_count > max_images:
                raise BodyTooLargeError(
                    f"The form has more than {max_images} files, which is the limit; send several requests."
                )
            if name == "images":
                files.append(data)
            continue
        text_count += 1
        if text_count > max_images + _MAX_FIELDS or len(data) > _MAX_FIELD_BYTES:
            raise RequestError(
                f"The form has more than {max_images + _MAX_FIELDS} text fields, or one of more than "
                f"{_MAX_FIELD_BYTES} bytes."
            )
        try:
            fields.setdefault(name, []).append(data.decode())
        except UnicodeDecodeError as error:
            raise RequestError(f"The form's field {name!r} is not UTF-8.") from error
    if not files:
        raise RequestError("The form has no file in a field called images.")
    return files, fields


def _parts(body: bytes, content_type: str) -> Iterator[tuple[str, bool, bytes]]:
    """The parts of a form (RFC 7578), in order: name, whether it is a file, content. Raises RequestError."""
    try:
        boundary = parse_options_header(content_type)[1].get("boundary", "")
        with PushMultipartParser(boundary, max_header_size=_MAX_HEADER_BYTES, strict=True) as parser:
            name, is_file, data = "", False, b""
            for event in parser.parse(body):
                if event is None:
                    yield name, is_file, data
                elif isinstance(event, MultipartSegment):
                    # Some clients name a file by RFC 5987 alone, which the parser does not read.
                    is_file = event.filename is not None or "filename*=" in event["Content-Disposition"]
                    name, data = event.name or "", b""
                else:
                    data = bytes(event)  # all of it: the body is parsed in one piece
    except MultipartError as error:
        raise RequestError(f"The multipart form cannot be read: {error}.") from error


def json_object(body: bytes, wanted: str) -> dict[str, Any]:
    """A JSON object; ``wanted`` shows its form in the error. Raises RequestError."""
    try:
        content = orjson.loads(body)
    except ValueError as error:
        raise RequestError(f"The body is no JSON; send {wanted}.") from error
    if not isinstance(content, dict):
        raise RequestError(f"The body must be a JSON object {wanted}.")
    return content


def from_base64(text: str) -> bytes | PdserveError:
    """A base64 string, or a ``data:`` URL of one; an ImageError where it is neither."""
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            return ImageError("The data: URL is not base64.")
    image = strict_base64(text)
    if image is not None:
        return image
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return ImageError("The image is not base64.")


def strict_base64(text: str) -> bytes | None:
    """Base64 without anything else in it, to bytes; None for what is not that."""
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError:
        return None


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
    403: "The server was started without --gallery-writes.",
    404: "There is no such entry, or model.",
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
