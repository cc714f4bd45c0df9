"""Bodies within the budget: what they hold while they come, who is refused, what slowness costs."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from pdserve.errors import BodyTooLargeError, DeadlineError, OverloadedError
from pdserve.services.budget import STEP, Entrance
from pdserve.services.http import bodies
from pdserve.services.http.bodies import RESERVATIONS, SlowBodyError, read_body, release
from pdserve.services.telemetry.metrics import RequestContext, current
from pdserve.settings import ServerSettings
from tests.services.virtual import run

MB = 1 << 20


@pytest.fixture(autouse=True)
def joined_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Join large bodies in this thread: a clock of virtual time does not wait for another one."""

    async def here(function: Any, *arguments: Any) -> Any:
        return function(*arguments)

    monkeypatch.setattr(bodies, "in_a_thread", here)


class Caller:
    """Sends parts with a pause before each, in seconds, then nothing more; ``asked``: how often it was."""

    def __init__(
        self, parts: list[tuple[float, bytes]], length: int | None = None, ends: bool = True
    ) -> None:
        self.asked = 0
        self._parts = parts
        self._ends = ends
        headers = [] if length is None else [(b"content-length", b"%d" % length)]
        self.scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
        self.request = Request(self.scope, self.receive)

    async def receive(self) -> Any:
        self.asked += 1
        if self.asked > len(self._parts):
            await asyncio.get_running_loop().create_future()
        pause, part = self._parts[self.asked - 1]
        await asyncio.sleep(pause)
        more = not self._ends or self.asked < len(self._parts)
        return {"type": "http.request", "body": part, "more_body": more}


def entrance(budget_mb: int = 20, **settings: Any) -> Entrance:
    """An entrance whose bodies have so many MB."""
    return Entrance(ServerSettings(name="x", max_inflight_bytes=2 * budget_mb * MB, **settings))


def pieces(data: bytes, size: int) -> list[tuple[float, bytes]]:
    return [(0, data[at : at + size]) for at in range(0, len(data), size)]


def pattern(size: int) -> bytes:
    return bytes(range(251)) * (size // 251 + 1)


@pytest.mark.parametrize("size", [0, 1, 1000, MB, MB + 1, 5 * MB])
@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("piece", [60_000, 3 * MB])
def test_a_body_arrives_as_it_was_sent(size: int, announced: bool, piece: int) -> None:
    async def main() -> None:
        door, sent = entrance(), pattern(size)[:size]
        caller = Caller(pieces(sent, piece) or [(0, b"")], size if announced else None)
        assert await read_body(caller.request, door) == sent
        held = sum(each.amount for each in caller.scope[RESERVATIONS])
        assert held == door.bodies.used
        assert held == size or (not announced and held <= max(size, 64 * 1024))
        release(caller.scope)
        release(caller.scope)
        assert door.bodies.used == 0

    run(main())


def test_bodies_that_are_announced_and_do_not_come_hold_next_to_nothing() -> None:
    async def main() -> None:
        door = entrance(100, max_body_bytes=90 * MB)
        silent = [Caller([(0, b"x" * 1000)], 90 * MB, ends=False) for _ in range(20)]
        tasks = [asyncio.create_task(read_body(each.request, door)) for each in silent]
        await asyncio.sleep(1)
        assert door.bodies.used <= 20 * STEP
        large = pattern(60 * MB)[: 60 * MB]
        assert len(await read_body(Caller(pieces(large, MB), len(large)).request, door)) == len(large)
        got = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(each) for each in got} == {SlowBodyError}
        for each in silent:
            release(each.scope)
        assert door.bodies.used == 60 * MB

    run(main())


def test_a_body_without_room_is_refused_before_it_is_read() -> None:
    async def main() -> None:
        door = entrance()
        await door.bodies.reserve(20 * MB)
        caller = Caller([(0, b"x" * 100)], 100)
        with pytest.raises(OverloadedError):
            await read_body(caller.request, door)
        assert caller.asked == 0
        assert asyncio.get_running_loop().time() == 5

    run(main())


@pytest.mark.parametrize("length", [21 * MB, 10**30])
def test_a_body_that_never_fits_is_refused_at_once(length: int) -> None:
    async def main() -> None:
        caller = Caller([], length)
        with pytest.raises(BodyTooLargeError, match="max_inflight_bytes"):
            await read_body(caller.request, entrance())
        assert caller.asked == 0
        with pytest.raises(BodyTooLargeError, match="max_body_bytes"):
            await read_body(caller.request, entrance(max_body_bytes=MB))

    run(main())


def test_a_body_of_unknown_length_that_never_fits() -> None:
    async def main() -> None:
        parts = [(0.0, b"x" * MB)] * 30
        with pytest.raises(BodyTooLargeError, match="max_inflight_bytes"):
            await read_body(Caller(parts).request, entrance())

    run(main())


def test_bodies_that_fill_the_budget_together_are_answered_or_refused() -> None:
    """None waits for ever: ten bodies of 9 MB for 20."""

    async def main() -> None:
        door = entrance()

        async def request() -> str:
            caller = Caller(pieces(bytes(9 * MB), 500_000), 9 * MB)
            try:
                await read_body(caller.request, door)
                await asyncio.sleep(1)
                return "answered"
            except OverloadedError:
                return "refused"
            finally:
                release(caller.scope)

        ends = await asyncio.gather(*(request() for _ in range(10)))
        assert ends.count("answered") >= 2
        assert door.bodies.used == 0
        assert asyncio.get_running_loop().time() < 30

    run(main())


def dripping(seconds: float, total: float) -> Iterator[tuple[float, bytes]]:
    """Enough to be taken, every so often."""
    while total > 0:
        yield seconds, b"x" * 16 * 1024
        total -= seconds


def test_a_body_has_an_end_however_steadily_it_comes() -> None:
    async def main() -> None:
        caller = Caller(list(dripping(29, 2000)), 10 * MB)
        with pytest.raises(SlowBodyError, match="all of it within 600 s"):
            await read_body(caller.request, entrance(body_timeout_s=30))
        assert asyncio.get_running_loop().time() == 600

    run(main())


def test_who_waits_for_room_is_not_slow() -> None:
    async def main() -> None:
        door = entrance(body_timeout_s=1)
        other = await door.bodies.reserve(14 * MB)
        asyncio.get_running_loop().call_later(4, other.release)
        caller = Caller(pieces(bytes(9 * MB), MB), 9 * MB)
        assert len(await read_body(caller.request, door)) == 9 * MB

    run(main())


def test_time_runs_from_the_arrival() -> None:
    async def main() -> None:
        door = entrance()
        door.time_limit_s = 3
        other = await door.bodies.reserve(20 * MB)
        with pytest.raises(DeadlineError):
            await read_body(Caller([(0, b"x")], 1).request, door)
        assert asyncio.get_running_loop().time() == 3
        asyncio.get_running_loop().call_later(2, other.release)
        context = RequestContext()
        current.set(context)
        await read_body(Caller([(0, b"x"), (10, b"y")], 2).request, door)
        # It came at 3, waited for 2, and took 10 to be sent, which are not counted.
        assert context.arrived == 13

    run(main())


def test_a_caller_that_leaves() -> None:
    async def main() -> None:
        async def gone() -> Any:
            return {"type": "http.disconnect"}

        scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-length", b"9")]}
        with pytest.raises(ClientDisconnect):
            await read_body(Request(scope, gone), entrance())

    run(main())
