"""The budget: what fits, who waits, in which order, who is refused, and that nobody waits for ever."""

import asyncio
import random
from collections.abc import Awaitable
from typing import Any

import pytest

from pdserve.errors import BodyTooLargeError, DeadlineError, OverloadedError
from pdserve.services import budget
from pdserve.services.budget import Budget, Entrance, PixelCount
from pdserve.settings import ServerSettings
from tests.services.virtual import run


async def settled() -> None:
    """Let every task go on as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def outcome(work: Awaitable[Any]) -> Any:
    """What a piece of work gives, or the error that it raises."""
    try:
        return await work
    except Exception as error:
        return error


def test_what_fits_is_held_until_it_is_released() -> None:
    async def main() -> None:
        shared = Budget(10)
        async with shared.reserved(6) as first, shared.reserved(4):
            assert shared.used == 10
            first.shrink(2)
            assert shared.used == 6
        assert shared.used == 0
        reservation = await shared.reserve(3)
        reservation.release()
        reservation.release()
        assert shared.used == 0

    run(main())


def test_what_fits_costs_no_turn_of_the_loop() -> None:
    shared = Budget(10)
    with pytest.raises(StopIteration):
        shared.reserve(10).send(None)  # a coroutine that waits for something would yield


def test_more_than_the_whole_is_refused_at_once() -> None:
    async def main() -> None:
        shared = Budget(10, "bodies")
        held = await shared.reserve(10)
        with pytest.raises(BodyTooLargeError, match=r"11 bytes .* the 10 that the server has for bodies"):
            await shared.reserve(11)
        with pytest.raises(BodyTooLargeError):
            await held.grow(1)
        assert (shared.used, shared.waiting) == (10, 0)

    run(main())


def test_those_who_wait_are_served_in_order() -> None:
    async def main() -> None:
        shared, order = Budget(10), []

        async def request(name: str, amount: int) -> None:
            async with shared.reserved(amount):
                order.append(name)

        held = await shared.reserve(8)
        tasks = [asyncio.create_task(request(name, n)) for name, n in (("a", 9), ("b", 1), ("c", 1))]
        await settled()
        assert order == []  # b and c would fit, and a came first
        held.release()
        await asyncio.gather(*tasks)
        assert order == ["a", "b", "c"]
        assert shared.used == 0

    run(main())


def test_a_wait_ends_with_a_refusal() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        shared = Budget(10, wait_s=5)
        await shared.reserve(8)
        with pytest.raises(OverloadedError):
            await shared.reserve(3)
        assert loop.time() == 5
        with pytest.raises(DeadlineError):
            await shared.reserve(3, deadline=7)
        assert loop.time() == 7
        assert (shared.used, shared.waiting) == (8, 0)

    run(main())


def test_who_leaves_makes_way_for_those_behind() -> None:
    async def main() -> None:
        shared = Budget(10)
        await shared.reserve(5)
        large = asyncio.create_task(shared.reserve(9))
        fits = asyncio.create_task(shared.reserve(5))
        await settled()
        assert not fits.done()
        large.cancel()
        assert (await fits).amount == 5

    run(main())


def test_a_grant_to_one_who_has_just_left_is_given_back() -> None:
    async def main() -> None:
        shared = Budget(10)
        held = await shared.reserve(10)
        waiting = asyncio.create_task(shared.reserve(10))
        await settled()
        held.release()  # grants it to the one that waits,
        waiting.cancel()  # which never gets to know
        await asyncio.gather(waiting, return_exceptions=True)
        assert (shared.used, shared.waiting) == (0, 0)

    run(main())


def test_no_more_wait_than_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(budget, "MAX_WAITING", 2)
        shared = Budget(10)
        await shared.reserve(10)
        tasks = [asyncio.create_task(outcome(shared.reserve(1))) for _ in range(3)]
        await settled()
        assert [task.done() for task in tasks] == [False, False, True]
        assert isinstance(await tasks[2], OverloadedError)
        assert asyncio.get_running_loop().time() == 0
        await asyncio.gather(*tasks)

    run(main())


def test_bodies_that_wait_for_each_other_are_freed_at_the_cost_of_the_youngest() -> None:
    async def main() -> None:
        shared = Budget(90)
        bodies = [await shared.reserve(30) for _ in range(3)]

        async def grow(body: Any, more: int) -> Any:
            got = await outcome(body.grow(more))
            if got is not None:
                body.release()  # as a request does that is refused
            return got

        tasks = [asyncio.create_task(grow(body, 30)) for body in bodies]
        first, second, third = await asyncio.gather(*tasks)
        assert first is None
        assert isinstance(third, OverloadedError)
        assert second is None or asyncio.get_running_loop().time() == 5  # the first has not ended meanwhile
        assert bodies[0].amount == 60

    run(main())


def test_who_wants_to_grow_goes_before_who_has_nothing_yet() -> None:
    async def main() -> None:
        shared = Budget(10)
        body, other = await shared.reserve(4), await shared.reserve(4)
        newcomer = asyncio.create_task(shared.reserve(4))
        await settled()
        growing = asyncio.create_task(body.grow(4))
        await settled()
        other.release()
        await growing
        assert not newcomer.done()
        body.release()
        assert (await newcomer).amount == 4

    run(main())


def test_small_requests_pass_large_ones_within_their_share() -> None:
    async def main() -> None:
        shared = Budget(80, small=2)
        large = await shared.reserve(70)  # 10 are for the small ones
        waiting = asyncio.create_task(shared.reserve(70))
        await settled()
        small = [await shared.reserve(2) for _ in range(5)]
        assert shared.used == 80
        sixth = asyncio.create_task(shared.reserve(2))
        await settled()
        assert not sixth.done()
        small[0].release()
        assert (await sixth).amount == 2
        assert not waiting.done()
        large.release()
        assert (await waiting).amount == 70

    run(main())


def test_large_ones_leave_the_share_of_the_small_alone() -> None:
    async def main() -> None:
        shared = Budget(80, small=2)
        first = await shared.reserve(40)
        second = asyncio.create_task(shared.reserve(35))
        await settled()
        assert not second.done()
        assert (await shared.reserve(2)).small
        first.release()
        assert (await second).amount == 35

    run(main())


def test_a_small_one_that_grows_is_small_no_more() -> None:
    async def main() -> None:
        shared = Budget(80, small=2)
        body = await shared.reserve(2)
        await body.grow(40)
        assert not body.small
        assert [(await shared.reserve(2)).small for _ in range(5)] == [True] * 5
        body.release()
        assert shared.used == 10

    run(main())


def schedule(seed: int) -> None:
    """Bodies of random sizes come in random steps, stop, go away and end; all of them come to an end."""
    chance = random.Random(seed)
    limit = chance.choice((50, 100, 1000))
    shared = Budget(limit, small=chance.choice((0, 3)), wait_s=5)
    ends: list[str] = []

    async def request() -> None:
        await asyncio.sleep(chance.uniform(0, 20))
        size, step = chance.randint(1, limit * 5 // 4), chance.randint(1, limit // 2)
        deadline = (
            asyncio.get_running_loop().time() + chance.uniform(0, 30) if chance.random() < 0.2 else None
        )
        async with shared.reserved(min(size, step), deadline) as body:
            assert shared.used <= limit
            while body.amount < size:
                await asyncio.sleep(chance.choice((0, 0, 0.1, 1, 10)))
                await body.grow(min(step, size - body.amount))
                assert shared.used <= limit
            await asyncio.sleep(chance.choice((0, 1)))

    async def lives() -> None:
        task = asyncio.create_task(request())
        if chance.random() < 0.2:
            asyncio.get_running_loop().call_later(chance.uniform(0, 30), task.cancel)
        try:
            await task
            ends.append("answered")
        except (OverloadedError, DeadlineError, BodyTooLargeError, asyncio.CancelledError) as error:
            ends.append(type(error).__name__)

    async def main() -> None:
        count = chance.randint(2, 30)
        # A virtual hour: no request takes a hundred steps of ten seconds.
        await asyncio.wait_for(asyncio.gather(*(lives() for _ in range(count))), 3600)
        assert len(ends) == count
        assert (shared.used, shared._small_used, shared.waiting) == (0, 0, 0)

    run(main())


@pytest.mark.parametrize("first", range(0, 150, 50))
def test_no_schedule_leaves_anybody_waiting_or_anything_held(first: int) -> None:
    for seed in range(first, first + 50):
        try:
            schedule(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error


def test_a_request_has_a_number_of_pixels() -> None:
    count = PixelCount(100)
    count.add(60)
    with pytest.raises(BodyTooLargeError, match="more than 100 pixels in all"):
        count.add(41)
    count.add(40)
    assert count.pixels == 100


def test_bodies_and_pixels_have_half_each() -> None:
    settings = ServerSettings(name="x", max_inflight_bytes=1 << 30, max_request_pixels=7)
    entrance = Entrance(settings)
    assert (entrance.bodies.limit, entrance.pixels.limit) == (1 << 29, 1 << 29)
    assert entrance.pixel_count().limit == 7


def test_the_default_is_a_quarter_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "memory_limit", lambda: 8 << 30)
    entrance = Entrance(ServerSettings(name="x"))
    assert entrance.bodies.limit + entrance.pixels.limit == 2 << 30
