"""The HTTP listener: uvicorn on a bound socket, with bounds on size and time, and TLS."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import uvicorn

from pdserve.errors import SettingsError
from pdserve.services.net import bind, check_tls
from pdserve.services.protocols import App
from pdserve.settings import ServerSettings


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the process's signals are the whole server's


@contextlib.asynccontextmanager
async def http_listener(
    app: App, settings: ServerSettings, port: int, stop: asyncio.Event
) -> AsyncIterator[int]:
    """Serve an ASGI application; yields the port. Sets ``stop`` when uvicorn ends by itself.

    On leaving it takes no more requests and gives those that run ``grace_s`` to finish; what runs then is
    cancelled. Raises SettingsError for a port in use, an address that is not ours, or a certificate that
    cannot be read.
    """
    config = _config(app, settings)
    opened = bind(settings.host, port)
    server = _Server(config)
    running = asyncio.create_task(server.serve(sockets=[opened]))
    running.add_done_callback(lambda _: stop.set())  # a listener that failed must not look open
    while not server.started and not running.done():
        await asyncio.sleep(0.01)
    try:
        yield opened.getsockname()[1]
    finally:
        server.should_exit = True
        await running


def _config(app: App, settings: ServerSettings) -> uvicorn.Config:
    try:
        from pdserve.services.http.limits import LimitedProtocol
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"HTTP needs the package {error.name}; type `pip install {error.name}`."
        ) from error

    class Protocol(LimitedProtocol):
        pass

    Protocol.settings = settings
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=settings.keep_alive_s,  # type: ignore[arg-type]  # a fraction does as well
        timeout_graceful_shutdown=settings.grace_s,  # type: ignore[arg-type]
    )
    config.load()
    config.ssl = check_tls(settings).context
    return config
