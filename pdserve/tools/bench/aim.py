"""From what a person says to what is loaded: addresses, service, images, routes."""

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pdserve.clients.address import DEFAULT_PORTS, Address, is_this_machine
from pdserve.clients.credentials import Access
from pdserve.errors import UsageError
from pdserve.tools.bench.loop import in_loop
from pdserve.tools.bench.messages import MAX_BYTES, ROUTES, RPC_ROUTES
from pdserve.tools.bench.pictures import made_up_photograph, read_images
from pdserve.tools.bench.server import Control
from pdserve.tools.bench.target import Target
from pdserve.tools.bench.targets import NO_ACCESS, build_target, server_address


@dataclass(frozen=True)
class Aim:
    """The routes to load, of one server of a ``service``; ``control`` is its HTTP door, where known."""

    targets: tuple[Target, ...]
    control: Control | None
    service: str
    access: Access


def take_aim(
    urls: Sequence[str] = (),
    *,
    routes: Sequence[str] = (),
    service: str | None = None,
    images: Sequence[str] = (),
    batch: int = 1,
    name: str | None = None,
    access: Access = NO_ACCESS,
    remote: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> Aim:
    """What to load. Without ``urls`` this machine's server, without ``routes`` v1 (grpc where there is but a
    gRPC address), without ``service`` that which runs, without ``images`` a made-up one; ``note`` is told.

    Raises UsageError; for an image that cannot be read, ImageError.
    """
    unknown = [route for route in routes if route not in ROUTES]
    if unknown:
        raise UsageError(f"--route {unknown[0]!r} is none of {', '.join(ROUTES)}.")
    doors = _doors(urls)
    routes = tuple(dict.fromkeys(routes)) or (("grpc",) if doors.rpc and not doors.http else ("v1",))
    if not urls:
        service = service or _service_here(routes)
        doors = _default_doors(service, access)
    addresses = {door: server_address(door, doors.of(door), access) for door in doors.known()}
    for address in addresses.values():
        if not remote and not is_this_machine(address.host):
            raise UsageError(
                f"{address} is not this machine, and a load can bring a server down; "
                "if you may load it, add --remote."
            )
    there = [(route, doors.of(route)) for route in routes]
    control = Control(addresses["v1"], access) if "v1" in addresses else None
    if service is None:
        service = in_loop(control.service()) if control else _by_port(addresses["grpc"])
    service = service or "classification"
    pictures = _pictures(images, note)
    targets = tuple(
        build_target(route, url, pictures, service=service, batch=batch, name=name, access=access)
        for route, url in there
    )
    return Aim(targets, control, service, access)


@dataclass(frozen=True)
class _Doors:
    """The addresses of a server, as a person writes them; None for one that was not given."""

    http: str | None
    rpc: str | None

    def known(self) -> list[str]:
        """A route of each door that is known."""
        return [route for route, url in (("v1", self.http), ("grpc", self.rpc)) if url]

    def of(self, route: str) -> str:
        """The address for a route. Raises UsageError where it was not given."""
        url = self.rpc if route in RPC_ROUTES else self.http
        if url is None:
            form = "host:port" if route in RPC_ROUTES else "http://host:port"
            raise UsageError(f"Route {route} needs an address {form}; give it beside the other.")
        return url


def _doors(urls: Sequence[str]) -> _Doors:
    web = [url for url in urls if url.lower().startswith(("http://", "https://"))]
    other = [url for url in urls if url not in web]
    if len(web) > 1 or len(other) > 1:
        raise UsageError(f"{' and '.join(urls)} are more than one server; load them one after the other.")
    return _Doors(next(iter(web), None), next(iter(other), None))


def _default_doors(service: str, access: Access) -> _Doors:
    http, rpc = DEFAULT_PORTS[service]
    return _Doors(f"{'https' if access.wants_tls else 'http'}://127.0.0.1:{http}", f"127.0.0.1:{rpc}")


def _service_here(routes: Sequence[str]) -> str:
    """The service that listens at its default port on this machine; classification where none does."""
    door = 1 if all(route in RPC_ROUTES for route in routes) else 0
    there = [service for service, ports in DEFAULT_PORTS.items() if _listens(ports[door])]
    if len(there) > 1:
        raise UsageError(f"Here run {' and '.join(there)}; say which to load with --service.")
    return there[0] if there else "classification"


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _by_port(rpc: Address) -> str | None:
    """gRPC has no question for the service's kind; at a service's default port it is taken for that."""
    return next((kind for kind, ports in DEFAULT_PORTS.items() if ports[1] == rpc.port), None)


def _pictures(named: Sequence[str], note: Callable[[str], None]) -> list[bytes]:
    if not named:
        picture = made_up_photograph()
        note(f"No --images: sending one made-up photograph, a JPEG of 640×480 and {len(picture) // 1000} kB.")
        return [picture]
    pictures, there = read_images(named, MAX_BYTES)
    if len(pictures) < there:
        note(f"Sending the first {len(pictures)} of {there} images: more would not fit in memory.")
    return pictures
