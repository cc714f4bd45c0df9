"""The repository: a server's services by name, which are loaded and unloaded while it runs.

One service alone, as `pdserve serve KIND` starts it, is a repository too; its routes carry no name then.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Union

from pdserve.errors import RequestError, WrongServiceError
from pdserve.services.service import Answering, Service


class AmbiguousError(RequestError):
    """Several services could be meant, and none is named."""

    code = "several_services"


@dataclass(frozen=True)
class Listed:
    """A service in the list. ``state``: READY, UNAVAILABLE (its engine is being rebuilt), or UNLOADED."""

    name: str
    kind: str
    state: str


class Repository:
    """Services by name, in order. ``alone``: it is one service, whose routes carry no name."""

    def __init__(self, services: Mapping[str, Answering], *, alone: bool = False) -> None:
        self._services = dict(services)
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

    async def load(self, name: str) -> None:
        """Load a service, with its settings and files as they are now; one that is loaded is reloaded.

        Raises WrongServiceError, and what keeps it from being loaded; then it stays as it was.
        """
        await self._own(name).load()

    async def unload(self, name: str) -> None:
        """Take no more requests for a service, answer those that run, and free its models.

        Raises WrongServiceError.
        """
        await self._own(name).unload()

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
    return isinstance(service, Service) and not service.loaded


def _state(service: Answering) -> str:
    if _unloaded(service):
        return "UNLOADED"
    return "READY" if service.ready else "UNAVAILABLE"
