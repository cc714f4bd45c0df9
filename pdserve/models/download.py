"""One address to one file: resumed after a break, retried after a failure, checked at the end."""

import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pdserve import __version__, files
from pdserve.errors import ChecksumError, FetchError
from pdserve.models import headers
from pdserve.models.mirror import public
from pdserve.models.partial import Partial, State
from pdserve.progress import SILENT, Progress

if TYPE_CHECKING:
    import requests

_CHUNK = 1 << 16
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True)
class Policy:
    """How long to try. Times in seconds; the pause doubles from ``pause`` on, up to ``longest_pause``.

    ``attempts`` counts those in a row that bring nothing new.
    """

    attempts: int = 5
    pause: float = 0.5
    longest_pause: float = 30.0
    connect_timeout: float = 15.0
    read_timeout: float = 60.0


@dataclass(frozen=True)
class Downloaded:
    """A complete, checked file; ``sha256`` is hexadecimal, ``size`` in bytes."""

    path: Path
    sha256: str
    size: int


@dataclass(frozen=True)
class _Task:
    name: str
    url: str
    part: Partial
    progress: Progress
    policy: Policy
    cancel: threading.Event
    free: files.FreeSpace

    @property
    def shown(self) -> str:
        """The address without a password, for messages and for the note beside the part."""
        return public(self.url)

    def interrupted(self) -> FetchError:
        return FetchError(f"The download of {self.name} was interrupted; fetch it again to go on from there.")


class _Retry(Exception):  # noqa: N818 - it is a turn of the loop, not an error
    """This attempt failed in a way that the next may not, ``after`` seconds, and ``anew`` if so."""

    def __init__(self, reason: str, *, after: float = 0, anew: bool = False) -> None:
        super().__init__(reason)
        self.after, self.anew = after, anew


def download(
    url: str,
    target: Path,
    *,
    name: str | None = None,
    sha256: str | None = None,
    progress: Progress = SILENT,
    policy: Policy | None = None,
    cancel: threading.Event | None = None,
    free: files.FreeSpace = files.free_space,
) -> Downloaded:
    """Download ``url`` to ``target`` with ``.part`` added, where it stays until ``Partial.discard``.

    ``name`` is what progress calls it; ``sha256`` (hex) is what it must have. A complete one of an
    earlier run is taken as it is. The caller holds a lock on ``target``. Proxies are those of the
    environment, except for this machine. Raises ChecksumError (nothing is kept), DiskError, and
    FetchError for an address that does not answer well; a ``.part`` to go on from is kept then.
    """
    import requests

    part = Partial(target)
    stop = cancel or threading.Event()
    task = _Task(name or target.name, url, part, progress, policy or Policy(), stop, free)
    state = part.state(task.shown)
    anew = False
    with requests.Session() as session:
        session.headers.update({"User-Agent": f"pdserve/{__version__}", "Accept-Encoding": "identity"})
        session.trust_env = urlsplit(url).hostname not in _LOOPBACK
        while True:
            if state is None or not state.complete:
                state = _persist(session, task)
            found, problem = _check(task, state, sha256)
            if problem is None:
                return Downloaded(part.path, found, part.size)
            part.discard()
            if anew or state.pieces == 1:
                raise ChecksumError(problem)
            # The pieces may be of two files that the server took for one.
            progress.note(task.name, "the resumed file is wrong; starting anew")
            state, anew = None, True


def _check(task: _Task, state: State, sha256: str | None) -> tuple[str, str | None]:
    """The file's SHA-256, and what is wrong with it."""
    task.progress.note(task.name, "checking")
    with files.disk_errors(task.part.path):
        found, md5 = files.digest(task.part.path, "sha256", "md5")
    if state.md5 and md5 != state.md5:
        return found, f"{task.shown} came with MD5 {md5} where {state.md5} was promised; fetch it again."
    if sha256 and found != sha256.lower():
        return found, (
            f"{task.shown} has SHA-256 {found} but the catalog knows {sha256}, so it is another file; "
            "it was not kept. Check the mirror, or report it."
        )
    return found, None


def _persist(session: "requests.Session", task: _Task) -> State:
    """Attempt until the file is complete, or nothing new came for ``policy.attempts`` in a row."""
    failures, most = 0, task.part.size
    while True:
        try:
            return _attempt(session, task)
        except _Retry as retry:
            have = task.part.size
            failures = 1 if have > most else failures + 1
            most = max(most, have)
            if failures >= task.policy.attempts:
                kept = f" What came ({files.format_size(have)}) is kept." if have else ""
                raise FetchError(
                    f"{task.shown} {retry}, {failures} times in a row.{kept} "
                    "Check the network, the proxy and the mirror, then fetch it again."
                ) from retry.__cause__
            if retry.anew:
                task.part.discard()
            pause = task.policy.pause * 2 ** (failures - 1) * random.uniform(0.8, 1.2)
            pause = min(max(pause, retry.after), task.policy.longest_pause)
            task.progress.note(task.name, f"{retry}; next attempt in {pause:.1f} s")
            if task.cancel.wait(pause):
                raise task.interrupted() from None


def _attempt(session: "requests.Session", task: _Task) -> State:
    import requests
    import urllib3

    state, have = task.part.state(task.shown), task.part.size
    ask = {}
    if state and state.validator and have:
        ask = {"Range": f"bytes={have}-", "If-Range": state.validator}
    else:
        state = None
    timeout = (task.policy.connect_timeout, task.policy.read_timeout)
    try:
        with session.get(task.url, headers=ask, stream=True, timeout=timeout) as response:
            state = _begin(response, task, state)
            _receive(response, task)
    except requests.exceptions.SSLError as error:
        raise FetchError(
            f"{task.shown} has no certificate that is trusted here ({_reason(error)}); if a proxy of yours "
            "puts its own there, set REQUESTS_CA_BUNDLE to its certificate file."
        ) from error
    except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
        raise _Retry(f"failed ({_reason(error)})") from error
    except requests.RequestException as error:
        raise FetchError(f"Cannot fetch {task.shown}: {error}; check the mirror's address.") from error
    have = task.part.size
    if state.total is not None and have != state.total:
        raise _Retry(f"sent {have} of {state.total} bytes", anew=have > state.total)
    state = replace(state, total=have, complete=True)
    task.part.remember(state)
    return state


def _begin(response: "requests.Response", task: _Task, state: State | None) -> State:
    """Judge the answer's status line and headers, and make ready for its body."""
    status, answer = response.status_code, response.headers
    if status == 206 and state:
        _check_range(answer, task.part.size, state)
        state = replace(state, pieces=state.pieces + 1)
        task.part.remember(state)
    elif status == 200:
        validator, total = headers.validator(answer), headers.length(answer)
        state = State(task.shown, validator, total, headers.md5(answer))
        task.part.begin(state)
    elif status == 416:
        raise _Retry("has no such range", anew=True)
    elif status in (408, 429) or status >= 500:
        raise _Retry(f"answered {status} {response.reason}", after=headers.retry_after(answer))
    else:
        hint = "it is not there; check the name or the mirror" if status in (404, 410) else "check the mirror"
        raise FetchError(f"{task.shown} answered {status} {response.reason}: {hint}.")
    have = task.part.size
    if state.total is not None:
        # The unpacked copy, which comes next to it, is at least as large.
        files.require_space(task.part.path.parent, 2 * state.total - have, f"Fetching {task.name}", task.free)
    task.progress.start(task.name, state.total, have)
    return state


def _check_range(answer: Mapping[str, str], have: int, state: State) -> None:
    """Some servers honour Range but not If-Range, or send another range than asked for."""
    got = answer.get("Content-Range", "")
    total = "*" if state.total is None else str(state.total)
    if not got.startswith(f"bytes {have}-") or got.rpartition("/")[2] not in ("*", total):
        raise _Retry(
            f"sent the range {got!r} where the bytes from {have} of {total} were asked for", anew=True
        )
    if headers.validator(answer) not in (None, state.validator):
        raise _Retry("has another file by now", anew=True)


def _receive(response: "requests.Response", task: _Task) -> None:
    with files.disk_errors(task.part.path), task.part.path.open("ab") as file:
        # Undecoded: length, MD5 and ranges are those of the bytes as sent.
        for chunk in response.raw.stream(_CHUNK, decode_content=False):
            if task.cancel.is_set():
                raise task.interrupted()
            file.write(chunk)
            task.progress.advance(task.name, len(chunk))


def _reason(error: BaseException) -> str:
    """The innermost cause in a chain of wrapped network errors."""
    while isinstance(inner := getattr(error, "reason", None) or error.__context__, Exception):
        error = inner
    return str(error) or type(error).__name__
