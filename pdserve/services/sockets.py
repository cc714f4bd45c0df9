"""Where a server listens: its address as a bound socket, and as people read it."""

import socket
import sys

from pdserve.errors import SettingsError


def bind(host: str, port: int) -> socket.socket:
    """A bound socket. Raises SettingsError for a port in use or an address that is not ours."""
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


def shown(host: str) -> str:
    """A host as it stands before a port: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host
