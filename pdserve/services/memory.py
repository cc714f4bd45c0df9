"""What the C library does with memory that was freed."""

import ctypes
import sys

# glibc's names and numbers (malloc.h, mallopt(3)).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# The largest that glibc takes for the second; a picture of 11 megapixels is less than that.
_LARGEST = 32 << 20


def keep_freed_memory() -> None:
    """Have up to 64 MB of freed memory kept for the next picture, in each thread that had one.

    By default glibc hands a picture's megabytes back to the kernel when it is through with them, and the
    kernel clears them again page by page for the next picture: a sixth of all that a request costs beside
    its engine. Elsewhere than on glibc this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST)
