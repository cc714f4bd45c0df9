"""Find out which service runs at an address, or at the default ports of this machine."""

import socket

from pdserve.clients.address import http_address, rpc_address
from pdserve.clients.credentials import NO_ACCESS, Access
from pdserve.errors import UsageError
from pdserve.pipelines import SERVICES


def find_service(url: str | None, rpc: bool = False, access: Access = NO_ACCESS) -> str:
    """The kind of the service at ``url``, or at the default ports of this machine.

    A pdserve server is asked over HTTP; gRPC, and a server that does not say, is known by its port. Where
    nothing answers it is classification, whose client then says so. Raises UsageError where several run.
    """
    if url is None:
        running = [kind for kind, entry in SERVICES.items() if _listens(entry.ports[rpc])]
        if len(running) > 1:
            raise UsageError(f"Here run {' and '.join(running)}; say which with --service.")
        return running[0] if running else "classification"
    if not rpc:
        from pdserve.clients.http import HttpClient

        with HttpClient(url, timeout=5, api_key=access.api_key, tls=access.tls, ca=access.ca) as client:
            if kind := client.service_kind():
                return kind
    port = (rpc_address(url) if rpc else http_address(url)).port
    return next((kind for kind, entry in SERVICES.items() if port in entry.ports), "classification")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0
