"""The service's processes, with a stand-in for the interpreter: started, watched, ended, not left behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.running import Server, environment, start

pytestmark = [
    pytest.mark.full,
    pytest.mark.posix,
    pytest.mark.skipif(sys.platform != "linux", reason="Linux only"),
]


@pytest.fixture
def pids(tmp_path: Path) -> Path:
    """The file in which the stand-in tells its number and its child's."""
    return tmp_path / "pids"


@pytest.fixture
def server(tiny_home: Path, fake_python: Path, pids: Path) -> Iterator[Server]:
    options = ("--model", "tiny", "--runtime", "paddle-serving", "--python", str(fake_python))
    with start(tiny_home, *options, FAKE_PIDS=str(pids)) as server:
        yield server


def run(home: Path, python: Path, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run `serve` to its end."""
    ports = () if any("port" in option for option in options) else ("--http-port", "0", "--rpc-port", "0")
    return subprocess.run(
        [
            *(sys.executable, "-m", "pdserve", "serve", "classification", "--model", "tiny"),
            *("--runtime", "paddle-serving", "--python", str(python), *ports, *options),
        ],
        env=environment(home, **environ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def gone(pids: Path) -> bool:
    """Whether the service and its child end within a while."""
    numbers = [int(number) for number in pids.read_text("utf-8").split()]
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if not any(alive(number) for number in numbers):
            return True
        time.sleep(0.02)
    return False


def alive(pid: int) -> bool:
    try:  # one that waits to be reaped is no process any more
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_it_is_ready_when_it_has_answered(server: Server) -> None:
    answer = httpx.post(
        f"{server.url}/imagenet/prediction", json={"key": ["a"], "value": [""]}, trust_env=False
    )
    assert answer.json()["value"] == ["['fake']", "[1.0]"]
    assert server.rpc_port
    assert "every address" in server.log


def test_its_output_is_in_the_log_at_its_level(server: Server) -> None:
    assert "WARNING pdserve.paddle_serving: fake.service: starting" in server.log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it(server: Server, pids: Path, number: int) -> None:
    server.interrupt(number)
    assert server.wait() == 0
    assert "stopped" in server.log
    assert gone(pids)


def test_a_service_that_will_not_stop_is_ended(tiny_home: Path, fake_python: Path, pids: Path) -> None:
    options = ("--model", "tiny", "--runtime", "paddle-serving", "--python", str(fake_python), "--grace", "0")
    with start(tiny_home, *options, FAKE_PIDS=str(pids), FAKE_SERVICE="ignores") as server:
        server.interrupt(signal.SIGTERM)
        assert server.wait() == 0
    assert gone(pids)


def test_it_ends_when_pdserve_is_killed(
    tiny_home: Path, fake_python: Path, pids: Path, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    options = ("--model", "tiny", "--runtime", "paddle-serving", "--python", str(fake_python))
    with start(tiny_home, *options, FAKE_PIDS=str(pids), TMPDIR=str(scratch)) as server:
        assert list(scratch.iterdir())
        server.interrupt(signal.SIGKILL)
        server.wait()
    assert gone(pids)
    end = time.monotonic() + 10
    while list(scratch.iterdir()) and time.monotonic() < end:
        time.sleep(0.02)
    assert not list(scratch.iterdir())


def test_a_hang_up_changes_nothing(server: Server) -> None:
    server.interrupt(signal.SIGHUP)
    end = time.monotonic() + 10
    while "reloads nothing" not in server.log and time.monotonic() < end:
        time.sleep(0.02)
    assert "reloads nothing" in server.log
    assert server.process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_end_of_the_service_is_an_error(server: Server, pids: Path, number: int) -> None:
    os.kill(int(pids.read_text("utf-8").split()[0]), number)
    assert server.wait() == 1
    assert "Paddle Serving ended" in server.log.splitlines()[-1]
    assert gone(pids)


def test_a_service_that_falls_is_an_error(tiny_home: Path, fake_python: Path, pids: Path) -> None:
    options = ("--model", "tiny", "--runtime", "paddle-serving", "--python", str(fake_python))
    with start(tiny_home, *options, FAKE_PIDS=str(pids), FAKE_SERVICE="falls") as server:
        httpx.post(f"{server.url}/imagenet/prediction", json={}, trust_env=False)
        assert server.wait() == 1
    assert gone(pids)


def test_its_last_words_are_told(tiny_home: Path, fake_python: Path, pids: Path) -> None:
    done = run(tiny_home, fake_python, FAKE_PIDS=str(pids), FAKE_SERVICE="dies")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == "pdserve: Paddle Serving ended with exit code 1; the last that it wrote: no model here"
    assert gone(pids)


def test_packages_that_do_not_fit_are_told(tiny_home: Path, fake_python: Path, pids: Path) -> None:
    done = run(tiny_home, fake_python, FAKE_PIDS=str(pids), FAKE_SERVICE="misfits")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "No module named 'no_such_package'" in last
    assert "`pdserve runtime install paddle-serving` brings some that do." in last


def test_it_is_not_ready_when_the_first_answer_says_no(
    tiny_home: Path, fake_python: Path, pids: Path
) -> None:
    done = run(tiny_home, fake_python, FAKE_PIDS=str(pids), FAKE_SERVICE="says no")
    assert done.returncode == 1
    assert "err_no 10000: no model" in done.stderr.splitlines()[-1]
    assert "ready:" not in done.stderr
    assert gone(pids)


def test_it_stops_while_it_starts(tiny_home: Path, fake_python: Path, pids: Path) -> None:
    options = ("--model", "tiny", "--runtime", "paddle-serving", "--python", str(fake_python))
    process = subprocess.Popen(
        [sys.executable, "-m", "pdserve", "serve", "classification", *options, "--http-port", "0"],
        env=environment(tiny_home, FAKE_PIDS=str(pids), FAKE_SECONDS="1000"),
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 30
        while not (pids.exists() and pids.read_text("utf-8")) and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert gone(pids)
    finally:
        process.kill()
        process.wait()


def test_a_taken_port_is_told_before_anything_starts(tiny_home: Path, fake_python: Path, pids: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(tiny_home, fake_python, "--http-port", str(port), FAKE_PIDS=str(pids))
    assert done.returncode == 2
    assert f":{port}: Address already in use" in done.stderr
    assert not pids.exists()


def test_what_the_interpreter_lacks_is_told_with_what_works(
    tiny_home: Path, fake_python: Path, pids: Path
) -> None:
    done = run(tiny_home, fake_python, FAKE_PIDS=str(pids), FAKE_LACKS="paddle,flask")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert f"{fake_python} (Python 3.9.0) lacks paddlepaddle, flask" in last
    assert "pdserve runtime install paddle-serving" in last
    assert "paddlepaddle==2.6.2" in last
    assert not pids.exists()


def test_nothing_is_left_of_the_folder(
    tiny_home: Path, fake_python: Path, pids: Path, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = run(tiny_home, fake_python, FAKE_PIDS=str(pids), FAKE_SERVICE="says no", TMPDIR=str(scratch))
    assert done.returncode == 1
    assert not list(scratch.iterdir())


def test_python_goes_with_that_runtime_alone(tiny_home: Path, fake_python: Path) -> None:
    done = run(tiny_home, fake_python, "--runtime", "native")
    assert done.returncode == 2
    assert "--python goes with --runtime paddle-serving" in done.stderr
