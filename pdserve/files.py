"""Files and folders on disk: free space, checksums, atomic replacement, and errors as DiskError.

What replaces a file or folder is first written under a temporary name beside it, hence on the same disk:
``.NAME.<12 hexadecimal digits>.tmp``.
"""

import errno
import hashlib
import logging
import os
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from pdserve.errors import DiskError, PdserveError

log = logging.getLogger("pdserve")

CHUNK = 1 << 20

FreeSpace = Callable[[Path], int]
"""Bytes that can still be written below a path."""

Signature = tuple[int, int, int]
"""Modification time in ns, size in bytes, inode."""

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_TEMPORARY = f".*.{'[0-9a-f]' * 12}.tmp"
_T = TypeVar("_T")

_FORGOTTEN_S = 24 * 3600


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn any OSError of the block into a DiskError that names ``path``."""
    try:
        yield
    except OSError as error:
        hint = "check who may write there, or set PDSERVE_HOME to another folder"
        if error.errno in _FULL:
            hint = "free some space, or set PDSERVE_HOME to a folder on another disk"
        elif error.errno in (errno.ENOTDIR, errno.EEXIST):
            files = [each for each in (path, *path.parents) if each.is_file()]
            hint = f"{files[-1]} is a file, where a folder is meant; name another place" if files else hint
        raise DiskError(f"Cannot write {path}: {error.strerror or error}; {hint}.") from error


@contextmanager
def read_errors(kind: type[PdserveError], path: Path | None = None) -> Iterator[None]:
    """Turn any OSError of the block into an error of this kind that names ``path``, else the error's file."""
    try:
        yield
    except OSError as error:
        raise kind(f"Cannot read {path or error.filename}: {error.strerror}.") from error


def user_path(wanted: str | Path) -> Path:
    """What a person names as a path, with its ``~``; as it is where no such user is known."""
    with suppress(RuntimeError):
        return Path(wanted).expanduser()
    return Path(wanted)


def free_space(path: Path) -> int:
    """Bytes free where ``path`` is or would be created. Raises DiskError."""
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    with disk_errors(existing):
        return shutil.disk_usage(existing).free


def require_space(path: Path, need: int, what: str, free: FreeSpace = free_space) -> None:
    """Raise DiskError unless ``need`` bytes are free at ``path``; ``what`` names the operation."""
    have = free(path)
    if have < need:
        raise DiskError(
            f"{what} needs {format_size(need)} but {path} has only {format_size(have)} free; "
            "free some space, or set PDSERVE_HOME to a folder on another disk."
        )


def format_size(n: float) -> str:
    """Bytes with a decimal unit: ``98.4 MB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "bytes" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def digest(path: Path, *algorithms: str) -> tuple[str, ...]:
    """Hexadecimal digests of a file, one per algorithm, in one reading. Raises OSError."""
    hashes = [hashlib.new(algorithm, usedforsecurity=False) for algorithm in algorithms]
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            for h in hashes:
                h.update(chunk)
    return tuple(h.hexdigest() for h in hashes)


def sha256(*parts: Path | bytes) -> str:
    """Hexadecimal SHA-256 of the contents of files, and of bytes, one after the other. Raises OSError."""
    total = hashlib.sha256(usedforsecurity=False)
    for part in parts:
        if isinstance(part, bytes):
            total.update(part)
        else:
            with part.open("rb") as file:
                hashlib.file_digest(file, lambda: total)
    return total.hexdigest()


def signature(path: Path) -> Signature | None:
    """What changes when a file is written or replaced; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


@dataclass(frozen=True)
class FileRecord:
    """A file's content as a JSON record keeps it.

    ``sha256`` is hexadecimal; ``mtime_ns`` only saves reading a file that was not touched since.
    """

    bytes: int
    sha256: str
    mtime_ns: int

    @classmethod
    def of(cls, path: Path, digest: str | None = None) -> "FileRecord":
        """Describe a file, reading it unless its SHA-256 is given as ``digest``. Raises OSError."""
        status = path.stat()
        return cls(status.st_size, digest or sha256(path), status.st_mtime_ns)

    def is_untouched(self, path: Path) -> bool:
        """Whether there is a file with the recorded size and time."""
        found = signature(path)
        return found is not None and found[:2] == (self.mtime_ns, self.bytes)

    def matches(self, path: Path, *, full: bool = False) -> bool:
        """Whether a file has the recorded content; only read if touched, or ``full``. Raises OSError."""
        if not full and self.is_untouched(path):
            return True
        return path.stat().st_size == self.bytes and sha256(path) == self.sha256


def temp_sibling(target: Path) -> Path:
    """A new hidden name in the same folder."""
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")


def temp_siblings(folder: Path) -> list[Path]:
    """What interrupted runs left in a folder under the names of `temp_sibling`."""
    return list(folder.glob(_TEMPORARY))


@contextmanager
def replace_file(target: Path) -> Iterator[Path]:
    """Yield a new path beside ``target`` to write; when the block succeeds, that file becomes ``target``.

    Atomic: a reader sees the old file or the new one. Raises DiskError where it cannot be moved.
    """
    with replace_files(target) as (new,):
        yield new


@contextmanager
def replace_files(*targets: Path) -> Iterator[tuple[Path, ...]]:
    """As `replace_file` for several files: all are replaced or, after an error, none. Raises DiskError."""
    new, old = ([temp_sibling(target) for target in targets] for _ in range(2))
    replaced = 0
    _remove_forgotten(targets)
    try:
        yield tuple(new)
        for path, backup, target in zip(new, old, targets, strict=True):
            with disk_errors(target):
                if target is not targets[-1]:  # after the last one nothing can fail
                    with suppress(FileNotFoundError):
                        link_or_copy(target, backup)
                retry_while_busy(partial(path.replace, target))
                replaced += 1
    except BaseException:
        for backup, target in zip(old[:replaced], targets[:replaced], strict=True):
            if not backup.exists():
                _undo(target, partial(target.unlink, missing_ok=True))
                continue
            old.remove(backup)  # where it cannot be put back, it is all that is left
            _undo(backup, partial(backup.replace, target))
        raise
    finally:
        for path in (*new, *old):  # after success, too: renaming over a link to the same file keeps both
            with suppress(OSError):
                twice(partial(path.unlink, missing_ok=True))


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``target`` to fill; when the block succeeds, it becomes ``target``.

    A ``target`` that exists is replaced at that moment and not before; after an error it is as it was.
    The caller holds a lock on ``target``: what an interrupted run left beside it is removed.
    Raises DiskError.
    """
    with disk_errors(target):
        for left in temp_siblings(target.parent):
            if left.name[1:-17] == target.name:
                remove_folder(left)
    with replace_folders(target) as (new,):
        yield new


@contextmanager
def replace_folders(*targets: Path) -> Iterator[tuple[Path, ...]]:
    """As `replace_folder` for several folders: all are replaced or, after an error, none.

    Needs no lock: of two writers, the last one wins. Parents created for this are removed after an error.
    """
    new = tuple(temp_sibling(target) for target in targets)
    parents: list[Path] = []
    replaced: list[tuple[Path, Path | None]] = []
    _remove_forgotten(targets)
    try:
        for path, target in zip(new, targets, strict=True):
            with disk_errors(target):
                parents[:0] = [parent for parent in target.parents if not parent.exists()]
                path.mkdir(parents=True)
        yield new
        for path, target in zip(new, targets, strict=True):
            with disk_errors(target):
                replaced.append((target, _swap_folder(path, target)))
    except BaseException:
        for target, old in reversed(replaced):
            remove_folder(target)
            if old is not None:
                _undo(old, partial(old.rename, target))
        replaced = [each for each in replaced if each[1] is None]
        raise
    finally:
        for path in (*new, *(old for _, old in replaced if old is not None)):
            remove_folder(path)
        for parent in parents:
            with suppress(OSError):  # not empty after success
                parent.rmdir()


def _swap_folder(new: Path, target: Path) -> Path | None:
    """Rename ``new`` to ``target``; the previous folder is returned under a temporary name."""
    while True:
        old = temp_sibling(target)
        with suppress(FileNotFoundError):
            target.rename(old)
        try:
            new.rename(target)
            return old if old.exists() else None
        except BaseException as error:
            if isinstance(error, OSError) and error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                remove_folder(old)  # another process put its own there just now: replace that
                continue
            with suppress(FileNotFoundError):
                twice(partial(old.rename, target))
            raise


def remove_folder(folder: Path) -> None:
    """Remove a folder or file, read-only files included, as far as that is possible. Raises nothing."""
    for _ in range(2):  # of what fails once, a disk or a server far away, the second attempt may succeed
        with suppress(OSError):
            if not folder.exists():
                return
            for path in (folder, *folder.rglob("*")):
                if not path.is_symlink():
                    with suppress(OSError):
                        path.chmod(stat.S_IRWXU)  # a read-only file cannot be deleted on Windows
        if folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)
        else:
            with suppress(OSError):
                folder.unlink(missing_ok=True)


def twice(action: Callable[[], object]) -> None:
    """Do what undoes or tidies up, and once more where that fails: a disk may fail once. Raises OSError."""
    try:
        action()
    except OSError:
        action()


def _undo(left: Path, action: Callable[[], object]) -> None:
    """Put back what was replaced; where that is not possible, the log says what is left."""
    try:
        twice(action)
    except OSError as error:
        log.error("what was there before is %s now, as it cannot be put back: %s", left, error.strerror)


def _remove_forgotten(targets: Sequence[Path]) -> None:
    """Remove what a killed process left beside the targets: what nobody has touched for a day."""
    for target in targets:
        with suppress(OSError):
            for left in temp_siblings(target.parent):
                if left.name[1:-17] == target.name and time.time() - left.stat().st_ctime > _FORGOTTEN_S:
                    remove_folder(left)


def retry_while_busy(action: Callable[[], _T], seconds: float = 10.0) -> _T:
    """Repeat ``action`` for a while where Windows refuses because another program has the file open."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return action()
        except PermissionError:
            if sys.platform != "win32" or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it with its time where links are not possible. Raises OSError."""
    try:
        os.link(source, target)
    except OSError:  # a file system, or permissions, without hard links
        shutil.copy2(source, target)


# What file systems say that cannot flush: a folder over CIFS, anything over some of FUSE.
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def _sync(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def write_synced(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a new file, and flush it to the disk, where the system can. Raises OSError."""
    with path.open("wb") as file:
        write(file)
        file.flush()
        _sync(file.fileno())


def sync_file(path: Path) -> None:
    """Flush a file to the disk, where the system can. Raises OSError."""
    with path.open("r+b") as file:
        _sync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the system can. Raises OSError."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        _sync(handle)
    finally:
        os.close(handle)
