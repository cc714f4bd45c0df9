"""Addresses of servers, and whether they are on this machine.

A request to this machine never goes through a proxy, whatever the environment says: that was the
first entry in the old guide's list of troubles.
"""

import ipaddress
import socket
from dataclasses import dataclass
from functools import cache
from urllib.parse import urlsplit

from pdserve.errors import UsageError

# Where a service listens when nobody says otherwise: (HTTP, gRPC).
DEFAULT_PORTS = {"classification": (18080, 9993), "recognition": (18081, 9994)}


@dataclass(frozen=True)
class Address:
    """``scheme`` is http, https, or grpc."""

    scheme: str
    host: str
    port: int

    @property
    def netloc(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return self.netloc if self.scheme == "grpc" else f"{self.scheme}://{self.netloc}"


def http_address(url: str) -> Address:
    """``http://host:port`` or ``https://…``. Raises UsageError for anything else."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
        raise UsageError(f"The address {url!r} is not of the form http://host:port.")
    return Address(parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80))


def rpc_address(target: str) -> Address:
    """``host:port``. Raises UsageError for anything else."""
    try:
        parts = urlsplit(f"//{target}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if "/" in target or not host or port is None:
        raise UsageError(f"The address {target!r} is not of the form host:port, which --rpc takes.")
    return Address("grpc", host, port)


@cache
def is_this_machine(host: str) -> bool:
    """Whether a host is this machine: loopback, unspecified, or one of its own names and addresses."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower() in {socket.gethostname().lower(), socket.getfqdn().lower()}
    if address.is_loopback or address.is_unspecified:
        return True
    try:
        own = socket.getaddrinfo(socket.gethostname(), None)
    except OSError:
        return False
    return host in {str(entry[4][0]) for entry in own}
