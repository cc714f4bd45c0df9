"""Memory of a process and its children, by Linux's /proc; see proc_pid_status(5)."""

import contextlib
from pathlib import Path


def tree(pid: int) -> list[int]:
    """A process and all that it has started, as far as they live."""
    found = [pid]
    for each in found:  # grows while it is walked
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{each}/task").iterdir():
                with contextlib.suppress(OSError):
                    found += map(int, (task / "children").read_text().split())
    return found


def status_mb(pid: int, field: str) -> float:
    """A field of /proc/PID/status, in MB; 0 for a process that is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
    return 0.0


def anonymous_mb(pid: int) -> float:
    """Anonymous memory of the tree, in MB: what is mapped from files, such as code, does not count."""
    return sum(status_mb(each, "RssAnon") for each in tree(pid))


class Peak:
    """How far a process's own memory has grown at most since this was made, also between two looks."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before = status_mb(pid, "VmRSS")
        # 5 sets the high-water mark back; see proc_pid_clear_refs(5).
        Path(f"/proc/{pid}/clear_refs").write_text("5")

    def grown_mb(self) -> float:
        return max(0.0, status_mb(self._pid, "VmHWM") - self._before)
