"""A function in a child process: its result, its errors, and every way in which it may end."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from pdserve.child_process import ChildError, Limits, call
from pdserve.errors import ModelError

HERE = "tests.test_child_process"
LIMITS = Limits(timeout_s=60, memory=2 << 30)


def double(number: int) -> dict[str, int]:
    print("noise on standard output")
    return {"double": 2 * number}


def refuse() -> None:
    raise ModelError("The file is broken; export it again.")


def fail() -> None:
    raise LookupError("nothing there")


def crash(number: int) -> None:
    os.kill(os.getpid(), number)


def leave() -> None:
    os._exit(7)


def wait(path: str) -> None:
    Path(path).write_text(str(os.getpid()), "utf-8")
    threading.Event().wait()


def take(megabytes: int) -> int:
    return len(bytearray(megabytes << 20))


def say(length: int) -> str:
    return "x" * length


def test_the_result_comes_back_and_what_is_printed_does_not() -> None:
    assert call(f"{HERE}:double", {"number": 21}, LIMITS) == {"double": 42}


def test_an_error_of_ours_is_raised_as_itself() -> None:
    with pytest.raises(ModelError, match=r"^The file is broken; export it again\.$"):
        call(f"{HERE}:refuse", {}, LIMITS)


def test_another_exception_is_a_failure_with_its_words() -> None:
    with pytest.raises(ChildError, match=r"^it failed: LookupError, nothing there$"):
        call(f"{HERE}:fail", {}, LIMITS)


@pytest.mark.posix
@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL"])
def test_a_crash_is_said_with_its_signal(name: str) -> None:
    number = int(signal.Signals[name])
    with pytest.raises(ChildError, match=rf"^it was ended by signal {number} \({name}\)$"):
        call(f"{HERE}:crash", {"number": number}, LIMITS)


@pytest.mark.posix
def test_a_kill_is_likely_the_systems_for_want_of_memory() -> None:
    with pytest.raises(ChildError, match=r"^it was ended by signal 9 \(SIGKILL\), as the system does"):
        call(f"{HERE}:crash", {"number": 9}, LIMITS)


def test_an_end_without_a_result_is_said_with_its_status() -> None:
    with pytest.raises(ChildError, match=r"^it ended with status 7$"):
        call(f"{HERE}:leave", {}, LIMITS)


def test_one_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(ChildError, match=r"^it took more than 3 s$"):
        call(f"{HERE}:wait", {"path": str(tmp_path / "pid")}, Limits(timeout_s=3))
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text("utf-8")), 0)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux alone")
def test_memory_is_limited() -> None:
    assert call(f"{HERE}:take", {"megabytes": 10}, Limits(60, 500 << 20)) == 10 << 20
    with pytest.raises(ChildError, match=r"^it wanted more memory than the 0\.5 GB that it may have$"):
        call(f"{HERE}:take", {"megabytes": 1000}, Limits(60, 500 << 20))


def test_an_answer_without_end_is_no_result() -> None:
    with pytest.raises(ChildError, match=r"^its answer has no end$"):
        call(f"{HERE}:say", {"length": 5 << 20}, LIMITS)


@pytest.mark.posix
def test_the_child_ends_with_its_parent(tmp_path: Path) -> None:
    parent = os.fork() if sys.platform != "win32" else 0
    if parent == 0:
        try:
            call(f"{HERE}:wait", {"path": str(tmp_path / "pid")}, LIMITS)
        finally:
            os._exit(0)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text("utf-8"):
        time.sleep(0.01)
    child = int((tmp_path / "pid").read_text("utf-8"))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    deadline = time.monotonic() + 30
    while _runs(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
