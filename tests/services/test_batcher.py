"""The queue before the engines, with workers that write down what they were given."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from pdserve.errors import ClosedError, DeadlineError, EngineError
from pdserve.services.batcher import MAX_FAILURES, Batcher, RetiredError


class Worker:
    """Doubles numbers; ``gate`` holds it until opened. It cannot stand negative numbers."""

    def __init__(self, held: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        if not held:
            self.gate.set()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        assert self.gate.wait(20)
        if min(items) < 0:
            raise EngineError("a bad item")
        return [2 * item for item in items]


def batcher(*workers: Any, **settings: Any) -> Batcher[int, int]:
    return Batcher(workers, **({"max_batch_size": 4} | settings))


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


def test_images_of_several_requests_fill_batches_whoever_they_belong_to() -> None:
    async def test() -> None:
        worker = Worker(held=True)
        queue = batcher(worker)
        queue.start()
        first = asyncio.create_task(queue.submit([0]))
        await until(lambda: len(worker.batches) == 1)
        rest = [asyncio.create_task(queue.submit(items)) for items in ([1, 2], [3, 4, 5], [6, 7])]
        await until(lambda: queue.waiting == 7)
        worker.gate.set()
        assert await asyncio.gather(first, *rest) == [[0], [2, 4], [6, 8, 10], [12, 14]]
        assert worker.batches == [[0], [1, 2, 3, 4], [5, 6, 7]]
        await queue.close()

    run(test)


def test_a_request_larger_than_a_batch_takes_several() -> None:
    async def test() -> None:
        worker = Worker()
        queue = batcher(worker)
        queue.start()
        assert await queue.submit(range(9)) == [2 * i for i in range(9)]
        assert worker.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
        await queue.close()

    run(test)


def test_idle_workers_share_what_waits() -> None:
    async def test() -> None:
        workers = Worker(held=True), Worker(held=True)
        queue = batcher(*workers)
        queue.start()
        asking = asyncio.create_task(queue.submit(range(4)))
        await until(lambda: all(worker.batches for worker in workers))
        for worker in workers:
            worker.gate.set()
        assert await asking == [0, 2, 4, 6]
        assert sorted(len(worker.batches[0]) for worker in workers) == [2, 2]
        await queue.close()

    run(test)


def test_a_delay_gathers_what_comes_within_it() -> None:
    async def test() -> None:
        worker = Worker()
        queue = batcher(worker, max_queue_delay_ms=60_000, max_batch_size=3)
        queue.start()
        tasks = []
        for i in range(3):  # the third fills the batch, long before the delay is over
            tasks.append(asyncio.create_task(queue.submit([i])))
            await asyncio.sleep(0.02)
        await asyncio.gather(*tasks)
        assert worker.batches == [[0, 1, 2]]
        await queue.close()

    run(test)


def test_after_the_delay_a_part_batch_runs() -> None:
    async def test() -> None:
        worker = Worker()
        queue = batcher(worker, max_queue_delay_ms=50)
        queue.start()
        assert await queue.submit([1]) == [2]
        assert await queue.submit([2]) == [4]
        await queue.close()

    run(test)


@pytest.mark.parametrize("by", ["the queue's own limit", "the request's deadline"])
def test_a_late_request_is_told_so_and_costs_no_engine_time(by: str) -> None:
    async def test() -> None:
        worker = Worker(held=True)
        queue = batcher(worker, timeout_ms=100 if by.startswith("the queue") else None)
        queue.start()
        soon = None if by.startswith("the queue") else asyncio.get_running_loop().time() + 0.1
        running = asyncio.create_task(queue.submit([0], soon))
        await until(lambda: len(worker.batches) == 1)
        with pytest.raises(DeadlineError):
            await queue.submit([1], soon)
        with pytest.raises(DeadlineError):
            await running
        worker.gate.set()
        assert await queue.submit([2]) == [4]
        assert worker.batches == [[0], [2]]
        await queue.close()

    run(test)


def test_who_went_away_costs_no_engine_time() -> None:
    async def test() -> None:
        worker = Worker(held=True)
        queue = batcher(worker)
        queue.start()
        running = asyncio.create_task(queue.submit([0]))
        await until(lambda: len(worker.batches) == 1)
        gone, staying = asyncio.create_task(queue.submit([1])), asyncio.create_task(queue.submit([2]))
        await until(lambda: queue.waiting == 2)
        gone.cancel()
        await asyncio.sleep(0)
        worker.gate.set()
        assert await asyncio.gather(running, staying) == [[0], [4]]
        assert worker.batches == [[0], [2]]
        await queue.close()

    run(test)


def test_of_a_failed_batch_only_the_bad_item_fails() -> None:
    async def test() -> None:
        worker = Worker(held=True)
        queue = batcher(worker)
        queue.start()
        first = asyncio.create_task(queue.submit([0]))
        await until(lambda: len(worker.batches) == 1)
        good, mixed = asyncio.create_task(queue.submit([1])), asyncio.create_task(queue.submit([2, -1, 3]))
        await until(lambda: queue.waiting == 4)
        worker.gate.set()
        assert await first == [0]
        assert await good == [2]
        two, bad, six = await mixed
        assert (two, six) == (4, 6)
        assert isinstance(bad, EngineError)
        assert worker.batches == [[0], [1, 2, -1, 3], [1], [2], [-1], [3]]
        assert await queue.submit([5]) == [10]
        await queue.close()

    run(test)


def test_an_error_of_any_kind_becomes_an_engine_error() -> None:
    async def test() -> None:
        def work(items: Sequence[int]) -> list[int]:
            if items[0] == 1:
                raise ZeroDivisionError("by nothing")
            return []  # too few

        queue = batcher(work)
        queue.start()
        for item in (1, 2):
            (failed,) = await queue.submit([item])
            assert isinstance(failed, EngineError)
        await queue.close()

    run(test)


def test_an_engine_that_fails_again_and_again_is_told_of() -> None:
    async def test() -> None:
        told: list[str] = []
        queue = batcher(Worker(), on_broken=told.append)
        queue.start()
        for _ in range(MAX_FAILURES - 1):
            await queue.submit([-1])
        await queue.submit([1])  # which works, so that the count begins anew
        for _ in range(MAX_FAILURES - 1):
            await queue.submit([-1])
        assert told == []
        await queue.submit([-1])
        assert told == ["failing"]
        await queue.close()

    run(test)


def test_an_engine_that_hangs_is_told_of_and_left_behind() -> None:
    async def test() -> None:
        told: list[str] = []
        stuck, fine = Worker(held=True), Worker()
        queue = batcher(stuck, fine, hang_s=0.2, on_broken=told.append, max_batch_size=1)
        queue.start()
        answers = await asyncio.gather(*(queue.submit([i]) for i in range(4)))
        assert told == ["hanging"]
        assert sum(isinstance(answer[0], EngineError) for answer in answers) == 1
        assert len(stuck.batches) == 1
        queue.retire()
        await queue.close()  # without waiting for the one that hangs
        stuck.gate.set()

    run(test)


def test_who_waits_for_engines_that_are_given_up_is_sent_on() -> None:
    async def test() -> None:
        worker = Worker(held=True)
        queue = batcher(worker)
        queue.start()
        running = asyncio.create_task(queue.submit([0]))
        await until(lambda: len(worker.batches) == 1)
        waiting = asyncio.create_task(queue.submit([1]))
        await until(lambda: queue.waiting == 1)
        queue.retire()
        for asking in (waiting, queue.submit([2])):
            with pytest.raises(RetiredError):
                await asking
        worker.gate.set()
        assert await running == [0]
        await queue.close()
        assert worker.batches == [[0]]

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


def test_after_close_no_engine_thread_is_left_that_could_outlive_its_model() -> None:
    before = set(threading.enumerate())

    def engines() -> list[str]:
        return [t.name for t in set(threading.enumerate()) - before if t.name == "pdserve-engine"]

    async def test() -> None:
        queue = batcher(Worker(), Worker())
        queue.start()
        assert len(engines()) == 2
        assert await queue.submit([1]) == [2]
        await queue.close()
        assert engines() == []

    run(test)


def test_nothing_asked_is_nothing_answered() -> None:
    async def test() -> None:
        queue = batcher(Worker())
        queue.start()
        assert await queue.submit([]) == []
        await queue.close()

    run(test)
