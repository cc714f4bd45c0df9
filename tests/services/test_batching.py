"""The queue before the engines, with workers that write down what they were given."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence

import pytest

from pdserve.errors import ClosedError, DeadlineError, EngineError, OverloadedError
from pdserve.services.batching import Batcher


class Worker:
    """Doubles numbers; ``gate`` holds it until opened."""

    def __init__(self, held: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        if not held:
            self.gate.set()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        assert self.gate.wait(20)
        if -1 in items:
            raise EngineError("a bad item")
        return [2 * item for item in items]


def batcher(*workers: Worker, **settings: float) -> Batcher[int, int]:
    chosen = {
        "max_batch_size": 4,
        "max_queue_delay_ms": 0,
        "max_queue_size": 100,
        "timeout_ms": None,
    } | settings
    return Batcher(workers, **chosen)  # type: ignore[arg-type]


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came")


def test_results_come_back_to_whom_they_belong() -> None:
    async def test() -> None:
        queue = batcher(Worker(), Worker())
        queue.start()
        answers = await asyncio.gather(*(queue.submit([i, i + 1000]) for i in range(50)))
        assert answers == [[2 * i, 2 * (i + 1000)] for i in range(50)]
        await queue.close()

    run(test)


def test_waiting_requests_run_together_and_a_request_is_never_split() -> None:
    async def test() -> None:
        worker = Worker(held=True)
        queue = batcher(worker)
        queue.start()
        first = asyncio.create_task(queue.submit([0]))
        await until(lambda: len(worker.batches) == 1)
        rest = [asyncio.create_task(queue.submit(items)) for items in ([1, 2], [3, 4], [5, 6], [7])]
        await asyncio.sleep(0.05)
        worker.gate.set()
        await asyncio.gather(first, *rest)
        assert worker.batches == [[0], [1, 2, 3, 4], [5, 6, 7]]
        await queue.close()

    run(test)


def test_a_request_larger_than_a_batch_is_a_batch_of_its_own() -> None:
    async def test() -> None:
        worker = Worker()
        queue = batcher(worker)
        queue.start()
        assert await queue.submit(range(9)) == [2 * i for i in range(9)]
        assert worker.batches == [list(range(9))]
        await queue.close()

    run(test)


def test_a_delay_gathers_what_comes_within_it() -> None:
    async def test() -> None:
        worker = Worker()
        queue = batcher(worker, max_queue_delay_ms=2000, max_batch_size=3)
        queue.start()
        begin = time.monotonic()
        tasks = []
        for i in range(3):  # the third fills the batch, long before the delay is over
            tasks.append(asyncio.create_task(queue.submit([i])))
            await asyncio.sleep(0.02)
        await asyncio.gather(*tasks)
        assert worker.batches == [[0, 1, 2]]
        assert time.monotonic() - begin < 1.5
        await queue.close()

    run(test)


def test_after_the_delay_a_part_batch_runs() -> None:
    async def test() -> None:
        worker = Worker()
        queue = batcher(worker, max_queue_delay_ms=50)
        queue.start()
        assert await queue.submit([1]) == [2]
        await queue.close()

    run(test)


def test_a_full_queue_says_so_at_once_and_recovers() -> None:
    async def test() -> None:
        worker = Worker(held=True)
        queue = batcher(worker, max_queue_size=3)
        queue.start()
        running = asyncio.create_task(queue.submit([0]))
        await until(lambda: len(worker.batches) == 1)
        waiting = asyncio.create_task(queue.submit([1, 2, 3]))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="3 images wait"):
            await queue.submit([4])
        worker.gate.set()
        assert await asyncio.gather(running, waiting) == [[0], [2, 4, 6]]
        assert await queue.submit([5]) == [10]
        await queue.close()

    run(test)


def test_a_late_request_is_told_so_and_costs_no_engine_time() -> None:
    async def test() -> None:
        worker = Worker(held=True)
        queue = batcher(worker, timeout_ms=100)
        queue.start()
        running = asyncio.create_task(queue.submit([0]))
        await until(lambda: len(worker.batches) == 1)
        with pytest.raises(DeadlineError):
            await queue.submit([1])
        with pytest.raises(DeadlineError):
            await running
        worker.gate.set()
        assert await queue.submit([2]) == [4]
        assert worker.batches == [[0], [2]]
        await queue.close()

    run(test)


def test_a_failed_batch_leaves_the_worker_alive() -> None:
    async def test() -> None:
        queue = batcher(Worker())
        queue.start()
        with pytest.raises(EngineError, match="a bad item"):
            await queue.submit([-1])
        assert await queue.submit([3]) == [6]
        await queue.close()

    run(test)


def test_close_finishes_what_is_queued_and_takes_nothing_more() -> None:
    async def test() -> None:
        worker = Worker(held=True)
        queue = batcher(worker)
        queue.start()
        tasks = [asyncio.create_task(queue.submit([i])) for i in range(6)]
        await until(lambda: len(worker.batches) == 1)
        closing = asyncio.create_task(queue.close())
        await asyncio.sleep(0)
        with pytest.raises(ClosedError):
            await queue.submit([9])
        worker.gate.set()
        await closing
        assert [await task for task in tasks] == [[2 * i] for i in range(6)]

    run(test)


def test_nothing_asked_is_nothing_answered() -> None:
    async def test() -> None:
        queue = batcher(Worker())
        queue.start()
        assert await queue.submit([]) == []
        await queue.close()

    run(test)
