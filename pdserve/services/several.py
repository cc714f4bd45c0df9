"""Several services in one process: how each is opened, and what SIGHUP does to each."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pdserve.errors import PdserveError, SettingsError
from pdserve.models.home import Home
from pdserve.pipelines import ServiceEntry
from pdserve.services.budget import Entrance
from pdserve.services.replica import Pool, Replica
from pdserve.services.repository import Repository
from pdserve.services.residence import Residence, resident_bytes
from pdserve.services.service import Service
from pdserve.services.telemetry.metrics import Metrics
from pdserve.settings import ServiceSettings

log = logging.getLogger("pdserve")


@dataclass(frozen=True)
class Planned:
    """A service as it is to be served; ``settings.server.name`` is its name."""

    entry: ServiceEntry
    settings: ServiceSettings


Plan = Callable[[], Mapping[str, Planned]]
"""Reads which services a server is to have, by name; again at each reload. Raises SettingsError."""


class Several:
    """The services of a plan, opened one after the other; `reload` makes what the plan says now active."""

    def __init__(
        self,
        planned: Mapping[str, Planned],
        plan: Plan,
        home: Home,
        metrics: Metrics,
        entrance: Entrance,
        failed: asyncio.Event,
    ) -> None:
        """Raises what keeps one of them from being opened."""
        self._planned = planned
        self._plan = plan
        self._home = home
        self._metrics = metrics
        self._entrance = entrance
        self._failed = failed
        self._reloading = asyncio.Lock()
        limit = entrance.settings.max_resident_bytes
        self.residence = Residence(limit) if limit else None
        self.repository = Repository(
            {name: self._entered(self._open(name, each)) for name, each in planned.items()}
        )

    def _entered(self, opened: tuple[Service, int]) -> Service:
        service, grown = opened
        if self.residence:
            self.residence.enter(service, grown)
        return service

    def _open(self, name: str, planned: Planned) -> tuple[Service, int]:
        """Open a service; by how many bytes the process has grown. Takes seconds."""
        active = planned
        metrics, entrance = self._metrics.for_service(name), self._entrance.for_service()

        def build(read_again: bool, pool: Pool) -> Replica:
            nonlocal active
            newer = self._again(name, active.entry) if read_again else active
            pipeline = newer.entry.open(newer.settings, self._home)
            active = newer
            return Replica(pipeline, newer.settings, pool, metrics, entrance)

        before = resident_bytes()
        service = Service(planned.entry, build, metrics, self._failed)
        return service, resident_bytes() - before

    def _again(self, name: str, entry: ServiceEntry) -> Planned:
        """What the plan says of a service now."""
        found = self._plan().get(name)
        if found is None or found.entry.kind != entry.kind:
            raise SettingsError(f"The configuration has no {entry.kind} {name} any more; send SIGHUP.")
        return found

    async def settle(self) -> None:
        """Unload what is beyond ``max_resident_bytes``."""
        if self.residence:
            await self.residence.settle()

    async def reload(self) -> None:
        """Add and remove services as the plan says now, and reload the others, each for itself.

        One that cannot be loaded is logged, and stays as it was, or away.
        """
        async with self._reloading:
            try:
                planned = await asyncio.to_thread(self._plan)
            except PdserveError as error:
                log.error("not reloaded, what runs goes on: %s", error)
                return
            self._warn(planned)
            before, self._planned = dict(self.repository), planned
            for name, service in before.items():
                if name not in planned or planned[name].entry.kind != service.kind:
                    await self.repository.remove(name)
                    if self.residence and isinstance(service, Service):
                        self.residence.leave(service)
                    log.info("%s is not served any more", name)
                elif isinstance(service, Service):
                    await service.reload()
            for name, each in planned.items():
                if name not in dict(self.repository):
                    await self._add(name, each)

    async def _add(self, name: str, planned: Planned) -> None:
        try:
            service = self._entered(await asyncio.to_thread(self._open, name, planned))
        except PdserveError as error:
            log.error("%s is not served, the other services go on: %s", name, error)
            return
        except Exception:
            log.exception("%s is not served, the other services go on", name)
            return
        if self.repository.stopped:
            await service.close()
            return
        service.start()
        self.repository.add(name, service)
        await self.settle()
        log.info("%s is served", name)

    def _warn(self, planned: Mapping[str, Planned]) -> None:
        def server(each: Planned) -> object:
            return each.settings.server.model_copy(update={"name": ""})

        if {str(server(each)) for each in planned.values()} != {
            str(server(each)) for each in self._planned.values()
        }:
            log.warning("settings of the listeners, limits among them, have changed: they need a restart")
