"""Locks between processes, also where the file system has none."""

import errno
import os
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from pdserve.errors import DiskError, FetchError
from pdserve.locks import file_lock, not_locked, try_file_lock
from pdserve.progress import Progress


def test_a_lock_waits_and_can_be_interrupted(tmp_path: Path) -> None:
    notes: list[str] = []

    class Notes(Progress):
        def note(self, name: str, text: str) -> None:
            notes.append(f"{name}: {text}")

    path, held, release = tmp_path / "deep" / "lock", threading.Event(), threading.Event()

    def hold() -> None:
        with file_lock(path, "first"):
            held.set()
            release.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(30)
    cancel = threading.Event()
    cancel.set()
    interrupted = pytest.raises(FetchError, match="Waiting for second was interrupted")
    with interrupted, file_lock(path, "second", Notes(), cancel):
        pass
    release.set()
    with file_lock(path, "third", Notes()):
        pass
    thread.join()
    assert notes[0] == "second: another pdserve process holds the lock; waiting"
    assert sum(note.startswith("second") for note in notes) == 1


def test_a_lock_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="Cannot write"), file_lock(tmp_path / "file" / "lock", "x"):
        pass


@pytest.mark.posix
@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL])
def test_where_the_file_system_has_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    if sys.platform == "win32":
        return
    import fcntl

    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    path = tmp_path / "lock"
    with file_lock(path, "first"):
        with ExitStack() as stack:
            assert not try_file_lock(path, stack)
        with not_locked(path) as free:
            assert not free
    with not_locked(path) as free:
        assert free
    with ExitStack() as stack:
        assert try_file_lock(path, stack)
