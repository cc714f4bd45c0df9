"""The queue before the engines: `Batcher` with one to three workers."""

import asyncio
from collections.abc import Sequence
from typing import Any

from pdserve.errors import ClosedError, DeadlineError, EngineError
from pdserve.services.batcher import Batcher, RetiredError
from tests.simulation.patches import SimulatedThread
from tests.simulation.world import NoMetrics, World

Item = tuple[int, int]
HANG_S = 5.0


class BatcherWorld(World):
    """Requests of one to five items, of which some leave and some have a deadline; one closes or retires."""

    async def main(self) -> None:
        chance = self.chance
        self.size = chance.choice((1, 2, 4))
        self.timeout_ms = chance.choice((None, None, 20, 1000))
        self.sick = 0.0 if self.maybe(0.6) else 0.15
        self.deadlines: dict[int, float] = {}
        self.ends: dict[int, float] = {}
        self.failed: set[Item] = set()
        self.runs: dict[Item, int] = {}
        self.hung: set[Item] = set()
        self.doubtful: set[Item] = set()
        self.closing = self.retired = False
        workers = chance.randint(1, 3)
        self.threads: list[SimulatedThread] = []
        self.batcher: Batcher[Item, Item] = Batcher(
            [Worker(self) for _ in range(workers)],
            max_batch_size=self.size,
            max_queue_delay_ms=chance.choice((0, 0, 10)),
            timeout_ms=self.timeout_ms,
            hang_s=HANG_S,
            on_broken=self.broken,
            metrics=NoMetrics(),  # type: ignore[arg-type]
        )
        self.batcher.start()
        tasks = []
        for number in range(chance.randint(1, 6)):
            tasks.append(self.loop.create_task(self.ask(number)))
            if self.maybe(0.5):
                await asyncio.sleep(self.loop.pause())
        if self.maybe(0.3):
            await asyncio.sleep(self.loop.pause())
            self.retire()
        elif self.maybe(0.5):
            await asyncio.gather(*tasks)
        self.note("it closes")
        self.closing = True
        if not self.retired or not self.hung:  # a replica with a hanging engine is abandoned
            await self.batcher.close()
        await asyncio.gather(*tasks)
        await asyncio.sleep(HANG_S)
        self.check(not self.batcher.waiting, "{} items wait still", self.batcher.waiting)
        self.check(not self.batcher._busy, "a worker is busy still")
        self.check(not self.batcher._queue, "items are left in the queue")
        if not self.hung:
            self.check(all(thread.stopped for thread in self.threads), "a thread was not stopped")

    async def ask(self, number: int) -> None:
        chance = self.chance
        items = [(number, place) for place in range(chance.randint(1, 5))]
        deadline = None if self.maybe(0.7) else self.loop.time() + self.loop.pause()
        since = self.loop.time()
        limits = [] if deadline is None else [deadline]
        if self.timeout_ms:
            limits.append(since + self.timeout_ms / 1000)
        late = min(limits, default=None)
        if late is not None:
            self.deadlines[number] = late
        leave = self.maybe(0.2)
        refused = False
        self.note("{} asks for {} items, until {}{}", number, len(items), late, ", and will leave" * leave)

        async def submit() -> list[Any]:
            nonlocal refused
            refused = self.closing or self.retired
            return await self.batcher.submit(items, deadline)

        def answered(results: list[Any]) -> None:
            self.check(not refused, "{} was answered after the end", number)
            self.check(len(results) == len(items), "{} has {} results", number, len(results))
            for item, result in zip(items, results, strict=True):
                if isinstance(result, EngineError):
                    # What a failed batch has yet to try singly shares the fate of the one that hangs.
                    bad = item in self.failed or item in self.hung or (self.hung and item in self.doubtful)
                    self.check(bad, "{} has an error and its engine had none", item)
                else:
                    self.check(result == item, "{} has the result of {}", item, result)
            self.in_time(number, late)

        def failed(error: BaseException) -> None:
            if isinstance(error, DeadlineError):
                self.check(late is not None and self.loop.time() >= late, "{} fails before its time", number)
            elif isinstance(error, RetiredError):
                self.check(self.retired, "{} is told of an end that was not", number)
            else:
                self.check(isinstance(error, ClosedError) and refused, "{} fails with {!r}", number, error)
            self.in_time(number, late)

        try:
            await self.request(str(number), submit, answered, failed, leave=leave)
        finally:
            self.ends[number] = self.loop.time()

    def in_time(self, number: int, late: float | None) -> None:
        self.check(late is None or self.loop.time() <= late, "{} has its answer after its time", number)

    def given(self, items: Sequence[Item]) -> None:
        """A batch is handed to an engine's thread."""
        now = self.loop.time()
        self.note("an engine is given {}", items)
        self.check(0 < len(items) <= self.size, "a batch has {} items", len(items))
        for item in items:
            number, _ = item
            self.runs[item] = self.runs.get(item, 0) + 1
            self.check(self.runs[item] <= 2, "{} is run a third time", item)
            self.check(self.deadlines.get(number, now) >= now, "{} goes into an engine after its time", item)
            self.check(number not in self.ends, "{} goes into an engine, and nobody waits for it", item)

    def work(self, items: Sequence[Item]) -> Any:
        """What an engine does, when its thread comes to it."""
        if self.maybe(self.sick):
            if self.maybe(0.3):
                self.note("an engine hangs over {}", items)
                self.hung.update(items)
                return SimulatedThread.HANGS
            self.note("an engine fails over {}", items)
            (self.failed if len(items) == 1 else self.doubtful).update(items)
            raise EngineError("told to fail")
        return list(items)

    def broken(self, cause: str) -> None:
        self.note("broken: {}", cause)
        self.check(self.sick, "a sound engine counts as {}", cause)
        if cause == "hanging":
            self.loop.call_later(0 if self.closing else self.loop.pause(), self.retire)

    def retire(self) -> None:
        """What the reloader does with engines that are broken."""
        self.note("the engines are retired")
        self.retired = True
        self.batcher.retire()


class Worker:
    """An engine of a world."""

    def __init__(self, world: BatcherWorld) -> None:
        self.threads = world.threads
        self.given = world.given
        self._work = world.work

    def __call__(self, items: Sequence[Item]) -> Any:
        return self._work(items)
