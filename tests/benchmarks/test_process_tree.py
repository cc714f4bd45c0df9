import os
import subprocess
import sys
import time

import pytest

from benchmarks.process_tree import MARK, MemorySampler, ProcessTree

pytestmark = [pytest.mark.full, pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")]

# A parent that starts a child in its own session, and ends: only the mark is left to know it by.
PARENT = (
    "import subprocess, sys, time\n"
    "work = 'import time; held = bytearray(30_000_000); time.sleep(60)'\n"
    "child = subprocess.Popen([sys.executable, '-c', work], start_new_session=True)\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(0 if sys.argv[1] == 'ends' else 60)\n"
)


@pytest.mark.parametrize("parent", ["ends", "stays"])
def test_all_of_a_tree_are_found_and_ended(parent: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, parent],
        env={**os.environ, MARK: "mine"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    tree = ProcessTree(process.pid, "mine")
    assert process.stdout
    child = int(process.stdout.readline())
    try:
        if parent == "ends":
            process.wait(20)
        with MemorySampler(tree, every_s=0.02) as memory:
            deadline = time.monotonic() + 20
            while memory.peak_mb < 30 and time.monotonic() < deadline:
                time.sleep(0.05)
        assert memory.peak_mb > 30
        assert tree.pids() == sorted({child} | ({process.pid} if parent == "stays" else set()))
    finally:
        tree.end(patience_s=5)
        process.wait(10)
        process.stdout.close()
    assert tree.pids() == []
