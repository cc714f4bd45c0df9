"""Freed memory is kept for the next picture."""

import subprocess
import sys

import pytest

# Pages that the kernel had to bring for twenty arrays of 20 MB, one after the other, in a thread.
_PROGRAM = """
import resource, sys, threading
import numpy as np
from pdserve.services.memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()

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


def faults(how: str) -> int:
    """Page faults with memory kept, or as it is by default."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM, how], capture_output=True, check=True, timeout=60)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="for glibc, which Linux has")
def test_a_pictures_memory_is_there_for_the_next() -> None:
    assert faults("kept") * 10 < faults("as it is")
