"""What the C library does with memory that was freed."""

import ctypes
import sys
from typing import Any

# glibc's names and numbers (malloc.h, mallopt(3)).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# The largest that glibc takes for the second; a picture of 11 megapixels is less than that.
_LARGEST = 32 << 20


def keep_freed_memory() -> None:
    """Have up to 64 MB of freed memory kept for the next picture, in each thread that had one.

    By default glibc hands a picture's megabytes back to the kernel when it is through with them, and the
    kernel clears them again page by page for the next picture: a seventh of all that a request costs beside
    its engine. On glibc; elsewhere this does nothing.
    """
    if mallopt := _of_glibc("mallopt"):
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST)


def give_back_freed_memory() -> None:
    """Hand all freed memory back to the kernel: what loading a model needed, as much again as the model.

    On glibc; elsewhere this does nothing.
    """
    if trim := _of_glibc("malloc_trim"):
        trim(0)


def _of_glibc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
