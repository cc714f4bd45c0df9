"""Ends the service when pdserve is gone, however that came: ``python guard.py FOLDER``, its input a pipe.

pdserve writes the number of the service's process group, a line, and keeps the pipe open. The system closes
it when pdserve ends, also at ``kill -9``. The service's folder goes with it. An empty line
takes the number back.
"""

import contextlib
import os
import shutil
import signal
import sys


def main() -> None:
    group = 0
    for line in sys.stdin:
        group = int(line) if line.strip() else 0
    if group:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        shutil.rmtree(sys.argv[1], ignore_errors=True)


if __name__ == "__main__":
    main()
