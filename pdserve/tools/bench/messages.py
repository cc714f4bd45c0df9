"""The requests of each route, made before the load starts so that sending one costs next to nothing.

``v1``, ``json`` and ``form`` are the three forms of ``POST /v1/{service}``: the body is an image file, a JSON
object, a multipart form. ``pipeline`` is Paddle Serving's HTTP route and ``grpc`` its gRPC method, with the
messages that its own clients send; a published server answers them too.
"""

import base64
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pdserve.clients.address import DEFAULT_NAMES
from pdserve.errors import UsageError
from pdserve.formats.protos import pipeline

HTTP_ROUTES = ("v1", "json", "form", "pipeline")
RPC_ROUTES = ("grpc",)
ROUTES = (*HTTP_ROUTES, *RPC_ROUTES)

# Prepared requests are kept in memory, all of them.
MAX_BYTES = 256 * 1024 * 1024

_BOUNDARY = "pdserve-bench-e2f1c94d7a60"


@dataclass(frozen=True)
class Post:
    """An HTTP request but for its host: path, Content-Type, body."""

    path: str
    media_type: str
    body: bytes


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


def posts(
    route: str, images: Sequence[bytes], batch: int, service: str, name: str | None = None
) -> list[Post]:
    """The HTTP requests of a route. Raises UsageError for several images in a ``v1`` request."""
    if route == "v1" and batch > 1:
        raise UsageError("A request of route v1 is one image; for --batch take json, form, pipeline or grpc.")
    path = f"/{name or DEFAULT_NAMES[service]}/prediction" if route == "pipeline" else f"/v1/{service}"
    media_type, body = _BODIES[route]
    return [Post(path, media_type, body(request)) for request in batches(images, batch)]


def rpc_messages(images: Sequence[bytes], batch: int) -> list[bytes]:
    """The Request messages of Paddle Serving's gRPC method, serialised."""
    return [
        pipeline.request_class()(
            key=_keys(request), value=[_text(image) for image in request]
        ).SerializeToString()
        for request in batches(images, batch)
    ]


def _text(image: bytes) -> str:
    return base64.b64encode(image).decode("ascii")


def _keys(images: Sequence[bytes]) -> list[str]:
    """The guide's clients call their image ``image``."""
    return ["image"] if len(images) == 1 else [f"image_{i}" for i in range(len(images))]


def _raw(images: Sequence[bytes]) -> bytes:
    return images[0]


def _json(images: Sequence[bytes]) -> bytes:
    return json.dumps({"images": [_text(image) for image in images]}).encode()


def _form(images: Sequence[bytes]) -> bytes:
    parts = []
    for i, image in enumerate(images):
        head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="{i}"\r\n'
        parts += [head.encode(), b"Content-Type: application/octet-stream\r\n\r\n", image, b"\r\n"]
    return b"".join((*parts, f"--{_BOUNDARY}--\r\n".encode()))


def _pipeline(images: Sequence[bytes]) -> bytes:
    return json.dumps({"key": _keys(images), "value": [_text(image) for image in images]}).encode()


_BODIES: dict[str, tuple[str, Callable[[Sequence[bytes]], bytes]]] = {
    "v1": ("application/octet-stream", _raw),
    "json": ("application/json", _json),
    "form": (f"multipart/form-data; boundary={_BOUNDARY}", _form),
    "pipeline": ("application/json", _pipeline),
}
