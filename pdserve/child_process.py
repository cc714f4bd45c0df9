"""Call a function in a child process with limits of time, CPU and memory: what may crash, crashes there.

For native code that reads files of others: a model, an index. The child is a new interpreter, so that it has
nothing of this process (no sockets, no locks, no half-used library), and ends with it. Arguments and result
are JSON; what the function prints goes nowhere.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NoReturn

from pdserve.errors import PdserveError
from pdserve.machine import memory_limit

# Bytes of a result; what is longer is no result of ours.
_LONGEST = 1 << 20

# Bytes, beside so many times those of the files: a library, its threads, what it computes on the way.
_ROOM, _COPIES = 6 << 30, 16

# What libraries say where an allocation fails.
_NO_MEMORY = (
    "bad_alloc",
    "Cannot allocate memory",
    "MemoryError",
    "Failed to allocate",
    "ResourceExhausted",
    "memory allocation of",  # Rust
)

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import pdserve.child_process as c; c.main()"
)


@dataclass(frozen=True)
class Limits:
    """``timeout_s``: by the clock, and of CPU time on every core; ``memory``: bytes, None for no limit.

    Memory is limited on Linux alone, as what the process may write (RLIMIT_DATA): files that it maps and
    addresses that it only reserves do not count.
    """

    timeout_s: float
    memory: int | None = None


def memory_for(size: int) -> int:
    """Bytes that native code may take for files of ``size`` bytes: no more than this process may have."""
    return min(_ROOM + _COPIES * size, memory_limit())


def search_path() -> list[str]:
    """Where a child is to look for modules: where this process does.

    While a thread imports OpenCV, its loader has the package's own folder in `sys.path`: a child that looks
    there takes its ``typing`` for Python's, and cannot start.
    """
    return [entry for entry in sys.path if Path(entry).name != "cv2"]


class ChildError(Exception):
    """The child ended, or did not end, before it had a result; the text says how, as ``it …``."""


def call(function: str, arguments: Mapping[str, Any], limits: Limits) -> Any:
    """Call ``function`` ("module:function") with these keyword arguments in a child, and return its result.

    Raises the PdserveError that the function raises; ChildError for a child that crashes, takes too long or
    too much, and for a function that fails otherwise.
    """
    message = {"function": function, "arguments": dict(arguments), "limits": vars(limits)}
    command = [sys.executable, "-P", "-c", _START, json.dumps(search_path())]
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError as error:
        raise ChildError(f"it does not start: {error.strerror}") from error
    late = threading.Event()

    def end() -> None:
        late.set()
        child.kill()

    timer = threading.Timer(limits.timeout_s, end)
    timer.daemon = True
    timer.start()
    try:
        written = _answer(child, json.dumps(message).encode() + b"\n")
        if len(written) == _LONGEST:
            raise ChildError("its answer has no end")
        status = child.wait()
    finally:
        timer.cancel()
        with child:  # closes the pipes, and waits
            child.kill()
    if late.is_set():
        raise ChildError(f"it took more than {limits.timeout_s:.0f} s")
    try:
        return _result(json.loads(written), limits)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ChildError(ended(status)) from None


def _answer(child: "subprocess.Popen[bytes]", message: bytes) -> bytes:
    """Send the message and read the answer. The child's standard input stays open: its end is our end."""
    if child.stdin is None or child.stdout is None:
        raise RuntimeError("the child has pipes")
    with suppress(OSError):  # it has ended already: its status says why
        child.stdin.write(message)
        child.stdin.flush()
    return child.stdout.read(_LONGEST)


def _result(answer: Mapping[str, Any], limits: Limits) -> Any:
    if "error" in answer:
        kinds = {kind.code: kind for kind in _kinds(PdserveError)}
        raise kinds.get(answer["error"], PdserveError)(answer["message"])
    if "failure" in answer:
        text = str(answer["failure"])
        raise ChildError(too_much(limits) if wants_memory(text) else f"it failed: {text}")
    return answer["result"]


def _kinds(kind: type[PdserveError]) -> Iterator[type[PdserveError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _kinds(each)


def ended(status: int) -> str:
    """How a process ended, as ``it …``: its status, or the signal that ended it."""
    if status >= 0:
        return f"it ended with status {status}"
    try:
        name = f" ({signal.Signals(-status).name})"
    except ValueError:
        name = ""
    why = {
        "SIGKILL": ", as the system does for want of memory",
        "SIGXCPU": ", as its time on the CPU was over",
    }
    return f"it was ended by signal {-status}{name}{why.get(name[2:-1], '')}"


def wants_memory(text: str) -> bool:
    """Whether it was for want of memory that a library failed, by what it says."""
    return any(word in text for word in _NO_MEMORY)


def too_much(limits: Limits) -> str:
    """What is said of a process that hit its limit of memory, as ``it …``."""
    return "it wanted more memory than " + (
        f"the {limits.memory / 1e9:.1f} GB that it may have" if limits.memory else "there is"
    )


def main() -> None:
    """The child: read a message, call the function, answer, and end."""
    answers = os.dup(1)
    os.dup2(2, 1)  # libraries print on standard output
    message = json.loads(_line(0))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    limit(0, Limits(**message["limits"]))
    try:
        answer = {"result": resolve_name(message["function"])(**message["arguments"])}
    except PdserveError as error:
        answer = {"error": error.code, "message": error.message}
    except MemoryError:
        answer = {"failure": "MemoryError"}
    except Exception as error:
        answer = {"failure": f"{type(error).__name__}, {error}"[-2000:]}
    with os.fdopen(answers, "wb") as out:
        out.write(json.dumps(answer).encode())
    os._exit(0)  # a library's threads and destructors have nothing to add


def _line(descriptor: int) -> bytes:
    """The first line, byte by byte as it comes: nothing behind it is read."""
    read = bytearray()
    while not read.endswith(b"\n"):
        part = os.read(descriptor, 1 << 16)
        if not part:
            os._exit(0)
        read += part
    return bytes(read)


def _end_with_parent() -> NoReturn:
    while os.read(0, 1):
        pass
    os._exit(0)


def limit(pid: int, limits: Limits) -> None:
    """Limit a process of ours, 0 for this one, where the system can; on Linux also another than this."""
    if sys.platform == "win32" or (pid and sys.platform != "linux"):
        return
    import resource

    seconds = int(limits.timeout_s + 1) * (os.cpu_count() or 1)
    wanted = [(resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, seconds)]
    if limits.memory is not None and sys.platform == "linux":
        wanted.append((resource.RLIMIT_DATA, limits.memory))
    for kind, number in wanted:
        with suppress(ValueError, OSError):  # there is a lower one already, or the process has ended
            if sys.platform == "linux":
                resource.prlimit(pid, kind, (number, number))
            else:
                resource.setrlimit(kind, (number, number))
    # Where the machine's memory runs out, the system is to choose this process, not who started it.
    with suppress(OSError):
        Path(f"/proc/{pid or 'self'}/oom_score_adj").write_text("1000", "ascii")
