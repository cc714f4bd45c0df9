"""The ``pdserve`` command: what starts first, and loads the table of commands only where that is needed."""

import os
import sys

from pdserve import console
from pdserve.errors import PdserveError


def main() -> None:
    """The ``pdserve`` command. Exit codes: 0 done, 1 the work failed, 2 the command line is wrong."""
    try:
        if (instruction := os.environ.get("_PDSERVE_COMPLETE")) and _completed(instruction):
            return
        from pdserve.commands.table import app

        app()
    except PdserveError as error:
        sys.exit(console.failed(error))
    except BrokenPipeError:
        # The reader has closed the pipe; Python must not try to flush the rest at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _completed(instruction: str) -> bool:
    """Whether a shell that completes a word has got its answer; else typer gives it."""
    from pdserve.commands import completion

    return completion.answer(instruction)
