import subprocess
import sys
import threading

import pytest

from pdserve.models import workers


def test_results_in_order_and_side_by_side():
    """The first can only end after the second began."""
    began = threading.Event()

    def task(item: int) -> int:
        if item == 1:
            assert began.wait(30)
        else:
            began.set()
        return item * 10

    assert workers.run(task, [1, 2, 3], 2, threading.Event()) == [10, 20, 30]


def test_no_more_than_allowed():
    busy, most = 0, 0
    lock = threading.Lock()
    pause = threading.Event()

    def task(item: int) -> None:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        pause.wait(0.02)
        with lock:
            busy -= 1

    workers.run(task, range(8), 3, threading.Event())
    assert most == 3


def test_crash_is_raised_after_the_others():
    ended = []

    def task(item: int) -> None:
        if item == 0:
            raise ZeroDivisionError
        ended.append(item)

    with pytest.raises(ZeroDivisionError):
        workers.run(task, [0, 1, 2], 1, threading.Event())
    assert ended == [1, 2]


def test_nothing_to_do():
    assert workers.run(str, [], 3, threading.Event()) == []


@pytest.mark.posix
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_interrupt_cancels_and_does_not_wait_for_the_stuck():
    code = (
        "import os, signal, sys, threading, time\n"
        "from pdserve.models import workers\n"
        "cancel, stuck = threading.Event(), threading.Event()\n"
        "def task(item):\n"
        "    if item == 0:\n"
        "        assert stuck.wait(30)\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        assert cancel.wait(30)\n"
        "        print('cancelled', flush=True)\n"
        "    else:\n"
        "        stuck.set()\n"
        "        time.sleep(60)\n"
        "try:\n"
        "    workers.run(task, [0, 1], 2, cancel)\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(7)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, "cancelled\n", "")
