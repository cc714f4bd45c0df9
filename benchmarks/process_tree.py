"""All processes of a server, however they came to be: their memory, and their end. Linux only.

A process belongs to the tree when its parent does, when it is in the session that the server was started in,
or when it has the server's mark in its environment; once found it stays, also when its parent goes.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

MARK = "PDSERVE_YARDSTICK"


class ProcessTree:
    """The tree of ``root``, whose environment has ``MARK`` with the value ``mark``."""

    def __init__(self, root: int, mark: str) -> None:
        self._root = root
        self._mark = f"{MARK}={mark}".encode()
        self._known: dict[int, str] = {}  # pid -> when it started, since numbers are used again

    def pids(self) -> list[int]:
        """Those that live."""
        seen: dict[int, tuple[int, int, str]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and (status := _stat(int(entry.name))):
                seen[int(entry.name)] = status
        found = {pid for pid, (_, _, started) in seen.items() if self._known.get(pid) == started}
        if self._root in seen:
            found.add(self._root)
        found |= {
            pid
            for pid, (_, session, _) in seen.items()
            if session == self._root or (pid not in found and self._marked(pid))
        }
        while more := {pid for pid, (parent, _, _) in seen.items() if parent in found} - found:
            found |= more
        found.discard(os.getpid())
        self._known = {pid: seen[pid][2] for pid in found}
        return sorted(found)

    def memory_mb(self, but_root: bool = False) -> float:
        """Proportional set size of them all, in MB: what several share counts once.

        ``but_root`` leaves the root out, where that is only a launcher.
        """
        return sum(_pss_kb(pid) for pid in self.pids() if not (but_root and pid == self._root)) / 1024

    def end(self, patience_s: float = 20) -> None:
        """Ask the root to end, and kill what is left of the tree after ``patience_s``, or after it."""
        self.pids()
        _signal(self._root, signal.SIGTERM)
        _until(lambda: _stat(self._root) is None, patience_s)
        _until(lambda: not self.pids(), 3)
        for pid in self.pids():
            _signal(pid, signal.SIGKILL)
        _until(lambda: not self.pids(), 10)

    def _marked(self, pid: int) -> bool:
        try:
            return self._mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False


class MemorySampler:
    """The most memory that a tree has had, looked at every half second in a thread."""

    def __init__(self, tree: ProcessTree, *, but_root: bool = False, every_s: float = 0.5) -> None:
        self._tree = tree
        self._but_root = but_root
        self._every_s = every_s
        self._stop = threading.Event()
        self.peak_mb = 0.0
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "MemorySampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(self._every_s):
            self.peak_mb = max(self.peak_mb, self._tree.memory_mb(self._but_root))


def _stat(pid: int) -> tuple[int, int, str] | None:
    """Parent, session and start; None for one that is gone or a zombie. See proc_pid_stat(5)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    if fields[0] in "ZX":
        return None
    return int(fields[1]), int(fields[3]), fields[19]


def _pss_kb(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text("utf-8").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:  # it ended meanwhile
        pass
    return 0


def _until(over: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not over() and time.monotonic() < deadline:
        time.sleep(0.05)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
