"""Listening: bound sockets, addresses as people read them, and the certificate for HTTP and gRPC."""

import socket
import ssl
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

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


def bind(host: str, port: int) -> socket.socket:
    """A bound socket. Raises SettingsError for a port in use or an address of another machine."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:  # a label of more than 63 characters is the codec's to refuse
        reason = getattr(error, "strerror", None) or "it is no host name"
        raise SettingsError(f"The host {host!r} is no address of this machine: {reason}.") from error
    opened = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":  # there the option would let two servers share the port
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except OSError as error:
        opened.close()
        raise SettingsError(
            f"Cannot listen on {host}:{port}: {error.strerror}; stop what runs there or give another port "
            "with --http-port or --rpc-port."
        ) from error
    return opened


def bracketed(host: str) -> str:
    """A host as it is written before a port: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host
