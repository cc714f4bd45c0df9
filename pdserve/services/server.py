"""A server process: check everything, load, warm up, open the doors, and close them in order."""

import asyncio
import contextlib
import logging
import logging.handlers
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pdserve import engines
from pdserve.errors import SettingsError
from pdserve.home import Home
from pdserve.services.classification import open_classification
from pdserve.services.classification_service import ClassificationService
from pdserve.services.gallery import add_gallery
from pdserve.services.http import build_app
from pdserve.services.live_index import LiveIndex
from pdserve.services.recognition import open_index, open_recognition
from pdserve.services.recognition_service import RecognitionService
from pdserve.services.service import Service
from pdserve.settings import ClassificationSettings, RecognitionSettings, ServerSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger("pdserve")


def serve_classification(settings: ClassificationSettings, home: Home) -> None:
    """Run the service until SIGINT or SIGTERM, then finish what is running and return.

    Raises what is wrong before a port is opened.
    """
    with _prepared(settings.server, settings.notes):
        pipeline = open_classification(settings, home)
        service = ClassificationService(pipeline, settings.server, settings.model)
        asyncio.run(_serve(service, settings.server, build_app(service, settings.server)))


def serve_recognition(settings: RecognitionSettings, home: Home) -> None:
    """The same for recognition."""
    with _prepared(settings.server, settings.notes):
        pipeline = open_recognition(settings, home)
        index = open_index(settings, home, pipeline.embedder)
        log.info("index %s: %d entries", index.folder, index.count)
        device = engines.Device.parse(settings.embedder.devices[0])
        gpu = device.index if device.kind == "gpu" else None
        service = RecognitionService(pipeline, LiveIndex(index, pipeline.embedder, gpu), settings)
        app = build_app(service, settings.server, lambda app: add_gallery(app, service, settings))
        asyncio.run(_serve(service, settings.server, app))


@contextlib.contextmanager
def _prepared(settings: ServerSettings, notes: Sequence[str]) -> Iterator[None]:
    """The log is open, the notes are said, the ports are free."""
    with _logging(settings.log_file):
        for note in notes:
            log.warning("%s", note)
        for port in (settings.http_port, settings.rpc_port):
            if port:  # a taken port is said now, not after a model has loaded
                _bind(settings.host, port).close()
        yield


async def _serve(service: Service, settings: ServerSettings, app: "FastAPI") -> None:
    stop = asyncio.Event()
    with _on_signals(stop.set):
        service.start()
        doors = []
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(service.close)
            if settings.rpc_port is not None:
                port = await stack.enter_async_context(_rpc_door(service, settings, settings.rpc_port))
                doors.append(f"gRPC on {_shown(settings.host)}:{port}")
            if settings.http_port is not None:
                port = await stack.enter_async_context(_http_door(app, settings, settings.http_port, stop))
                doors.insert(0, f"http://{_shown(settings.host)}:{port}")
            log.info("ready: %s at %s", service.kind, " and ".join(doors))
            await stop.wait()
            service.ready = False
            log.info("stopping: no new requests, finishing those that run")
    log.info("stopped")


@contextlib.asynccontextmanager
async def _rpc_door(service: Service, settings: ServerSettings, port: int) -> AsyncIterator[int]:
    from pdserve.services.grpc import build_server

    _bind(settings.host, port).close()
    server, bound = build_server(service, settings, port)
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(settings.grace_s)


@contextlib.asynccontextmanager
async def _http_door(
    app: "FastAPI", settings: ServerSettings, port: int, stop: asyncio.Event
) -> AsyncIterator[int]:
    import uvicorn

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # the process's signals are ours: they close both doors

    opened = _bind(settings.host, port)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=max(1, round(settings.grace_s)),
    )
    server = Server(config)
    running = asyncio.create_task(server.serve(sockets=[opened]))
    running.add_done_callback(lambda _: stop.set())  # a door that fell shut must not look open
    while not server.started and not running.done():
        await asyncio.sleep(0.01)
    try:
        yield opened.getsockname()[1]
    finally:
        server.should_exit = True
        await running


def _bind(host: str, port: int) -> socket.socket:
    """A bound socket. Raises SettingsError for a port in use or an address that is not ours."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise SettingsError(f"The host {host!r} is no address of this machine: {error.strerror}.") from error
    opened = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":  # there the option would let two servers share the port
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except OSError as error:
        opened.close()
        raise SettingsError(
            f"Cannot listen on {host}:{port}: {error.strerror}; stop what runs there or give another port "
            "with --http-port or --rpc-port."
        ) from error
    return opened


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@contextlib.contextmanager
def _on_signals(stop: Callable[[], object]) -> Iterator[None]:
    """Call ``stop`` on SIGINT and SIGTERM (and Ctrl-Break), on the event loop."""
    loop = asyncio.get_running_loop()
    wanted = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in wanted}
    for number in wanted:
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))
    # A signal wakes Python code only when the loop runs; on Windows the loop may sleep on.
    wake = asyncio.create_task(_tick()) if sys.platform == "win32" else None
    try:
        yield
    finally:
        if wake:
            wake.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


async def _tick() -> None:
    while True:
        await asyncio.sleep(0.2)


@contextlib.contextmanager
def _logging(file: Path | None) -> Iterator[None]:
    """The log to standard error, and to a rotating file of 10 MiB × 5 where one is wanted."""
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if file:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handlers.append(logging.handlers.RotatingFileHandler(file, "a", 10 * 1024 * 1024, 5, "utf-8"))
        except OSError as error:
            raise SettingsError(f"Cannot write the log file {file}: {error.strerror}.") from error
    root = logging.getLogger()
    level = root.level
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    for told_by_us in ("uvicorn", "faiss"):  # they tell of their start and stop
        logging.getLogger(told_by_us).setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
