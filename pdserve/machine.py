"""What this process may use of the machine: CPU cores and memory, within its container's limits."""

import ctypes
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ROOT = Path("/")
# Where version 1 of control groups mounts a controller, besides its own name.
_MOUNTED = {"cpu": ("cpu", "cpu,cpuacct", "cpuacct,cpu")}


def cores(root: Path = _ROOT) -> int:
    """CPU cores that this process may use, at least 1: by its affinity, and by its container's quota.

    ``root``: where ``proc`` and ``sys`` are. A quota of one and a half cores keeps two threads busy, so parts
    count as a whole core.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Cores by the time that control groups may take: kernel.org, "CPU Interface Files" and "CFS Bandwidth
    Control".
    """
    for file in _control_files("cpu", "cpu.max", "cpu.cfs_quota_us", root):
        try:
            words = file.read_text("ascii").split()
            if file.name == "cpu.cfs_quota_us":
                words += file.with_name("cpu.cfs_period_us").read_text("ascii").split()
            quota, period = (float(word) for word in words)
        except (OSError, ValueError):  # "max" is no limit
            continue
        if quota > 0 < period:
            yield quota / period


def memory_limit(root: Path = _ROOT) -> int:
    """Bytes of memory that this process may use: the machine's, or what its control group is allowed.

    ``root``: where ``proc`` and ``sys`` are. A container's limit is in ``memory.max`` (cgroup v2, "Memory
    Interface Files" of the kernel's documentation) or ``memory.limit_in_bytes`` (v1), of its own group or of
    one above it; the smallest holds.
    """
    limits = [_physical_memory()]
    for file in _control_files("memory", "memory.max", "memory.limit_in_bytes", root):
        try:
            text = file.read_text("ascii").strip()
        except (OSError, ValueError):
            continue
        if text.isdecimal() and int(text):
            limits.append(int(text))
    return min(limits)


def _physical_memory() -> int:
    if sys.platform == "win32":
        return _windows_memory()
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _windows_memory() -> int:
    """``ullTotalPhys`` of MEMORYSTATUSEX (sysinfoapi.h): the third field, after two of 32 bits."""
    status = (ctypes.c_uint64 * 8)()
    ctypes.cast(status, ctypes.POINTER(ctypes.c_uint32))[0] = ctypes.sizeof(status)
    kernel: Any = getattr(ctypes, "windll")  # noqa: B009 - which there is on Windows alone
    kernel.kernel32.GlobalMemoryStatusEx(status)
    return int(status[1])


def _control_files(controller: str, second: str, first: str, root: Path = _ROOT) -> Iterator[Path]:
    """Where a limit may stand: a file of this process's control group, or of one above it.

    ``second``, ``first``: the file's name in version 2 and in version 1, which has folders by controller.
    """
    groups = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        lines = []
    mounted = _MOUNTED.get(controller, (controller,))
    # A container sees its own group as the root, whatever its path is outside.
    places = {(groups, "/", second), *((groups / name, "/", first) for name in mounted)}
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not controllers:
            places.add((groups, path, second))
        elif controller in controllers.split(","):
            places |= {(groups / name, path, first) for name in mounted}
    for top, path, name in sorted(places):
        folder = top / path.strip("/")
        while folder.is_relative_to(top):
            yield folder / name
            folder = folder.parent
