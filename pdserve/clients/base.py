"""What a client can be asked, the same over HTTP and gRPC; sync and async."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import TypeVar

from pdserve.answers import Label
from pdserve.clients.answers import LABELS, OBJECTS, Form, FoundObject, Item, single
from pdserve.errors import ClientError

Own = TypeVar("Own", bound="Asking")
AsyncOwn = TypeVar("AsyncOwn", bound="AsyncAsking")


class Asking(ABC):
    """A client that may be shared by threads. Raises UnreachableError and ClientError."""

    def predict(self, image: bytes, top_k: int | None = None) -> list[Label]:
        """Labels of one image file's bytes, by a classification server."""
        return single(self._ask([image], top_k, LABELS))

    def predict_batch(
        self, images: Sequence[bytes], top_k: int | None = None
    ) -> list[list[Label] | ClientError]:
        """Labels of several image files in one request; a bad one gets its error in its place.

        A published Paddle Serving server has no place for that: there the request fails as a whole.
        """
        return self._ask(images, top_k, LABELS)

    def recognize(self, image: bytes, top_k: int | None = None) -> list[FoundObject]:
        """Objects in one image file, by a recognition server."""
        return single(self._ask([image], top_k, OBJECTS))

    def recognize_batch(
        self, images: Sequence[bytes], top_k: int | None = None
    ) -> list[list[FoundObject] | ClientError]:
        """Objects in several image files; see `predict_batch`."""
        return self._ask(images, top_k, OBJECTS)

    @abstractmethod
    def _ask(
        self, images: Sequence[bytes], top_k: int | None, form: Form[Item]
    ) -> list[list[Item] | ClientError]: ...

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncAsking(ABC):
    """The same for asyncio; use it with ``async with``."""

    async def predict(self, image: bytes, top_k: int | None = None) -> list[Label]:
        """See `Asking.predict`."""
        return single(await self._ask([image], top_k, LABELS))

    async def predict_batch(
        self, images: Sequence[bytes], top_k: int | None = None
    ) -> list[list[Label] | ClientError]:
        """See `Asking.predict_batch`."""
        return await self._ask(images, top_k, LABELS)

    async def recognize(self, image: bytes, top_k: int | None = None) -> list[FoundObject]:
        """See `Asking.recognize`."""
        return single(await self._ask([image], top_k, OBJECTS))

    async def recognize_batch(
        self, images: Sequence[bytes], top_k: int | None = None
    ) -> list[list[FoundObject] | ClientError]:
        """See `Asking.recognize_batch`."""
        return await self._ask(images, top_k, OBJECTS)

    @abstractmethod
    async def _ask(
        self, images: Sequence[bytes], top_k: int | None, form: Form[Item]
    ) -> list[list[Item] | ClientError]: ...

    @abstractmethod
    async def close(self) -> None:
        """Close the connection."""

    async def __aenter__(self: AsyncOwn) -> AsyncOwn:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
