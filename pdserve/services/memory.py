"""Memory: how much this process may have, and what the C library's allocator keeps of it.

Freed memory is kept for the next image, and returned after loading a model.
"""

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

from pdserve.machine import control_files

# glibc's names and numbers (malloc.h, mallopt(3)).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# The largest that glibc takes for the second; a picture of 11 megapixels is less than that.
_LARGEST = 32 << 20
# What the threads that decode, one per core, may keep together.
_KEPT = 512 << 20


def keep_freed_memory(threads: int) -> None:
    """Keep freed memory for the next image: up to 64 MB in each of the threads, and 512 MB in all.

    By default glibc returns an image's megabytes to the kernel, which clears them page by page for the next
    image: a seventh of what a request costs beside its engine. On glibc; elsewhere this does nothing.
    """
    if mallopt := _of_glibc("mallopt"):
        largest, trim = kept_bytes(threads)
        mallopt(_M_MMAP_THRESHOLD, largest)
        mallopt(_M_TRIM_THRESHOLD, trim)


def kept_bytes(threads: int) -> tuple[int, int]:
    """The largest piece of memory that is kept when freed, and the most that each thread keeps."""
    each = min(2 * _LARGEST, _KEPT // max(1, threads))
    return each // 2, each


def give_back_freed_memory() -> None:
    """Return all freed memory to the kernel: loading a model needs as much again as the model.

    On glibc; elsewhere this does nothing.
    """
    if trim := _of_glibc("malloc_trim"):
        trim(0)


def _of_glibc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None


def memory_limit(root: Path = Path("/")) -> int:
    """Bytes of memory that this process may use: the machine's, or what its control group is allowed.

    ``root``: where ``proc`` and ``sys`` are. A container's limit is in ``memory.max`` (cgroup v2, "Memory
    Interface Files" of the kernel's documentation) or ``memory.limit_in_bytes`` (v1), of its own group or of
    one above it; the smallest holds.
    """
    limits = [_physical_memory()]
    for file in control_files("memory", "memory.max", "memory.limit_in_bytes", root):
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
