"""Gallery images -> vectors: decoded by threads ahead of the embedder, which gets full batches."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from pdserve.errors import EngineError, ImageError
from pdserve.index.embedder import LENGTH_TOLERANCE, Embedder
from pdserve.index.errors import GalleryError
from pdserve.index.gallery import GalleryImage, Skipped
from pdserve.index.work import Work
from pdserve.progress import Progress
from pdserve.vision.decode import MAX_PIXELS, decode
from pdserve.vision.types import Image8, Vectors

TASK = "embedding"


@dataclass(frozen=True)
class Digested:
    """A readable image and the SHA-256 of its file, 32 bytes."""

    image: GalleryImage
    digest: bytes


def embed_gallery(
    images: Sequence[GalleryImage],
    embedder: Embedder,
    work: Work,
    *,
    known: Callable[[bytes], bool],
    strict: bool,
    progress: Progress,
    max_pixels: int = MAX_PIXELS,
) -> tuple[list[Digested], list[Skipped]]:
    """See that ``work`` has the vector of every image whose digest is not ``known``.

    Returns the readable images in order, the same file twice as it comes, and those that were skipped.
    Raises GalleryError at the first unreadable image if ``strict``, EngineError, DiskError.
    """
    readable: list[Digested] = []
    skipped: list[Skipped] = []
    batch: dict[bytes, Image8] = {}
    empty: set[bytes] = set()

    def prepare(image: GalleryImage) -> tuple[bytes, Image8 | None]:
        data = image.read()
        digest = hashlib.sha256(data).digest()
        return digest, None if digest in work.rows or known(digest) else decode(data, max_pixels)

    def flush() -> None:
        if batch:
            vectors = embed(embedder, list(batch.values()))
            good = vectors.any(axis=1)
            digests = list(batch)
            work.add([digests[i] for i in np.flatnonzero(good)], vectors[good])
            empty.update(digests[i] for i in np.flatnonzero(~good))
            batch.clear()

    def skip(image: GalleryImage, reason: str, cause: Exception | None = None) -> None:
        if strict:
            raise GalleryError(
                f"{image.image}: {reason} Leave out --strict to go on without such images."
            ) from cause
        skipped.append(Skipped(image.image, reason))

    progress.start(TASK, len(images), 0)
    threads = min(8, os.cpu_count() or 1)
    with _ahead(prepare, images, threads, threads + embedder.batch_size) as results:
        for image, result in results:
            try:
                digest, pixels = result()
            except (ImageError, OSError) as error:
                skip(image, error.message if isinstance(error, ImageError) else f"{error.strerror}.", error)
            else:
                readable.append(Digested(image, digest))
                if pixels is not None and digest not in work.rows:
                    batch.setdefault(digest, pixels)
                    if len(batch) >= embedder.batch_size:
                        flush()
            progress.advance(TASK, 1)
        flush()
    for each in readable:
        if each.digest in empty:
            skip(each.image, f"{embedder.name} finds nothing in it, its vector is zero.")
    progress.done(TASK)
    return [each for each in readable if each.digest not in empty], skipped


def embed(embedder: Embedder, images: Sequence[Image8]) -> Vectors:
    """Embed one batch and see that its vectors are normalised, or zero. Raises EngineError."""
    vectors = np.asarray(embedder.embed(images), np.float32)
    if vectors.shape != (len(images), embedder.dimension):
        raise EngineError(
            f"{embedder.name} gave an array of {vectors.shape} for {len(images)} images of dimension "
            f"{embedder.dimension}."
        )
    lengths = np.linalg.norm(vectors, axis=1)
    odd = ~((np.abs(lengths - 1) < LENGTH_TOLERANCE) | (lengths == 0))
    if odd.any():
        raise EngineError(
            f"{embedder.name} gave a vector of length {lengths[odd][0]}, where all are to be normalised."
        )
    return vectors


_Result = Callable[[], tuple[bytes, Image8 | None]]


@contextmanager
def _ahead(
    prepare: Callable[[GalleryImage], tuple[bytes, Image8 | None]],
    images: Sequence[GalleryImage],
    threads: int,
    window: int,
) -> Iterator[Iterator[tuple[GalleryImage, _Result]]]:
    """Each image with a call that gives its result, in order, no more than ``window`` of them prepared."""
    pool = ThreadPoolExecutor(threads, "decode")

    def run() -> Iterator[tuple[GalleryImage, _Result]]:
        running: deque[tuple[GalleryImage, Future[tuple[bytes, Image8 | None]]]] = deque()
        for image in images:
            running.append((image, pool.submit(prepare, image)))
            if len(running) >= window:
                first, future = running.popleft()
                yield first, future.result
        for image, future in running:
            yield image, future.result

    try:
        yield run()
    finally:
        pool.shutdown(cancel_futures=True)
