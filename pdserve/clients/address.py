"""Parse the addresses of servers, and find out whether one is this machine.

A request to this machine never goes through a proxy, whatever the environment says: that was the
first entry in the old guide's list of troubles.
"""

import ipaddress
import socket
from dataclasses import dataclass
from functools import cache
from urllib.parse import urlsplit

from pdserve.errors import UsageError


@dataclass(frozen=True)
class Address:
    """``scheme`` is http, https, grpc, or grpcs (gRPC over TLS)."""

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
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    host, port = _host_and_port(rest.removesuffix("/"))
    if scheme not in ("http", "https") or not separator or not host or port == 0:
        raise UsageError(f"The address {url!r} is not of the form http://host:port.")
    return Address(scheme, host, port or (443 if scheme == "https" else 80))


def rpc_address(target: str) -> Address:
    """``host:port`` or ``grpcs://host:port`` (or ``grpc://…``). Raises UsageError for anything else."""
    scheme, separator, rest = target.partition("://")
    scheme, netloc = (scheme.lower(), rest.removesuffix("/")) if separator else ("grpc", target)
    host, port = _host_and_port(netloc)
    if scheme not in ("grpc", "grpcs") or not host or not port:
        raise UsageError(
            f"The address {target!r} is not of the form host:port, or grpcs://host:port, which --rpc takes."
        )
    return Address(scheme, host, port)


def _host_and_port(netloc: str) -> tuple[str | None, int | None]:
    """``host``, ``host:port``, ``[v6]:port``; a host of None for what is more or less than that."""
    try:
        parts = urlsplit(f"//{netloc}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return None, None
    # A path, a user or a blank would be dropped silently, and the request go to another address than meant.
    if parts.netloc != netloc or "@" in netloc or netloc.endswith(":") or any(map(str.isspace, netloc)):
        return None, None
    return host, port


@cache
def is_this_machine(host: str) -> bool:
    """Whether a host is this machine: loopback, unspecified, or one of its own names and addresses."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name == socket.gethostname().lower() or name == socket.getfqdn().lower()
    if address.is_loopback or address.is_unspecified:
        return True
    # Only an own address can be bound to; a host's name often resolves to but one of several.
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True
