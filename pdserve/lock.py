"""One process, and one thread, at a time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pdserve.errors import FetchError
from pdserve.files import writing
from pdserve.progress import Progress


@contextmanager
def held(path: Path, name: str, progress: Progress, cancel: threading.Event) -> Iterator[None]:
    """Hold the lock file ``path``, waiting for whoever has it. The system frees it if a process dies.

    Raises DiskError where the file cannot be made, FetchError if ``cancel`` is set while waiting.
    """
    import filelock

    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    waited = False
    while not lock.is_locked:
        with writing(path):
            try:
                lock.acquire(blocking=False)
                break
            except filelock.Timeout:  # an OSError, but not the disk's
                pass
        if not waited:
            progress.note(name, "another pdserve is at it; waiting")
        waited = True
        if cancel.wait(0.1):
            raise FetchError(f"Waiting for {name} was interrupted; fetch it again.")
    try:
        yield
    finally:
        lock.release()
