"""Messages that come slowly need room in the budget; those that are there are counted against it."""

import asyncio
from typing import Any

import grpc
import pytest

from pdserve.services.budget import Entrance
from pdserve.services.grpc import intake
from pdserve.services.grpc.intake import Intake
from pdserve.settings import ServerSettings

MB = 1 << 20
TWO, ONE = "ipv4:10.0.0.2:5", "ipv6:%5B::1%5D:4"


class Call:
    """The context of a call whose message comes when it is told to."""

    def __init__(self, peer: str = ONE) -> None:
        self.message: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._peer = peer

    async def read(self) -> Any:
        return await self.message

    def peer(self) -> str:
        return self._peer

    def trailing_metadata(self) -> tuple[()]:
        return ()

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing: Any = ()) -> None:
        raise grpc.aio.AbortError(code.name, dict(trailing))


def taking(slots: int, **settings: Any) -> Intake:
    """An intake with so many slots of a megabyte."""
    limits = ServerSettings(name="x", max_body_bytes=MB, max_inflight_bytes=4 * slots * MB, **settings)
    return Intake(Entrance(limits))


async def held(taken: Intake, call: Call, into: list[int]) -> None:
    async with taken.message(call) as message:  # type: ignore[arg-type]
        into.append(taken.bodies.used)
        assert message == b"x" * 1000


async def ended(task: "asyncio.Task[None]") -> Any:
    with pytest.raises(grpc.aio.AbortError) as failed:
        await task
    return failed.value.args


@pytest.fixture(autouse=True)
def short_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "_MOMENT_S", 0.01)


def test_a_message_holds_its_room_until_the_call_ends() -> None:
    async def test() -> None:
        taken, call, seen = taking(4), Call(), list[int]()
        call.message.set_result(b"x" * 1000)
        await held(taken, call, seen)
        assert (seen, taken.bodies.used) == ([1000], 0)

    asyncio.run(test())


def test_a_slow_message_holds_a_slot_until_it_is_there() -> None:
    async def test() -> None:
        taken, call, seen = taking(4), Call(), list[int]()
        task = asyncio.create_task(held(taken, call, seen))
        while not taken.bodies.used:
            await asyncio.sleep(0)
        assert taken.bodies.used == MB
        call.message.set_result(b"x" * 1000)
        await task
        assert (seen, taken.bodies.used) == ([1000], 0)

    asyncio.run(test())


def test_one_address_has_half_of_the_slots() -> None:
    async def test() -> None:
        taken = taking(4)
        mine = [asyncio.create_task(held(taken, Call(), [])) for _ in range(3)]
        refused, *_ = (await asyncio.wait(mine, return_when=asyncio.FIRST_COMPLETED))[0]
        code, trailing = await ended(refused)
        assert (code, trailing) == ("RESOURCE_EXHAUSTED", {"retry-after": "1"})
        assert taken.bodies.used == 2 * MB
        other, seen = Call(TWO), list[int]()
        task = asyncio.create_task(held(taken, other, seen))
        while taken.bodies.used < 3 * MB:
            await asyncio.sleep(0)
        other.message.set_result(b"x" * 1000)
        await task
        assert seen == [2 * MB + 1000]
        for each in mine:
            each.cancel()
        await asyncio.gather(*mine, return_exceptions=True)
        assert taken.bodies.used == 0

    asyncio.run(test())


def test_a_slot_is_not_for_ever() -> None:
    async def test() -> None:
        taken = taking(4)
        taken.longest_s = 0.01
        code, _ = await ended(asyncio.create_task(held(taken, Call(), [])))
        assert (code, taken.bodies.used) == ("DEADLINE_EXCEEDED", 0)

    asyncio.run(test())


def test_a_message_for_which_there_is_no_room() -> None:
    async def test() -> None:
        taken, call = taking(1), Call()
        async with taken.bodies.reserved(2 * MB):
            call.message.set_result(bytes(MB))
            code, _ = await ended(asyncio.create_task(held(taken, call, [])))
        assert (code, taken.bodies.used) == ("RESOURCE_EXHAUSTED", 0)

    asyncio.run(test())


def test_a_call_without_a_message() -> None:
    async def test() -> None:
        taken, call = taking(1), Call()
        call.message.set_result(grpc.aio.EOF)
        code, _ = await ended(asyncio.create_task(held(taken, call, [])))
        assert code == "INVALID_ARGUMENT"

    asyncio.run(test())
