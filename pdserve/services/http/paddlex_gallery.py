"""PaddleX's galleries: ``/shitu-index-*`` and ``/face-recognition-index-*``, and which one a search is in.

What PaddleX calls an index key is the name of an index among pdserve's own (`pdserve list`): published whole,
version after version, and never unpickled. A key is a UUID that was made here, so that it names no path. One
is made, and its gallery changed, with ``--gallery-writes`` alone.
"""

import asyncio
import hashlib
import os
import re
import threading
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from pdserve.errors import (
    ClosedError,
    GalleryError,
    ImageError,
    OtherEmbedderError,
    PdserveError,
    RequestError,
)
from pdserve.index import search
from pdserve.index.edit import append_embedded, build_embedded, remove
from pdserve.index.embed import HashedImage
from pdserve.index.gallery import GalleryImage, unfit
from pdserve.index.plan import Change
from pdserve.index.search import LoadedIndex
from pdserve.index.store import MANIFEST, read_manifest
from pdserve.models.home import Home
from pdserve.pipelines.embedder import Embedder
from pdserve.services.http.bodies import read_body, release, unless_gone
from pdserve.services.http.browsers import WRITE_HEADER, WriteHeaderError, check_write
from pdserve.services.http.gallery import MAX_SELECTED, Writers, WritesOffError
from pdserve.services.http.image_urls import ImageFetcher
from pdserve.services.http.json_body import LONG
from pdserve.services.http.messages import operation
from pdserve.services.http.paddlex_envelope import (
    Envelope,
    Exchange,
    NoResult,
    failure,
    image_of,
    read_fields,
    success,
)
from pdserve.services.net import is_loopback
from pdserve.services.parsing import Bounds, Buffer, parsed
from pdserve.services.protocols import Context, Route, Scope
from pdserve.services.service import Answering, Service, check_count
from pdserve.settings import ServerSettings
from pdserve.vision.types import Vectors

_KEY = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MAX_GALLERIES = 100
"""Galleries with a key that there may be in pdserve's home."""

MAX_IMAGES = 100_000
"""Of such a gallery."""

# Bytes of vectors of all galleries that are kept in memory, the one that was asked last always.
_KEPT_BYTES = 512 * 1024 * 1024
_ATTEMPTS = 3
# What a proxy adds; behind one, whoever asks seems to be of this machine.
_FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via")


class NoSuchKeyError(RequestError):
    """An index key of which there is no gallery."""

    code = "no_such_gallery"
    http_status = 404
    grpc_status = "NOT_FOUND"


class ImageLabelPair(BaseModel):
    """An image of a gallery and its label."""

    image: str
    label: str


class BuildFields(BaseModel):
    """Of ``…-index-build``."""

    imageLabelPairs: list[ImageLabelPair]  # noqa: N815


class AddFields(BuildFields):
    """Of ``…-index-add``."""

    indexKey: str  # noqa: N815


class RemoveFields(BaseModel):
    """Of ``…-index-remove``."""

    ids: list[int]
    indexKey: str  # noqa: N815


class Counted(BaseModel):
    """How many images a gallery has."""

    imageCount: int = Field(ge=0)  # noqa: N815


class Built(BaseModel):
    """A gallery that was made."""

    indexKey: str  # noqa: N815
    imageCount: int  # noqa: N815


class Galleries:
    """The galleries by key, loaded when they are asked for and kept while there is room.

    ``folder``: of pdserve's indexes; None: the home's. ``most`` there may be, each of ``most_images``.
    """

    def __init__(
        self, folder: Path | None = None, most: int = MAX_GALLERIES, most_images: int = MAX_IMAGES
    ) -> None:
        folder = folder or Home.from_environ(os.environ).indexes
        self._folder, self._most, self._most_images = folder, most, most_images
        self._loaded: OrderedDict[str, LoadedIndex] = OrderedDict()
        self._loading = asyncio.Lock()

    async def get(self, key: str, service: Answering) -> LoadedIndex:
        """The gallery as it is published now, read again only where that has changed.

        Raises NoSuchKeyError, also for one that another embedder has made; IndexFolderError.
        """
        async with self._loading:
            found = await asyncio.to_thread(self._current, key)
            self._loaded[key] = found
            self._loaded.move_to_end(key)
            while len(self._loaded) > 1 and sum(map(_size, self._loaded.values())) > _KEPT_BYTES:
                self._loaded.popitem(last=False)
        if isinstance(service, Service):
            await service.awake()
            try:
                await asyncio.to_thread(found.require, cast("Embedder", service.embedder))
            except OtherEmbedderError as error:
                raise NoSuchKeyError(
                    f"The gallery of the indexKey {key} was built with another embedder; build one here."
                ) from error
        return found

    def _current(self, key: str) -> LoadedIndex:
        folder, known = self.folder(key), self._loaded.get(key)
        return search.load(folder) if known is None or search.changed(folder, known) else known

    def folder(self, key: str) -> Path:
        """Where the gallery of a key is. Raises NoSuchKeyError."""
        if not _KEY.fullmatch(key) or not (self._folder / key / MANIFEST).is_file():
            raise NoSuchKeyError(f"There is no gallery with the indexKey {key[:80]!r}; build one first.")
        return self._folder / key

    def new(self) -> tuple[str, Path]:
        """A key, and where its gallery is to be. Raises GalleryError where there are as many as may be."""
        there = sum(1 for each in self._folder.glob("*-*-*-*-*") if _KEY.fullmatch(each.name))
        if there >= self._most:
            raise GalleryError(
                f"There are {there} galleries, as many as there may be; `pdserve rm KEY` removes one."
            )
        key = str(uuid.uuid4())
        return key, self._folder / key

    def count(self, key: str) -> int:
        """How many images a gallery has. Raises NoSuchKeyError, IndexFolderError."""
        known = read_manifest(self.folder(key))
        return known.count if known else 0

    def check_size(self, count: int) -> None:
        """Raise GalleryError for a gallery that would have too many images."""
        if count > self._most_images:
            raise GalleryError(
                f"The gallery would have {count} images, and may have {self._most_images}; build another."
            )


def _size(index: LoadedIndex) -> int:
    return index.count * index.dimension * 4


class Changes:
    """The routes that change galleries, of one kind of service. ``prefix``: what they begin with."""

    def __init__(
        self,
        context: Context,
        service: Callable[[], Answering],
        prefix: str,
        galleries: Galleries,
        fetcher: ImageFetcher,
    ) -> None:
        self._context, self._service, self.prefix = context, service, prefix
        self._galleries, self._fetcher = galleries, fetcher
        self._writers = Writers(_nothing)

    async def build(self, request: Request, exchange: Exchange) -> dict[str, Any]:
        """A new gallery."""
        pairs = await self._read(request, exchange, BuildFields)
        self._galleries.check_size(len(pairs))
        images, vectors, embedder = await self._embedded(request, pairs)
        made: list[str] = []

        def work(cancel: threading.Event) -> Change:
            key, folder = self._galleries.new()  # one after the other, so that their number holds
            made.append(key)
            return build_embedded(images, vectors, folder, embedder)

        done = await self._change(request, work)
        return {"indexKey": made[0], "imageCount": done.count}

    async def add(self, request: Request, exchange: Exchange) -> dict[str, Any]:
        """More images in a gallery."""
        pairs = await self._read(request, exchange, AddFields)
        key = exchange.fields.indexKey
        folder = (await self._galleries.get(key, self._service())).folder
        images, vectors, embedder = await self._embedded(request, pairs)

        def work(cancel: threading.Event) -> Change:
            self._galleries.check_size(self._galleries.count(key) + len(images))
            return append_embedded(images, vectors, folder, embedder, cancel=cancel)

        return {"imageCount": (await self._change(request, work)).count}

    async def remove(self, request: Request, exchange: Exchange) -> dict[str, Any]:
        """Fewer images; ids of which there is none are passed over, as PaddleX does."""
        await self._read(request, exchange, RemoveFields)
        key, ids = exchange.fields.indexKey, exchange.fields.ids
        if len(ids) > MAX_SELECTED:
            raise RequestError(f"{len(ids)} ids are more than {MAX_SELECTED}; ask several times.")
        folder = self._galleries.folder(key)

        def work(cancel: threading.Event) -> Change:
            return remove(folder, ids=ids, missing_ok=True, cancel=cancel)

        return {"imageCount": (await self._change(request, work)).count}

    async def _read(
        self, request: Request, exchange: Exchange, fields: type[BaseModel]
    ) -> list[tuple[Buffer | str, str]]:
        """The pairs of a request that may change something, whose fields go to the exchange."""
        service, settings = self._service(), self._context.settings
        if not (isinstance(service, Service) and service.options.gallery_writes):
            raise WritesOffError(
                "Galleries are not to be changed over HTTP; start the server with --gallery-writes."
            )
        check_may_write(request.scope, settings)
        await service.awake()
        body = await read_body(request, self._context.entrance)
        return await parsed(partial(_parse, request, body, fields, exchange, settings), len(body))

    async def _embedded(
        self, request: Request, pairs: Sequence[tuple[Buffer | str, str]]
    ) -> tuple[list[HashedImage], Vectors, Embedder]:
        files = []
        for image, _ in pairs:
            fetched = self._fetcher.fetch(image, request.scope) if isinstance(image, str) else None
            files.append(await fetched if fetched else cast("bytes", image))
        service = cast("Service", self._service())
        for _ in range(_ATTEMPTS):
            embedder = service.embedder
            found = await service.embed(files)
            now = service.embedder
            if embedder and now and embedder.fingerprint == now.fingerprint:
                break
        else:
            raise ClosedError("The embedder was replaced meanwhile; send the images again.")
        for number, each in enumerate(found):
            if isinstance(each, ImageError):
                raise BadPairError(number, each) from each
            if isinstance(each, PdserveError):
                raise each
        return [_entry(label) for _, label in pairs], np.stack(cast("list[Vectors]", found)), embedder

    async def _change(self, request: Request, work: Callable[[threading.Event], Change]) -> Change:
        release(request.scope)  # who waits for others holds no more than a few vectors
        return await self._writers.run(work)


async def _nothing() -> None:
    pass


class BadPairError(RequestError):
    """An image of a gallery that cannot be read; the status is that of its error."""

    def __init__(self, number: int, cause: ImageError) -> None:
        super().__init__(f"imageLabelPairs[{number}].image: {cause.message}")
        self.http_status = cause.http_status


def routes(
    context: Context,
    service: Callable[[], Answering],
    prefix: str,
    galleries: Galleries,
    fetcher: ImageFetcher,
) -> Iterator[Route]:
    """``/PREFIX-index-build``, ``-add`` and ``-remove``; ``service``: that whose embedder makes vectors."""
    changes = Changes(context, service, prefix, galleries, fetcher)
    for name, work, fields, result, text in (
        ("build", changes.build, BuildFields, Built, "Make a gallery of images with labels"),
        ("add", changes.add, AddFields, Counted, "Add images with labels to a gallery"),
        ("remove", changes.remove, RemoveFields, Counted, "Remove images from a gallery, by their numbers"),
    ):
        described = operation(
            "PaddleX",
            f"{text}, in the form of PaddleX",
            Envelope[result],  # type: ignore[valid-type]
            (400, 403, 404, 408, 413, 422, 500, 503, 504),
            failure=NoResult,
            body={"application/json": fields.model_json_schema()},
        )
        yield Route("POST", f"/{prefix}-index-{name}", partial(_answer, work), described)


async def _answer(
    work: Callable[[Request, Exchange], Awaitable[dict[str, Any]]], request: Request
) -> Response:
    exchange = Exchange.new()
    try:
        return success(exchange.log_id, await unless_gone(request.receive, work(request, exchange)))
    except PdserveError as error:
        return failure(exchange.log_id, error, request.scope["path"])


def check_may_write(scope: Scope, settings: ServerSettings) -> None:
    """See that a change comes with a key, or from this machine, and from no stranger's web page.

    PaddleX's clients send no header of ours. A page cannot send JSON as such without asking first (which is
    not answered here, and other bodies are refused), and who is on this machine without a proxy in between
    may change what it has. Raises OtherSiteError, WriteHeaderError.
    """
    check_write(scope, keyed=True, origins=settings.cors_origins)
    if settings.api_key or settings.api_key_file:
        return
    sent = {name for name, _ in scope["headers"]}
    if WRITE_HEADER.lower().encode() in sent:
        return
    if not is_loopback(settings.host) or sent.intersection(_FORWARDED):
        raise WriteHeaderError(
            f"A change without a key needs the header `{WRITE_HEADER}: 1` where other machines reach the "
            "server; send it, or start the server with --api-key."
        )


def _parse(
    request: Request,
    body: bytes,
    fields: type[BaseModel],
    exchange: Exchange,
    limits: ServerSettings,
    bounds: Bounds,
) -> list[tuple[Buffer | str, str]]:
    """The images, or their addresses, and labels. Raises RequestError, BodyTooLargeError."""
    read = read_fields(request, body, fields, exchange, bounds)
    if not isinstance(exchange.fields, BuildFields):
        return []
    pairs = exchange.fields.imageLabelPairs
    if not pairs:
        raise RequestError("imageLabelPairs is empty; send one image with its label at least.")
    check_count(pairs, limits)
    found = []
    for number, pair in enumerate(pairs):
        problem = f"is longer than {LONG} bytes" if read.is_long(pair.label) else unfit(pair.label)
        if problem:
            raise RequestError(f"imageLabelPairs[{number}].label {problem}.")
        found.append((image_of(read, pair.image, f"imageLabelPairs[{number}].image"), pair.label.strip()))
    return found


def _entry(label: str) -> HashedImage:
    """An entry of its own, also where the picture is in the gallery already: numbers count, as in PaddleX."""
    name = uuid.uuid4()
    return HashedImage(GalleryImage(f"upload/{name.hex}", label, b""), hashlib.sha256(name.bytes).digest())
