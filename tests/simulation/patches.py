"""What the worlds replace in the modules that they run: clocks, threads, metrics, the log."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

from pdserve.services import batcher, replica, service, watch
from pdserve.vision import decoder
from tests.simulation.world import NoStages


class VirtualTime:
    """Stands for the module time: perf_counter is the running loop's clock."""

    @staticmethod
    def perf_counter() -> float:
        return asyncio.get_running_loop().time()


class SimulatedThread:
    """Stands for EngineThread: calls ``work`` after a while, and gives back what came of it after another.

    ``work`` is an object: ``given(items)`` is told when a batch is handed over, ``threads`` gets this
    thread. It may return `HANGS`; then nothing ever comes back.
    """

    HANGS = object()

    def __init__(self, work: Any) -> None:
        self._work = work
        while isinstance(work, functools.partial):
            # Beside items, what runs them is given a model, whose engines these are.
            work = work.args[0].infer if work.args else work.func
        self._engine = work
        self._engine.threads.append(self)
        self._loop: Any = asyncio.get_running_loop()
        self.stopped = False

    def run(self, items: Sequence[Any], done: Callable[[Any], None]) -> None:
        self._engine.given(items)

        def call() -> None:
            try:
                outcome = self._work(items)
            except Exception as error:
                outcome = error
            if outcome is not self.HANGS:
                self._loop.call_later(self._loop.pause(), done, outcome)

        self._loop.call_later(self._loop.pause(), call)

    def stop(self) -> None:
        self.stopped = True

    def join(self) -> None:
        if not self.stopped:
            raise AssertionError("somebody waits for a thread that was never stopped")


@contextlib.contextmanager
def simulated() -> Iterator[None]:
    """The modules as the worlds need them."""
    replaced: list[tuple[Any, str, Any]] = [
        (batcher, "time", VirtualTime),
        (batcher, "EngineThread", SimulatedThread),
        (service, "give_back_freed_memory", lambda: None),
        (decoder.Decoder, "start", lambda *_: None),  # nothing is decoded here
        (watch, "signatures", lambda folder: folder.published),
        (watch, "changed", lambda folder, loaded: folder.published != loaded.version),
        *((module, "Stages", NoStages) for module in (batcher, replica, service)),
    ]
    # Imported here: the world imports the module whose functions it stands for.
    from pdserve.services.http import gallery as routes
    from tests.simulation import gallery

    for name in ("append_embedded", "remove"):
        replaced.append((routes, name, gallery.writing(name)))
    replaced.append((routes, "described", gallery.described))
    # What OpenAPI's document says of the routes takes longer than a schedule.
    replaced += [(routes, name, lambda *_, **__: {}) for name in ("schema", "parameter", "operation")]
    logger = logging.getLogger("pdserve")
    was = logger.disabled
    with contextlib.ExitStack() as stack:
        for holder, name, value in replaced:
            stack.enter_context(mock.patch.object(holder, name, value))
        logger.disabled = True
        try:
            yield
        finally:
            logger.disabled = was
