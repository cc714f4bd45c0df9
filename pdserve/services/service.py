"""What both doors, HTTP and gRPC, know of the service behind them."""

import asyncio
import contextvars
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from pdserve.engines.device import cores
from pdserve.errors import BodyTooLargeError, DeadlineError, PdserveError
from pdserve.settings import ServerSettings

Result = TypeVar("Result")


class Service(Protocol):
    """A running service.

    ``kind`` is its name in pdserve's own routes, ``names`` those it answers to in the pipeline
    protocol. It is ready between ``start`` and ``close``, except while its engines are being rebuilt. An
    answer is the service's own, or the error of an image that has none.
    """

    kind: str
    names: frozenset[str]

    @property
    def ready(self) -> bool: ...

    def start(self) -> None:
        """Take requests from now on; called on the running event loop."""

    async def answer(
        self,
        images: Sequence[bytes | PdserveError],
        top_k: int | None = None,
        timeout_s: float | None = None,
    ) -> list[Any]:
        """Answer the images of one request, in order.

        An image that the door could not even get at comes as its error and stays in its place, as one
        that cannot be decoded does. ``timeout_s``: how long the caller will wait. Cancelling the call
        takes its images out of the queues. Raises what concerns the request as a whole:
        BodyTooLargeError, OverloadedError, DeadlineError, ClosedError, EngineError.
        """

    def result(self, answer: Any) -> Mapping[str, Any]:
        """One image's answer, which is no error, as JSON."""

    def fields(self, answers: Sequence[Any]) -> Mapping[str, str]:
        """All images' answers, none an error, as keys and values of the pipeline protocol."""

    def stop(self) -> None:
        """Be ready no more, and answer what is under way."""

    async def close(self) -> None:
        """Finish what is queued and free the engines."""


class Pool:
    """Threads for the work around the engines: decoding and resizing release the GIL, so one per core."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(cores(), thread_name_prefix="pdserve-image")

    async def run(
        self, work: Callable[..., Result], *arguments: Any, deadline: float | None = None
    ) -> Result:
        """Call a function in one of the threads, unless nobody waits for it any more by then.

        Raises DeadlineError where the ``deadline``, on the loop's clock, passes first, and what the
        function raises.
        """
        loop = asyncio.get_running_loop()

        def in_time() -> Result:
            if deadline is not None and loop.time() >= deadline:
                raise DeadlineError("The time was up before the image's turn came.")
            return work(*arguments)

        # With the request's context, so that what is logged there has its id.
        return await loop.run_in_executor(self._threads, contextvars.copy_context().run, in_time)

    async def attempt(
        self,
        work: Callable[[bytes], Result],
        image: bytes | PdserveError,
        deadline: float | None = None,
    ) -> "Result | PdserveError":
        """Do one image's work; an error of its own becomes its result. Raises DeadlineError."""
        if isinstance(image, PdserveError):
            return image
        try:
            return await self.run(work, image, deadline=deadline)
        except DeadlineError:
            raise
        except PdserveError as error:
            return error

    def close(self) -> None:
        self._threads.shutdown()


def check_count(images: Sequence[object], limits: ServerSettings) -> None:
    """Raise BodyTooLargeError for more images than one request may have."""
    if len(images) > limits.max_images:
        raise BodyTooLargeError(
            f"The request has {len(images)} images, more than the limit of {limits.max_images}; "
            "send several requests."
        )
