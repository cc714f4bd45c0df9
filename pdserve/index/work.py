"""Vectors that were embedded and are not published yet, so that a killed run need not begin anew.

``INDEX/.work/<fingerprint>-<dimension>.f32`` holds the vectors one after the other, ``….sha256`` the
digests of their images, 32 bytes each. Vectors are written first: what has no digest yet does not count.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pdserve.files import disk_errors
from pdserve.index.embedder import LENGTH_TOLERANCE, Embedder
from pdserve.vision.types import Vectors

FOLDER = ".work"


class Work:
    """The vectors of one embedder by image digest, kept in files. Not for several threads."""

    def __init__(self, base: Path, dimension: int, vectors: BinaryIO, digests: BinaryIO) -> None:
        self._base = base
        self._dimension = dimension
        self._vectors = vectors
        self._digests = digests
        self.rows = _resume(vectors, digests, dimension)
        """Digest -> row."""

    def add(self, digests: Sequence[bytes], vectors: Vectors) -> None:
        """Keep n vectors (n×dimension) under the digests of their images, which are new. Raises DiskError."""
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
        kept = np.memmap(self._vectors, "<f4", "r", shape=(len(self.rows), self._dimension))
        return np.asarray(kept[rows])


@contextlib.contextmanager
def opened(folder: Path, embedder: Embedder) -> Iterator[Work]:
    """The work of ``embedder`` for the index at ``folder``; removed when the block ends well.

    Another process that embeds for the same index at the same time works in a file of its own.
    Raises DiskError.
    """
    with disk_errors(folder / FOLDER):
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    base = folder / FOLDER / f"{embedder.fingerprint[:16]}-{embedder.dimension}"
    with contextlib.ExitStack() as stack:
        own = next(path for path in _candidates(base) if _locked(path, stack))
        paths = (own.with_name(f"{own.name}.f32"), own.with_name(f"{own.name}.sha256"))
        with disk_errors(own):
            files = [stack.enter_context(path.open("a+b")) for path in paths]
            work = Work(own, embedder.dimension, files[0], files[1])
        yield work
        for file, path in zip(files, paths, strict=True):
            file.close()
            with contextlib.suppress(OSError):  # Windows, while the vectors are still looked at
                path.unlink(missing_ok=True)


def _candidates(base: Path) -> Iterator[Path]:
    yield base
    for number in itertools.count(1):
        yield base.with_name(f"{base.name}.{number}")


def _locked(path: Path, stack: contextlib.ExitStack) -> bool:
    """Lock a file's name for as long as ``stack`` lives, unless another has it."""
    import filelock

    lock = filelock.FileLock(f"{path}.lock")
    with disk_errors(path):
        try:
            stack.enter_context(lock.acquire(blocking=False))
        except filelock.Timeout:  # an OSError, but not the disk's
            return False
    return True


def _resume(vectors: BinaryIO, digests: BinaryIO, dimension: int) -> dict[bytes, int]:
    """What is whole in the files, the rest cut off."""
    width = dimension * 4
    count = min(vectors.seek(0, 2) // width, digests.seek(0, 2) // 32)
    vectors.truncate(count * width)
    digests.truncate(count * 32)
    digests.seek(0)
    names = digests.read()
    if count:
        # A machine that lost its power may have kept the length of a file and not what was in it.
        rows = np.memmap(vectors, "<f4", "r", shape=(count, dimension))
        for at in range(0, count, 65_536):
            lengths = np.linalg.norm(rows[at : at + 65_536], axis=1)
            if not (np.abs(lengths - 1) < LENGTH_TOLERANCE).all():
                del rows
                vectors.truncate(0)
                digests.truncate(0)
                return {}
    return {names[i * 32 : i * 32 + 32]: i for i in range(count)}
