"""Runs the blocks of a page in turn, as a reader would: ``python -m tests.docs.page PAGE FOLDER [MADE]``.

MADE is a folder that `tests.docs.world` has made before; without it one is made.

``serve`` holds its terminal, so a block that ends with it goes on running while the next ones are run, until
the page ends or serves the same ports again. What is wrong is printed; the exit code counts it.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.docs import world
from tests.docs.blocks import ROOT, Block, Command, commands, read
from tests.docs.form import differences
from tests.running import environment

_SERVE = re.compile(r"(?:^|\s)pdserve serve (\w+)")
PATIENCE = 150.0


class Page:
    """The terminals of one reader."""

    def __init__(self, folder: Path, made: Path | None = None) -> None:
        if made is None:
            world.make(folder)
        else:
            shutil.copytree(made, folder, symlinks=True, dirs_exist_ok=True)
        self.work = folder / "checkout"
        self._folder = folder
        self._servers: dict[str, subprocess.Popen[bytes]] = {}
        self._environ = environment(folder / "home", **world.environment(folder), COLUMNS="120")
        own = [str(Path(sys.executable).parent), self._environ.get("PATH", "")]
        self._environ |= {"PATH": os.pathsep.join(own), "PYTHONPATH": str(ROOT)}

    def run(self, block: Block) -> list[str]:
        """What is wrong with a block; nothing if it works as shown."""
        if block.language == "python":
            code, printed = self._finish([sys.executable, "-c", block.text])
            return [f"exit code {code}", *printed] if code else []
        if block.language == "console":
            return [each for command in commands(block) for each in self._compared(command)]
        lines = block.text.rstrip("\n").replace("\\\n", " ").split("\n")
        held = None if lines[-1].rstrip().endswith("&") else _SERVE.search(lines[-1])
        before = "\n".join(lines[:-1] if held else lines)
        if before.strip():
            code, printed = self._finish(["sh", "-ec", before])
            if code:
                return [f"exit code {code}", *printed]
        return self._serve(held[1], lines[-1]) if held else []

    def close(self) -> None:
        """Ctrl-C in every terminal that still serves."""
        for kind in list(self._servers):
            self._stop(kind)

    def _compared(self, command: Command) -> list[str]:
        line, output = command.line, command.output
        code, printed = self._finish(["sh", "-ec", line])
        fails = any(shown.startswith("pdserve: ") for shown in output)
        wrong = differences(output, printed)
        if bool(code) != fails:
            wrong.append(f"exit code {code}")
        return [f"$ {line}", *wrong, *(f"  {each}" for each in printed)] if wrong else []

    def _finish(self, command: list[str]) -> tuple[int, list[str]]:
        log = self._folder / "printed"
        with log.open("wb") as out:
            child = subprocess.Popen(
                command, cwd=self.work, env=self._environ, stdout=out, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            try:
                code = child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                code = child.wait()
        return code, log.read_text("utf-8").splitlines()

    def _serve(self, kind: str, line: str) -> list[str]:
        self._stop(kind)
        log = self._folder / f"{kind}.log"
        with log.open("wb") as out:
            server = subprocess.Popen(
                ["sh", "-c", line], cwd=self.work, env=self._environ, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip
        self._servers[kind] = server
        end = time.monotonic() + PATIENCE
        while "ready: " not in log.read_text("utf-8"):
            if server.poll() is not None or time.monotonic() > end:
                return [f"{line} did not start:", *log.read_text("utf-8").splitlines()]
            time.sleep(0.05)
        return []

    def _stop(self, kind: str) -> None:
        if server := self._servers.pop(kind, None):
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGINT)
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def _raise_loopback() -> None:
    """A new network namespace has a loopback device that is down."""
    import fcntl
    import socket
    import struct

    up, set_flags = 0x1, 0x8914
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sh14x", b"lo", up))


def main(name: str, folder: str, *rest: str) -> int:
    if "--isolated" in rest:
        _raise_loopback()
    wrong = 0
    page = Page(Path(folder), *(Path(each) for each in rest if each != "--isolated"))
    try:
        for block in read(ROOT / name):
            if block.lacking is None and block.language in ("sh", "console", "python"):
                begun = time.monotonic()
                found = page.run(block)
                wrong += bool(found)
                print(f"{block}: {time.monotonic() - begun:.1f} s", *found, sep="\n  ", flush=True)
    finally:
        page.close()
    return wrong


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
