"""Embeds a gallery: images are decoded by threads ahead of the embedder, which gets full batches.

Vectors are written to disk at once, so that a killed run continues where it was:
``INDEX/.work/<fingerprint>-<dimension>.f32`` holds them one after the other, ``….sha256`` the digests of
their images, 32 bytes each. Vectors are written first: one without a digest yet does not count.
"""

import contextlib
import hashlib
import itertools
import math
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from pdserve.errors import EngineError, GalleryError, ImageError, OtherEmbedderError
from pdserve.files import disk_errors
from pdserve.index.gallery import GalleryImage, Skipped
from pdserve.locks import try_file_lock
from pdserve.machine import cores
from pdserve.progress import Progress
from pdserve.vision.decode import MAX_PIXELS, decode
from pdserve.vision.header import read_header
from pdserve.vision.types import Image8, Vectors

TASK = "embedding"
FOLDER = ".work"
PIXEL_BYTES = 512 << 20
"""Memory for images that are decoded ahead, and half as much for those of a batch."""
LENGTH_TOLERANCE = 1e-3
"""How far from 1 the length of a normalised vector may be."""


_Prepared = tuple[bytes, Image8 | None]
"""An image's digest, and its pixels if it is to be embedded."""


class GalleryEmbedder(Protocol):
    """Turns images into vectors. Used from one thread at a time."""

    @property
    def name(self) -> str:
        """The model's name, for people."""

    @property
    def path(self) -> str | None:
        """The model's folder, absolute, where the name alone does not find it."""

    @property
    def fingerprint(self) -> str:
        """Hexadecimal; the same for two embedders exactly if they give the same vectors."""

    @property
    def dimension(self) -> int:
        """Length of a vector."""

    @property
    def batch_size(self) -> int:
        """How many images are best embedded at once."""

    def embed(self, images: Sequence[Image8]) -> Vectors:
        """``images``: n images, H×W×3 uint8 RGB. Returns n×dimension float32, rows L2-normalised."""


@dataclass(frozen=True)
class EmbedderId:
    """The embedder that made the vectors of an index; ``path``: where it was, if in no pdserve's home."""

    name: str
    fingerprint: str
    path: str | None = field(default=None, compare=False)

    @classmethod
    def of(cls, embedder: GalleryEmbedder) -> "EmbedderId":
        return cls(embedder.name, embedder.fingerprint, embedder.path)

    @property
    def wanted(self) -> str:
        """What `models.find.open_model` finds it by: its folder while that is there, else its name."""
        return self.path if self.path and Path(self.path).is_dir() else self.name

    def __str__(self) -> str:
        return f"{self.name} ({self.fingerprint[:12]})"


def require_same(
    built: EmbedderId | None, given: EmbedderId, dimensions: tuple[int, int], where: object
) -> None:
    """Raise OtherEmbedderError unless ``given`` can have made the vectors of the index at ``where``.

    ``built`` None: not known, as for an index of PaddleClas; then only the ``dimensions`` (of the
    index, of the embedder) can be compared.
    """
    if built and built.fingerprint != given.fingerprint:
        change = f"give --embedder {built.name} (--model to `pdserve index`)"
        if built.name == given.name:
            change = "its files are others now: give those that the index was built with"
        raise OtherEmbedderError(
            f"The index {where} was built with {built} and cannot be used with {given}; {change}, or rebuild "
            "it with `pdserve index build`."
        )
    if dimensions[0] != dimensions[1]:
        raise OtherEmbedderError(
            f"The index {where} has vectors of {dimensions[0]} numbers and {given} makes {dimensions[1]}; "
            "give the embedder that the index was built with, or rebuild it with `pdserve index build`."
        )


@dataclass(frozen=True)
class HashedImage:
    """A readable image and the SHA-256 of its file, 32 bytes."""

    image: GalleryImage
    digest: bytes


def embed_gallery(
    images: Sequence[GalleryImage],
    embedder: GalleryEmbedder,
    cache: "EmbeddingCache",
    *,
    known: Callable[[bytes], bool] = lambda digest: False,
    strict: bool,
    progress: Progress,
    max_pixels: int = MAX_PIXELS,
) -> tuple[list[HashedImage], list[Skipped]]:
    """Put into ``cache`` the vector of every image whose digest is not ``known``.

    Returns the readable images in order, the same file twice as it comes, and those that were skipped.
    An image of more than ``max_pixels`` is not readable; see `with_one_label`.
    Raises GalleryError at the first image to be skipped if ``strict``, EngineError, DiskError.
    """
    readable: list[HashedImage] = []
    skipped: list[Skipped] = []
    batch: dict[bytes, Image8] = {}
    empty: set[bytes] = set()

    room = _Room(PIXEL_BYTES)

    def prepare(number: int, image: GalleryImage) -> _Prepared:
        data = image.read()
        digest = hashlib.sha256(data).digest()
        if digest in cache.rows or known(digest):
            return digest, None
        header = read_header(data, max_pixels)
        with room.taken(number, header.bytes_needed, 3 * header.pixels):
            return digest, decode(data, max_pixels)

    def flush() -> None:
        if batch:
            vectors = embed(embedder, list(batch.values()))
            good = vectors.any(axis=1)
            digests = list(batch)
            cache.add([digests[i] for i in np.flatnonzero(good)], vectors[good])
            empty.update(digests[i] for i in np.flatnonzero(~good))
            batch.clear()

    def skip(image: GalleryImage, reason: str, cause: Exception | None = None) -> None:
        skipped.append(_skipped(image, reason, strict, cause))

    progress.start(TASK, len(images), 0)
    threads = min(8, cores())
    ahead = _prepare_ahead(prepare, images, threads, threads + embedder.batch_size)
    with contextlib.closing(ahead), room:
        for number, (image, future) in enumerate(ahead):
            room.wait_for(number)
            try:
                digest, pixels = future.result()
            except (ImageError, OSError) as error:
                skip(image, error.message if isinstance(error, ImageError) else f"{error.strerror}.", error)
            else:
                readable.append(HashedImage(image, digest))
                if pixels is not None:
                    room.give_back(pixels.nbytes)
                    if digest not in cache.rows:
                        batch.setdefault(digest, pixels)
                    large = sum(each.nbytes for each in batch.values()) > PIXEL_BYTES // 2
                    if large or len(batch) >= embedder.batch_size:
                        flush()
            progress.advance(TASK, 1)
        flush()
    for each in readable:
        if each.digest in empty:
            skip(each.image, f"{embedder.name} finds nothing in it, its vector is zero.")
    progress.done(TASK)
    kept, twice = with_one_label([each for each in readable if each.digest not in empty], strict=strict)
    return kept, skipped + twice


def with_one_label(
    images: Sequence[HashedImage], *, strict: bool = False
) -> tuple[list[HashedImage], list[Skipped]]:
    """Skip images that come again, further on, with another label: an entry has one, and the last counts.

    Raises GalleryError for the first of them if ``strict``.
    """
    last = {each.digest: each.image for each in images}
    kept, skipped = [], []
    for each in images:
        counts = last[each.digest]
        if each.image.label == counts.label:
            kept.append(each)
            continue
        reason = (
            f"is the same picture as {counts.image}, and an entry has one label: {counts.label!r} counts, "
            f"{each.image.label!r} does not."
        )
        skipped.append(_skipped(each.image, reason, strict))
    return kept, skipped


def _skipped(image: GalleryImage, reason: str, strict: bool, cause: Exception | None = None) -> Skipped:
    if strict:
        uploaded = isinstance(image.source, bytes)
        hint = "" if uploaded else " Leave out --strict to go on without such images."
        raise GalleryError(f"{image.image}: {reason}{hint}") from cause
    return Skipped(image.image, reason)


def embed(embedder: GalleryEmbedder, images: Sequence[Image8]) -> Vectors:
    """Embed one batch and check that its vectors are normalised, or zero. Raises EngineError."""
    return check_vectors(embedder, embedder.embed(images), len(images))


def check_vectors(embedder: GalleryEmbedder, given: Vectors, count: int) -> Vectors:
    """The vectors of ``count`` images, each of length 1 or 0. Raises EngineError."""
    vectors = np.asarray(given, np.float32)
    if vectors.shape != (count, embedder.dimension):
        raise EngineError(
            f"{embedder.name} gave an array of {vectors.shape} for {count} images of dimension "
            f"{embedder.dimension}."
        )
    lengths = np.linalg.norm(vectors, axis=1)
    odd = ~((np.abs(lengths - 1) < LENGTH_TOLERANCE) | (lengths == 0))
    if odd.any():
        raise EngineError(
            f"{embedder.name} gave a vector of length {lengths[odd][0]}, where all are to be normalised."
        )
    return vectors


class _Room:
    """Memory for images that are decoded ahead: the one that is waited for always gets some.

    As a context it lets everybody go on at its end, so that no thread waits for a caller that has left.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._next: float = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, number: int, most: int, left: int) -> Iterator[None]:
        """Take ``most`` bytes for decoding image ``number``; if the block succeeds, ``left`` stay taken."""
        with self._changed:
            self._changed.wait_for(lambda: number <= self._next or self._used + most <= self._limit)
            self._used += most
        try:
            yield
        except BaseException:
            left = 0
            raise
        finally:
            self.give_back(most - left)

    def give_back(self, amount: int) -> None:
        """Give back bytes of an image."""
        with self._changed:
            self._used -= amount
            self._changed.notify_all()

    def wait_for(self, number: float) -> None:
        """Image ``number`` is waited for."""
        with self._changed:
            self._next = number
            self._changed.notify_all()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.wait_for(math.inf)


def _prepare_ahead(
    prepare: Callable[[int, GalleryImage], _Prepared],
    images: Sequence[GalleryImage],
    threads: int,
    window: int,
) -> Generator[tuple[GalleryImage, Future[_Prepared]], None, None]:
    """Each image with the future of what is prepared of it, in order, up to ``window`` of them ahead."""
    pool = ThreadPoolExecutor(threads, "decode")
    running: deque[tuple[GalleryImage, Future[_Prepared]]] = deque()
    try:
        for number, image in enumerate(images):
            running.append((image, pool.submit(prepare, number, image)))
            if len(running) >= window:
                yield running.popleft()
        yield from running
    finally:
        pool.shutdown(cancel_futures=True)


class EmbeddingCache:
    """The vectors of one embedder by image digest, in files. Not for several threads.

    ``rows``: digest -> row.
    """

    def __init__(self, base: Path, dimension: int, vectors: BinaryIO, digests: BinaryIO) -> None:
        self._base = base
        self._dimension = dimension
        self._vectors = vectors
        self._digests = digests
        self.rows = _read_rows(vectors, digests, dimension)

    def add(self, digests: Sequence[bytes], vectors: Vectors) -> None:
        """Write n vectors (n×dimension) under their images' digests, which are new. Raises DiskError."""
        with disk_errors(self._base):
            for file, data in (
                (self._vectors, vectors.astype("<f4").tobytes()),
                (self._digests, b"".join(digests)),
            ):
                file.write(data)
                file.flush()
        for digest in digests:
            self.rows[digest] = len(self.rows)

    def gather(self, digests: Sequence[bytes]) -> Vectors:
        """The vectors of these images, n×dimension. Raises KeyError."""
        rows = np.fromiter((self.rows[digest] for digest in digests), np.int64, len(digests))
        if not len(rows):
            return np.zeros((0, self._dimension), np.float32)
        stored = np.memmap(self._vectors, "<f4", "r", shape=(len(self.rows), self._dimension))
        return np.asarray(stored[rows])


@contextlib.contextmanager
def open_cache(folder: Path, embedder: GalleryEmbedder) -> Iterator[EmbeddingCache]:
    """The cache of ``embedder`` for the index at ``folder``; removed when the block succeeds.

    Another process that embeds for the same index at the same time uses another file.
    Raises DiskError.
    """
    with disk_errors(folder / FOLDER):
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    base = folder / FOLDER / f"{embedder.fingerprint[:16]}-{embedder.dimension}"
    candidates = (base.with_name(f"{base.name}.{n}") if n else base for n in itertools.count())
    with contextlib.ExitStack() as stack:
        own = next(path for path in candidates if try_file_lock(path.with_name(f"{path.name}.lock"), stack))
        paths = (own.with_name(f"{own.name}.f32"), own.with_name(f"{own.name}.sha256"))
        with disk_errors(own):
            files: list[BinaryIO] = []
            for path in paths:
                files.append(path.open("a+b"))
                stack.callback(_close, files[-1])  # at once: the next one may not open
            cache = EmbeddingCache(own, embedder.dimension, files[0], files[1])
        yield cache
        for file, path in zip(files, paths, strict=True):
            file.close()
            with contextlib.suppress(OSError):  # Windows, while the vectors are still mapped
                path.unlink(missing_ok=True)


def _close(file: BinaryIO) -> None:
    """Close a file; where the disk is full, what could not be written is tried, and fails, once more."""
    with contextlib.suppress(OSError):
        file.close()


def _read_rows(vectors: BinaryIO, digests: BinaryIO, dimension: int) -> dict[bytes, int]:
    """What is complete in the files, which are truncated after that."""
    width = dimension * 4
    count = min(vectors.seek(0, 2) // width, digests.seek(0, 2) // 32)
    vectors.truncate(count * width)
    digests.truncate(count * 32)
    digests.seek(0)
    names = digests.read()
    if count:
        # A machine that lost its power may have stored the length of a file but not its content.
        rows = np.memmap(vectors, "<f4", "r", shape=(count, dimension))
        for at in range(0, count, 65_536):
            lengths = np.linalg.norm(rows[at : at + 65_536], axis=1)
            if not (np.abs(lengths - 1) < LENGTH_TOLERANCE).all():
                del rows
                vectors.truncate(0)
                digests.truncate(0)
                return {}
    return {names[i * 32 : i * 32 + 32]: i for i in range(count)}
