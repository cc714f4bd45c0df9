"""``entries.npy``: the SHA-256 of each entry's image file.

A row per entry, in the order of the id map: its id (int64) and 32 bytes. Zeros stand for an image that is
not known, as all are in an index of PaddleClas. 40 MB for a million entries.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from pdserve.errors import IndexFolderError
from pdserve.vision.types import Ids

FILE = "entries.npy"
UNKNOWN = bytes(32)
_ROW = np.dtype([("id", "<i8"), ("sha256", "u1", (32,))])


@dataclass(frozen=True)
class Entries:
    """``ids``: n, int64. ``sha256``: n×32, uint8."""

    ids: Ids
    sha256: npt.NDArray[np.uint8]

    @classmethod
    def unknown(cls, ids: Iterable[int]) -> "Entries":
        """Entries of which only the ids are known."""
        known = np.fromiter(ids, np.int64)
        return cls(known, np.zeros((len(known), 32), np.uint8))

    @classmethod
    def of(cls, ids: Iterable[int], digests: Iterable[bytes]) -> "Entries":
        """Entries with the digests of their images, 32 bytes each."""
        return cls(np.fromiter(ids, np.int64), np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32))

    def without(self, gone: Ids) -> "Entries":
        stays = ~np.isin(self.ids, gone)
        return Entries(self.ids[stays], self.sha256[stays])

    def plus(self, more: "Entries") -> "Entries":
        return Entries(np.concatenate([self.ids, more.ids]), np.concatenate([self.sha256, more.sha256]))


class Finder:
    """Finds the entry of an image, among a million without a Python object for each."""

    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        # The first eight bytes of a digest are as good as random; the rest is compared after.
        keys = np.ascontiguousarray(entries.sha256[:, :8]).view("<u8").ravel()
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def __call__(self, digest: bytes) -> int | None:
        """The id of the entry made of the image with this SHA-256, None where there is none."""
        if digest == UNKNOWN:
            return None
        key = np.frombuffer(digest, "<u8", 1)[0]
        at = int(np.searchsorted(self._keys, key))
        while at < len(self._keys) and self._keys[at] == key:
            row = self._order[at]
            if self._entries.sha256[row].tobytes() == digest:
                return int(self._entries.ids[row])
            at += 1
        return None


def write(file: BinaryIO, entries: Entries) -> None:
    """Write in NumPy's format."""
    rows = np.empty(len(entries.ids), _ROW)
    rows["id"], rows["sha256"] = entries.ids, entries.sha256
    np.lib.format.write_array(file, rows, allow_pickle=False)


def _rows(file: BinaryIO) -> npt.NDArray[Any]:
    """The array, once the length that the header states is known to be the file's."""
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("it is of another version")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    left = os.fstat(file.fileno()).st_size - file.tell()
    if dtype != _ROW or len(shape) != 1 or shape[0] * _ROW.itemsize != left:
        raise ValueError(f"its header is of {shape} of {dtype}")
    return np.fromfile(file, _ROW)


def read(path: Path) -> Entries:
    """Read what `write` wrote. Raises IndexFolderError, FileNotFoundError."""
    with path.open("rb") as file:
        try:
            rows = _rows(file)
        except Exception as error:  # NumPy raises many kinds on a broken header
            raise IndexFolderError(
                f"{path} is broken ({error}); type `pdserve index rollback` for the version before."
            ) from error
    return Entries(rows["id"].astype(np.int64), np.ascontiguousarray(rows["sha256"]))
