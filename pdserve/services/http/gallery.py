"""The gallery over HTTP: what ``pdserve index`` does, at ``/v1/gallery``. Writing is off unless asked for."""

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pdserve.errors import PdserveError, RequestError
from pdserve.index.edit import append, remove
from pdserve.index.gallery import GalleryImage
from pdserve.index.plan import Change
from pdserve.services.http.bodies import from_base64, json_object, media_type, read_body, read_form
from pdserve.services.http.responses import ErrorAnswer, json_response
from pdserve.services.protocols import Context, Route
from pdserve.services.service import Service, check_count
from pdserve.services.watch import IndexWatch
from pdserve.settings import ServerSettings

_PATH = "/v1/gallery"


class WritesOffError(RequestError):
    """The server was started without --gallery-writes."""

    code = "gallery_writes_off"
    http_status = 403
    grpc_status = "PERMISSION_DENIED"


def routes(context: Context) -> Iterator[Route]:
    """The routes of a service's gallery; none where the service has no index."""
    service, settings, options = context.service, context.settings, context.options
    if not isinstance(service, Service) or service.index is None:
        return
    one_at_a_time = asyncio.Lock()

    def active() -> IndexWatch:
        if service.index is None:
            raise RuntimeError("a reload has taken the index away")
        return service.index

    async def change(work: Any, *arguments: Any, **named: Any) -> Response:
        async with one_at_a_time:
            made: Change = await asyncio.to_thread(work, *arguments, **named)
            await active().refresh()
        return json_response(described(made))

    def check_writes() -> None:
        if not options.gallery_writes:
            raise WritesOffError(
                "The gallery is not to be changed over HTTP; start the server with --gallery-writes."
            )

    async def show(_: Request) -> Response:
        index = active().loaded
        return json_response(
            {
                "index_version": index.version,
                "count": index.count,
                "type": index.type,
                "metric": index.metric,
                "dimension": index.dimension,
                "embedder": index.embedder.name if index.embedder else None,
                "writes": options.gallery_writes,
            }
        )

    async def add(request: Request) -> Response:
        check_writes()
        body = await read_body(request, settings)
        images = _labelled(request, body, settings)
        check_count(images, settings)
        return await change(
            append, images, active().folder, service.embedder, strict=True, max_pixels=settings.max_pixels
        )

    async def drop(request: Request) -> Response:
        check_writes()
        query = request.query_params
        labels, images, ids = query.getlist("label"), query.getlist("image"), query.getlist("id")
        if not (labels or images or ids):
            raise RequestError("Say what to remove: ?label=, ?image= or ?id=.")
        if not all(each.isdecimal() and len(each) < 19 for each in ids):
            raise RequestError(f"id is {ids!r}; it must be whole numbers of 63 bits.")
        numbers = [int(each) for each in ids]
        return await change(remove, active().folder, labels=labels, images=images, ids=numbers)

    answers: dict[int, Any] = {200: {"model": dict[str, Any], "description": "The current version."}}
    described_get = {"tags": ["gallery"], "summary": "The index's version and size", "responses": answers}
    yield Route("GET", _PATH, show, described_get)
    yield Route("POST", _PATH, add, _operation("Add images with their labels", requestBody=_IMAGES))
    yield Route("DELETE", _PATH, drop, _operation("Remove entries by label, image or id", parameters=_WHICH))


def described(change: Change) -> dict[str, Any]:
    """A change as JSON: counts, and the images that were skipped."""
    content = asdict(change)
    content["index_version"] = content.pop("version")
    del content["folder"]  # which is no business of a caller's
    return content


def _labelled(request: Request, body: bytes, limits: ServerSettings) -> list[GalleryImage]:
    """The images of a request with their labels: a form, or JSON. Raises RequestError, ImageError."""
    if media_type(request) == "multipart/form-data":
        files, fields = read_form(request, body, limits)
        labels = fields.get("label", [])
        if len(labels) == 1:
            labels = labels * len(files)
        if len(labels) != len(files):
            raise RequestError(
                f"The form has {len(files)} images and {len(labels)} labels; send one label or one each."
            )
        pairs: Sequence[tuple[bytes | PdserveError, object]] = list(zip(files, labels, strict=True))
    else:
        content = json_object(body, '{"images": [{"image": base64, "label": …}, …]}')
        entries = content.get("images")
        if not isinstance(entries, list) or not entries:
            raise RequestError("images must be a list of objects with image and label, not empty.")
        pairs = []
        for entry in entries:
            image = entry.get("image") if isinstance(entry, dict) else None
            if not isinstance(image, str):
                raise RequestError("images must be a list of objects with image and label.")
            pairs.append((from_base64(image), entry.get("label")))
    return [_entry(image, label) for image, label in pairs]


def _entry(image: bytes | PdserveError, label: object) -> GalleryImage:
    if isinstance(image, PdserveError):
        raise image
    if not isinstance(label, str) or not label.strip() or any(c in label for c in "\t\r\n"):
        raise RequestError(f"The label {label!r} is no text of one line.")
    # Named by content: a caller's file name must not take the place of another caller's.
    return GalleryImage(f"upload/{hashlib.sha256(image).hexdigest()[:16]}", label.strip(), image)


def _operation(summary: str, **extra: Any) -> dict[str, Any]:
    """The OpenAPI operation of a route that changes the gallery."""
    failures = {
        400: "The request is malformed, or an image cannot be read.",
        403: "The server was started without --gallery-writes.",
        404: "There is no such entry.",
        408: "The body did not come in time.",
        413: "Too many bytes or images.",
        500: "The server failed; its log says at what.",
        503: "The server is stopping, or rebuilding its engine.",
    }
    responses: dict[int, Any] = {200: {"model": dict[str, Any], "description": "What changed."}}
    responses |= {status: {"model": ErrorAnswer, "description": text} for status, text in failures.items()}
    return {"tags": ["gallery"], "summary": summary, "responses": responses, "openapi_extra": extra}


_STRINGS = {"type": "array", "items": {"type": "string"}}
_WHICH = [
    {"name": name, "in": "query", "required": False, "schema": _STRINGS} for name in ("label", "image", "id")
]
_ENTRY = {
    "type": "object",
    "required": ["image", "label"],
    "properties": {"image": {"type": "string", "description": "base64"}, "label": {"type": "string"}},
}
_FORM = {
    "type": "object",
    "required": ["images", "label"],
    "properties": {
        "images": {"type": "array", "items": {"type": "string", "format": "binary"}},
        "label": {**_STRINGS, "description": "one for all images, or one for each"},
    },
}
_IMAGES = {
    "required": True,
    "content": {
        "multipart/form-data": {"schema": _FORM},
        "application/json": {
            "schema": {"type": "object", "properties": {"images": {"type": "array", "items": _ENTRY}}}
        },
    },
}
