"""Batching: what waits from several requests goes through an engine together.

One queue, one task and one thread per worker; a worker is an engine instance. A request's items stay
together, and a batch takes whole requests while they fit in ``max_batch_size``; a larger request is a
batch of its own. With a delay of 0 a free worker takes what is there and never waits for more.
"""

import asyncio
import functools
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from pdserve.errors import ClosedError, DeadlineError, OverloadedError
from pdserve.settings import ModelSettings

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Waiting(Generic[Item, Result]):
    """One request's items in the queue; times on the event loop's clock, in seconds."""

    items: Sequence[Item]
    future: "asyncio.Future[list[Result]]"
    since: float
    deadline: float | None


class Batcher(Generic[Item, Result]):
    """A queue before one or more workers.

    ``workers``: each a function from a batch of items to as many results, run in a thread of its own.
    ``max_queue_size`` counts items. Times are in milliseconds; ``timeout_ms`` None means no limit.
    """

    def __init__(
        self,
        workers: Sequence[Callable[[Sequence[Item]], Sequence[Result]]],
        *,
        max_batch_size: int,
        max_queue_delay_ms: float,
        max_queue_size: int,
        timeout_ms: int | None,
    ) -> None:
        self._workers = workers
        self._max_batch_size = max_batch_size
        self._delay_s = max_queue_delay_ms / 1000
        self._max_queue_size = max_queue_size
        self._timeout_s = timeout_ms / 1000 if timeout_ms else None
        self._queue: deque[_Waiting[Item, Result]] = deque()
        self._queued = 0
        self._arrived = asyncio.Event()
        self._closed = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the workers' tasks on the running event loop."""
        self._tasks = [asyncio.create_task(self._serve(worker)) for worker in self._workers]

    async def submit(self, items: Sequence[Item]) -> list[Result]:
        """Queue one request's items and wait for their results, in order.

        Raises OverloadedError at once when the queue has no room, DeadlineError when the time is up,
        ClosedError when the batcher is closing, and what the worker raised.
        """
        if not items:
            return []
        if self._closed:
            raise ClosedError("The server is stopping; ask again in a moment.")
        if self._queued and self._queued + len(items) > self._max_queue_size:
            raise OverloadedError(f"{self._queued} images wait already; ask again in a moment.")
        loop = asyncio.get_running_loop()
        now = loop.time()
        future: asyncio.Future[list[Result]] = loop.create_future()
        deadline = now + self._timeout_s if self._timeout_s else None
        self._queue.append(_Waiting(items, future, now, deadline))
        self._queued += len(items)
        self._arrived.set()
        try:
            return await asyncio.wait_for(future, self._timeout_s)
        except asyncio.TimeoutError:
            raise DeadlineError(f"No answer within {self._timeout_s} s.") from None

    async def close(self) -> None:
        """Take nothing more, finish what is queued, stop the workers."""
        self._closed = True
        self._arrived.set()
        await asyncio.gather(*self._tasks)

    async def _serve(self, worker: Callable[[Sequence[Item]], Sequence[Result]]) -> None:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="pdserve-engine") as thread:
            while batch := await self._next_batch():
                items = [item for waiting in batch for item in waiting.items]
                try:
                    results = await loop.run_in_executor(thread, worker, items)
                except Exception as error:
                    for waiting in batch:
                        _settle(waiting.future, error)
                    continue
                at = 0
                for waiting in batch:
                    _settle(waiting.future, list(results[at : at + len(waiting.items)]))
                    at += len(waiting.items)

    async def _next_batch(self) -> list[_Waiting[Item, Result]]:
        """The next requests to run together; empty when the batcher has closed and all is done."""
        while True:
            while not self._queue:
                if self._closed:
                    return []
                self._arrived.clear()
                await self._arrived.wait()
            if self._delay_s:
                await self._fill()
            batch = self._take()
            if batch:
                return batch

    async def _fill(self) -> None:
        """Wait until a full batch is queued or the oldest request has waited long enough."""
        loop = asyncio.get_running_loop()
        while self._queue and self._queued < self._max_batch_size and not self._closed:
            left = self._queue[0].since + self._delay_s - loop.time()
            if left <= 0:
                return
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except asyncio.TimeoutError:
                return

    def _take(self) -> list[_Waiting[Item, Result]]:
        now = asyncio.get_running_loop().time()
        batch: list[_Waiting[Item, Result]] = []
        count = 0
        while self._queue:
            waiting = self._queue[0]
            if batch and count + len(waiting.items) > self._max_batch_size:
                break
            self._queue.popleft()
            self._queued -= len(waiting.items)
            late = waiting.deadline is not None and waiting.deadline <= now
            if waiting.future.done() or late:
                continue  # nobody waits for it any more; the one who asked has had his DeadlineError
            batch.append(waiting)
            count += len(waiting.items)
        return batch


def _settle(future: "asyncio.Future[list[Result]]", outcome: "list[Result] | Exception") -> None:
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def for_engines(infer: Callable[..., Sequence[Result]], model: ModelSettings) -> Batcher[Item, Result]:
    """A queue before a model's engines: a worker for each instance on each device.

    ``infer(items, engine=N)`` runs a batch on the N-th device's engine.
    """
    return Batcher(
        [
            functools.partial(infer, engine=number)
            for number in range(len(model.devices))
            for _ in range(model.instances)
        ],
        max_batch_size=model.max_batch_size,
        max_queue_delay_ms=model.max_queue_delay_ms,
        max_queue_size=model.max_queue_size,
        timeout_ms=model.timeout_ms,
    )
