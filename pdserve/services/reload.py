"""The pipeline in force and its successors.

A pipeline is replaced as a whole: by one that was newly published or that SIGHUP asks for, once that has
run warm, so that no request notices; and by a fresh copy of itself when its engine fails or hangs, during
which the service is not ready. Requests that waited for engines which were given up are put to the new.
"""

import asyncio
import contextlib
import contextvars
import itertools
import logging
from collections.abc import Callable, Coroutine, Hashable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from pdserve.errors import ClosedError, DeadlineError, EngineError, OverloadedError, PdserveError
from pdserve.services.batcher import RetiredError
from pdserve.services.telemetry.metrics import Metrics

log = logging.getLogger("pdserve")

# How often the models' files are looked at, in seconds; what changed must have come to rest by the next.
INTERVAL_S = 1.0
# Waits between attempts to rebuild an engine, in seconds; the last is repeated.
_PAUSES_S = (1, 2, 5, 10, 30)
# An engine that hangs keeps its memory and a thread; after so many the process is to be started anew.
MAX_HANGS = 3


class Generation(Protocol):
    """A pipeline with queues before its engines, and what else changes with it."""

    loaded: Hashable  # the stamp of the files that were loaded

    @property
    def room(self) -> int:
        """Images that its engines hold, or would take at once."""

    def start(self) -> None:
        """Take requests; called on the running event loop."""

    async def answer(self, images: Sequence[Any], top_k: int | None, deadline: float | None) -> list[Any]:
        """See Service.answer; ``deadline`` on the loop's clock, in seconds. Raises RetiredError too."""

    def stamp(self) -> Hashable:
        """What tells the models' files now from those before; called in a thread."""

    def check(self) -> None:
        """Run every engine once; called in a thread. Raises EngineError."""

    def retire(self) -> None:
        """Give the engines up: who waits for them gets RetiredError."""

    async def close(self) -> None:
        """Finish what is queued; free the engines."""

    async def abandon(self) -> None:
        """Stop what does not depend on the engines, one of which hangs; free nothing of theirs."""


G = TypeVar("G", bound=Generation)


class _Held(Generic[G]):
    """A generation and how many requests are with it."""

    def __init__(self, generation: G) -> None:
        self.generation = generation
        self._users = 0
        self.unused = asyncio.Event()
        self.unused.set()

    @contextlib.contextmanager
    def used(self) -> Iterator[G]:
        self._users += 1
        self.unused.clear()
        try:
            yield self.generation
        finally:
            self._users -= 1
            if not self._users:
                self.unused.set()


class Generations(Generic[G]):
    """Serves requests from the generation in force.

    ``build`` opens a new one, warmed up; it is called in a thread, and with True it settles the settings
    anew first. A generation tells `broken` of its engines. ``max_waiting``: images that may be inside
    beyond those that the engines hold. ``hang_s``: how long a check of a failing engine may take.
    """

    def __init__(
        self, first: G, build: Callable[[bool], G], max_waiting: int, hang_s: float, metrics: Metrics
    ) -> None:
        self.ready = False
        self.given_up = asyncio.Event()
        self._held = _Held(first)
        self._build = build
        self._max_waiting = max_waiting
        self._hang_s = hang_s
        self._metrics = metrics
        self._inside = 0
        self._mended = asyncio.Event()
        self._replacing = asyncio.Lock()
        self._hangs = 0
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def current(self) -> G:
        """The generation in force."""
        return self._held.generation

    @property
    def inside(self) -> int:
        """Images between their arrival and their answer."""
        return self._inside

    @property
    def hangs(self) -> int:
        """Engines that hang in this process, for good."""
        return self._hangs

    def start(self) -> None:
        """Take requests, and watch the models' files; called on the running event loop."""
        self.current.start()
        self.ready = True
        self._spawn(self._watch())

    def stop(self) -> None:
        """Be ready no more, and replace nothing."""
        self._closing = True
        self.ready = False

    async def answer(self, images: Sequence[Any], top_k: int | None, timeout_s: float | None) -> list[Any]:
        """See Service.answer."""
        if not self.ready and not self._closing:
            raise ClosedError("The engine is being rebuilt; ask again in a moment.")
        if self._inside and self._inside + len(images) > self._max_waiting + self.current.room:
            raise OverloadedError(f"{self._inside} images wait already; ask again in a moment.")
        deadline = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        self._inside += len(images)
        try:
            # Once more than there may be hangs: who waited for engines that were given up asks the next.
            for _ in range(MAX_HANGS):
                with contextlib.suppress(RetiredError), self._held.used() as generation:
                    return await generation.answer(images, top_k, deadline)
                await self._wait_for_mending(deadline)
        finally:
            self._inside -= len(images)
        raise EngineError("The engine failed again and again.")

    async def _wait_for_mending(self, deadline: float | None) -> None:
        left = None if deadline is None else deadline - asyncio.get_running_loop().time()
        try:
            await asyncio.wait_for(self._mended.wait(), left)
        except TimeoutError:
            raise DeadlineError("The engine was not rebuilt in time.") from None
        if self._closing:
            raise ClosedError("The server is stopping.")

    async def reload(self, resettle: bool = False) -> None:
        """Put a newly opened pipeline in the place of the present one; that stays if it cannot be opened."""
        async with self._replacing:
            try:
                newer = await asyncio.to_thread(self._build, resettle)
            except PdserveError as error:
                log.error("not reloaded, what runs goes on: %s", error)
                return
            except Exception:
                log.exception("not reloaded, what runs goes on")
                return
            self._replace(newer, "reload")
            log.info("reloaded: new requests go to the models as they are now")

    def reload_soon(self) -> None:
        """Reload, without waiting for it."""
        if not self._closing:
            self._spawn(self.reload())

    def broken(self, generation: G, cause: str) -> None:
        """The engine of a generation is ``failing`` or ``hanging``."""
        if generation is self.current and not self._closing:
            self._spawn(self._mend(generation, cause))

    async def _mend(self, generation: G, cause: str) -> None:
        async with self._replacing:
            if generation is not self.current:
                return
            if cause == "failing" and await self._works(generation):
                log.warning("several images failed in the engine, which works on a blank one")
                return
            log.error("the engine is %s and is being rebuilt; nothing is answered meanwhile", cause)
            self.ready = False
            self._mended.clear()
            generation.retire()
            if cause == "hanging":
                self._hangs += 1
                await generation.abandon()
                if self._hangs >= MAX_HANGS:
                    log.critical("the engine hung %d times; the server ends, to be started anew", self._hangs)
                    self.given_up.set()
                    return
            else:
                await self._held.unused.wait()
                await generation.close()
            self._replace(await self._rebuilt(), cause)
            log.info("the engine is rebuilt")

    async def _works(self, generation: G) -> bool:
        try:
            await asyncio.wait_for(asyncio.to_thread(generation.check), self._hang_s)
        except (TimeoutError, PdserveError) as error:
            log.error("the engine fails on a blank image too: %s", error or "it hangs")
            return False
        return True

    async def _rebuilt(self) -> G:
        for pause in itertools.chain(_PAUSES_S, itertools.repeat(_PAUSES_S[-1])):
            try:
                return await asyncio.to_thread(self._build, False)
            except PdserveError as error:
                log.error("the engine cannot be rebuilt, the next attempt is in %d s: %s", pause, error)
            except Exception:
                log.exception("the engine cannot be rebuilt, the next attempt is in %d s", pause)
            await asyncio.sleep(pause)
        raise AssertionError("there is always a next attempt")

    def _replace(self, newer: G, cause: str) -> None:
        older, self._held = self._held, _Held(newer)
        newer.start()
        self._metrics.rebuilt(cause)
        if cause == "reload":
            self._spawn(_closed(older))
        self.ready = not self._closing
        self._mended.set()

    async def _watch(self) -> None:
        refused: Hashable = None
        before: Hashable = self.current.loaded
        unseen = ""
        while True:
            await asyncio.sleep(INTERVAL_S)
            try:
                now = await asyncio.to_thread(self.current.stamp)
            except OSError as error:  # too many open files, say, which passes
                if str(error) != unseen:
                    log.error("the models' files cannot be looked at, what runs goes on: %s", error)
                unseen = str(error)
                continue
            unseen = ""
            if now == before and now not in (self.current.loaded, refused):
                log.info("the models' files have changed")
                await self.reload()
                refused = now
            before = now

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        # Without the context of the request that may have brought it about: this outlives it.
        task = contextvars.Context().run(asyncio.create_task, work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Finish what is queued and free the engines; those that hang are left as they are."""
        self.stop()
        self._mended.set()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not self.given_up.is_set():
            await self.current.close()


async def _closed(older: _Held[Any]) -> None:
    """Close a generation when its last request has its answer."""
    await older.unused.wait()
    await older.generation.close()
