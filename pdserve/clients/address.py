"""Parse the addresses of servers, and find out whether one is this machine."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from pdserve.errors import UsageError
from pdserve.proxies import is_this_machine as is_this_machine


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
