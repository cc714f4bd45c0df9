"""The register of running servers: a record counts as long as its lock is held, and no longer."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from pdserve.locks import try_file_lock
from pdserve.models.home import Home
from pdserve.models.servers import RunningServer, of_this_user, registration, running, usable
from tests.running import environment

HTTP, RPC = "http://127.0.0.1:18080", "127.0.0.1:9993"

# A server that writes its record and then waits for its end.
_PROGRAM = """
import os, sys
from pdserve.models.home import Home
from pdserve.models.servers import RunningServer, registration
with registration(Home.from_environ(os.environ)) as place:
    place.write(RunningServer(os.getpid(), "classification", "http://127.0.0.1:18080", None, False))
    print(flush=True)
    sys.stdin.read()
"""


def server(pid: int = 4711, **fields: object) -> RunningServer:
    return RunningServer(pid, "classification", HTTP, RPC, False, **fields)  # type: ignore[arg-type]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def files(home: Home) -> list[str]:
    return sorted(path.name for path in home.servers.iterdir())


def test_a_record_is_there_while_the_server_runs(home: Home) -> None:
    assert running(home) == []
    one = server(models=("/m/tiny_serving",), index="/i/drinks")
    with registration(home) as place:
        place.write(one)
        assert running(home) == of_this_user(home) == [one]
        assert json.loads((home.servers / "4711.json").read_text("utf-8")) == {
            "pid": 4711, "kind": "classification", "http": HTTP, "rpc": RPC, "tls": False,
            "models": ["/m/tiny_serving"], "index": "/i/drinks",
            "machine": one.machine, "started": one.started,
        }  # fmt: skip
        other = server(models=("/m/other_serving",), started=one.started)
        place.write(other)
        assert running(home) == [other]
    assert running(home) == []
    assert files(home) == []


def test_a_second_one_with_the_same_process_id(home: Home) -> None:
    here, there = server(started="1"), server(started="2", machine="another")
    with registration(home) as place, registration(home) as other:
        place.write(here)
        other.write(there)
        assert running(home) == [here, there]
        assert of_this_user(home) == [here]
        assert str(here) == f"classification at {HTTP} (pid 4711)"
        assert str(there) == f"classification at {HTTP} (pid 4711 on another)"
        assert files(home) == ["4711-1.json", "4711-1.lock", "4711.json", "4711.lock"]
    assert files(home) == []


def test_what_a_killed_server_left_is_ignored_and_removed(home: Home) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(home.root),
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (found,) = running(home)
        assert found.pid == process.pid
        process.kill()
    assert files(home) == [f"{process.pid}.json", f"{process.pid}.lock"]
    assert running(home) == []
    assert files(home) == []


def test_a_record_with_the_process_id_of_another_program_is_left(home: Home) -> None:
    home.servers.mkdir()
    (home.servers / f"{os.getpid()}.json").write_text("{}", "utf-8")
    for name in (f"{os.getpid()}.lock", "7.lock", f".{os.getpid()}.json.0123456789ab.tmp"):
        (home.servers / name).touch()
    (home.servers / "notes.txt").touch()
    assert running(home) == []
    assert files(home) == ["notes.txt"]


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "7", "[" * 100_000, '{"pid": 7', "\0", " " * 70_000 + "{}",
        '{"pid": "7", "kind": "a", "http": null, "rpc": null, "tls": false, "models": [], "index": null,'
        ' "machine": "m", "started": "s"}',
        '{"pid": 7, "kind": ["a"], "http": null, "rpc": null, "tls": false, "models": [], "index": null,'
        ' "machine": "m", "started": "s"}',
        '{"pid": 7, "kind": "a", "http": 8, "rpc": null, "tls": false, "models": [], "index": null,'
        ' "machine": "m", "started": "s"}',
        '{"pid": 7, "kind": "a", "http": null, "rpc": null, "tls": false, "models": "abc", "index": null,'
        ' "machine": "m", "started": "s"}',
    ],
)  # fmt: skip
def test_a_broken_record_is_no_server(home: Home, text: str) -> None:
    home.servers.mkdir()
    (home.servers / "7.json").write_text(text, "utf-8")
    with ExitStack() as held:
        assert try_file_lock(home.servers / "7.lock", held)
        assert running(home) == []
        assert files(home) == ["7.json", "7.lock"]  # of a server that runs: it is left alone


def test_a_record_of_a_later_pdserve_is_read(home: Home) -> None:
    with registration(home) as place:
        place.write(server())
        path = home.servers / "4711.json"
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"new": 1}), "utf-8")
        assert [each.pid for each in running(home)] == [4711]


def test_a_home_that_cannot_be_written(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    home.servers.write_text("a file in the folder's place", "utf-8")
    with registration(home) as place:
        place.write(server())
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert str(home.servers) in caplog.text
    assert running(home) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no owners of files")
def test_another_users_server_is_seen_but_not_asked(home: Home) -> None:
    if os.getuid():
        pytest.skip("only the administrator can give a file to another user")
    with registration(home) as place:
        place.write(server())
        os.chown(home.servers / "4711.json", 12345, -1)
        assert [each.pid for each in running(home)] == [4711]
        assert of_this_user(home) == []


def test_what_a_server_uses(tmp_path: Path) -> None:
    model, index = tmp_path / "models" / "a_serving", tmp_path / "indexes" / "drinks" / "index"
    one = server(models=(str(model),), index=str(index))
    assert one.uses(model)
    assert one.uses(index.parent)
    assert not one.uses(tmp_path / "models" / "a_infer")
    assert not one.uses(tmp_path / "models" / "a")
    assert not server().uses(tmp_path)


def test_the_host_that_a_client_connects_to() -> None:
    assert [usable(host) for host in ("0.0.0.0", "::", "127.0.0.1", "example.org")] == [
        "127.0.0.1", "::1", "127.0.0.1", "example.org",
    ]  # fmt: skip
