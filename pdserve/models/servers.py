"""The register of running servers in pdserve's home: what runs, where it listens, which files it uses.

::

    run/
      4711.json    {"pid": 4711, "kind": "classification", "http": "http://127.0.0.1:18080",
                    "rpc": "127.0.0.1:9993", "tls": false, "models": [folder, …], "index": folder or null,
                    "machine": the host's name, "started": "2026-01-31T12:00:00+00:00",
                    "services": [[name, kind], …] (where there are several)}
      4711.lock    held by the server; the system frees it however the process ends

A server writes its record when it listens, and removes it when it stops. A record whose lock is free is left
of a server that was killed, whoever has its process id now; readers remove it. ``http`` and ``rpc`` are
addresses that a client of that machine can use, null for a door that is shut.
"""

import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path

from pdserve.errors import PdserveError
from pdserve.files import disk_errors, replace_file, temp_siblings
from pdserve.locks import not_locked, try_file_lock
from pdserve.models.home import Home

log = logging.getLogger("pdserve")

# A record has a few hundred bytes; what is larger is none.
_MAX_BYTES = 64 * 1024
# Another server may have the same process id, in a container or on a machine that shares the home.
_NAMES = 20


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class RunningServer:
    """A server's record; ``models`` and ``index`` are absolute paths of folders, ``started`` is UTC.

    ``services``: name and kind of each, where it has several; ``kind`` is then "services".
    """

    pid: int
    kind: str
    http: str | None
    rpc: str | None
    tls: bool
    models: tuple[str, ...] = ()
    index: str | None = None
    machine: str = field(default_factory=socket.gethostname)
    started: str = field(default_factory=_now)
    services: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """As a message names it: ``classification at http://127.0.0.1:18080 (pid 4711)``."""
        where = self.http or (self.rpc and f"gRPC {self.rpc}")
        here = "" if self.is_here else f" on {self.machine}"
        what = ", ".join(name for name, _ in self.services) or self.kind
        return f"{what}{f' at {where}' if where else ''} (pid {self.pid}{here})"

    @property
    def is_here(self) -> bool:
        """Whether it runs on this machine, which may share its home with others."""
        return self.machine == socket.gethostname()

    def uses(self, folder: Path) -> bool:
        """Whether one of its models or its index is this folder, or in it."""
        inside = folder.resolve()
        used = (*self.models, *((self.index,) if self.index else ()))
        return any(Path(each).resolve().is_relative_to(inside) for each in used)


_FIELDS = tuple(each.name for each in fields(RunningServer))


def usable(host: str) -> str:
    """The host that a client of this machine connects to, for the one that a server listens on."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


class Registration:
    """A server's place in the register, until `close`. Nothing here raises: a server runs without, too."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._path: Path | None = None
        self._stack = ExitStack()

    def write(self, server: RunningServer) -> None:
        """Write the record, or what has become of it; one line of the log where that is impossible."""
        try:
            self._path = self._path or self._take(server.pid)
            with replace_file(self._path) as new, disk_errors(self._path):
                record = asdict(server)
                if not server.services:
                    del record["services"]
                new.write_text(json.dumps(record) + "\n", "utf-8")
        except (PdserveError, OSError) as error:
            log.warning("not in the register of running servers, `pdserve list` does not show it: %s", error)

    def _take(self, pid: int) -> Path:
        """The path of the record, whose lock this process holds from now on."""
        for number in range(_NAMES):
            path = self._home.servers / (f"{pid}-{number}.json" if number else f"{pid}.json")
            with disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            if try_file_lock(path.with_suffix(".lock"), self._stack):
                return path
        raise OSError(f"{path} and those before it are taken")

    def close(self) -> None:
        """Remove the record."""
        with suppress(OSError):
            if self._path:
                self._path.unlink(missing_ok=True)
        self._stack.close()
        with suppress(OSError):  # after the lock: Windows removes no open file
            if self._path:
                self._path.with_suffix(".lock").unlink(missing_ok=True)
        self._path = None


@contextmanager
def registration(home: Home) -> Iterator[Registration]:
    """A server's place in the register; its record is removed at the end."""
    place = Registration(home)
    try:
        yield place
    finally:
        place.close()


def running(home: Home) -> list[RunningServer]:
    """The servers that run with this home, by their start; what killed ones left is removed.

    Nothing here raises: an unreadable record is no server, and one that cannot be examined counts as running.
    """
    return [server for server, _ in _records(home)]


def of_this_user(home: Home) -> list[RunningServer]:
    """Those of `running` that were started on this machine, by this user or by the system's administrator."""
    return [server for server, is_own in _records(home) if is_own and server.is_here]


def _records(home: Home) -> list[tuple[RunningServer, bool]]:
    found = []
    with suppress(OSError):
        names = {path.stem for path in home.servers.iterdir() if path.suffix in (".json", ".lock")}
        for path in (home.servers / f"{name}.json" for name in names):
            with not_locked(path.with_suffix(".lock")) as is_left:
                if is_left:
                    _sweep(path)
                elif record := _read(path):
                    found.append(record)
    return sorted(found, key=lambda record: (record[0].started, record[0].pid))


def _sweep(path: Path) -> None:
    for left in (*(each for each in temp_siblings(path.parent) if each.name[1:-17] == path.name), path):
        with suppress(OSError):
            left.unlink()
    with suppress(OSError):  # last: a record without a lock would be nobody's
        path.with_suffix(".lock").unlink()


def _read(path: Path) -> tuple[RunningServer, bool] | None:
    """A record, and whether this user or the administrator wrote it; None for what is no record."""
    try:
        with path.open("rb") as file:
            # On Windows the home is in the user's own profile.
            own = sys.platform == "win32" or os.fstat(file.fileno()).st_uid in (os.getuid(), 0)
            content = json.loads(file.read(_MAX_BYTES))
        # One alone has no list of services.
        found = {name: content[name] for name in _FIELDS if name != "services" or name in content}
        server = RunningServer(**found)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    texts = (server.kind, server.machine, server.started)
    optional = (server.http, server.rpc, server.index)
    right = (
        type(server.pid) is int
        and isinstance(server.tls, bool)
        and isinstance(server.models, list)
        and isinstance(server.services, list | tuple)
        and all(isinstance(pair, list) and len(pair) == 2 for pair in server.services)
        and all(isinstance(text, str) for pair in server.services for text in pair)
        and all(isinstance(text, str) for text in (*texts, *server.models))
        and all(text is None or isinstance(text, str) for text in optional)
    )
    if not right:
        return None
    named = tuple((name, kind) for name, kind in server.services)
    return replace(server, models=tuple(server.models), services=named), own
