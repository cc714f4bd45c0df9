"""Which proxy of the environment a request goes through, if any.

``http_proxy``, ``https_proxy``, ``all_proxy`` and ``no_proxy``, in small letters or capitals, and without
them what macOS or Windows have set. A request to this machine never goes through one: that was the first
entry in the old guide's list of troubles.
"""

import ipaddress
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.util import find_spec
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies

from pdserve.errors import UsageError

# The schemes of proxies, and the package that speaks them where the HTTP clients do not themselves.
_SCHEMES = {"http": None, "https": None, "socks5": "socksio", "socks5h": "socksio"}


@dataclass(frozen=True)
class Proxy:
    """``url`` may have a user and a password; ``origin`` is the variable that it comes from."""

    url: str
    origin: str

    @property
    def public(self) -> str:
        """The address without user and password."""
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    def __str__(self) -> str:
        return f"{self.public} ({self.origin})"

    def unreachable(self, detail: str, host: str) -> str:
        """The sentence where the proxy itself does not answer, or refuses."""
        return f"The proxy {self} {detail}; set it right, or take {host} out of its way with NO_PROXY={host}."


def find_proxy(
    scheme: str,
    host: str,
    port: int | None = None,
    environ: Mapping[str, str] | None = None,
    names: Sequence[str] | None = None,
    package: str | None = "socksio",
) -> Proxy | None:
    """The proxy for a request; None where there is none, and for this machine.

    ``names``: the variables to look at, in small letters; by default those of the scheme, and all_proxy.
    ``package``: what speaks SOCKS for the caller, None where nothing does. Raises UsageError for a proxy that
    cannot be used, with what to do.
    """
    if is_this_machine(host):
        return None
    found = _given(names or (f"{scheme}_proxy", "all_proxy"), os.environ if environ is None else environ)
    if found is None:
        return None
    url, origin, without = found
    if _is_excepted(host, port, without):
        return None
    url = url if "://" in url else f"http://{url}"
    proxy = Proxy(url, origin)
    try:
        parts = urlsplit(url)
        known = parts.scheme.lower() in _SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise UsageError(f"{origin} holds no address of a proxy; set it to http://HOST:PORT, or unset it.")
    if _SCHEMES[parts.scheme.lower()] and (package is None or find_spec(package) is None):
        brings = f"pip install {package}" if package else "give an http:// proxy in its place"
        raise UsageError(
            f"{origin} names the SOCKS proxy {proxy.public}, which nothing here speaks; {brings}, or take "
            f"{host} out of its way with NO_PROXY={host}."
        )
    return proxy


def _given(names: Sequence[str], environ: Mapping[str, str]) -> tuple[str, str, str] | None:
    """A proxy's address, where it comes from, and the hosts that are excepted."""
    without = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    for name in names:
        for spelled in (name, name.upper()):
            if url := environ.get(spelled, "").strip():
                return url, spelled, without
    if environ is os.environ and sys.platform in ("darwin", "win32"):  # pragma: no cover - not on Linux
        of_system = getproxies()
        for name in names:
            if url := of_system.get(name.removesuffix("_proxy")):
                return url, "the system's settings", without
    return None


def _is_excepted(host: str, port: int | None, without: str) -> bool:
    """Whether NO_PROXY has a host: names with their subdomains, addresses, networks, all with a port or not.

    Entries are between commas or blanks; ``*`` stands for anything. What is none of these excepts nothing.
    """
    name = host.lower().strip("[]").rstrip(".").partition("%")[0]
    return any(_matches(name, port, entry) for entry in without.lower().replace(",", " ").split())


def _matches(name: str, port: int | None, entry: str) -> bool:
    entry = entry.partition("://")[2] or entry
    if entry.startswith("["):
        entry, _, rest = entry[1:].partition("]")
        wanted = rest.removeprefix(":")
    elif entry.count(":") == 1:
        entry, _, wanted = entry.partition(":")
    else:
        wanted = ""
    if wanted and wanted != str(port):
        return False
    entry = entry.rstrip(".").partition("%")[0]
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        suffix = entry.removeprefix("*").removeprefix(".")
        return name == suffix or fnmatchcase(name, entry) or (bool(suffix) and name.endswith(f".{suffix}"))
    try:
        network = ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return fnmatchcase(name, entry)
    return address in network


@cache
def is_this_machine(host: str) -> bool:
    """Whether a host is this machine: loopback, unspecified, or one of its own names and addresses."""
    name = host.lower().strip("[]").rstrip(".")
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
