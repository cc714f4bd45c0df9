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
    typed: str | None = None,
    **environ: str,
) -> Seen:
    """Run a command with a terminal as standard error, and as standard output unless it goes to a file.

    ``typed``: what a person types there; without it standard input is empty, and no terminal.
    """
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 60, columns, 0, 0))
    out = os.open(stdout, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if stdout else os.dup(theirs)
    variables = environment(home, TERM="xterm", **environ)
    process = subprocess.Popen(
        [sys.executable, "-m", "pdserve", *arguments],
        stdin=subprocess.DEVNULL if typed is None else theirs,
        stdout=out,
        stderr=theirs,
        env={key: value for key, value in variables.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")},
    )
    os.close(theirs)
    os.close(out)
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
