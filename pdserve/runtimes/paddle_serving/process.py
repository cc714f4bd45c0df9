"""The service's processes: one group, that ends with its first, with pdserve, and at the latest when told."""

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

log = logging.getLogger("pdserve.paddle_serving")

GUARD = Path(__file__).with_name("guard.py")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class Process:
    """A command that runs in a session of its own, its output in the log. Linux.

    ``folder``, in which it runs, is the caller's to remove; where pdserve is killed, the guard does that.
    ``last``: the last line that it wrote.
    """

    def __init__(self, command: Sequence[str], folder: Path, environ: Mapping[str, str]) -> None:
        self.last = ""
        # Before the service, so that there is no time in which nobody watches.
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(GUARD), str(folder)],
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
        self._tell_guard(f"{self._popen.pid}\n")
        self._reader = threading.Thread(target=self._log_output, args=(self._popen.stdout,), daemon=True)
        self._reader.start()

    @property
    def ended(self) -> bool:
        """Whether the first process has ended; it is not reaped, so that its number stays its own."""
        if self._popen.returncode is not None:
            return True
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._popen.pid, flags) is not None

    def stop(self, seconds: float) -> int:
        """Ask it to end, wait, and end what is left of its group. Returns the exit code, as Popen has it."""
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
        self._reader.join(5)  # what a stranger has of the pipe may stay open
        return code

    def _tell_guard(self, line: str) -> None:
        stream = self._guard.stdin
        if stream:
            try:
                stream.write(line)
                stream.flush()
            except BrokenPipeError:  # somebody ended it
                log.warning("the guard of the service's processes is gone")

    def _dismiss_guard(self) -> None:
        self._tell_guard("\n")
        if self._guard.stdin:
            self._guard.stdin.close()
        self._guard.wait()

    def _log_output(self, stream: IO[bytes]) -> None:
        """Lines of the output to the log, at the level that they begin with."""
        with stream:
            for raw in stream:
                line = _COLOUR.sub("", raw.decode("utf-8", "backslashreplace")).rstrip()
                if not line:
                    continue
                self.last = line.strip()
                word, _, rest = line.partition(" ")
                known = word in _LEVELS
                log.log(logging.getLevelName(word) if known else logging.INFO, "%s", rest if known else line)
