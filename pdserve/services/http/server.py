"""The HTTP listener: uvicorn on a bound socket, with TLS; what a connection may do is in connection.py."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn

from pdserve.services.http.connection import LimitedProtocol
from pdserve.services.http.places import HANDSHAKES, places
from pdserve.services.net import bind, check_tls
from pdserve.services.protocols import App
from pdserve.settings import ServerSettings


class _Server(uvicorn.Server):
    """uvicorn's server, which leaves signals alone, and bounds TLS handshakes in number and time."""

    def __init__(self, config: uvicorn.Config, handshake_s: float) -> None:
        super().__init__(config)
        self._handshake_s = handshake_s
        self._accepting: list[asyncio.Task[None]] = []

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # server.py handles the process's signals

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self.config.ssl is None:
            await super().startup(sockets)
            return
        self.servers = []
        for listening in sockets or ():
            listening.setblocking(False)
            listening.listen(self.config.backlog)
            self._accepting.append(asyncio.create_task(self._accept(listening)))
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for accepting in self._accepting:
            accepting.cancel()
        await super().shutdown(sockets)

    async def _accept(self, listening: socket.socket) -> None:
        """Take connections, and shake hands with each in a task."""
        loop = asyncio.get_running_loop()
        shaking: dict[asyncio.Task[None], None] = {}
        while True:
            try:
                opened, _ = await loop.sock_accept(listening)
            except OSError:  # the caller has gone, or the files have run out
                await asyncio.sleep(0.1)
                continue
            if len(shaking) >= HANDSHAKES:
                oldest = next(iter(shaking))
                del shaking[oldest]
                oldest.cancel()
            task = asyncio.create_task(self._shake_hands(opened))
            shaking[task] = None
            task.add_done_callback(lambda done: shaking.pop(done, None))

    def _protocol(self) -> asyncio.Protocol:
        kind: Any = self.config.http_protocol_class
        made: asyncio.Protocol = kind(config=self.config, server_state=self.server_state, app_state={})
        return made

    async def _shake_hands(self, opened: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.connect_accepted_socket(
                self._protocol, opened, ssl=self.config.ssl, ssl_handshake_timeout=self._handshake_s
            )
        except (OSError, asyncio.CancelledError):  # no TLS, another version, too slow, or gone
            opened.close()


@contextlib.asynccontextmanager
async def http_listener(
    app: App, settings: ServerSettings, port: int, stop: asyncio.Event
) -> AsyncIterator[int]:
    """Serve an ASGI application; yields the port. Sets ``stop`` when uvicorn ends by itself.

    On leaving it takes no more requests and gives those that run ``grace_s`` to finish; what runs then is
    cancelled. Raises SettingsError for a port in use, an address of another machine, or a certificate that
    cannot be read.
    """
    config = _config(app, settings)
    opened = bind(settings.host, port)
    server = _Server(config, settings.header_timeout_s)
    running = asyncio.create_task(server.serve(sockets=opened))
    running.add_done_callback(lambda _: stop.set())  # a listener that failed must not look open
    while not server.started and not running.done():
        await asyncio.sleep(0.01)
    try:
        yield opened[0].getsockname()[1]
    finally:
        server.should_exit = True
        await running


def _config(app: App, settings: ServerSettings) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        http=type("Protocol", (LimitedProtocol,), {"settings": settings, "places": places(settings)}),
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
