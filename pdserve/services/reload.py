"""Replace a service's replica: reload new models and settings, rebuild engines that fail or hang.

A reload builds the new replica beside the active one and swaps them when it is warm, so that no request
notices. A rebuild takes the active one out of service: requests that waited for its engines are put to the
replica that follows, and the service is not ready meanwhile.
"""

import asyncio
import contextvars
import itertools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from pdserve.errors import ClosedError, DeadlineError, PdserveError
from pdserve.services.replica import Replica
from pdserve.services.telemetry.metrics import Metrics
from pdserve.services.watch import watch

log = logging.getLogger("pdserve")

# How often the models' files are looked at, in seconds.
INTERVAL_S = 1.0
# Waits between attempts to rebuild an engine, in seconds; the last is repeated.
_PAUSES_S = (1, 2, 5, 10, 30)
# An engine that hangs keeps its memory and a thread; after so many the process has to be restarted.
MAX_HANGS = 3

R = TypeVar("R", bound=Replica)


class Reloader(Generic[R]):
    """Holds the active replica and its successors.

    ``build`` opens a new one, warm; it is called in a thread, and with True it reads the settings again
    first. ``hang_s``: how long a check of a failing engine may take. ``ready``: requests would be answered
    now. ``replaced`` is called when another replica is active. ``failed`` is set when the engines hung too
    often. ``hangs``: engines that hang in this process.
    """

    def __init__(self, first: R, build: Callable[[bool], R], hang_s: float, metrics: Metrics) -> None:
        self.active = first
        self.ready = False
        self.closing = False
        self.failed = asyncio.Event()
        self.replaced: Callable[[], object] = lambda: None
        self.hangs = 0
        self._build = build
        self._hang_s = hang_s
        self._metrics = metrics
        self._rebuilt = asyncio.Event()
        self._replacing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closers: set[asyncio.Task[None]] = set()  # of replicas that were replaced

    def start(self) -> None:
        """Take requests, and watch the models' files; called on the running event loop."""
        self.active.start(self)
        self.ready = True
        look, loaded = lambda: self.active.signature(), lambda: self.active.loaded
        self._spawn(watch("the models' files", look, loaded, self._changed, INTERVAL_S, settle=True))

    def stop(self) -> None:
        """Stop being ready, and replace nothing any more."""
        self.closing = True
        self.ready = False

    async def wait_until_rebuilt(self, deadline: float | None) -> None:
        """Wait for the next replica. Raises DeadlineError at ``deadline`` (loop's clock), ClosedError."""
        left = None if deadline is None else deadline - asyncio.get_running_loop().time()
        try:
            await asyncio.wait_for(self._rebuilt.wait(), left)
        except TimeoutError:
            raise DeadlineError("The engine was not rebuilt in time.") from None
        if self.closing:
            raise ClosedError("The server is stopping.")

    async def reload(self, read_settings: bool = False) -> None:
        """Put a newly built replica in the place of the active one, which stays if that fails, and log it."""
        try:
            await self.renew(read_settings)
        except PdserveError as error:
            log.error("not reloaded, what runs goes on: %s", error)
        except Exception:
            log.exception("not reloaded, what runs goes on")

    async def renew(self, read_settings: bool = False) -> None:
        """As `reload`; raises what keeps the replica from being built."""
        async with self._replacing:
            newer = await asyncio.to_thread(self._build, read_settings)
            if self.closing:  # meanwhile: what is active is being closed, and nothing takes its place
                await newer.close()
                return
            self._replace(newer, "reload")
            log.info("reloaded: new requests go to the models as they are now")

    def reload_soon(self) -> None:
        """Reload, without waiting for it."""
        if not self.closing:
            self._spawn(self.reload())

    def broken(self, replica: Replica, cause: str) -> None:
        """Rebuild a replica whose engine is ``failing`` or ``hanging``, without waiting for it.

        Of one that has been replaced already, who waits for its engines is put to its successor. At a stop
        nothing follows, and nobody is to wait for what hangs.
        """
        if replica is self.active and not self.closing:
            self._spawn(self._rebuild(self.active, cause))
        elif cause == "hanging":
            if replica is self.active:
                self._rebuilt.set()
            replica.retire()

    async def close(self) -> None:
        """Finish what is queued and free the engines; those that hang are left as they are."""
        self.stop()
        self._rebuilt.set()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*self._closers, return_exceptions=True)
        if not self.failed.is_set():
            await self.active.close()

    async def _changed(self) -> None:
        log.info("the models' files have changed")
        await self.reload()

    async def _rebuild(self, replica: R, cause: str) -> None:
        async with self._replacing:
            if replica is not self.active:
                return
            if cause == "failing" and await self._works(replica):
                log.warning("several images failed in the engine, which works on a blank one")
                return
            log.error("the engine is %s and is being rebuilt; nothing is answered meanwhile", cause)
            self.ready = False
            self._rebuilt.clear()
            replica.retire()
            if cause == "hanging":
                self.hangs += 1
                await replica.abandon()
                if self.hangs >= MAX_HANGS:
                    log.critical(
                        "the engine hung %d times; the server ends and has to be restarted", self.hangs
                    )
                    self.failed.set()
                    return
            else:
                await replica.requests.none()
                await replica.close()
            self._replace(await self._built(), cause)
            log.info("the engine is rebuilt")

    async def _works(self, replica: R) -> bool:
        try:
            await asyncio.wait_for(asyncio.to_thread(replica.check), self._hang_s)
        except (PdserveError, TimeoutError) as error:
            log.error("the engine fails on a blank image too: %s", error or "it hangs")
            return False
        return True

    async def _built(self) -> R:
        for pause in itertools.chain(_PAUSES_S, itertools.repeat(_PAUSES_S[-1])):
            try:
                return await asyncio.to_thread(self._build, False)
            except PdserveError as error:
                log.error("the engine cannot be rebuilt, the next attempt is in %d s: %s", pause, error)
            except Exception:
                log.exception("the engine cannot be rebuilt, the next attempt is in %d s", pause)
            await asyncio.sleep(pause)
        raise AssertionError("there is always a next attempt")

    def _replace(self, newer: R, cause: str) -> None:
        older, self.active = self.active, newer
        newer.start(self)
        self._metrics.rebuilt(cause)
        if cause == "reload":
            self._spawn(_close_unused(older), self._closers)
        self.ready = not self.closing
        self._rebuilt.set()
        self.replaced()

    def _spawn(self, work: Coroutine[Any, Any, None], among: "set[asyncio.Task[None]] | None" = None) -> None:
        # Without the context of the request that may have caused it: the task outlives the request.
        task = contextvars.Context().run(asyncio.create_task, work)
        tasks = self._tasks if among is None else among
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def _close_unused(older: Replica) -> None:
    """Close a replica when its last request has its answer."""
    await older.requests.none()
    await older.close()
