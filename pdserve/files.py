"""Room and rights on the disk: asked for before writing, and translated to DiskError where they lack."""

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pdserve.errors import DiskError

FreeSpace = Callable[[Path], int]
"""Bytes that can still be written below a path."""

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


def free(path: Path) -> int:
    """Bytes free where ``path`` is, or where it would be made. Raises DiskError."""
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    with writing(existing):
        return shutil.disk_usage(existing).free


def require(path: Path, need: int, what: str, free: FreeSpace = free) -> None:
    """Raise DiskError unless ``need`` bytes are free at ``path``; ``what`` says what for."""
    have = free(path)
    if have < need:
        raise DiskError(
            f"{what} needs {size(need)} but {path} has only {size(have)} free; "
            "make room, or set PDSERVE_HOME to a folder on another disk."
        )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn any OSError of the block into a DiskError that names ``path``."""
    try:
        yield
    except OSError as error:
        hint = (
            "make room, or set PDSERVE_HOME to a folder on another disk"
            if error.errno in _FULL
            else "check who may write there, or set PDSERVE_HOME to another folder"
        )
        raise DiskError(f"Cannot write {path}: {error.strerror or error}; {hint}.") from error


def size(n: float) -> str:
    """Bytes in people's words: ``98.4 MB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "bytes" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"
