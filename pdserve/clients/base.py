"""What every client can be asked, over HTTP and gRPC, sync and async."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Self, TypeAlias

from pdserve.answers import FoundObject, Label
from pdserve.clients.address import Address
from pdserve.clients.answers import Item, items, single
from pdserve.errors import BusyError, ClientError, UnreachableError, UsageError
from pdserve.pipelines import SERVICES, ServiceEntry

Batch: TypeAlias = list[list[Item] | ClientError]
"""For each image of a request its labels or objects, or its error."""


class Client(ABC):
    """A client that may be shared by threads. Raises UnreachableError and ClientError."""

    service: str

    def ask(self, images: Sequence[bytes], top_k: int | None = None, service: str | None = None) -> list[Any]:
        """Send image files' bytes in one request; return an answer, or a ClientError, for each.

        ``service``: the kind of service, the client's own where not given; the answers are of that
        service's type in pdserve.answers, ``Labels`` or ``Objects`` for instance. A published Paddle
        Serving server has no errors for single images: there the request fails as a whole. Raises TypeError
        for images that are not bytes, such as paths or arrays.
        """
        return self._ask(image_bytes(images), top_k, service_entry(service or self.service))

    def predict(self, image: bytes, top_k: int | None = None) -> list[Label]:
        """Labels of one image file's bytes, by a classification server."""
        return single(self.predict_batch([image], top_k))

    def predict_batch(self, images: Sequence[bytes], top_k: int | None = None) -> Batch[Label]:
        """Labels of several image files in one request; a bad one gets its error in its place."""
        return [items(each) for each in self.ask(images, top_k, "classification")]

    def recognize(self, image: bytes, top_k: int | None = None) -> list[FoundObject]:
        """Objects in one image file, by a recognition server."""
        return single(self.recognize_batch([image], top_k))

    def recognize_batch(self, images: Sequence[bytes], top_k: int | None = None) -> Batch[FoundObject]:
        """Objects in several image files; see `predict_batch`."""
        return [items(each) for each in self.ask(images, top_k, "recognition")]

    @abstractmethod
    def _ask(self, images: Sequence[bytes], top_k: int | None, entry: ServiceEntry) -> list[Any]: ...

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class AsyncClient(ABC):
    """The same for asyncio; use it with ``async with``."""

    service: str

    async def ask(
        self, images: Sequence[bytes], top_k: int | None = None, service: str | None = None
    ) -> list[Any]:
        """See `Client.ask`."""
        return await self._ask(image_bytes(images), top_k, service_entry(service or self.service))

    async def predict(self, image: bytes, top_k: int | None = None) -> list[Label]:
        """See `Client.predict`."""
        return single(await self.predict_batch([image], top_k))

    async def predict_batch(self, images: Sequence[bytes], top_k: int | None = None) -> Batch[Label]:
        """See `Client.predict_batch`."""
        return [items(each) for each in await self.ask(images, top_k, "classification")]

    async def recognize(self, image: bytes, top_k: int | None = None) -> list[FoundObject]:
        """See `Client.recognize`."""
        return single(await self.recognize_batch([image], top_k))

    async def recognize_batch(self, images: Sequence[bytes], top_k: int | None = None) -> Batch[FoundObject]:
        """See `Client.recognize_batch`."""
        return [items(each) for each in await self.ask(images, top_k, "recognition")]

    @abstractmethod
    async def _ask(self, images: Sequence[bytes], top_k: int | None, entry: ServiceEntry) -> list[Any]: ...

    @abstractmethod
    async def close(self) -> None:
        """Close the connection."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()


def image_bytes(images: Sequence[bytes]) -> list[bytes]:
    """The images as bytes; bytearray and memoryview are taken too.

    Raises TypeError for anything else, with what to give.
    """
    if isinstance(images, bytes | bytearray | memoryview | str | os.PathLike) or not isinstance(
        images, Iterable
    ):
        raise TypeError(
            f"The images are {_kind(images)}; give a list of image files' bytes, as in "
            "[Path(name).read_bytes() for name in names]."
        )
    return [_one(image) for image in images]


def _one(image: object) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        instead = "read the file: Path(name).read_bytes()"
    else:
        instead = (
            "pixels are encoded first, as a JPEG or PNG: with Pillow image.save(buffer, 'PNG') and "
            "buffer.getvalue(), with OpenCV cv2.imencode('.png', image)[1].tobytes()"
        )
    raise TypeError(f"An image is {_kind(image)} where the bytes of an image file belong; {instead}.")


def _kind(given: object) -> str:
    kind = type(given)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"of the type {name}"


def service_entry(kind: str) -> ServiceEntry:
    """The entry of a kind of service. Raises UsageError for an unknown one."""
    if kind not in SERVICES:
        raise UsageError(f"There is no service {kind!r}; known are {', '.join(SERVICES)}.")
    return SERVICES[kind]


def unreachable(address: Address, service: str) -> UnreachableError:
    """The error where nothing listens: how to start the server."""
    return UnreachableError(
        f"Nothing answers at {address}; start the server with `pdserve serve {service}`, "
        "or say where it is with --url."
    )


def busy(address: Address, detail: str) -> BusyError:
    """The error of a full queue."""
    return BusyError(f"{address} is overloaded; ask again in a moment ({detail.rstrip('.')}).")
