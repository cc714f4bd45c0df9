"""The protocol's model repository: services are listed, loaded and unloaded while the server runs."""

from collections.abc import Mapping
from typing import Any

from pdserve.services.http.services import check_operator
from pdserve.services.inference.requests import VERSION, NotOfferedError
from pdserve.services.repository import Repository
from pdserve.settings import ServerSettings


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
    "COLD": ("READY", "unloaded to make room; its next request loads it"),
    "UNAVAILABLE": ("UNAVAILABLE", "its engine is being rebuilt"),
    "UNLOADED": ("UNAVAILABLE", "unloaded"),
}


def check_change(settings: ServerSettings, address: str, parameters: Mapping[str, Any]) -> None:
    """See that a caller may load and unload, and asks for nothing else. ``address``: where it calls from.

    With keys it has shown one. Without, it must be on this machine. Raises NotTheOperatorError,
    NotOfferedError.
    """
    # gRPC listens on addresses of both versions, and says ::ffff:127.0.0.1.
    check_operator(address.removeprefix("::ffff:"), settings)
    odd = [key for key in parameters if key != "unload_dependents"]
    if odd:
        raise NotOfferedError(
            f"The parameter {odd[0][:100]!r} is not offered: a service's settings and files are the server's."
        )
