"""Listening: bound sockets, addresses as people read them, and the certificate for HTTP and gRPC."""

import errno
import ipaddress
import os
import socket
import ssl
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdserve.errors import SettingsError
from pdserve.settings import ServerSettings

if TYPE_CHECKING:
    import grpc


@dataclass(frozen=True)
class Tls:
    """TLS for HTTP (``context``) and for gRPC (``credentials``); None without."""

    context: ssl.SSLContext | None = None
    _pem: tuple[bytes, bytes] | None = field(default=None, repr=False)  # the key, the certificates

    @property
    def credentials(self) -> "grpc.ServerCredentials | None":
        """TLS for gRPC."""
        import grpc

        return grpc.ssl_server_credentials([self._pem]) if self._pem else None


def check_tls(settings: ServerSettings) -> Tls:
    """Read ``tls_cert`` (the server's certificate, then those that vouch for it) and ``tls_key``.

    Raises SettingsError for one without the other, and for files that cannot be read, are no PEM, need a
    password or do not belong together.
    """
    cert, key = settings.tls_cert, settings.tls_key
    if cert is None and key is None:
        return Tls()
    if cert is None or key is None:
        given, missing = ("key", "cert") if cert is None else ("cert", "key")
        raise SettingsError(f"--tls-{given} needs --tls-{missing} beside it; give both, or none.")
    pem = _read(key, "--tls-key"), _read(cert, "--tls-cert")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])

    def no_password() -> str:
        raise SettingsError(
            f"--tls-key {key} is encrypted; write it without a password (`openssl pkey -in {key}`)."
        )

    try:
        context.load_cert_chain(cert, key, no_password)
    except ssl.SSLError as error:
        if "MISMATCH" in (error.reason or ""):
            raise SettingsError(f"--tls-key {key} is not the key of the certificate {cert}.") from error
        raise SettingsError(
            f"--tls-cert {cert} and --tls-key {key} are not a certificate and its key in PEM form: "
            f"{error.reason or error}."
        ) from error
    return Tls(context, pem)


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"Cannot read {option} {path}: {error.strerror}.") from error


def bind(host: str, port: int) -> list[socket.socket]:
    """Bound sockets, one for each address of a host, all on one port; 0 is any free one.

    ``localhost`` is this machine's loopback in IPv4 and IPv6, whatever it is looked up to. An address that
    the machine does not have (IPv6 may be off) is left out where there is another. Raises SettingsError for a
    port in use or an address of another machine.
    """
    found = _addresses(host, port)
    for last in (*[False] * _ATTEMPTS, True):
        try:
            return _bound(host, port, found)
        except _OtherPortError as error:  # free at one address, taken at another
            if last:
                raise _cannot_listen(host, error.port, os.strerror(errno.EADDRINUSE)) from error
    raise AssertionError("the last attempt returns or raises")


_ATTEMPTS = 10
_WHAT_A_HOST_IS = "give a name or an address alone, as 127.0.0.1 or ::1, or 0.0.0.0 for all"
_LOOPBACK = ("127.0.0.1", "::1")
_ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_Address = tuple[socket.AddressFamily, Any]


class _OtherPortError(Exception):
    def __init__(self, port: int) -> None:
        self.port = port


def _addresses(host: str, port: int) -> list[_Address]:
    if host == "*":  # which is looked up to the loopback
        raise SettingsError(f"The host '*' is no address; {_WHAT_A_HOST_IS}.")
    names = _LOOPBACK if host.lower().removesuffix(".") == "localhost" else (host,)
    found: dict[Any, _Address] = {}
    try:
        for name in names:
            for family, _, _, _, address in socket.getaddrinfo(name, port, type=socket.SOCK_STREAM):
                found.setdefault(address, (family, address))
    except (OSError, UnicodeError) as error:  # a label of more than 63 characters is the codec's to refuse
        if not found:
            reason = getattr(error, "strerror", None) or "it is no host name"
            raise SettingsError(
                f"The host {host!r} is no address of this machine: {reason}; {_WHAT_A_HOST_IS}."
            ) from error
    return list(found.values())


def _bound(host: str, port: int, addresses: list[_Address]) -> list[socket.socket]:
    opened: list[socket.socket] = []
    absent = "no address"
    try:
        for family, address in addresses:
            chosen = opened[0].getsockname()[1] if opened else port
            try:
                opened.append(_socket(family, (address[0], chosen, *address[2:])))
            except OSError as error:
                if error.errno in _ABSENT:
                    absent = error.strerror or absent
                    continue
                if opened and not port and error.errno == errno.EADDRINUSE:
                    raise _OtherPortError(chosen) from error
                raise _cannot_listen(host, chosen, error.strerror) from error
        if not opened:
            raise SettingsError(
                f"Cannot listen on {host}:{port}: {absent}; there is no such address: {_WHAT_A_HOST_IS}."
            )
    except BaseException:
        for each in opened:
            each.close()
        raise
    return opened


def _socket(family: socket.AddressFamily, address: Any) -> socket.socket:
    # asyncio sends what is written at once only where the protocol is said.
    opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if sys.platform != "win32":  # there the option would let two servers share the port
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except BaseException:
        opened.close()
        raise
    return opened


def _cannot_listen(host: str, port: int, reason: str | None) -> SettingsError:
    return SettingsError(
        f"Cannot listen on {host}:{port}: {reason}; stop what runs there or give another port "
        "with --http-port or --rpc-port."
    )


def is_loopback(host: str) -> bool:
    """Whether a host to listen on is this machine's loopback, by number or by name."""
    try:
        return all(
            ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback
            for *_, address in socket.getaddrinfo(host, None)
        )
    except (OSError, UnicodeError):  # no such host, as the attempt to listen there will say
        return False


def container_warning(host: str, environ: Mapping[str, str], root: Path = Path("/")) -> str | None:
    """A warning where a server in a container listens on its loopback alone; None otherwise.

    ``root``: where the files are that Docker and Podman leave in a container.
    """
    marks = (root / ".dockerenv", root / "run" / ".containerenv")
    inside = any(environ.get(name) for name in ("KUBERNETES_SERVICE_HOST", "container"))
    if not is_loopback(host) or not (inside or any(mark.exists() for mark in marks)):
        return None
    return (
        f"this is a container, and {host} is its own loopback: nothing outside of the container reaches this "
        "server, unless it shares the host's network; --host 0.0.0.0 listens for others, with --api-key FILE "
        "for those that are known"
    )


def bracketed(host: str) -> str:
    """A host as it is written before a port: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host
