"""What this process may use of the machine: CPU cores and memory, within its container's limits."""

import ctypes
import math
import os
import posixpath
import re
import sys
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

_ROOT = Path("/")
# Where version 1 of control groups mounts a controller, besides its own name.
_MOUNTED = {"cpu": ("cpu", "cpu,cpuacct", "cpuacct,cpu")}
# Spaces and the like in mountinfo.
_ESCAPED = re.compile(r"\\([0-7]{3})")
# Libraries whose threads are as many as the machine has cores unless these say: faiss and Paddle by OpenMP,
# NumPy's linear algebra by OpenBLAS or MKL.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def cores(root: Path = _ROOT) -> int:
    """CPU cores that this process may use, at least 1: by its affinity, and by its container's quota.

    ``root``: where ``proc`` and ``sys`` are. A quota of one and a half cores keeps two threads busy, so parts
    count as a whole core.
    """
    return max(1, min([_allowed(), *(math.ceil(quota) for quota in _quotas(root))]))


def _allowed() -> int:
    """Cores by affinity, in which the cores of a container (cpuset) count."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bound_threads(environ: MutableMapping[str, str], root: Path = _ROOT) -> None:
    """Say to libraries that are loaded later how many threads a quota leaves, where the user has not.

    By themselves they heed affinity alone, and a thread that spins eats the time of the one that works.
    """
    count = cores(root)
    if count < _allowed():
        for name in _THREADS:
            environ.setdefault(name, str(count))


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
    # Where each is mounted, and which group that shows; below, the usual places, for where that is hidden.
    mounts = list(_mounts(root))
    # A container sees its own group as the root, whatever its path is outside.
    places = {(groups, "/", second), *((groups / name, "/", first) for name in mounted)}
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not controllers:
            places.add((groups, path, second))
        elif controller in controllers.split(","):
            places |= {(groups / name, path, first) for name in mounted}
        for point, shown, kind, options in mounts:
            inside = posixpath.relpath(f"/{path}", f"/{shown}")
            if inside.startswith(".."):
                continue  # another part of the tree
            if not controllers and kind == "cgroup2":
                places.add((point, inside, second))
            elif kind == "cgroup" and controller in controllers.split(",") and controller in options:
                places.add((point, inside, first))
    for top, path, name in sorted(places):
        folder = top / path.strip("/")
        while folder.is_relative_to(top):
            yield folder / name
            folder = folder.parent


def _mounts(root: Path) -> Iterator[tuple[Path, str, str, list[str]]]:
    """The mounted trees of control groups: where, the group that is shown there, type, options.

    By ``/proc/self/mountinfo`` (proc_pid_mountinfo(5)): a container may be shown its own group, or one above
    it, at the place of the root.
    """
    try:
        lines = (root / "proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        head, _, tail = line.partition(" - ")
        fields, (kind, _, options) = head.split(" "), (*tail.split(" "), "", "", "")[:3]
        if kind in ("cgroup", "cgroup2") and len(fields) > 4:
            shown, point = (_ESCAPED.sub(lambda found: chr(int(found[1], 8)), each) for each in fields[3:5])
            yield root / point.lstrip("/"), shown, kind, options.split(",")
