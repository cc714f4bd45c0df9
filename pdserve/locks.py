"""Locks between processes: files that the system guards, or else their holder's process number."""

import errno
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pdserve.errors import FetchError, PdserveError
from pdserve.files import disk_errors
from pdserve.progress import SILENT, Progress

# What file systems without flock answer it: some over a network, and some of FUSE.
_NO_FLOCK = {
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.ENOLCK,
    errno.EINVAL,
    getattr(errno, "EOPNOTSUPP", errno.ENOTSUP),
}


@contextmanager
def file_lock(
    path: Path, name: str, progress: Progress = SILENT, cancel: threading.Event | None = None
) -> Iterator[None]:
    """Hold the lock file ``path``, waiting for whoever has it. The system frees it if a process dies.

    Raises DiskError where the file cannot be created, FetchError if ``cancel`` is set while waiting.
    """
    import filelock

    stop, noted = cancel or threading.Event(), False

    def contended() -> bool:
        nonlocal noted
        if not noted:
            progress.note(name, "another pdserve process holds the lock; waiting")
        noted = True
        return stop.is_set()

    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
        try:
            lock.acquire(cancel_check=contended, poll_interval=0.1)
        except filelock.Timeout:
            raise FetchError(f"Waiting for {name} was interrupted; run the command again.") from None
    try:
        yield
    finally:
        lock.release()


def try_file_lock(path: Path, stack: ExitStack) -> bool:
    """Hold the lock file ``path`` until ``stack`` is closed; False if somebody has it. Raises DiskError."""
    import filelock

    with disk_errors(path):
        try:
            stack.enter_context(_lock(path).acquire(blocking=False))
        except filelock.Timeout:  # an OSError, but not the disk's
            return False
    return True


@contextmanager
def not_locked(path: Path) -> Iterator[bool]:
    """Yield whether nobody holds the lock file ``path``; then nobody can take it before the block ends.

    Needs no permission to write. False where that cannot be found out; True where there is no such file.
    """
    with ExitStack() as stack:
        yield _take_shared(path, stack)


def _take_shared(path: Path, stack: ExitStack) -> bool:
    try:
        if sys.platform == "win32":
            return not path.exists() or try_file_lock(path, stack)
        import fcntl

        if path.exists() and not _has_flock(path):
            return try_file_lock(path, stack)
        # filelock's lock is flock's, and one that is shared can be had of a file that is only readable.
        fcntl.flock(stack.enter_context(path.open("rb")), fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except (OSError, PdserveError, ModuleNotFoundError):  # the clients come without filelock
        return False
    return True


def _lock(path: Path) -> Any:
    """A lock of filelock: flock's, else a file beside ``path`` that holds its process's number while held."""
    import filelock

    return filelock.FileLock(path) if _has_flock(path) else filelock.SoftFileLock(f"{path}.held")


def _has_flock(path: Path) -> bool:
    if sys.platform == "win32":
        return True
    import fcntl

    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_UN)  # takes nothing from anybody
        except OSError as error:
            return error.errno not in _NO_FLOCK
    return True
