"""What is loaded: the routes of a server, and the images that are sent to them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pdserve.clients.address import Address, http_address, is_this_machine, rpc_address
from pdserve.clients.credentials import NO_ACCESS, Access
from pdserve.clients.discovery import find_server, find_service
from pdserve.commands.images import find_sources
from pdserve.errors import ImageError, UsageError
from pdserve.tools.bench import http
from pdserve.tools.bench.run import Target
from pdserve.tools.bench.server import ServerProbe
from pdserve.vision.decode import decode
from pdserve.vision.resize import opencv

GRPC_ROUTES = ("grpc",)
ROUTES = (*http.ROUTES, *GRPC_ROUTES)

# Prepared requests are kept in memory, all of them.
MAX_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class Targets:
    """The routes to load, of one server of a ``service``; ``probe`` is for its HTTP address, if known."""

    targets: tuple[Target, ...]
    probe: ServerProbe | None
    service: str
    access: Access


def choose_targets(
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
) -> Targets:
    """Find out what to load. Without ``urls`` this machine's server, without ``routes`` v1 (grpc where there
    is only a gRPC address), without ``service`` that which runs, without ``images`` a synthetic one;
    ``note`` is called with what was chosen.

    Raises UsageError; for an image that cannot be read, ImageError.
    """
    unknown = [route for route in routes if route not in ROUTES]
    if unknown:
        raise UsageError(f"--route {unknown[0]!r} is none of {', '.join(ROUTES)}.")
    web = [url for url in urls if url.lower().startswith(("http://", "https://"))]
    other = [url for url in urls if url not in web]
    if len(web) > 1 or len(other) > 1:
        raise UsageError(f"{' and '.join(urls)} are more than one server; load them one after the other.")
    routes = tuple(dict.fromkeys(routes)) or (("grpc",) if other and not web else ("v1",))
    if not urls:
        server = find_server(service, all(route in GRPC_ROUTES for route in routes), access)
        service = server.kind
        web, other = ([each] if each else [] for each in (server.http, server.rpc))
    web_address = server_address("v1", web[0], access) if web else None
    grpc_address = server_address("grpc", other[0], access) if other else None
    for address in filter(None, (web_address, grpc_address)):
        if not remote and not is_this_machine(address.host):
            raise UsageError(
                f"{address} is not this machine, and a load can bring a server down; "
                "if you may load it, add --remote."
            )
    for route in routes:
        if not (other if route in GRPC_ROUTES else web):
            form = "host:port" if route in GRPC_ROUTES else "http://host:port"
            raise UsageError(f"Route {route} needs an address {form}; give it as well.")
    service = service or find_service(*((web[0], False) if web else (other[0], True)), access)
    files = _images(images, note)
    targets = [
        build_target(route, url, files, service=service, batch=batch, name=name, access=access)
        for route, (url,) in ((route, other if route in GRPC_ROUTES else web) for route in routes)
    ]
    probe = ServerProbe(web_address, access) if web_address else None
    return Targets(tuple(targets), probe, service, access)


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
    server, requests = server_address(route, url, access), batches(images, batch)
    if route in GRPC_ROUTES:
        from pdserve.tools.bench import grpc

        return grpc.grpc_target(server, grpc.messages(requests), batch, access)
    return http.http_target(route, server, http.posts(route, requests, service, name), batch, access)


def server_address(route: str, url: str, access: Access = NO_ACCESS) -> Address:
    """The address of a route's server. Raises UsageError."""
    if route in GRPC_ROUTES:
        address = rpc_address(url)
        return replace(address, scheme="grpcs") if access.wants_tls else address
    address = http_address(url)
    if access.wants_tls and address.scheme == "http":
        raise UsageError(f"{address} asks without TLS; write https:// with --tls and --ca.")
    return address


def batches(images: Sequence[bytes], batch: int) -> list[list[bytes]]:
    """Images in turn, ``batch`` to a request, until they come round or MAX_BYTES of them are taken.

    Raises UsageError without images.
    """
    if not images:
        raise UsageError("There is no image to send; give some with --images.")
    requests: list[list[bytes]] = []
    taken = 0
    for number in range(len(images) // math.gcd(len(images), batch)):
        request = [images[(number * batch + i) % len(images)] for i in range(batch)]
        taken += sum(map(len, request))
        if requests and taken > MAX_BYTES:
            break
        requests.append(request)
    return requests


def _images(named: Sequence[str], note: Callable[[str], None]) -> list[bytes]:
    if not named:
        image = synthetic_photograph()
        note(f"No --images: sending one synthetic photograph, a JPEG of 640×480 and {len(image) // 1000} kB.")
        return [image]
    images, count = read_images(named, MAX_BYTES)
    if len(images) < count:
        note(f"Sending the first {len(images)} of {count} images: more would not fit in memory.")
    return images


def read_images(
    named: Sequence[str], limit_bytes: int, skip: Callable[[str, ImageError], object] | None = None
) -> tuple[list[bytes], int]:
    """The images of files and folders (at any depth, in order of path), until ``limit_bytes`` are read; and
    how many there were. With ``skip``, those that cannot be read or decoded are passed to it and left out.

    Raises UsageError for a folder without images; without ``skip`` also for an empty file, and ImageError for
    an unreadable one.
    """
    sources = find_sources(named)
    images: list[bytes] = []
    taken = 0
    for source in sources:
        try:
            image = source.read()
            if skip:
                decode(image)
        except ImageError as error:
            if not skip:
                raise
            skip(source.name, error)
            continue
        if not image:
            raise UsageError(f"The file {source.name} is empty; leave it out.")
        taken += len(image)
        if images and taken > limit_bytes:
            break
        images.append(image)
    return images, len(sources)


def synthetic_photograph(width: int = 640, height: int = 480, seed: int = 7) -> bytes:
    """A JPEG file of about 60 KB, the same each time, which costs a server what a photograph does.

    A photograph's detail falls with its frequency (Field, 1987), and so does that of this picture: it is a
    sum of random grids, each twice as fine as the last and weaker.
    """
    cv2 = opencv()
    random = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 128.0, np.float32)
    cells, strength = 3, 80.0
    while cells <= width:
        grid = random.uniform(-strength, strength, (max(2, cells * height // width), cells, 3))
        # Colours vary less than brightness.
        grid = 0.4 * grid + 0.6 * grid.mean(axis=2, keepdims=True)
        picture += cv2.resize(grid.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        cells, strength = 2 * cells, 0.75 * strength
    pixels = np.clip(picture, 0, 255).astype(np.uint8)
    return bytes(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 85])[1])
