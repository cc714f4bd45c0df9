"""The protocol's model repository: services are listed, loaded and unloaded while the server runs."""

import ipaddress
from collections.abc import Mapping
from typing import Any

from pdserve.errors import RequestError
from pdserve.services.inference.requests import VERSION, NotOfferedError
from pdserve.services.repository import Repository
from pdserve.settings import ServerSettings


class StrangerError(RequestError):
    """A change that comes from another machine, to a server that knows nobody."""

    code = "stranger"
    http_status = 403
    grpc_status = "PERMISSION_DENIED"


def index(services: Repository, *, ready: bool = False) -> list[dict[str, str]]:
    """All services, with state and reason in the protocol's words; ``ready``: those alone that are."""
    found = []
    for each in services.index():
        state, reason = _STATES[each.state]
        if state == "READY" or not ready:
            found.append({"name": each.name, "version": VERSION, "state": state, "reason": reason})
    return found


_STATES = {
    "READY": ("READY", ""),
    "UNAVAILABLE": ("UNAVAILABLE", "its engine is being rebuilt"),
    "UNLOADED": ("UNAVAILABLE", "unloaded"),
}


def check_change(settings: ServerSettings, address: str, parameters: Mapping[str, Any]) -> None:
    """See that a caller may load and unload, and asks for nothing else. ``address``: where it calls from.

    With keys it has shown one. Without, it must be on this machine. Raises StrangerError, NotOfferedError.
    """
    keyed = settings.api_key is not None or settings.api_key_file is not None
    if not keyed and not _is_local(address):
        raise StrangerError(
            "Services are loaded and unloaded with a key, or from the server's own machine; start the server "
            "with --api-key."
        )
    odd = [key for key in parameters if key != "unload_dependents"]
    if odd:
        raise NotOfferedError(
            f"The parameter {odd[0][:100]!r} is not offered: a service's settings and files are the server's."
        )


def _is_local(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback
