"""From a route's name, an address and images to a target."""

from collections.abc import Sequence
from dataclasses import replace

from pdserve.clients.address import Address, http_address, rpc_address
from pdserve.clients.credentials import Access
from pdserve.clients.tls import channel_credentials, tls_context
from pdserve.errors import UsageError
from pdserve.tools.bench.http import http_target
from pdserve.tools.bench.messages import RPC_ROUTES, posts, rpc_messages
from pdserve.tools.bench.target import Target

NO_ACCESS = Access()


def build_target(
    route: str,
    url: str,
    images: Sequence[bytes],
    *,
    service: str = "classification",
    batch: int = 1,
    name: str | None = None,
    access: Access = NO_ACCESS,
) -> Target:
    """The target of a route (v1, json, form, pipeline, grpc).

    ``url`` is ``http://host:port`` or ``https://…``; for grpc ``host:port`` or, with TLS, ``grpcs://…``.
    ``images`` are image files' bytes, sent in turn, ``batch`` in a request. ``name`` is the service's name on
    the pipeline route, where it is not the guide's. Raises UsageError.
    """
    server = server_address(route, url, access)
    shown = tuple(access.headers.items())
    if route in RPC_ROUTES:
        from pdserve.tools.bench.rpc import RpcTarget

        credentials = channel_credentials(access.ca) if server.scheme == "grpcs" else None
        return RpcTarget(server, rpc_messages(images, batch), batch, shown, credentials)
    tls = tls_context(access.ca) if server.scheme == "https" else None
    return http_target(route, server, posts(route, images, batch, service, name), batch, shown, tls)


def server_address(route: str, url: str, access: Access = NO_ACCESS) -> Address:
    """Where a route's server is. Raises UsageError."""
    if route in RPC_ROUTES:
        address = rpc_address(url)
        return replace(address, scheme="grpcs") if access.wants_tls else address
    address = http_address(url)
    if access.wants_tls and address.scheme == "http":
        raise UsageError(f"{address} asks without TLS; write https:// beside --tls and --ca.")
    return address
