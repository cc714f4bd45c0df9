"""The repository: a server's services by name, which are loaded and unloaded while it runs.

One service alone, as `pdserve serve KIND` starts it, is a repository too; its routes carry no name then.
"""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Union

from pdserve.errors import OverloadedError, RequestError, WrongServiceError
from pdserve.services.service import Answering, Service

MAX_CHANGES = 16
"""Loads and unloads under way that callers have asked for."""


class AmbiguousError(RequestError):
    """Several services could be meant, and none is named."""

    code = "several_services"


@dataclass(frozen=True)
class Listed:
    """A service in the list.

    ``state``: READY, UNAVAILABLE (its engine is being rebuilt), UNLOADED, or COLD: unloaded to make room, and
    loaded again for its next request.
    """

    name: str
    kind: str
    state: str


class Repository:
    """Services by name, in order. ``alone``: it is one service, whose routes carry no name."""

    def __init__(self, services: Mapping[str, Answering], *, alone: bool = False) -> None:
        self._services = dict(services)
        self._on_change: list[Callable[[], object]] = []
        self._changes: set[asyncio.Task[None]] = set()
        self._replaced: Callable[[], object] = lambda: None
        self.stopped = False
        self.alone = alone

    @classmethod
    def of(cls, service: Union[Answering, "Repository"], name: str | None = None) -> "Repository":
        """The repository of one service, whose name is that of its kind where none is given."""
        return (
            service if isinstance(service, Repository) else cls({name or service.kind: service}, alone=True)
        )

    def __iter__(self) -> Iterator[tuple[str, Answering]]:
        """Names and services; loaded or not."""
        return iter(tuple(self._services.items()))

    def __len__(self) -> int:
        return len(self._services)

    @property
    def only(self) -> Answering | None:
        """The service where there is one; None where there are several."""
        return next(iter(self._services.values())) if len(self._services) == 1 else None

    @property
    def ready(self) -> bool:
        """Whether each would answer now; those that were unloaded on purpose don't count.

        One alone that was unloaded does count: nothing would be answered.
        """
        wanted = [each for each in self._services.values() if not _unloaded(each)]
        return bool(wanted) and all(each.ready for each in wanted)

    def find(self, name: str) -> Answering | None:
        """The service of that name, or the only one that answers to it; None where there is none.

        The empty name is that of the only service.
        """
        if not name:
            return self.only
        if exact := self._services.get(name):
            return exact
        found = [each for each in self._services.values() if name in each.names]
        return found[0] if len(found) == 1 else None

    def get(self, name: str) -> Answering:
        """As `find`. Raises WrongServiceError, with the names that there are."""
        if found := self.find(name):
            return found
        raise WrongServiceError(f"There is no service {name[:100]!r} here; there is {self.names}.")

    @property
    def names(self) -> str:
        """All names, as a sentence has them."""
        return listed(self._services)

    def index(self) -> list[Listed]:
        """All services, loaded or not."""
        return [Listed(name, each.kind, _state(each)) for name, each in self]

    async def finish(self, change: Coroutine[Any, Any, None]) -> None:
        """Do one change to its end, also where who asked for it leaves. Raises OverloadedError for too many.

        Changes of one service wait for each other; a load holds a thread, and the models' memory.
        """
        if len(self._changes) >= MAX_CHANGES:
            change.close()
            raise OverloadedError(
                f"{len(self._changes)} services are being loaded or unloaded; ask again in a moment."
            )
        task = contextvars.Context().run(asyncio.create_task, change)
        self._changes.add(task)
        task.add_done_callback(self._done)
        await asyncio.shield(task)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._changes.discard(task)
        if not task.cancelled():
            task.exception()  # else it would be logged as lost where nobody waits for it

    async def load(self, name: str) -> None:
        """Load a service, with its settings and files as they are now; one that is loaded is reloaded.

        Raises WrongServiceError, and what keeps it from being loaded; then it stays as it was.
        """
        service = self._own(name)
        if service.loaded or service.waker is None:
            await service.load()
            return
        before, service.cold = service.cold, True
        try:
            await service.waker(service)
        except BaseException:
            service.cold = before and not service.loaded
            raise

    async def unload(self, name: str) -> None:
        """Take no more requests for a service, answer those that run, and free its models.

        Raises WrongServiceError.
        """
        await self._own(name).unload()

    @property
    def own(self) -> list[Service]:
        """The services without stand-ins."""
        return [each for each in self._services.values() if isinstance(each, Service)]

    def start(self) -> None:
        """Take requests from now on; called on the running event loop."""
        for each in self.own:
            each.start()

    def stop(self) -> None:
        """Stop being ready, and answer what is inside."""
        self.stopped = True
        for each in self.own:
            each.stop()

    async def close(self) -> None:
        """Finish what is queued and free engines and threads."""
        await asyncio.gather(*(each.close() for each in self.own))

    def on_change(self, changed: Callable[[], object]) -> None:
        """Call a function, on the event loop, when there are other services than before."""
        self._on_change.append(changed)

    def on_replaced(self, replaced: Callable[[], object]) -> None:
        """Call a function, on the event loop, when another replica of a service is active, or none."""
        self._replaced = replaced
        for each in self.own:
            each.replaced = replaced
        self.on_change(replaced)

    def add(self, name: str, service: Answering) -> None:
        """Have one more service, which takes requests already."""
        self._services[name] = service
        if isinstance(service, Service):
            service.replaced = self._replaced
        self._changed()

    async def remove(self, name: str) -> None:
        """Take a service out: no more requests come, those that run are answered, its models are freed."""
        service = self._services.pop(name)
        self._changed()
        if isinstance(service, Service):
            await service.unload()
            await service.close()

    def _changed(self) -> None:
        for changed in self._on_change:
            changed()

    def _own(self, name: str) -> Service:
        found = self.get(name)
        if not isinstance(found, Service):
            raise TypeError(f"{name} is a stand-in")
        return found


def listed(names: Mapping[str, object] | list[str]) -> str:
    """Names in a sentence: A, B and C; of many the first few."""
    shown = list(names)[:20]
    more = len(names) - len(shown)
    if more:
        shown.append(f"{more} more")
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1]))) if shown else "none"


def _unloaded(service: Answering) -> bool:
    return isinstance(service, Service) and not (service.loaded or service.cold)


def _state(service: Answering) -> str:
    if _unloaded(service):
        return "UNLOADED"
    if isinstance(service, Service) and service.cold:
        return "COLD"
    return "READY" if service.ready else "UNAVAILABLE"
