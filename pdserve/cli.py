"""The ``pdserve`` command: what starts first, and loads the table of commands only where that is needed."""

import os
import sys

# Nothing else is imported here: what `main` imports, Ctrl-C may interrupt.


def client() -> None:
    """The ``pdserve-client`` command; beside pdserve itself it is there too."""
    main("pdserve.commands.client:app")


def main(app: str = "pdserve.commands.table:app") -> None:
    """The ``pdserve`` command; ``app``: import string of what runs it.

    Exit codes: 0 done, 1 the work failed, 2 the command line is wrong, 130 Ctrl-C has ended it.
    """
    try:
        from pdserve import process

        process.prepare()
    except KeyboardInterrupt:
        os.write(2, b"pdserve: Interrupted; nothing was done yet.\n")
        os._exit(130)
    try:
        status = _run(app)
    except BrokenPipeError:
        status = 1
    except KeyboardInterrupt:
        process.end_interrupted()
    process.end(status if _flushed() else status or 1)


def _run(app: str) -> int:
    """Run the command; its exit code."""
    from itertools import pairwise

    from pdserve import console, process
    from pdserve.errors import OutputError, PdserveError, UsageError, unforeseen

    try:
        if (instruction := os.environ.get("_PDSERVE_COMPLETE")) and _completed(instruction):
            return 0
        for before, word in pairwise(sys.argv):
            if not word:
                raise UsageError(
                    f"The argument after {before} is empty, as a shell's variable may be; give it a value, "
                    "or leave it out."
                )
        from pkgutil import resolve_name

        resolve_name(app)()
        status = 0
    except PdserveError as error:
        process.conclude()
        status = console.failed(error)
        if isinstance(error, OutputError):
            _discard()
        return status
    except BrokenPipeError:
        raise
    except OSError as error:
        process.conclude()
        return console.failed(unforeseen(error))
    except SystemExit as end:
        if isinstance(end.code, str):
            console.say(end.code)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        # An import that Ctrl-C has broken off fails with anything.
        if not process.was_interrupted():
            raise
    if process.was_interrupted():
        process.conclude()
        console.say(f"pdserve: {process.interrupted_sentence()}")
        return process.INTERRUPTED
    return status


def _flushed() -> bool:
    """Whether the last of standard output could be written; a reader that has gone needs no words."""
    from pdserve import console
    from pdserve.errors import PdserveError

    try:
        sys.stdout.flush()
        return True
    except BrokenPipeError:
        pass
    except PdserveError as error:
        console.failed(error)
    _discard()
    return False


def _discard() -> None:
    """Let what is left of standard output go: Python must not try to flush it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _completed(instruction: str) -> bool:
    """Whether a shell that completes a word has got its answer; else typer gives it."""
    from pdserve.commands import completion

    return completion.answer(instruction)
