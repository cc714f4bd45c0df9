"""What is freed is kept for the next picture, and not for ever."""

import subprocess
import sys

import pytest

from pdserve.services.memory import kept_bytes

glibc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="for glibc, which Linux has")

# Pages that the kernel had to bring for twenty arrays of 20 MB, one after the other, in a thread.
_FAULTS = """
import resource, sys, threading
import numpy as np
from pdserve.services.memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory(2)

def work():
    np.ones(20 << 20, np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.ones(20 << 20, np.uint8)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""

# Resident megabytes before and after; freed are 100 MB of small blocks, below one that is not.
_RESIDENT = """
from pathlib import Path
from resource import getpagesize
from pdserve.services.memory import give_back_freed_memory

def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * getpagesize() >> 20

blocks = [bytearray(1000) for _ in range(100_000)]
last = blocks[-1]
del blocks
before = resident()
give_back_freed_memory()
print(before, resident())
"""


def output(program: str, *arguments: str) -> list[int]:
    """The numbers that a program prints."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    return [int(word) for word in done.stdout.split()]


@glibc
def test_a_pictures_memory_is_there_for_the_next() -> None:
    (kept,), (by_default,) = output(_FAULTS, "kept"), output(_FAULTS, "as it is")
    assert kept * 10 < by_default


@glibc
def test_what_loading_needed_is_given_back() -> None:
    before, after = output(_RESIDENT)
    assert before - after > 50


@pytest.mark.parametrize("threads", [1, 2, 8, 9, 64, 1000])
def test_what_is_kept_is_bounded_whatever_the_number_of_cores(threads):
    largest, each = kept_bytes(threads)
    assert threads * each <= 512 << 20
    assert largest == each // 2
    assert each == (64 << 20 if threads <= 8 else (512 << 20) // threads)
