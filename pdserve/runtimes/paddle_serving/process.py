"""The service's processes: one group, ended with its first process, with pdserve, or by `Process.stop`.

Run as a program (``python process.py FOLDER``, its input a pipe) this file is the guard: it ends the service
when pdserve is gone, however that came. pdserve writes the number of the service's process group, a line, and
keeps the pipe open; the system closes it when pdserve ends, also at ``kill -9``. The service's folder is
removed as well. An empty line takes the number back.
"""

import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

log = logging.getLogger("pdserve.paddle_serving")

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class Process:
    """A command in its own session, its output written to the log. Linux.

    ``folder``, in which it runs, is the caller's to remove; where pdserve is killed, the guard does that.
    ``last``: the last line of output.
    """

    def __init__(self, command: Sequence[str], folder: Path, environ: Mapping[str, str]) -> None:
        self.last = ""
        # Before the service, so that it is never unguarded.
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )
        try:
            self._popen = subprocess.Popen(
                command,
                cwd=folder,
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except BaseException:
            self._dismiss_guard()
            raise
        self._write_to_guard(f"{self._popen.pid}\n")
        self._reader = threading.Thread(target=self._log_output, args=(self._popen.stdout,), daemon=True)
        self._reader.start()

    @property
    def ended(self) -> bool:
        """Whether the first process has ended; it is not reaped, so that its number is not reused."""
        if self._popen.returncode is not None:
            return True
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._popen.pid, flags) is not None

    def stop(self, seconds: float) -> int:
        """Terminate it, wait so long, kill the rest of its group. Returns the exit code, as Popen has it."""
        if self._popen.returncode is not None:
            return self._popen.returncode
        if not self.ended:
            self._popen.terminate()
            until = time.monotonic() + seconds
            while not self.ended and time.monotonic() < until:
                time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        code = self._popen.wait()
        self._dismiss_guard()
        self._reader.join(5)  # a process outside the group may hold the pipe open
        return code

    def _write_to_guard(self, line: str) -> None:
        stream = self._guard.stdin
        if stream:
            try:
                stream.write(line)
                stream.flush()
            except BrokenPipeError:  # it was killed
                log.warning("the guard of the service's processes is gone")

    def _dismiss_guard(self) -> None:
        self._write_to_guard("\n")
        if self._guard.stdin:
            self._guard.stdin.close()
        self._guard.wait()

    def _log_output(self, stream: IO[bytes]) -> None:
        """Lines of the output to the log, each at the level that it starts with."""
        with stream:
            for raw in stream:
                line = _COLOUR.sub("", raw.decode("utf-8", "backslashreplace")).rstrip()
                if not line:
                    continue
                self.last = line.strip()
                word, _, rest = line.partition(" ")
                known = word in _LEVELS
                log.log(logging.getLevelName(word) if known else logging.INFO, "%s", rest if known else line)


def guard() -> None:
    """Wait for the end of the pipe, then kill the process group and remove the folder."""
    group = 0
    for line in sys.stdin:
        group = int(line) if line.strip() else 0
    if group:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        shutil.rmtree(sys.argv[1], ignore_errors=True)


if __name__ == "__main__":
    guard()
