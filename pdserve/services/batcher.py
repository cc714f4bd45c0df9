"""Dynamic batching: queued images of all requests go through an engine together.

One queue before one or more workers; a worker is an engine instance with a thread. Idle workers share what
is queued, up to ``max_batch_size`` each. With a delay of 0 they take what is there and never wait for more.
A batch that fails is run again image by image, so that only the bad one fails.
"""

import asyncio
import functools
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pdserve.engines import Engine
from pdserve.engines.device import cores
from pdserve.errors import ClosedError, DeadlineError, EngineError, PdserveError
from pdserve.services.telemetry.metrics import Metrics, Stages
from pdserve.settings import ModelSettings

Item = TypeVar("Item")
Result = TypeVar("Result")

# After so many failures in a row, each of an image by itself, the engine is checked.
MAX_FAILURES = 3


class RetiredError(ClosedError):
    """The engines behind this queue were retired before the request's turn came; ask their successors."""


class EngineThread(Generic[Item, Result]):
    """Runs ``work`` on one batch at a time, away from the event loop.

    A daemon thread: concurrent.futures would wait at the process's end for one that never returns.
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

    def join(self) -> None:
        """Wait until a thread that was stopped has ended."""
        self._thread.join()

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
            except RuntimeError:  # the loop has closed: no request waits
                return
            del batch, items, done, outcome  # or the last batch would be kept until the next comes


class _Group(Generic[Result]):
    """One request's items: their results, in order, and who waits for them.

    ``deadline`` is on the loop's clock, ``since`` and ``started`` are time.perf_counter's, in seconds.
    """

    __slots__ = ("deadline", "future", "left", "results", "since", "started")

    def __init__(self, count: int, future: "asyncio.Future[None]", deadline: float | None) -> None:
        self.results: list[Result | PdserveError | None] = [None] * count
        self.left = count
        self.future = future
        self.since = time.perf_counter()
        self.deadline = deadline
        self.started: float | None = None  # when its first item went into an engine

    def settle(self, place: int, outcome: Result | PdserveError) -> None:
        self.results[place] = outcome
        self.left -= 1
        if not self.left and not self.future.done():
            self.future.set_result(None)

    def fail(self, error: PdserveError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(slots=True)
class _Waiting(Generic[Item, Result]):
    group: _Group[Result]
    place: int
    item: Item


@dataclass(eq=False)
class _Worker(Generic[Item, Result]):
    """An engine instance: the batch that it runs, and what of a failed one it has yet to try singly."""

    thread: EngineThread[Item, Result]
    batch: list[_Waiting[Item, Result]] = field(default_factory=list)
    singles: deque[_Waiting[Item, Result]] = field(default_factory=deque)
    since: float = 0
    alarm: asyncio.TimerHandle | None = None


class Batcher(Generic[Item, Result]):
    """A queue before one or more workers.

    ``workers``: each a function from a batch of items to as many results, run in its own thread.
    ``timeout_ms`` None means no limit. A worker that takes more than ``hang_s`` seconds over a batch is
    abandoned. ``on_broken`` is called on the event loop with "hanging" or "failing". ``model`` labels the
    stages queue and infer and the batches in ``metrics``.
    """

    def __init__(
        self,
        workers: Sequence[Callable[[Sequence[Item]], Sequence[Result]]],
        *,
        max_batch_size: int,
        max_queue_delay_ms: float = 0,
        timeout_ms: int | None = None,
        hang_s: float = math.inf,
        on_broken: Callable[[str], None] = lambda cause: None,
        metrics: Metrics | None = None,
        model: str = "",
    ) -> None:
        self._functions = workers
        self._max_batch_size = max_batch_size
        self._delay_s = max_queue_delay_ms / 1000
        self._timeout_s = timeout_ms / 1000 if timeout_ms else None
        self._hang_s = hang_s
        self._on_broken = on_broken
        self._metrics = metrics or Metrics()
        self._stages = Stages(self._metrics)
        self._model = model
        self._queue: deque[_Waiting[Item, Result]] = deque()
        self._idle: list[_Worker[Item, Result]] = []
        self._busy: set[_Worker[Item, Result]] = set()
        self._failures = 0
        self._wake: asyncio.TimerHandle | None = None
        self._closed = False
        self._retired = False
        self._done: asyncio.Event = asyncio.Event()

    @property
    def capacity(self) -> int:
        """How many items the workers run or would take at once; with a delay, only those that run."""
        if self._delay_s:
            return sum(len(worker.batch) for worker in self._busy)
        return len(self._functions) * self._max_batch_size

    @property
    def waiting(self) -> int:
        """How many items are queued for somebody who still waits."""
        return sum(not waiting.group.future.done() for waiting in self._queue)

    def start(self) -> None:
        """Start the workers' threads; called on the running event loop."""
        self._idle = [_Worker(EngineThread(function)) for function in self._functions]

    async def submit(
        self, items: Sequence[Item], deadline: float | None = None
    ) -> list[Result | PdserveError]:
        """Queue one request's items and wait for their results, in order; an EngineError is one item's.

        ``deadline``: on the loop's clock, in seconds; items whose time is up do not go into an engine.
        A cancelled call takes its items out of the queue. Raises DeadlineError, ClosedError when the
        batcher is closing, RetiredError when its engines were retired.
        """
        if not items:
            return []
        if self._retired:
            raise RetiredError("The engine is being rebuilt; ask again in a moment.")
        if self._closed:
            raise ClosedError("The server is stopping; ask again in a moment.")
        loop = asyncio.get_running_loop()
        if self._timeout_s is not None:
            deadline = min(math.inf if deadline is None else deadline, loop.time() + self._timeout_s)
        group: _Group[Result] = _Group(len(items), loop.create_future(), deadline)
        self._queue.extend(_Waiting(group, place, item) for place, item in enumerate(items))
        self._dispatch()
        late = loop.call_at(deadline, _expire, group) if deadline is not None else None
        try:
            await group.future
        finally:
            if late:
                late.cancel()
        now, started = time.perf_counter(), group.started or group.since
        self._stages.record("queue", started - group.since, self._model, started)
        self._stages.record("infer", now - started, self._model, now)
        return [result for result in group.results if result is not None]

    def retire(self) -> None:
        """Abandon the engines: queued requests get a RetiredError; what runs may finish or not."""
        self._retired = True
        for waiting in self._queue:
            waiting.group.fail(RetiredError("The engine is being rebuilt; ask again in a moment."))
        self._queue.clear()
        self._check_done()

    async def close(self) -> None:
        """Take nothing more, finish what is queued, stop the workers."""
        self._closed = True
        self._dispatch()
        self._check_done()
        await self._done.wait()
        for worker in self._idle:
            worker.thread.stop()
            # An engine frees what it holds for a thread when that ends, which must be before the model goes.
            await asyncio.to_thread(worker.thread.join)
        self._idle.clear()

    def _dispatch(self) -> None:
        """Give idle workers what waits."""
        while self._idle and self._queue:
            if self._delay_s and not self._closed and len(self._queue) < self._max_batch_size:
                left = self._queue[0].group.since + self._delay_s - time.perf_counter()
                if left > 0:
                    if self._wake is None:
                        self._wake = asyncio.get_running_loop().call_later(left, self._awake)
                    return
            # Idle workers share: two halves at once are sooner done than the whole in one.
            share = math.ceil(len(self._queue) / len(self._idle)) if not self._delay_s else len(self._queue)
            batch = self._take(min(share, self._max_batch_size))
            if batch:
                self._run(self._idle.pop(), batch)
        self._check_done()

    def _awake(self) -> None:
        self._wake = None
        self._dispatch()

    def _take(self, count: int) -> list[_Waiting[Item, Result]]:
        """The next items for which somebody still waits."""
        now = asyncio.get_running_loop().time()
        batch: list[_Waiting[Item, Result]] = []
        while self._queue and len(batch) < count:
            waiting = self._queue.popleft()
            group = waiting.group
            if group.future.done() or (group.deadline is not None and group.deadline <= now):
                continue
            if group.started is None:
                group.started = time.perf_counter()
            batch.append(waiting)
        return batch

    def _run(self, worker: _Worker[Item, Result], batch: list[_Waiting[Item, Result]]) -> None:
        self._busy.add(worker)
        worker.batch, worker.since = batch, time.perf_counter()
        if self._hang_s != math.inf:
            worker.alarm = asyncio.get_running_loop().call_later(self._hang_s, self._hung, worker)
        worker.thread.run([waiting.item for waiting in batch], functools.partial(self._ran, worker))

    def _ran(self, worker: _Worker[Item, Result], outcome: Sequence[Result] | Exception) -> None:
        """A worker is through with its batch."""
        if worker not in self._busy:
            return  # it had been abandoned
        if worker.alarm:
            worker.alarm.cancel()
        self._metrics.batch(self._model, len(worker.batch), time.perf_counter() - worker.since)
        batch, worker.batch = worker.batch, []
        if isinstance(outcome, Exception):
            self._failed(worker, batch, outcome)
        else:
            self._failures = 0
            for waiting, result in zip(batch, outcome, strict=True):
                waiting.group.settle(waiting.place, result)
        while worker.singles:
            waiting = worker.singles.popleft()
            if not waiting.group.future.done():
                self._run(worker, [waiting])
                return
        self._busy.discard(worker)
        self._idle.append(worker)
        self._dispatch()

    def _failed(
        self, worker: _Worker[Item, Result], batch: list[_Waiting[Item, Result]], error: Exception
    ) -> None:
        if len(batch) > 1:
            worker.singles.extend(batch)
            return
        batch[0].group.settle(batch[0].place, _translated(error))
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            self._failures = 0
            self._on_broken("failing")

    def _hung(self, worker: _Worker[Item, Result]) -> None:
        self._busy.discard(worker)
        worker.thread.stop()
        for waiting in (*worker.batch, *worker.singles):
            waiting.group.settle(
                waiting.place, EngineError(f"The engine took longer than {self._hang_s:g} s over a batch.")
            )
        worker.batch.clear()
        worker.singles.clear()
        self._on_broken("hanging")
        self._check_done()

    def _check_done(self) -> None:
        """See whether all that was to be finished is."""
        if not self._busy and (self._retired or (self._closed and not self._queue)):
            self._done.set()


def _expire(group: _Group[Result]) -> None:
    group.fail(DeadlineError("The answer would come too late; give it more time, or ask for less at once."))


def _translated(error: Exception) -> PdserveError:
    return error if isinstance(error, PdserveError) else EngineError(f"The engine failed: {error}.")


def for_engines(
    infer: Callable[..., Sequence[Result]],
    engines: Sequence[Engine],
    model: ModelSettings,
    on_broken: Callable[[str], None],
    metrics: Metrics,
    name: str,
) -> Batcher[Item, Result]:
    """A batcher for a model's engines: a worker for each instance on each device.

    ``name`` is the model's, for the metrics. ``infer(items, engine=N)`` runs a batch on the N-th device's
    engine.
    """
    return Batcher(
        [
            functools.partial(infer, engine=number)
            for number, engine in enumerate(engines)
            for _ in range(engine.instances)
        ],
        max_batch_size=batch_size(engines[0], model),
        max_queue_delay_ms=model.max_queue_delay_ms,
        timeout_ms=model.timeout_ms,
        hang_s=model.hang_s,
        on_broken=on_broken,
        metrics=metrics,
        model=name,
    )


def batch_size(engine: Engine, model: ModelSettings) -> int:
    """The batch size that was set; for "auto", 32 on a GPU, and on a CPU what keeps its cores busy.

    A delay is set so that batches fill: then a CPU takes 8, too.
    """
    if model.max_batch_size != "auto":
        return model.max_batch_size
    if engine.device.kind == "gpu":
        return 32
    return 8 if model.max_queue_delay_ms else min(8, max(1, cores() // 2))
