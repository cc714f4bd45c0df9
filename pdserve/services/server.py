"""The server process: check everything, load models, open the listeners, handle signals, stop in order."""

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from pdserve.engines.device import cores
from pdserve.errors import EngineError, PdserveError
from pdserve.models.home import Home
from pdserve.models.servers import RunningServer, registration, usable
from pdserve.pipelines import ServiceEntry
from pdserve.services.auth import KeyInterceptor, Keys, open_access_warning
from pdserve.services.budget import Entrance
from pdserve.services.http.about import metrics_listener
from pdserve.services.http.app import build_app
from pdserve.services.http.browsers import any_page_warning
from pdserve.services.http.hosts import allowed_hosts
from pdserve.services.http.places import raise_file_limit
from pdserve.services.http.server import http_listener
from pdserve.services.memory import keep_freed_memory
from pdserve.services.net import bind, bracketed, check_tls, container_warning
from pdserve.services.replica import Pool, Replica
from pdserve.services.repository import Repository
from pdserve.services.service import Service
from pdserve.services.several import Plan, Several
from pdserve.services.signals import AFTER_GRACE_S, End, handled
from pdserve.services.supervisor import Supervisor
from pdserve.services.telemetry.logs import open_log
from pdserve.services.telemetry.metrics import Metrics
from pdserve.services.telemetry.middleware import TelemetryInterceptor
from pdserve.services.telemetry.tracing import Tracer, open_tracing
from pdserve.settings import ServerSettings, ServiceSettings

log = logging.getLogger("pdserve")


def serve(
    entry: ServiceEntry,
    read_settings: Callable[[], ServiceSettings],
    home: Home,
    bring: Callable[[ServiceSettings, Home], object] = lambda settings, home: None,
) -> None:
    """Run a service until SIGINT or SIGTERM, then finish what is running and return.

    ``read_settings`` resolves the settings: now, and again at each SIGHUP. ``bring`` is called once, before
    models are opened: it may download what is missing, which a reload never does. Raises what is wrong
    before a port is opened.
    """
    active = _ActiveSettings(read_settings)
    with _prepared(active.settings.server, active.settings.notes, home) as server:

        def build(read_again: bool, pool: Pool) -> Replica:
            settings = active.read(read_again)
            pipeline = entry.open(settings, home)
            active.settings = settings
            return Replica(pipeline, settings, pool, server.metrics, server.entrance)

        server.supervisor.starting("bringing and loading models")
        bring(active.settings, home)
        service = Service(entry, build, server.metrics, server.failed)
        one = Repository.of(service, service.name)
        server.run(one, entry.kind, service.reload)


def serve_several(
    plan: Plan,
    home: Home,
    bring: Callable[[ServiceSettings, Home], object] = lambda settings, home: None,
) -> None:
    """Run several services in one process; otherwise as `serve`.

    ``plan`` says which: now, and again at each SIGHUP, which adds and removes services.
    """
    planned = plan()
    settings = [each.settings for each in planned.values()]
    notes = tuple(dict.fromkeys(note for each in settings for note in each.notes))
    with _prepared(settings[0].server, notes, home, by_service=True) as server:
        server.supervisor.starting("bringing and loading models")
        for each in settings:
            bring(each, home)
        several = Several(planned, plan, home, server.metrics, server.entrance, server.failed)
        server.run(several.repository, "services", several.reload, several.settle)


class _ActiveSettings:
    """The settings that are active. Those of the listeners stay what they were at the start."""

    def __init__(self, read_settings: Callable[[], ServiceSettings]) -> None:
        self._read = read_settings
        self.settings = read_settings()

    def read(self, again: bool) -> ServiceSettings:
        """The active settings, or those that a reload is to make active."""
        if not again:
            return self.settings
        newer = self._read()
        if newer.server != self.settings.server:
            log.warning("settings of the listeners, limits among them, have changed: they need a restart")
        return newer


@contextlib.contextmanager
def _prepared(
    settings: ServerSettings, notes: tuple[str, ...], home: Home, *, by_service: bool = False
) -> Iterator["_Server"]:
    """Open the log, log the notes, read keys and certificates, see that the ports are free."""
    with open_log(settings.log_file, settings.log_format):
        for note in notes:
            log.warning("%s", note)
        keys = Keys.read(settings)
        check_tls(settings)
        allowed_hosts(settings, keyed=keys is not None)
        for port in (settings.http_port, settings.rpc_port, settings.prometheus_port):
            if port:  # a taken port is an error now, not after a model has loaded
                for opened in bind(settings.host, port):
                    opened.close()
        warnings = (
            open_access_warning(settings),
            any_page_warning(settings),
            container_warning(settings.host, os.environ),
        )
        for warning in warnings:
            if warning:
                log.warning("%s", warning)
        keep_freed_memory(cores())
        raise_file_limit(settings)
        yield _Server(settings, keys, home, by_service)


class _Server:
    """The listeners of the services, their place in the register, and the signals to the process."""

    def __init__(self, settings: ServerSettings, keys: Keys | None, home: Home, by_service: bool) -> None:
        self.settings = settings
        self.metrics = Metrics(by_service=by_service)
        self.entrance = Entrance(settings)
        self.failed = asyncio.Event()
        self._keys = keys
        self._home = home
        self._stuck = False
        self.supervisor = Supervisor(os.environ)

    def run(
        self,
        services: Repository,
        what: str,
        reload: Callable[[], Coroutine[Any, Any, None]],
        begin: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        """Serve until a signal. Ends the process where something goes on that would keep it from ending.

        ``what``: their kind, in the log. ``reload``: what SIGHUP does, beside reading the keys again.
        ``begin``: what is done before a port is opened.
        """
        end = End(self.settings.grace_s, lambda: EngineError.exit_code if self.failed.is_set() else 0)
        with open_tracing(what, os.environ) as tracer:
            app = build_app(
                services,
                self.settings,
                self.metrics,
                options=services.own[0].options,  # of several each gets its own
                keys=self._keys,
                tracer=tracer,
                entrance=self.entrance,
            )
            _run(self._serve(services, what, app, tracer, end, reload, begin))
        if any(each.hangs for each in services.own) or self._stuck:
            # A thread is still inside the engine, and would keep the process from ending.
            end.now("with an engine that had not finished")
        end.reached()
        log.info("stopped")

    async def _serve(
        self,
        services: Repository,
        what: str,
        app: Any,
        tracer: Tracer | None,
        end: End,
        reload: Callable[[], Coroutine[Any, Any, None]],
        begin: Callable[[], Coroutine[Any, Any, None]] | None,
    ) -> None:
        stop = asyncio.Event()
        with self._on_signals(reload, stop.set, end), registration(self._home) as register:
            services.start()
            if begin:
                await begin()
            running, addresses, ports = [], [], {}
            try:
                for door, address, listener in self._listeners(services, app, tracer, stop):
                    opened = asyncio.get_running_loop().create_future()
                    running.append(asyncio.create_task(_listen(listener, opened, stop)))
                    ports[door] = await opened
                    addresses.append(address % ports[door])

                def record() -> None:
                    register.write(self._record(services, what, ports))

                record()
                services.on_replaced(record)
                ready = f"{what} at {' and '.join(addresses)}"
                log.info("ready: %s", ready)
                self.supervisor.ready(ready)
                events = (stop, self.failed)
                waits = [asyncio.ensure_future(event.wait()) for event in events]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for each in waits:
                    each.cancel()
            finally:
                end.begin()
                self.supervisor.stopping()
                over = asyncio.get_running_loop().time() + self.settings.grace_s + AFTER_GRACE_S / 2
                stop.set()
                services.stop()
                register.close()
                log.info("stopping: no new requests, finishing those that run")
                # All at once: each has the same time to let its requests finish.
                await asyncio.gather(*running, return_exceptions=True)
                try:
                    async with asyncio.timeout_at(over):
                        await services.close()
                except TimeoutError:
                    self._stuck = True

    def _record(self, services: Repository, what: str, ports: Mapping[str, int]) -> RunningServer:
        """What the register says of this server; ``ports`` by door, as `_listeners` names them."""
        host = bracketed(usable(self.settings.host))
        tls = self.settings.tls_cert is not None
        doors = {door: f"{host}:{port}" for door, port in ports.items()}
        loaded = [each for each in services.own if each.loaded]
        models = [model.model.path for each in loaded for model in each.replica.pipeline.models.values()]
        indexes = [each.index.folder for each in loaded if each.index]
        if len(indexes) > 1:
            models += indexes  # in use as the models are
        return RunningServer(
            os.getpid(),
            what,
            http=f"{'https' if tls else 'http'}://{doors['http']}" if "http" in doors else None,
            rpc=f"{'grpcs://' if tls else ''}{doors['rpc']}" if "rpc" in doors else None,
            tls=tls,
            models=tuple(dict.fromkeys(str(each.resolve()) for each in models)),
            index=str(indexes[0].resolve()) if len(indexes) == 1 else None,
            services=() if services.alone else tuple((name, each.kind) for name, each in services),
        )

    def _listeners(
        self, services: Repository, app: Any, tracer: Tracer | None, stop: asyncio.Event
    ) -> Iterator[tuple[str, str, AbstractAsyncContextManager[int]]]:
        """The doors, their addresses with a place for the port, and what listens there."""
        settings = self.settings
        host = bracketed(settings.host)
        if settings.http_port is not None:
            scheme = "https" if settings.tls_cert else "http"
            yield "http", f"{scheme}://{host}:%d", http_listener(app, settings, settings.http_port, stop)
        if settings.rpc_port is not None:
            from pdserve.services.grpc.server import grpc_listener

            access = settings.log_format == "json"
            telemetry = TelemetryInterceptor(self.metrics, access=access, tracer=tracer)
            interceptors = (telemetry, *((KeyInterceptor(self._keys),) if self._keys else ()))
            listener = grpc_listener(services, self.entrance, settings.rpc_port, interceptors)
            yield "rpc", f"gRPC on {host}:%d", listener
        if settings.prometheus_port is not None:
            yield "metrics", f"metrics on {host}:%d", metrics_listener(self.metrics, settings, stop)

    @contextlib.contextmanager
    def _on_signals(
        self, again: Callable[[], Coroutine[Any, Any, None]], stop: Callable[[], object], end: End
    ) -> Iterator[None]:
        """Signals stop, end and reload the server while this is open; see signals.py."""
        tasks: set[asyncio.Task[None]] = set()

        def reload() -> None:
            log.info("reloading")
            task = asyncio.create_task(self._reload(again))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        with handled(stop, reload, end):
            yield

    async def _reload(self, again: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with self.supervisor.reloading():
            try:
                if self._keys:
                    self._keys.reload()
            except PdserveError as error:
                log.error("not reloaded, the keys that were read before stay in force: %s", error)
                return
            await again()


async def _listen(
    listener: AbstractAsyncContextManager[int], opened: "asyncio.Future[int]", stop: asyncio.Event
) -> None:
    """Keep a listener open until ``stop``; ``opened`` gets its port, or what keeps it from opening."""
    try:
        async with listener as port:
            opened.set_result(port)
            await stop.wait()
    except Exception as error:
        if opened.done():
            raise
        opened.set_exception(error)


def _run(serving: Coroutine[Any, Any, None]) -> None:
    """Run on uvloop, which costs a request less than asyncio's own loop; Windows has none."""
    if sys.platform == "win32":
        asyncio.run(serving)
    else:
        import uvloop

        uvloop.run(serving)
