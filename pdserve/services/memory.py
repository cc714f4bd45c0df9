"""Tune the C library's allocator: keep freed memory for the next image, return it after loading a model."""

import ctypes
import sys
from typing import Any

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
