"""A replica: a pipeline with a batcher before each of its models, and the index that it searches.

States::

    LOADING ──start──► READY ──retire──► REBUILDING ──close──► CLOSED
                         └──────────────close───────────────────►┘

LOADING: models are loaded and warm, no requests yet. READY: it answers. REBUILDING: its engines have failed
or hung; queued requests go to the replica that is being built in its place. CLOSED: its engines are freed, or
left to a thread that hangs in them.
"""

import asyncio
import contextlib
import contextvars
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import Any, Protocol, TypeVar

from pdserve.engines.device import cores
from pdserve.errors import BodyTooLargeError, DeadlineError, ImageError, PdserveError
from pdserve.pipelines import feeds
from pdserve.pipelines.base import Pipeline, Steps
from pdserve.pipelines.parameters import USUAL, Parameters
from pdserve.services.batcher import Batcher, for_engines
from pdserve.services.budget import Entrance, Reservation
from pdserve.services.telemetry.metrics import Metrics, Stages
from pdserve.services.watch import IndexWatch
from pdserve.settings import ServiceSettings
from pdserve.vision.decode import decode_plain, plain
from pdserve.vision.decoder import shared
from pdserve.vision.header import Header, read_header
from pdserve.vision.types import Image8, Tensor

Result = TypeVar("Result")


# What is held beside an image that is drawn on, in bytes for each of its pixels: a picture, the same in the
# codec's order, the file that comes of it.
_DRAWING = 12


class State(Enum):
    """See the module's docstring."""

    LOADING = "loading"
    READY = "ready"
    REBUILDING = "rebuilding"
    CLOSED = "closed"


class Owner(Protocol):
    """Whom a replica reports to."""

    def broken(self, replica: "Replica", cause: str) -> None:
        """An engine is ``failing`` or ``hanging``."""

    def reload_soon(self) -> None:
        """An index of another embedder was published: there may be a model for it."""


def time_limit_s(settings: ServiceSettings) -> float | None:
    """How long a request may take, in seconds; None for any time.

    The models' ``timeout_ms`` is the request's where all have the same, as the option gives it. In
    ``config.yml`` each operator has its own, and a request passes all of them.
    """
    limits = [model.timeout_ms for model in settings.models.values()]
    known = [limit for limit in limits if limit is not None]
    if not known or len(known) < len(limits):
        return None
    return (known[0] if len(set(known)) == 1 else sum(known)) / 1000


class Requests:
    """Counts the requests inside a replica: ``with requests: …``; `none` waits until there are none."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    def __enter__(self) -> None:
        self._count += 1
        self._none.clear()

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self._none.set()

    async def none(self) -> None:
        """Wait until no request is inside."""
        await self._none.wait()


class Pool:
    """Threads for the work around the engines: decoding and resizing release the GIL, so one per core."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(cores(), thread_name_prefix="pdserve-image")
        self.decoder = shared()

    async def run(self, deadline: float | None, work: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function in one of the threads, unless its deadline has passed when its turn comes.

        ``deadline``: on the loop's clock, None for none. Raises DeadlineError, and what the function raises.
        """
        loop = asyncio.get_running_loop()

        def in_time() -> Result:
            if deadline is not None and loop.time() >= deadline:
                raise DeadlineError("The deadline passed before the image's turn came.")
            return work(*arguments)

        # With the request's context, so that what is logged there has its id.
        return await loop.run_in_executor(self._threads, contextvars.copy_context().run, in_time)

    def close(self) -> None:
        """Take no more work; what runs goes on, and nobody waits for it."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Replica:
    """See the module. ``requests`` counts those inside; ``loaded`` is the signature of the files loaded.

    ``entrance``: the process's budgets.
    """

    def __init__(
        self,
        pipeline: Pipeline[Any],
        settings: ServiceSettings,
        pool: Pool,
        metrics: Metrics,
        entrance: Entrance | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.settings = settings
        self.entrance = entrance or Entrance(settings.server)
        self.loaded = pipeline.loaded
        self.requests = Requests()
        self.state = State.LOADING
        self.index = IndexWatch(pipeline, metrics, self._other_embedder) if pipeline.index else None
        self._owner: Owner | None = None
        self._hangs = False
        self._pool = pool
        self._metrics = metrics
        self._stages = Stages(metrics)
        self._batchers: dict[str, Batcher[Any, Any]] = {
            role: for_engines(
                functools.partial(feeds.infer, each),
                each.engines,
                each.settings,
                self._broken,
                metrics,
                each.name,
            )
            for role, each in pipeline.models.items()
        }

    @property
    def capacity(self) -> int:
        """Images that its engines run, or would take at once."""
        return next(iter(self._batchers.values())).capacity

    def start(self, owner: Owner) -> None:
        """Take requests; called on the running event loop."""
        self._owner = owner
        self.state = State.READY
        self.entrance.time_limit_s = time_limit_s(self.settings)
        for role, model in self.pipeline.models.items():
            batcher, settings = self._batchers[role], model.settings
            batcher.start()
            self._metrics.queue(model.name, functools.partial(getattr, batcher, "waiting"))
            devices = ",".join(settings.devices)
            self._metrics.model(model.role, model.name, model.engines[0].name, devices, settings.precision)
        if self.index:
            self.index.start()
        self._pool.decoder.start(self.pipeline.max_pixels)

    async def answer(
        self,
        images: Sequence[bytes | PdserveError],
        top_k: int | None,
        deadline: float | None,
        parameters: Parameters = USUAL,
    ) -> list[Any]:
        """See Service.answer; ``deadline`` on the loop's clock, in seconds. Raises RetiredError too."""
        return await self.pipeline.answer(images, _Steps(self, deadline, parameters), top_k)

    async def look(
        self, image: bytes, function: Callable[[Image8], Result], deadline: float | None
    ) -> Result | PdserveError:
        """See Service.look; otherwise as `answer`."""
        steps = _Steps(self, deadline, working_bytes=_DRAWING)
        return await steps.decoded(image, lambda pixels, _: function(pixels))

    async def embed(
        self, images: Sequence[bytes | PdserveError], deadline: float | None
    ) -> list[Tensor | PdserveError]:
        """See Service.embed; otherwise as `answer`."""
        return await self.pipeline.embed(images, _Steps(self, deadline))

    async def run(
        self,
        work: Callable[[Pipeline[Any], Steps], Awaitable[list[Result]]],
        deadline: float | None,
    ) -> list[Result]:
        """See Service.run; otherwise as `answer`."""
        return await work(self.pipeline, _Steps(self, deadline))

    def signature(self) -> Hashable:
        """The signature of the models' files as they are now; called in a thread. Raises OSError."""
        return self.pipeline.signature()

    def check(self) -> None:
        """Run every engine once; called in a thread. Raises EngineError, ModelError, SettingsError."""
        self.pipeline.check()

    def forget(self) -> None:
        """Take it out of the metrics: no other replica follows."""
        for model in self.pipeline.models.values():
            self._metrics.forget(model.role, model.name)

    def retire(self) -> None:
        """Abandon the engines: whoever waits for them gets RetiredError."""
        self.state = State.REBUILDING
        for batcher in self._batchers.values():
            batcher.retire()

    async def close(self) -> None:
        """Finish what is queued; free the engines, unless a thread hangs in one."""
        for batcher in self._batchers.values():
            await batcher.close()
        await self.abandon()
        if not self._hangs:
            self.pipeline.close()

    async def abandon(self) -> None:
        """Stop watching the index; leave the engines to the thread that hangs in one."""
        self.state = State.CLOSED
        if self.index:
            await self.index.close()

    def _broken(self, cause: str) -> None:
        self._hangs = self._hangs or cause == "hanging"
        if self._owner:
            self._owner.broken(self, cause)

    def _other_embedder(self) -> None:
        if self._owner:
            self._owner.reload_soon()


class _Steps:
    """Runs one request's steps: work in the pool's threads, models in batches across requests.

    An image's memory, as its header says, is reserved before it is decoded, and held as long as its pixels.
    One image of the request at a time waits for that, so that many do not keep others from their turn.
    """

    __slots__ = ("_count", "_deadline", "_replica", "_turn", "_working_bytes", "parameters", "record")

    def __init__(
        self,
        replica: Replica,
        deadline: float | None,
        parameters: Parameters = USUAL,
        working_bytes: int | None = None,
    ) -> None:
        self._replica = replica
        self._working_bytes = replica.pipeline.working_bytes if working_bytes is None else working_bytes
        self.parameters = parameters
        self._deadline = deadline
        self._count = replica.entrance.pixel_count()
        self._turn = asyncio.Lock()
        self.record = replica._stages.record

    async def decoded(
        self, data: bytes | PdserveError, function: Callable[[Image8, float], Result]
    ) -> Result | PdserveError:
        if isinstance(data, PdserveError):
            return data
        try:
            header, reservation = await self._admit(data)
            try:
                return await self._decode(data, header, function)
            finally:
                reservation.release()
        except (ImageError, BodyTooLargeError) as error:
            return error

    @contextlib.asynccontextmanager
    async def pixels(self, data: bytes | PdserveError) -> AsyncIterator[Image8 | PdserveError]:
        reservation = None
        try:
            image: Image8 | PdserveError
            if isinstance(data, PdserveError):
                image = data
            else:
                try:
                    header, reservation = await self._admit(data)
                    image = await self._decode(data, header, lambda image, _: image)
                except (ImageError, BodyTooLargeError) as error:
                    image = error
            yield image
        finally:
            if reservation:
                reservation.release()

    async def _admit(self, data: bytes) -> tuple[Header, Reservation]:
        """Read the header, whose readers are bounded, and wait until there is memory for the image."""
        header = read_header(data, self._replica.pipeline.max_pixels)
        self._count.add(header.pixels)
        needed = max(header.bytes_needed, header.pixels * self._working_bytes)
        async with self._turn:
            return header, await self._replica.entrance.pixels.reserve(needed, self._deadline)

    async def _decode(
        self, data: bytes, header: Header, function: Callable[[Image8, float], Result]
    ) -> Result:
        """A plain image and the function in one piece of work, any other in a process first."""
        pool = self._replica._pool
        if plain(header):
            done: tuple[Result] | None
            done = await pool.run(self._deadline, _decode_plain, data, header, function)
            if done is not None:
                return done[0]
        started = time.perf_counter()
        limit = self._replica.pipeline.max_pixels
        image = await pool.decoder.run(data, header, limit, self._deadline)
        return await pool.run(self._deadline, function, image, time.perf_counter() - started)

    async def work(self, function: Callable[..., Result], *arguments: Any) -> Result:
        return await self._replica._pool.run(self._deadline, function, *arguments)

    async def infer(self, role: str, items: Sequence[Any]) -> list[Any]:
        return await self._replica._batchers[role].submit(items, self._deadline)


def _decode_plain(
    data: bytes, header: Header, function: Callable[[Image8, float], Result]
) -> tuple[Result] | None:
    """Decode a plainly ordinary image and run a function on it; None for one that needs a process."""
    started = time.perf_counter()
    image = decode_plain(data, header)
    return None if image is None else (function(image, time.perf_counter() - started),)
