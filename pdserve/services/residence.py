"""A bound on what the models of several services hold in memory: the longest unused are unloaded.

What a service holds is what the process's resident memory grew by when it was opened at the start, and at
least the bytes of its models' files; the first one of an engine has that engine's library on its account. A
service that has to make room is *cold*: it counts as ready, and its next request loads it again, one service
at a time. Who runs requests is unloaded last, and after them.
"""

import asyncio
import contextvars
import logging
import sys
import time
from pathlib import Path

from pdserve.errors import ClosedError, PdserveError
from pdserve.services.service import Service

log = logging.getLogger("pdserve")

# How long what could not be loaded is not tried again.
_PAUSE_S = 1.0


class Residence:
    """Keeps the sum of what loaded services hold within ``limit`` bytes, as far as one alone lets it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: dict[Service, int] = {}
        self._changing = asyncio.Lock()
        self._waking: dict[Service, asyncio.Task[None]] = {}
        self._failed: dict[Service, tuple[float, PdserveError]] = {}

    def enter(self, service: Service, grown: int) -> None:
        """Have one more service, just opened; ``grown``: by how many bytes the process has."""
        paths = {model.model.path for model in service.replica.pipeline.models.values()}
        self._held[service] = held = max(grown, sum(map(_size, paths)))
        if held > self._limit:
            log.warning("%s alone holds %d bytes, more than --max-resident-bytes", service.name, held)
        service.waker = self.wake

    def leave(self, service: Service) -> None:
        """Forget a service."""
        self._held.pop(service, None)
        self._failed.pop(service, None)

    async def settle(self) -> None:
        """Unload what is beyond the limit; of those that nobody has asked yet the last first."""
        async with self._changing:
            for service in self._by_use():
                if self._loaded() <= self._limit or self._alone(service):
                    return
                await self._chill(service)

    async def wake(self, service: Service) -> None:
        """Load a cold service, once for all who wait; others make room for it.

        Raises what keeps it from being loaded; and the same for a second after that.
        """
        when, error = self._failed.get(service, (0.0, None))
        if error is not None and time.monotonic() - when < _PAUSE_S:
            raise error
        task = self._waking.get(service)
        if task is None:
            # Without the context of the request that may have caused it: what is loaded outlives it.
            task = contextvars.Context().run(asyncio.create_task, self._wake(service))
            self._waking[service] = task
            task.add_done_callback(lambda done: self._woken(service, done))
        await asyncio.shield(task)

    def _woken(self, service: Service, task: "asyncio.Task[None]") -> None:
        del self._waking[service]
        if not task.cancelled():
            task.exception()  # else it would be logged as lost where nobody waits for it

    async def _wake(self, service: Service) -> None:
        async with self._changing:
            if service.loaded:
                return
            if service not in self._held or not service.cold:  # it was unloaded, or removed, meanwhile
                raise ClosedError("The service was unloaded meanwhile; ask again in a moment.")
            for other in self._by_use():
                if self._loaded() + self._held[service] <= self._limit:
                    break
                if other is not service:
                    await self._chill(other)
            started = time.perf_counter()
            try:
                await service.load()
            except PdserveError as error:
                self._failed[service] = time.monotonic(), error
                log.error("%s cannot be loaded again: %s", service.name, error)
                raise
            log.info("%s was cold, and is loaded in %.2f s", service.name, time.perf_counter() - started)

    async def _chill(self, service: Service) -> None:
        log.info("%s is unloaded to make room; its next request loads it again", service.name)
        await service.unload(cold=True)

    def _by_use(self) -> list[Service]:
        """Those that are loaded: first those at rest, each group from the longest unused on."""
        loaded = [each for each in reversed(self._held) if each.loaded]
        return sorted(loaded, key=lambda each: (each.inside > 0, each.used))

    def _loaded(self) -> int:
        return sum(held for each, held in self._held.items() if each.loaded)

    def _alone(self, service: Service) -> bool:
        return not any(each.loaded for each in self._held if each is not service)


def resident_bytes() -> int:
    """The process's resident memory; 0 where the system does not say."""
    if not sys.platform.startswith("linux"):
        return 0
    import resource

    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * resource.getpagesize()


def _size(folder: Path) -> int:
    try:
        return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    except OSError:
        return 0
