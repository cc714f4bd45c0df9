"""How many connections an HTTP listener keeps, in all and of one address, and whom it closes for a newcomer.

Where all places are taken, the connection that has been idle for longest, between two requests or before its
first, is closed and leaves its place. Where none is idle, or an address has its share, a newcomer gets one of
a few spare places: there it may ask the health routes alone, and is answered 503 otherwise. Of the spare
places the newest comer always gets one, so that a probe, which says at once what it wants, comes through.
"""

import ipaddress
import logging
import sys
from collections.abc import Callable
from typing import Protocol

from pdserve.settings import ServerSettings

log = logging.getLogger("pdserve")

SPARE = 64
"""Connections above the limit that may ask for the health."""

HANDSHAKES = 256
"""TLS handshakes under way; a newcomer ends the oldest."""

# Open files that a server needs beside the connections: models, indexes, logs, gRPC, the event loop.
_OTHER_FILES = 256


class Connection(Protocol):
    """What is counted."""

    def drop(self) -> None:
        """Close it, soon."""


class Places:
    """Counts connections against ``most`` in all and ``per_address``; see the module."""

    def __init__(self, most: int, per_address: int) -> None:
        self._most = most
        self._per_address = per_address
        self._addresses: dict[Connection, str] = {}
        self._by_address: dict[str, int] = {}
        self._idle: dict[Connection, None] = {}  # in the order in which they became so
        self._spare: dict[Connection, None] = {}

    def __len__(self) -> int:
        return len(self._addresses)

    def enter(self, connection: Connection, address: str | None) -> bool:
        """Count a connection in. False: it got a spare place, and may ask for the health alone."""
        network = _network(address or "")
        if self._by_address.get(network, 0) >= self._per_address:
            self._make_room(lambda idle: self._addresses[idle] == network)
        if len(self._addresses) >= self._most:
            self._make_room(lambda idle: True)
        if len(self._addresses) >= self._most or self._by_address.get(network, 0) >= self._per_address:
            self._spare[connection] = None
            if len(self._spare) > SPARE:
                oldest = next(iter(self._spare))
                del self._spare[oldest]
                oldest.drop()
            return False
        self._addresses[connection] = network
        self._by_address[network] = self._by_address.get(network, 0) + 1
        self._idle[connection] = None
        return True

    def leave(self, connection: Connection) -> None:
        """Count a connection out; one that was closed for another is out already."""
        self._idle.pop(connection, None)
        self._spare.pop(connection, None)
        network = self._addresses.pop(connection, None)
        if network is not None:
            self._by_address[network] -= 1
            if not self._by_address[network]:
                del self._by_address[network]

    def begins(self, connection: Connection) -> None:
        """A request begins on it."""
        self._idle.pop(connection, None)

    def ends(self, connection: Connection) -> None:
        """Its last request has its answer."""
        if connection in self._addresses:
            self._idle[connection] = None

    def _make_room(self, fits: Callable[[Connection], bool]) -> None:
        idle = next(filter(fits, self._idle), None)
        if idle is not None:
            self.leave(idle)
            idle.drop()


def _network(address: str) -> str:
    """What counts as one address: of IPv6 the first 64 bits, which is what one customer has (RFC 6177)."""
    if ":" not in address:
        return address
    try:
        parsed = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(int(parsed) >> 64)


def places(settings: ServerSettings) -> Places:
    """The connections of a listener, no more than there are files for; see `raise_file_limit`."""
    files = _file_limit()
    most = settings.max_connections
    if files is not None:
        most = max(1, min(most, files - _OTHER_FILES))
    return Places(most, settings.max_connections_per_address)


def raise_file_limit(settings: ServerSettings) -> None:
    """Raise the number of files this process may open to what the connections need; warn where it is less."""
    wanted = settings.max_connections + _OTHER_FILES
    files = _file_limit()
    if files is None or files >= wanted:
        return
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (OSError, ValueError):  # a system may have a limit of its own
        allowed = files
    if allowed < wanted:
        log.warning(
            "this process may open %d files, so that %d connections are kept and not %d (max_connections); "
            "raise the limit with ulimit -n, or LimitNOFILE of systemd",
            allowed,
            max(1, allowed - _OTHER_FILES),
            settings.max_connections,
        )


def _file_limit() -> int | None:
    """How many files this process may open; None for any number."""
    if sys.platform == "win32":
        return None
    import resource

    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else soft
