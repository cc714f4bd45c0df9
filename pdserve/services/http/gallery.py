"""The gallery over HTTP at ``/v1/gallery``: show, append, remove. Writes need ``--gallery-writes``."""

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from pdserve.errors import PdserveError, RequestError
from pdserve.index.edit import append, remove
from pdserve.index.gallery import GalleryImage
from pdserve.index.plan import Change
from pdserve.services.http.bodies import read_body
from pdserve.services.http.messages import (
    from_base64,
    json_object,
    json_response,
    media_type,
    operation,
    parameter,
    read_form,
    schema,
)
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


@dataclass(frozen=True)
class Gallery:
    """The current index; ``writes``: it may be changed over HTTP."""

    index_version: int
    count: int
    type: str
    metric: str
    dimension: int
    embedder: str | None
    writes: bool


@dataclass(frozen=True)
class LabelledImage:
    """An image to add, in JSON."""

    image: Annotated[str, Field(description="base64")]
    label: str


@dataclass(frozen=True)
class LabelledForm:
    """Images to add, as a form."""

    images: list[bytes]
    label: Annotated[list[str], Field(description="one for all images, or one for each")]


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
        embedder = index.embedder.name if index.embedder else None
        shape = index.type, index.metric, index.dimension
        return json_response(Gallery(index.version, index.count, *shape, embedder, options.gallery_writes))

    async def add(request: Request) -> Response:
        check_writes()
        body = await read_body(request, context.entrance)
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

    entries = {"type": "array", "items": schema(LabelledImage)}
    body = {
        "multipart/form-data": LabelledForm,
        "application/json": {"type": "object", "properties": {"images": entries}},
    }
    which = [parameter(name, list[str], "what to remove") for name in ("label", "image", "id")]
    failures = (400, 403, 404, 408, 413, 500, 503)
    yield Route("GET", _PATH, show, operation("gallery", "The index's version and size", Gallery))
    adding = operation("gallery", "Add images with their labels", dict[str, Any], failures, body=body)
    writes = options.gallery_writes  # else they are refused anyway, and say why
    yield Route("POST", _PATH, add, adding, writes)
    text = "Remove entries by label, image or id"
    removing = operation("gallery", text, dict[str, Any], failures, parameters=which)
    yield Route("DELETE", _PATH, drop, removing, writes)


def described(change: Change) -> dict[str, Any]:
    """A change as JSON: counts, and the images that were skipped."""
    content = asdict(change)
    content["index_version"] = content.pop("version")
    del content["folder"]  # which is no business of a caller's
    del content["same_path"]  # as uploads are named by their content
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
