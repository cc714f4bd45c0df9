"""The gallery over HTTP at ``/v1/gallery``: show, append, remove. Writes need ``--gallery-writes``."""

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any, cast

import numpy as np
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from pdserve.errors import (
    ClosedError,
    FetchError,
    GalleryError,
    ImageError,
    OverloadedError,
    PdserveError,
    RequestError,
)
from pdserve.index.edit import append_embedded, remove
from pdserve.index.embed import HashedImage
from pdserve.index.gallery import GalleryImage, unfit
from pdserve.index.plan import Change
from pdserve.pipelines.embedder import Embedder
from pdserve.services.http.bodies import read_body, release, unless_gone
from pdserve.services.http.forms import read_form
from pdserve.services.http.json_body import LONG
from pdserve.services.http.messages import (
    json_images,
    json_object,
    json_response,
    media_type,
    operation,
    parameter,
    schema,
)
from pdserve.services.parsing import Bounds, Buffer, parsed
from pdserve.services.protocols import Context, Route
from pdserve.services.service import NotLoadedError, Service
from pdserve.services.watch import IndexWatch
from pdserve.settings import ServerSettings
from pdserve.vision.types import Vectors

_PATH = "/v1/gallery"
# How often images are embedded again where a reload has brought another embedder meanwhile.
_ATTEMPTS = 3

MAX_WAITING = 16
"""Changes of a gallery that are carried out or wait at once."""

MAX_SELECTED = 1_000
"""Labels, images and ids that one request may remove."""

WAIT_S = 30.0
"""How long a change may wait for its turn."""


class WritesOffError(RequestError):
    """The server was started without --gallery-writes."""

    code = "gallery_writes_off"
    http_status = 403
    grpc_status = "PERMISSION_DENIED"


class Writers:
    """Lets those who change the gallery do so one at a time; few wait, not for long, and may go away.

    One that is at it is not stopped: what it has published counts.
    """

    def __init__(self, after: Callable[[], Awaitable[None]]) -> None:
        self._after = after
        self._lock = asyncio.Lock()
        self._inside = 0

    async def run(self, work: Callable[[threading.Event], Change], patience_s: float = WAIT_S) -> Change:
        """Do ``work`` in a thread when its turn comes, and ``after``.

        ``work`` gets an event, and waits for other processes until it is set. Raises OverloadedError where
        too many wait, or where it takes more than ``patience_s`` until the turn comes.
        """
        if self._inside >= MAX_WAITING:
            raise OverloadedError(
                f"{self._inside} changes of the gallery wait already; ask again in a moment."
            )
        self._inside += 1
        cancel = threading.Event()
        timer = asyncio.get_running_loop().call_later(patience_s, cancel.set)
        try:
            async with asyncio.timeout(patience_s) as patience:
                async with self._lock:
                    patience.reschedule(None)
                    made = await self._work(work, cancel)
                    await self._after()
                    return made
        except TimeoutError:
            raise _waited(patience_s) from None
        except FetchError as error:
            raise _waited(patience_s) from error
        finally:
            timer.cancel()
            self._inside -= 1

    async def _work(self, work: Callable[[threading.Event], Change], cancel: threading.Event) -> Change:
        job = asyncio.ensure_future(asyncio.to_thread(work, cancel))
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            cancel.set()
            await asyncio.wait([job])
            if not job.cancelled():
                job.exception()  # else it would be logged as lost
            raise


def _waited(seconds: float) -> OverloadedError:
    return OverloadedError(f"The gallery was being changed for {seconds:g} s; ask again in a moment.")


class RefusedImageError(GalleryError):
    """An image that is not added; the status is that of its error, as at the other doors."""

    def __init__(self, image: str, cause: ImageError) -> None:
        super().__init__(f"{image}: {cause.message}")
        self.http_status = cause.http_status


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
    if not isinstance(service, Service) or not service.has_index:
        return

    def active() -> IndexWatch:
        if service.index is None:
            raise RuntimeError("a reload has taken the index away")
        return service.index

    async def refresh() -> None:
        with contextlib.suppress(NotLoadedError):  # it was unloaded meanwhile, and published all the same
            await active().refresh()

    writers = Writers(refresh)

    async def change(request: Request, work: Callable[[threading.Event], Change]) -> Response:
        await service.awake()
        release(request.scope)  # the body's memory: who waits for others holds no more than a few vectors
        limit_ms = service.replica.settings.first_model.timeout_ms
        patience_s = min(WAIT_S, limit_ms / 1000) if limit_ms else WAIT_S
        return json_response(described(await unless_gone(request.receive, writers.run(work, patience_s))))

    def check_writes() -> None:
        if not options.gallery_writes:
            raise WritesOffError(
                "The gallery is not to be changed over HTTP; start the server with --gallery-writes."
            )

    async def show(_: Request) -> Response:
        await service.awake()
        index = active().loaded
        embedder = index.embedder.name if index.embedder else None
        shape = index.type, index.metric, index.dimension
        return json_response(Gallery(index.version, index.count, *shape, embedder, options.gallery_writes))

    async def add(request: Request) -> Response:
        check_writes()
        images, vectors, embedder = await embedded(request)

        def work(cancel: threading.Event) -> Change:
            return append_embedded(images, vectors, active().folder, embedder, cancel=cancel)

        return await change(request, work)

    async def embedded(request: Request) -> tuple[list[HashedImage], Vectors, Embedder]:
        """A request's images without their files, and their vectors, made as those of any other request."""
        body = await read_body(request, context.entrance)
        files, images = await parsed(partial(_labelled, request, body, settings), len(body))
        del body
        for _ in range(_ATTEMPTS):
            await service.awake()
            embedder = service.embedder
            found = await unless_gone(request.receive, service.embed(files))
            now = service.embedder
            if embedder and now and embedder.fingerprint == now.fingerprint:
                break
        else:
            raise ClosedError("The embedder was replaced meanwhile; send the images again.")
        for image, each in zip(images, found, strict=True):
            if isinstance(each, ImageError):
                raise RefusedImageError(image.image.image, each) from each
            if isinstance(each, PdserveError):
                raise each
        return images, np.stack([each for each in found if not isinstance(each, PdserveError)]), embedder

    async def drop(request: Request) -> Response:
        check_writes()
        query = request.query_params
        labels, images, ids = query.getlist("label"), query.getlist("image"), query.getlist("id")
        if not (labels or images or ids):
            raise RequestError("Say what to remove: ?label=, ?image= or ?id=.")
        count = len(labels) + len(images) + len(ids)
        if count > MAX_SELECTED:
            raise RequestError(
                f"{count} labels, images and ids are more than {MAX_SELECTED}; ask several times."
            )
        for each in ids:
            if not (each.isascii() and each.isdecimal() and len(each) < 19):
                raise RequestError(f"id is {each[:20]!r}; it must be a whole number of 63 bits.")
        numbers = [int(each) for each in ids]

        def work(cancel: threading.Event) -> Change:
            return remove(active().folder, labels=labels, images=images, ids=numbers, cancel=cancel)

        return await change(request, work)

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


def _labelled(
    request: Request, body: bytes, limits: ServerSettings, bounds: Bounds
) -> tuple[list[bytes], list[HashedImage]]:
    """The files of a request, and what they are: a form, or JSON. Raises RequestError, ImageError."""
    if media_type(request) == "multipart/form-data":
        files, fields = read_form(request.headers.get("content-type", ""), body, limits)
        labels = fields.get("label", [])
        if len(labels) == 1:
            labels = labels * len(files)
        if len(labels) != len(files):
            raise RequestError(
                f"The form has {len(files)} images and {len(labels)} labels; send one label or one each."
            )
        pairs: Sequence[tuple[Buffer | PdserveError, object]] = list(zip(files, labels, strict=True))
    else:
        read = json_object(body, bounds, '{"images": [{"image": base64, "label": …}, …]}')
        entries = read.content.get("images")
        if not isinstance(entries, list) or not entries:
            raise RequestError("images must be a list of objects with image and label, not empty.")
        texts: list[Any] = [entry.get("image") if isinstance(entry, dict) else None for entry in entries]
        if not all(isinstance(text, str) for text in texts):
            raise RequestError("images must be a list of objects with image and label.")
        images = json_images(read, texts, limits)
        labels = [entry.get("label") for entry in entries]
        if any(map(read.is_long, labels)):
            raise RequestError(f"A label has more than the {LONG} bytes that one may have.")
        pairs = list(zip(images, labels, strict=True))
    made = [_entry(image, label) for image, label in pairs]
    return [data for data, _ in made], [each for _, each in made]


def _entry(image: Buffer | PdserveError, label: object) -> tuple[bytes, HashedImage]:
    if isinstance(image, PdserveError):
        raise image
    if not isinstance(label, str) or (problem := unfit(label.strip())):
        shown = repr(label[:80]) if isinstance(label, str) else type(label).__name__
        raise RequestError(f"The label {shown} {problem if isinstance(label, str) else 'is no text'}.")
    digest = hashlib.sha256(image).digest()
    # Named by content: a caller's file name must not take the place of another caller's.
    named = GalleryImage(f"upload/{digest.hex()[:16]}", label.strip(), b"")
    return cast("bytes", image), HashedImage(named, digest)
