"""A thread for one engine instance, which can be left behind when the engine hangs in it."""

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class EngineThread(Generic[Item, Result]):
    """Runs ``work`` on one batch at a time, away from the event loop.

    A daemon thread, where concurrent.futures would wait at the process's end for one that never returns.
    """

    def __init__(self, work: Callable[[Sequence[Item]], Sequence[Result]]) -> None:
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._batches: queue.SimpleQueue[
            tuple[Sequence[Item], Callable[[Sequence[Result] | Exception], None]] | None
        ] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="pdserve-engine", daemon=True)
        self._thread.start()

    def run(self, items: Sequence[Item], done: "Callable[[Sequence[Result] | Exception], None]") -> None:
        """Run a batch; ``done`` is called on the event loop with its results or its error."""
        self._batches.put((items, done))

    def stop(self) -> None:
        """End after the batch under way, if that ever ends. Waits for nothing."""
        self._batches.put(None)

    def _serve(self) -> None:
        while (batch := self._batches.get()) is not None:
            items, done = batch
            outcome: Sequence[Result] | Exception
            try:
                outcome = self._work(items)
                if len(outcome) != len(items):
                    outcome = RuntimeError(f"{len(outcome)} results came of {len(items)} items")
            except Exception as error:
                outcome = error
            try:
                self._loop.call_soon_threadsafe(done, outcome)
            except RuntimeError:  # the loop has closed: nobody waits any more
                return
            del batch, items, done, outcome  # or the last batch would be kept until the next comes
