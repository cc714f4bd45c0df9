"""An event loop in virtual time, whose order of events is decided by a seed."""

import asyncio
import contextvars
import heapq
import random
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any


class StuckError(AssertionError):
    """What was run waits for something that will never come, or goes on for ever."""


class _Handle(asyncio.Handle):
    """A callback, cancelled or not; as TimerHandle it knows its time."""

    __slots__ = ("_when",)

    def when(self) -> float:
        return self._when


class VirtualLoop(asyncio.AbstractEventLoop):
    """Runs callbacks one after the other; where none is ready, the time jumps to that of the next.

    Callbacks keep the order in which they were called, as asyncio promises. What comes from outside (timers
    that are due, what a thread has done) comes in between them wherever ``chance`` puts it.
    ``run_in_executor`` calls the function at a time of its own choice, and gives its result back at another.
    """

    MOST = 20_000
    """Callbacks in one run; more are taken for an endless loop."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.errors: list[BaseException] = []
        self.tasks: set[asyncio.Task[Any]] = set()
        self._now = 0.0
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, _Handle]] = []
        self._serial = 0
        self._running = False

    # What asyncio asks of a loop

    def time(self) -> float:
        return self._now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return False

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        handle = asyncio.Handle(callback, args, self, context)
        self._from_outside(handle)
        return handle

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        handle = _Handle(callback, args, self, context)
        handle._when = when
        # Timers of the same moment come in any order.
        self._serial = self.chance.getrandbits(30)
        heapq.heappush(self._timers, (when, self._serial, handle))
        return handle

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: Any = None, context: Any = None) -> Any:  # type: ignore[override]
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name, context=context)
        self.tasks.add(task)
        return task

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        """See the class."""
        future = self.create_future()
        calling = contextvars.copy_context()

        def call() -> None:
            try:
                outcome = func(*args)
            except Exception as error:
                give = future.set_exception, error
            else:
                give = future.set_result, outcome
            self.call_later(self.pause(), _unless_done, future, *give)

        self.call_later(self.pause(), call, context=calling)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.errors.append(error if error is not None else RuntimeError(str(context.get("message"))))

    def get_task_factory(self) -> None:
        return None

    # Running

    def pause(self) -> float:
        """How long something outside takes, in seconds: mostly next to nothing, at times long."""
        draw = self.chance.random()
        # Of few different lengths, so that much happens in the same moment.
        return 0.0 if draw < 0.3 else int(draw * 30) / 1000 if draw < 0.9 else int(draw * 20) / 10

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        """Run to the end of ``main`` and of all that it left. Raises StuckError, and what ``main`` raises."""
        asyncio._set_running_loop(self)
        self._running = True
        try:
            task = self.create_task(main)
            self._until(task.done)
            if not task.done():
                task.cancel()
                self._until(task.done)
                raise StuckError(f"nothing happens any more after {self._now:.3f} s")
            task.result()
            self._until(lambda: False)
        finally:
            self._running = False
            asyncio._set_running_loop(None)

    def _until(self, over: Callable[[], bool]) -> None:
        for _ in range(self.MOST):
            while self._timers and self._timers[0][2]._cancelled:
                heapq.heappop(self._timers)
            if self._timers and self._timers[0][0] <= self._now:
                self._from_outside(heapq.heappop(self._timers)[2])
                continue
            if self._ready:
                handle = self._ready.popleft()
                if not handle._cancelled:
                    handle._run()
                if over():
                    return
            elif self._timers:
                self._now = self._timers[0][0]
            else:
                return
        raise StuckError(f"it goes on for ever, at {self._now:.3f} s")

    def _from_outside(self, handle: asyncio.Handle) -> None:
        """Put a callback anywhere among those that are ready."""
        if self._ready:
            self._ready.insert(self.chance.randint(0, len(self._ready)), handle)
        else:
            self._ready.append(handle)


def _unless_done(future: "asyncio.Future[Any]", give: Callable[[Any], None], outcome: Any) -> None:
    if not future.done():  # who waited for it may have been cancelled
        give(outcome)
