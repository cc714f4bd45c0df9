"""Runs the ``pdserve`` command on a pseudo-terminal and says what a person sees on it."""

import os
import re
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.running import environment

# Control sequences, carriage returns, line feeds, and text between them.
_PARTS = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n]+)")


@dataclass(frozen=True)
class Seen:
    """A command that ended: exit code, the lines on the terminal at the end, all that was written to it."""

    returncode: int
    screen: list[str]
    raw: str

    def lines(self, start: str) -> list[str]:
        """The lines that begin with these words."""
        return [line for line in self.screen if line.startswith(start)]


def on_terminal(
    home: Path,
    *arguments: str,
    columns: int,
    stdout: Path | None = None,
    stderr: Path | None = None,
    typed: str | None = None,
    **environ: str,
) -> Seen:
    """Run a command with a terminal as standard output and error, unless they go to files.

    ``typed``: what a person types there; without it standard input is empty, and no terminal.
    """
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 60, columns, 0, 0))
    out, err = (
        os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if file else os.dup(theirs)
        for file in (stdout, stderr)
    )
    variables = environment(home, **{"TERM": "xterm"} | environ)
    process = subprocess.Popen(
        [sys.executable, "-m", "pdserve", *arguments],
        stdin=subprocess.DEVNULL if typed is None else theirs,
        stdout=out,
        stderr=err,
        env={
            key: value
            for key, value in variables.items()
            if key not in ("COLUMNS", "LINES", "NO_COLOR") or key in environ
        },
    )
    for number in (theirs, out, err):
        os.close(number)
    if typed is not None:
        os.write(ours, typed.encode())
    raw = b""
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        try:
            while data := terminal.read(65536):
                raw += data
        except OSError:  # Linux says so that the other end is closed
            pass
    text = raw.decode("utf-8")
    return Seen(process.wait(60), _screen(text), text)


def _screen(text: str) -> list[str]:
    """The lines that are left when cursor movements and erasures have been carried out."""
    lines, row, column = [""], 0, 0
    for number, letter, carriage_return, line_feed, words in _PARTS.findall(text):
        count = int(number) if number.isdecimal() else 1
        if letter == "A":
            row = max(0, row - count)
        elif letter == "K":
            lines[row] = "" if number == "2" else lines[row][:column]
        elif carriage_return:
            column = 0
        elif line_feed:
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif words:
            lines[row] = lines[row][:column].ljust(column) + words + lines[row][column + len(words) :]
            column += len(words)
    return [line.rstrip() for line in lines]


class Interrupted:
    """A command on a terminal of its own, of 80 columns, at which Ctrl-C is pressed."""

    def __init__(self, home: Path, *arguments: str, **environ: str) -> None:
        import fcntl
        import pty
        import termios

        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 60, 80, 0, 0))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pdserve", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment(home, TERM="xterm", **environ),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        self._raw = b""

    def _read(self) -> bool:
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # Linux says so that the other end is closed
            return False
        self._raw += data
        return bool(data)

    def until(self, words: str, times: int = 1) -> None:
        """Wait until these words have come so often. Raises AssertionError where the command ends before."""
        while self._raw.decode("utf-8", "replace").count(words) < times:
            assert self._read(), self._raw.decode("utf-8", "replace")

    def press(self, times: int = 1) -> None:
        """Press Ctrl-C: the terminal sends SIGINT to all that is in its foreground."""
        os.write(self._ours, b"\x03" * times)

    def end(self) -> Seen:
        """Wait for the end; what is on the terminal then, from ``^C`` on."""
        while self._read():
            pass
        os.close(self._ours)
        text = self._raw.decode("utf-8").rpartition("^C")[2]
        return Seen(self._process.wait(60), [line for line in _screen(text) if line], text)
