"""Downloads one address to one file: resumed after a break, retried after a failure, checked at the end.

What has come is in ``FILE.part``, and what is known of it in ``FILE.part.json``: with that, the next run can
ask for the rest alone (Range), and only if the server's file is still the same (If-Range).
"""

import base64
import binascii
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pdserve import files
from pdserve.errors import ChecksumError, DiskError, FetchError, OfflineError
from pdserve.models.catalog import public
from pdserve.models.partial import Partial as Partial
from pdserve.models.partial import RemoteFile as RemoteFile
from pdserve.models.partial import part_key as part_key
from pdserve.progress import SILENT, Progress
from pdserve.proxies import Proxy, find_proxy

if TYPE_CHECKING:
    import requests
    from requests.auth import AuthBase

_CHUNK = 1 << 16
# The most that a file may have, if nothing less is said: as an archive may unpack to.
MAX_BYTES = 16 << 30
# Bytes that are left free on the disk, where the length of what comes is not known.
RESERVE = 512 << 20
# Fewer bytes than these are no progress that would allow another attempt.
LITTLE = 1 << 13
_LOOK_EVERY = 16 << 20


@dataclass(frozen=True)
class Policy:
    """How long to try. Times in seconds; the pause doubles from ``pause`` on, up to ``longest_pause``.

    ``attempts`` counts those in a row that bring nothing new, or less than `LITTLE`. A download that brings
    less than ``slowest`` bytes a second, over ``slow_s`` seconds, fails. ``max_bytes``: more of one download
    are refused. ``offline`` forbids the network.
    """

    attempts: int = 5
    pause: float = 0.5
    longest_pause: float = 30.0
    connect_timeout: float = 15.0
    read_timeout: float = 60.0
    slowest: float = 1000.0
    slow_s: float = 60.0
    max_bytes: int = MAX_BYTES
    offline: bool = False

    def require_network(self, name: str) -> None:
        """Raise OfflineError where the network is forbidden; ``name`` is what would be downloaded."""
        if self.offline:
            raise OfflineError(
                f"{name} is not here, and the network is forbidden (--offline, PDSERVE_OFFLINE); type "
                f"`pdserve fetch {name}` where it is allowed, or give a mirror's folder in PDSERVE_MIRROR."
            )


@dataclass(frozen=True)
class Downloaded:
    """A complete, checked file; ``sha256`` is hexadecimal, ``size`` in bytes.

    ``plain``: some of it came over http without TLS, so another machine on the way could have changed it.
    """

    path: Path
    sha256: str
    size: int
    plain: bool = False


@dataclass(frozen=True)
class _Task:
    name: str
    url: str
    part: Partial
    progress: Progress
    policy: Policy
    cancel: threading.Event
    free: files.FreeSpace
    max_bytes: int

    @property
    def shown(self) -> str:
        """The address without a password and a query, for messages."""
        return public(self.url)

    @property
    def key(self) -> str:
        return part_key(self.url)

    def check_size(self, size: int) -> None:
        """Raise FetchError, and leave nothing, for more bytes than allowed."""
        if size > self.max_bytes:
            self.part.discard()
            limit = files.format_size(self.max_bytes)
            raise FetchError(f"{self.shown} has more than {limit}, the limit; check the address.")

    def check_space(self) -> None:
        """Raise DiskError, and leave nothing, where the disk would be full soon."""
        try:
            files.require_space(self.part.path.parent, RESERVE, f"Fetching {self.name}", self.free)
        except DiskError:
            self.part.discard()
            raise

    def interrupted(self) -> FetchError:
        return FetchError(f"The download of {self.name} was interrupted; fetch it again to resume.")


class _RetryableError(Exception):
    """This attempt failed in a way that the next may not: ``after`` seconds, ``restart``: from the start."""

    def __init__(self, reason: str, *, after: float = 0, restart: bool = False) -> None:
        super().__init__(reason)
        self.after, self.restart = after, restart


def download(
    url: str,
    target: Path,
    *,
    name: str | None = None,
    sha256: str | None = None,
    promise: str = "the catalog knows",
    auth: "AuthBase | None" = None,
    max_bytes: int | None = None,
    progress: Progress = SILENT,
    policy: Policy | None = None,
    cancel: threading.Event | None = None,
    free: files.FreeSpace = files.free_space,
) -> Downloaded:
    """Download ``url`` to ``target`` with ``.part`` added, where it stays until ``Partial.discard``.

    ``name`` is what progress calls it; ``sha256`` (hex) is what it must have, by whose ``promise``; ``auth``
    signs requests to the address's own host alone; more than ``max_bytes``, and than the policy allows, are
    refused. A complete one of an earlier run is taken as it is. The caller holds a lock on ``target``.
    Raises ChecksumError (nothing is left then), DiskError, OfflineError where the policy forbids the network,
    UsageError for a proxy that cannot be used, and FetchError for an address that does not answer well; the
    ``.part`` is left then, to resume from.
    """
    from pdserve.models.session import open_session

    part = Partial(target)
    stop, policy = cancel or threading.Event(), policy or Policy()
    limit = policy.max_bytes if max_bytes is None else min(max_bytes, policy.max_bytes)
    task = _Task(name or target.name, url, part, progress, policy, stop, free, limit)
    task.policy.require_network(task.name)
    remote = part.remote(task.key)
    restarted = False
    with open_session(url, auth) as session:
        while True:
            if remote is None or not remote.complete:
                remote = _retry(session, task)
            found, problem = _check(task, remote, sha256, promise)
            if problem is None:
                return Downloaded(part.path, found, part.size, remote.plain)
            part.discard()
            if restarted or remote.pieces == 1:
                raise ChecksumError(problem)
            # The pieces may be of two files that the server took for one.
            progress.note(task.name, "the resumed file is wrong; restarting")
            remote, restarted = None, True


def _check(task: _Task, remote: RemoteFile, sha256: str | None, promise: str) -> tuple[str, str | None]:
    """The file's SHA-256, and what is wrong with it."""
    task.progress.note(task.name, "checking")
    with files.disk_errors(task.part.path):
        found, md5 = files.digest(task.part.path, "sha256", "md5")
    if remote.md5 and md5 != remote.md5:
        return found, f"{task.shown} came with MD5 {md5} where {remote.md5} was promised; fetch it again."
    if sha256 and found != sha256.lower():
        return found, (
            f"{task.shown} has SHA-256 {found} but {promise} {sha256}, so it is another file; "
            "it was deleted. Check the mirror, or report it."
        )
    return found, None


def _retry(session: "requests.Session", task: _Task) -> RemoteFile:
    """Attempt until the file is complete, or nothing new came for ``policy.attempts`` in a row."""
    failures, most = 0, task.part.size
    while True:
        try:
            return _attempt(session, task)
        except _RetryableError as error:
            have = task.part.size
            failures = 1 if have >= most + LITTLE else failures + 1
            most = max(most, have)
            if failures >= task.policy.attempts:
                kept = f" What came ({files.format_size(have)}) is kept." if have else ""
                raise FetchError(
                    f"{task.shown} {error}, {failures} times in a row.{kept} "
                    f"Check the network, the proxy and the mirror, then type `pdserve fetch {task.name}`."
                ) from error.__cause__
            if error.restart:
                task.part.discard()
            pause = task.policy.pause * 2 ** (failures - 1) * random.uniform(0.8, 1.2)
            pause = min(max(pause, error.after), task.policy.longest_pause)
            task.progress.note(task.name, f"{error}; next attempt in {pause:.1f} s")
            if task.cancel.wait(pause):
                raise task.interrupted() from None


def _attempt(session: "requests.Session", task: _Task) -> RemoteFile:
    import requests
    import urllib3

    remote, have = task.part.remote(task.key), task.part.size
    headers = {}
    if remote and remote.validator and have:
        headers = {"Range": f"bytes={have}-", "If-Range": remote.validator}
    else:
        remote = None
    timeout = (task.policy.connect_timeout, task.policy.read_timeout)
    try:
        with session.get(task.url, headers=headers, stream=True, timeout=timeout) as response:
            remote = _start(response, task, remote)
            _receive(response, task)
    except requests.exceptions.SSLError as error:
        raise FetchError(
            f"{task.shown} has no certificate that is trusted here ({reason(error)}); if a proxy replaces "
            "certificates, set REQUESTS_CA_BUNDLE to its certificate file."
        ) from error
    except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
        through = f" through the proxy {proxy}" if (proxy := _proxy(task.url)) else ""
        raise _RetryableError(f"failed{through} ({reason(error)})") from error
    except requests.RequestException as error:
        raise FetchError(f"Cannot fetch {task.shown}: {error}; check the mirror's address.") from error
    have = task.part.size
    if remote.total is not None and have != remote.total:
        raise _RetryableError(f"sent {have} of {remote.total} bytes", restart=have > remote.total)
    remote = replace(remote, total=have, complete=True)
    task.part.remember(remote)
    return remote


def _start(response: "requests.Response", task: _Task, remote: RemoteFile | None) -> RemoteFile:
    """Check the response's status line and headers, and prepare the part for its body."""
    status, headers = response.status_code, response.headers
    plain = any(each.url.lower().startswith("http:") for each in (*response.history, response))
    if status == 206 and remote:
        _check_range(headers, task.part.size, remote)
        remote = replace(remote, pieces=remote.pieces + 1, plain=remote.plain or plain)
        task.part.remember(remote)
    elif status == 200:
        length = headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        remote = RemoteFile(task.key, _validator(headers), total, _md5(headers), plain=plain)
        task.part.start(remote)
    elif status == 416:
        raise _RetryableError("has no such range", restart=True)
    elif status in (408, 429) or status >= 500:
        raise _RetryableError(f"answered {status} {response.reason}", after=_retry_after(headers))
    else:
        hint = "it is not there; check the name or the mirror" if status in (404, 410) else "check the mirror"
        raise FetchError(f"{task.shown} answered {status} {response.reason}: {hint}.")
    have = task.part.size
    if remote.total is not None:
        task.check_size(remote.total)
        # The unpacked copy, which comes next to it, is at least as large.
        need = 2 * remote.total - have
        files.require_space(task.part.path.parent, need, f"Fetching {task.name}", task.free)
    task.progress.start(task.name, remote.total, have)
    return remote


def _check_range(headers: Mapping[str, str], have: int, remote: RemoteFile) -> None:
    """Some servers honour Range but not If-Range, or send another range than requested."""
    got = headers.get("Content-Range", "")
    total = "*" if remote.total is None else str(remote.total)
    if not got.startswith(f"bytes {have}-") or got.rpartition("/")[2] not in ("*", total):
        reason = f"sent the range {got!r} where the bytes from {have} of {total} were requested"
        raise _RetryableError(reason, restart=True)
    if _validator(headers) not in (None, remote.validator):
        raise _RetryableError("has another file now", restart=True)


def _receive(response: "requests.Response", task: _Task) -> None:
    have = looked = task.part.size
    since, had = time.monotonic(), have
    with files.disk_errors(task.part.path), task.part.path.open("ab") as file:
        # Undecoded: length, MD5 and ranges are those of the bytes as sent.
        # And as they come, so that what trickles is noticed.
        while chunk := response.raw.read1(_CHUNK, decode_content=False):
            if task.cancel.is_set():
                raise task.interrupted()
            file.write(chunk)
            task.progress.advance(task.name, len(chunk))
            have += len(chunk)
            if have > task.max_bytes:
                break
            if have >= looked + _LOOK_EVERY:
                looked = have
                task.check_space()
            if (spent := time.monotonic() - since) >= task.policy.slow_s:
                if have - had < task.policy.slowest * spent:
                    raise _RetryableError(f"is too slow ({have - had} bytes in {spent:.0f} s)")
                since, had = time.monotonic(), have
    task.check_size(have)


def reason(error: BaseException) -> str:
    """The innermost cause in a chain of wrapped network errors."""
    while isinstance(inner := getattr(error, "reason", None) or error.__context__, Exception):
        error = inner
    return str(error) or type(error).__name__


def _proxy(url: str) -> Proxy | None:
    parts = urlsplit(url)
    return find_proxy(parts.scheme, parts.hostname or "", parts.port, package="socks")


def _validator(headers: Mapping[str, str]) -> str | None:
    """What If-Range can compare: a strong ETag, else the date (RFC 9110, 13.1.5)."""
    etag = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified") or None


def _md5(headers: Mapping[str, str]) -> str | None:
    """The MD5 (hexadecimal) promised for the whole body, or None.

    ``Content-MD5`` is base64 (RFC 1864); ``x-bce-content-md5`` is the public model host's form of it;
    both are met in hexadecimal too. An ETag is not used, though object stores often put an MD5 there:
    for an object uploaded in several parts, or encrypted, the same 32 digits mean something else.
    """
    for key in ("Content-MD5", "x-bce-content-md5"):
        value = headers.get(key, "").strip()
        try:
            raw = bytes.fromhex(value) if len(value) == 32 else base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            continue
        if len(raw) == 16:
            return raw.hex()
    return None


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds to wait, given as such or as a date (RFC 9110, 10.2.3); 0 if not said."""
    import urllib3

    try:
        return urllib3.Retry().parse_retry_after(headers.get("Retry-After", ""))
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        return 0
