"""A stop comes to its end, whatever hangs, and a second signal does not wait for it."""

import signal
import subprocess
import sys
import time

import pytest

pytestmark = [
    pytest.mark.posix,
    pytest.mark.skipif(sys.platform == "win32", reason="sends SIGTERM"),
]

# A server whose stop waits for what the first argument says; the second is its grace, in seconds.
_PROGRAM = """
import asyncio, sys, time
from pdserve.services.signals import End, handled

end = End(float(sys.argv[2]), lambda: 0)

async def serve():
    stop = asyncio.Event()
    with handled(stop.set, lambda: print("reloading", flush=True), end):
        if sys.argv[1] == "thread":  # as a reload, or a write of the gallery, that hangs
            waiting = asyncio.ensure_future(asyncio.to_thread(time.sleep, 120))
        print("ready", flush=True)
        if sys.argv[1] == "loop":
            time.sleep(120)
        await stop.wait()
        print("stopping", flush=True)
        if sys.argv[1] == "task":
            while True:
                try:
                    await asyncio.sleep(120)
                except asyncio.CancelledError:
                    pass

asyncio.run(serve())
"""


def started(hanging: str, grace: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", _PROGRAM, hanging, str(grace)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("hanging", ["thread", "loop", "task"])
def test_a_stop_has_an_end(hanging: str) -> None:
    with started(hanging, 0.1) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0  # and not 120
        assert process.stderr
        assert "with work that had not finished" in process.stderr.read()


def test_a_stop_that_nothing_delays_does_not_last() -> None:
    with started("nothing", 60) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


@pytest.mark.parametrize("hanging", ["thread", "loop", "task"])
def test_a_second_signal_ends_at_once(hanging: str) -> None:
    with started(hanging, 100) as process:
        process.send_signal(signal.SIGTERM)
        over = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < over:  # the first half second they are one
            process.send_signal(signal.SIGINT)
            time.sleep(0.1)
        assert process.poll() == 0
        assert process.stderr
        assert "as a second signal asked" in process.stderr.read()


def test_sighup_reloads() -> None:
    with started("nothing", 1) as process:
        process.send_signal(signal.SIGHUP)
        assert process.stdout
        assert process.stdout.readline() == "reloading\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
