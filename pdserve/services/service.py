"""A service: a pipeline that many callers may ask at once, over any protocol."""

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from pdserve.errors import (
    BodyTooLargeError,
    ClosedError,
    DeadlineError,
    EngineError,
    OverloadedError,
    PdserveError,
    RequestError,
    WrongServiceError,
)
from pdserve.index.search import MAX_TOP_K
from pdserve.pipelines import ServiceEntry
from pdserve.pipelines.base import Pipeline, Steps
from pdserve.pipelines.embedder import Embedder
from pdserve.pipelines.parameters import USUAL, Parameters
from pdserve.services.batcher import RetiredError
from pdserve.services.memory import give_back_freed_memory
from pdserve.services.reload import MAX_HANGS, Reloader
from pdserve.services.replica import Pool, Replica, Requests
from pdserve.services.telemetry.metrics import Metrics, Stages, current
from pdserve.services.watch import IndexWatch
from pdserve.settings import ServerSettings
from pdserve.vision.types import Image8, Tensor

Result = TypeVar("Result")


class Answering(Protocol):
    """What a protocol needs of a service: `Service`, or a stand-in for it.

    ``kind`` is its name in pdserve's own routes, ``names`` those it answers to in the pipeline protocol.
    """

    @property
    def kind(self) -> str: ...
    @property
    def names(self) -> frozenset[str]: ...
    @property
    def ready(self) -> bool: ...

    async def answer(
        self,
        images: Sequence[bytes | PdserveError],
        top_k: int | None = None,
        timeout_s: float | None = None,
        parameters: Parameters = USUAL,
    ) -> list[Any]:
        """See `Service.answer`."""

    def fields(self, answers: Sequence[Any]) -> Mapping[str, str]:
        """All images' answers, none an error, as keys and values of the pipeline protocol."""


class NotLoadedError(WrongServiceError):
    """The service was unloaded."""

    code = "not_loaded"


class Service:
    """Answers requests from its active replica, within limits; ready between ``start`` and ``stop``.

    ``build`` opens a replica, whose images are decoded in the given pool; see `Reloader`. An answer is an
    instance of the entry's answer type, or the error of an image that has none. `unload` frees the replica,
    `load` opens another one. ``failed`` is set when its engines hung too often for the process to go on;
    ``replaced`` is called when another replica is active, or none. ``options``: its own, as at its start.
    ``cold``: unloaded to make room, so that ``waker`` loads it for its next request; see `Residence`.
    ``used``: when it was last asked, on time.monotonic's clock.
    """

    def __init__(
        self,
        entry: ServiceEntry,
        build: Callable[[bool, Pool], Replica],
        metrics: Metrics,
        failed: asyncio.Event | None = None,
    ) -> None:
        self._pool = Pool()

        def built(read_settings: bool) -> Replica:
            replica = build(read_settings, self._pool)
            give_back_freed_memory()
            return replica

        first = built(False)
        self._build = built
        self.entry, self.kind = entry, entry.kind
        self.name = first.settings.server.name
        self.names = frozenset({self.name, entry.kind})
        self.options, self.entrance = first.settings.options, first.entrance
        self._had_index = self._had_embedder = self.cold = self._stopped = False
        self.waker: Callable[[Service], Awaitable[None]] | None = None
        self.replaced: Callable[[], object] = lambda: None
        self.used, self.inside = 0.0, 0  # the images between their arrival and their answer
        self._requests, self._waking = Requests(), Requests()
        self._limits = first.settings.server
        self._max_waiting = first.settings.first_model.max_queue_size
        self.metrics, self._stages = metrics, Stages(metrics)
        self._changing, self._unloading = asyncio.Lock(), asyncio.Lock()
        self.failed, self._hangs = failed or asyncio.Event(), 0
        self._reloader: Reloader[Replica] | None = self._reloading(first)

    def _reloading(self, first: Replica) -> Reloader[Replica]:
        hang_s = first.settings.first_model.hang_s
        made: Reloader[Replica] = Reloader(first, self._build, hang_s, self.metrics)
        made.failed, made.hangs = self.failed, self._hangs
        made.replaced = lambda: self.replaced()
        return made

    @property
    def reloader(self) -> Reloader[Replica]:
        """Holds the active replica. Raises NotLoadedError where the service was unloaded."""
        if self._reloader is None:
            raise NotLoadedError(
                f"The service {self.name} is not loaded; load it first (`pdserve load {self.name}`)."
            )
        return self._reloader

    @property
    def loaded(self) -> bool:
        """Whether it has a replica."""
        return self._reloader is not None

    @property
    def has_index(self) -> bool:
        """Whether its kind has an index; loaded or not."""
        with contextlib.suppress(NotLoadedError):
            return self.index is not None
        return self._had_index

    @property
    def has_embedder(self) -> bool:
        """Whether its kind has an embedder; loaded or not."""
        with contextlib.suppress(NotLoadedError):
            return self.embedder is not None
        return self._had_embedder

    @property
    def hangs(self) -> int:
        """Engines that hang in this process."""
        return self._reloader.hangs if self._reloader else self._hangs

    @property
    def ready(self) -> bool:
        """Whether a request would be answered now; of a cold one, as soon as it is loaded."""
        if self._reloader is None:
            return self.cold and not self._stopped
        return self._reloader.ready

    @property
    def replica(self) -> Replica:
        """The active replica. Raises NotLoadedError."""
        return self.reloader.active

    @property
    def index(self) -> IndexWatch | None:
        """The active index; None for a service without one. Raises NotLoadedError."""
        return self.replica.index

    @property
    def embedder(self) -> Embedder | None:
        """What made the index; None for a service without one. Raises NotLoadedError."""
        return self.replica.pipeline.embedder

    def start(self) -> None:
        """Take requests from now on; called on the running event loop."""
        self.reloader.start()

    def stop(self) -> None:
        """Stop being ready, and answer what is inside."""
        self._stopped = True
        if self._reloader:
            self._reloader.stop()

    async def close(self) -> None:
        """Finish what is queued and free engines and threads."""
        self.stop()
        async with self._unloading:
            if self._reloader:
                await self._reloader.close()
        self._pool.close()

    async def load(self) -> None:
        """Open a replica, with settings and files as they are now; where there is one, replace it.

        Raises what keeps it from being opened; then all stays as it was.
        """
        async with self._changing:
            if self._reloader:
                await self._reloader.renew(read_settings=True)
                return
            first = await asyncio.to_thread(self._build, True)
            if self._stopped:
                await first.close()
                raise ClosedError("The server is stopping.")
            self._reloader, self.cold = self._reloading(first), False
            self._reloader.start()
            self.replaced()

    async def reload(self) -> None:
        """As `load` where there is a replica; what keeps it from being opened is logged."""
        if self._reloader:
            await self._reloader.reload(read_settings=True)

    async def unload(self, cold: bool = False) -> None:
        """Take no more requests, let those inside have their answers for as long as a stop would, and free
        the replica. Where there is none nothing is done. ``cold``: its next request loads it again."""
        async with self._changing, self._unloading:
            if cold:  # who had it loaded is answered first, or two services could keep each other from that
                await self._waking.none()
            if self._reloader is None or self._stopped:
                self.cold = self.cold and cold
                return
            self.cold = cold
            self._had_index, self._had_embedder = self.has_index, self.has_embedder
            reloader, self._reloader = self._reloader, None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._requests.none(), self._limits.grace_s)
            self._hangs = reloader.hangs
            reloader.active.forget()
            await reloader.close()
            del reloader
            give_back_freed_memory()
            self.replaced()

    async def answer(
        self,
        images: Sequence[bytes | PdserveError],
        top_k: int | None = None,
        timeout_s: float | None = None,
        parameters: Parameters = USUAL,
    ) -> list[Any]:
        """Answer the images of one request, in order.

        An image that the protocol could not even read comes as its error and stays in its place, as one
        that cannot be decoded does. ``timeout_s``: how long the caller will wait. Cancelling the call
        takes its images out of the queues. Raises what concerns the request as a whole:
        BodyTooLargeError, OverloadedError, DeadlineError, ClosedError, EngineError.
        """

        if top_k is not None:
            await self.awake(len(images), timeout_s)
        if top_k is not None and len(images) > 1 and self.index:
            wanted = min(top_k, self.index.loaded.count) * len(images)
            if wanted > MAX_TOP_K:
                raise RequestError(
                    f"top_k is {top_k} for {len(images)} images: {wanted} entries, and an answer may have "
                    f"{MAX_TOP_K}; ask for {MAX_TOP_K // len(images)}, or send several requests."
                )

        def work(replica: Replica, deadline: float | None) -> Awaitable[list[Any]]:
            return replica.answer(images, top_k, deadline, parameters)

        return await self._within_limits(images, work, timeout_s)

    async def embed(
        self, images: Sequence[bytes | PdserveError], timeout_s: float | None = None
    ) -> list[Tensor | PdserveError]:
        """The embeddings of whole images, in order, each (dimension,) float32 of length 1, or its error.

        As `answer`, for a service with an embedder.
        """

        def work(replica: Replica, deadline: float | None) -> Awaitable[list[Tensor | PdserveError]]:
            return replica.embed(images, deadline)

        return await self._within_limits(images, work, timeout_s)

    async def run(
        self,
        images: Sequence[object],
        work: Callable[[Pipeline[Any], Steps], Awaitable[list[Result]]],
        timeout_s: float | None = None,
    ) -> list[Result]:
        """Do other work of a request, with a result for each of its images; otherwise as `answer`."""

        def on(replica: Replica, deadline: float | None) -> Awaitable[list[Result]]:
            return replica.run(work, deadline)

        return await self._within_limits(images, on, timeout_s)

    async def look(self, image: bytes, function: Callable[[Image8], Result]) -> Result | PdserveError:
        """Decode an image, as for an answer, and run a function on its H×W×3 uint8 RGB pixels in a thread.

        For what is drawn on it: while it runs, the function may hold three times as much as the image. What
        is wrong with the image is returned. Raises DeadlineError, OverloadedError.
        """
        deadline = self._deadline(None)
        try:
            async with asyncio.timeout_at(deadline) if deadline is not None else contextlib.nullcontext():
                replica = self.reloader.active
                with self._requests, replica.requests:
                    return await replica.look(image, function, deadline)
        except TimeoutError:
            raise DeadlineError(
                "The picture would come too late; ask without it, or give more time."
            ) from None

    async def _within_limits(
        self,
        images: Sequence[object],
        work: Callable[[Replica, float | None], Awaitable[list[Result]]],
        timeout_s: float | None,
    ) -> list[Result]:
        """Do a request's work on the active replica, and count its images."""
        check_count(images, self._limits)
        self.used = time.monotonic()
        return await self._stages.answers(len(images), self._on_a_replica(len(images), work, timeout_s))

    async def _on_a_replica(
        self,
        images: int,
        work: Callable[[Replica, float | None], Awaitable[list[Result]]],
        timeout_s: float | None,
    ) -> list[Result]:
        while self.cold:  # once, unless others take its room at once
            await self.awake(images, timeout_s)
        reloader = self.reloader  # one that is unloaded meanwhile answers what is inside
        if not reloader.ready and not reloader.closing:
            raise ClosedError("The engine is being rebuilt; ask again in a moment.")
        if self.inside and self.inside + images > self._max_waiting + reloader.active.capacity:
            raise OverloadedError(f"{self.inside} images wait already; ask again in a moment.")
        deadline = self._deadline(timeout_s)
        self.inside += images
        try:
            with self._requests:
                return await self._answered(reloader, work, deadline)
        except TimeoutError:
            raise DeadlineError(
                "The answer would come too late; give it more time, or ask for less at once."
            ) from None
        finally:
            self.inside -= images

    async def awake(self, images: int = 1, timeout_s: float | None = None) -> None:
        """Load it where it is cold, for no more images than may wait for an engine.

        Raises what keeps it from being loaded, OverloadedError and DeadlineError.
        """
        if not (self.cold and self.waker):
            return
        if self.inside and self.inside + images > self._max_waiting:
            raise OverloadedError(f"{self.inside} images wait already; ask again in a moment.")
        self.inside += images
        try:
            with self._waking:
                async with asyncio.timeout_at(self._deadline(timeout_s)):
                    await self.waker(self)
        except TimeoutError:
            raise DeadlineError("The service was not loaded in time; give it more time.") from None
        finally:
            self.inside -= images

    async def _answered(
        self,
        reloader: Reloader[Replica],
        work: Callable[[Replica, float | None], Awaitable[list[Result]]],
        deadline: float | None,
    ) -> list[Result]:
        async with asyncio.timeout_at(deadline) if deadline is not None else contextlib.nullcontext():
            # Once more than engines may hang: who waited for engines that were retired asks the next.
            for _ in range(MAX_HANGS):
                replica = reloader.active
                with contextlib.suppress(RetiredError), replica.requests:
                    return await work(replica, deadline)
                await reloader.wait_until_rebuilt(deadline)
        raise EngineError("The engine failed again and again.")

    def _deadline(self, timeout_s: float | None) -> float | None:
        """When the request has to be answered, on the loop's clock: what the caller and the settings say."""
        limit_s = (self._reloader.active if self._reloader else self).entrance.time_limit_s
        if timeout_s is None and limit_s is None:
            return None
        now = asyncio.get_running_loop().time()
        context = current.get()
        arrived = now if context is None or context.arrived is None else context.arrived
        by_settings = math.inf if limit_s is None else arrived + limit_s
        return by_settings if timeout_s is None else min(by_settings, now + timeout_s)

    def fields(self, answers: Sequence[Any]) -> Mapping[str, str]:
        """All images' answers, none an error, as keys and values of the pipeline protocol."""
        return self.replica.pipeline.fields(answers)


def check_count(images: Sequence[object], limits: ServerSettings) -> None:
    """Raise BodyTooLargeError for more images than one request may have."""
    if len(images) > limits.max_images:
        raise BodyTooLargeError(
            f"The request has {len(images)} images, more than the limit of {limits.max_images}; "
            "send several requests."
        )
