"""The files of versions on the disk: written through, linked, replaced in one step, swept."""

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from pdserve.index import manifest
from pdserve.index.store import VERSIONS
from pdserve.models.record import Stamp

_WINDOWS = sys.platform == "win32"
_BUSY_S = 10.0


def versions(folder: Path) -> list[int]:
    """The numbers of the versions that are kept, and of what killed writers left, ascending."""
    return sorted(int(p.name) for p in (folder / VERSIONS).glob("*") if p.name.isdecimal())


def newest(folder: Path) -> int:
    """The highest number that any version had, 0 for none."""
    known = manifest.read(folder)
    return max([0, known.version if known else 0, *versions(folder)])


def sweep(folder: Path, keep: set[int]) -> None:
    """Remove other versions. What is open elsewhere (Windows) is left for the next time."""
    for path in (folder / VERSIONS).glob("*"):
        if not path.name.isdecimal() or int(path.name) not in keep:
            shutil.rmtree(path, ignore_errors=True)
    for left in folder.glob(".*.new"):
        with suppress(OSError):
            left.unlink()


def link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it, its time included."""
    try:
        os.link(source, target)
    except OSError:  # a disk, or a right, without hard links
        shutil.copy2(source, target)


class _Hashing:
    """A file that hashes what is written to it, so that it need not be read again."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.hash = hashlib.sha256(usedforsecurity=False)

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return self._file.write(data)


def write(path: Path, fill: Callable[[Any], object]) -> str:
    """Write a file to the disk's own memory and not just the system's; return its SHA-256."""
    with path.open("wb") as file:
        hashing = _Hashing(file)
        fill(hashing)
        file.flush()
        os.fsync(file.fileno())
    return hashing.hash.hexdigest()


def write_text(path: Path, text: str) -> str:
    """As `write`, in UTF-8."""
    return write(path, lambda file: file.write(text.encode()))


def replace_with(folder: Path, name: str, make: Callable[[Path], object]) -> None:
    """Put what ``make`` writes at a path in the place of ``folder / name``, in one step."""
    new = folder / f".{name}.new"
    new.unlink(missing_ok=True)
    make(new)
    deadline = time.monotonic() + _BUSY_S
    while True:
        try:
            new.replace(folder / name)
            break
        except PermissionError:
            # Windows does not replace what somebody has open; readers have it for moments.
            if not _WINDOWS or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    new.unlink(missing_ok=True)  # two links to one file: rename leaves both


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can."""
    if _WINDOWS:
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def stamp(path: Path, sha256: str) -> Stamp:
    """What a manifest says of a file."""
    stat = path.stat()
    return Stamp(stat.st_size, sha256, stat.st_mtime_ns)
