"""Makes the n-th file operation in a folder fail: for each n, until a run gets through.

Operations are what changes or opens files below the folder, through Python's functions: open, each write that
reaches the system, sync, rename, replace, link, copying within the kernel, making and removing of files and
folders, rights and times, listing. Looking at a file's state is none.
"""

import builtins
import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

FULL, BROKEN, FORBIDDEN = errno.ENOSPC, errno.EIO, errno.EACCES

_BY_PATH: tuple[str, ...] = (
    "open",
    "replace",
    "rename",
    "link",
    "symlink",
    "mkdir",
    "unlink",
    "remove",
    "rmdir",
)
_BY_PATH += ("chmod", "utime", "scandir", "listdir", "truncate")
_OPEN = ("buffering", "encoding", "errors", "newline", "closefd", "opener")
_BY_FILE = ("fsync", "fdatasync", "ftruncate", "sendfile", "copy_file_range")


@dataclass
class Failing:
    """``number``: which operation fails, from 1 on; ``seen``: how many were; ``failed``: which it was."""

    root: Path
    number: int
    code: int
    seen: int = 0
    failed: str = ""

    def operation(self, name: str, path: Any) -> None:
        """Count an operation, and raise OSError if it is its turn."""
        self.seen += 1
        if self.seen == self.number:
            self.failed = f"{name} {path}"
            raise OSError(self.code, os.strerror(self.code), str(path))

    def concerns(self, path: Any) -> bool:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False
        return Path(os.fsdecode(path)).absolute().is_relative_to(self.root)


class _Raw(io.FileIO):
    """A file whose writes are operations."""

    def __init__(self, failing: Failing, path: Any, mode: str, opener: Any) -> None:
        super().__init__(path, mode, True, opener)
        self._failing = failing

    def write(self, data: Any, /) -> int:
        self._failing.operation("write", self.name)
        return super().write(data) or 0


@contextmanager
def failing(root: Path, number: int, code: int) -> Iterator[Failing]:
    """Let one operation below ``root`` fail, with the error number ``code``."""
    state = Failing(root.absolute(), number, code)
    real_open = io.open

    def opened(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if not state.concerns(file):
            return real_open(file, mode, *arguments, **named)
        state.operation(f"open {mode}", file)
        if not set(mode) & set("wax+"):
            return real_open(file, mode, *arguments, **named)
        named |= dict(zip(_OPEN, arguments, strict=False))
        raw = _Raw(state, file, mode.replace("b", "").replace("t", ""), named.get("opener"))
        if named.get("buffering") == 0:
            return raw
        buffered: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, named.get("encoding"), named.get("errors"), named.get("newline"))

    def by_path(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(path: Any, *arguments: Any, **named: Any) -> Any:
            if state.concerns(path):
                state.operation(name, path)
            return real(path, *arguments, **named)

        return operation

    def by_file(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(file: Any, *arguments: Any, **named: Any) -> Any:
            number = file if isinstance(file, int) else file.fileno()
            path = Path(f"/proc/self/fd/{number}").readlink()
            if state.concerns(path):
                state.operation(name, path)
            return real(file, *arguments, **named)

        return operation

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "open", opened)
        patch.setattr(builtins, "open", opened)
        for names, wrapped in ((_BY_PATH, by_path), (_BY_FILE, by_file)):
            for name in names:
                if real := getattr(os, name, None):
                    patch.setattr(os, name, wrapped(name, real))
        yield state
