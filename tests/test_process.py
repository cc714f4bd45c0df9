"""How a command ends: closed or full standard streams, other encodings, and Ctrl-C."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pdserve.models.home import Home
from tests.running import Server, environment
from tests.tiny import picture

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")


def shell(home: Path, command: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    """A command line with ``pdserve``, by a shell; the first of a pipe says its exit code."""
    whole = command.replace("pdserve ", f"{sys.executable} -m pdserve ")
    variables = environment(home, **environ)
    return subprocess.run(
        ["bash", "-c", f"{whole}; exit ${{PIPESTATUS[0]}}"],
        env=variables,
        capture_output=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("pdserve list >&-", 1, b"pdserve: Standard output takes nothing more: Bad file descriptor"),
        ("pdserve list >/dev/full", 1, b"pdserve: Standard output takes nothing more: No space left"),
        ("pdserve --help >/dev/full", 1, b"pdserve: Standard output takes nothing more: No space left"),
        ("pdserve --version >&-", 1, b"pdserve: Standard output takes nothing more"),
        ("pdserve predict - --url http://127.0.0.1:9 <&-", 1, b"-: Cannot read standard input: Bad file"),
        ("pdserve list <&-", 0, b""),
        ("pdserve rm tiny <&-", 2, b"pdserve: There is no terminal to ask at"),
        ("pdserve rm none 2>&-", 2, b""),
        ("pdserve list >&- 2>&- <&-", 1, b""),
        ("pdserve fetch --list --json | head -1", 1, b""),
    ],
)
def test_standard_streams_that_are_closed_or_full(
    tiny_home: Path, tmp_path: Path, command: str, code: int, words: bytes
) -> None:
    if "/dev/full" in command and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    # A server of another test may use the models of the other home.
    home = Path(shutil.copytree(tiny_home, tmp_path / "home")) if "rm" in command else tiny_home
    done = shell(home, command)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(words)
    assert done.stderr.count(b"\n") == bool(words)


def test_a_file_gets_no_number_of_a_closed_stream(tiny_home: Path, tmp_path: Path) -> None:
    """A server that is started without standard streams writes into none of its files, and stops well."""
    script = (
        f"exec {sys.executable} -m pdserve serve classification --model tiny --http-port 0 --rpc-port 0 "
        "<&- >&- 2>&-"
    )
    process = subprocess.Popen(["bash", "-c", script], env=environment(tiny_home))
    registered = Home(tiny_home).servers
    try:
        for _ in range(600):
            if (registered / f"{process.pid}.json").exists():
                break
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.1)
        streams = [Path(f"/proc/{process.pid}/fd/{n}").readlink() for n in range(3)]
        assert streams == [Path("/dev/null")] * 3
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "environ",
    [{"LC_ALL": "C", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "cp1252"}],
)
def test_other_encodings(
    tiny_home: Path, tiny_server: Server, tmp_path: Path, environ: dict[str, str]
) -> None:
    image = tmp_path / "猫 é.png"
    image.write_bytes(picture((250, 0, 0)))
    asked = f"pdserve predict '{image}' {tmp_path}/狗.png --url {tiny_server.url}"
    done = shell(tiny_home, f"{asked} --json | cat", **environ)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [os.fsencode(Path(row["image"]).name).decode() for row in rows] == ["猫 é.png", "狗.png"]
    done = shell(tiny_home, f"{asked} | cat", **environ)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert b"red" in done.stdout
    assert b"Traceback" not in done.stderr
