"""What services hold in memory is bounded: which are unloaded, and loaded again; with stand-ins."""

import asyncio
import sys
from collections.abc import Sequence

import pytest

from pdserve.errors import DeadlineError, ModelError, OverloadedError
from pdserve.services import residence
from pdserve.services.inference.repository import index
from pdserve.services.repository import Repository
from pdserve.services.residence import Residence, resident_bytes
from pdserve.services.service import Service
from tests.services.test_reload import Models, run, serving


async def services(
    limit: int, count: int = 3, max_waiting: int = 10
) -> tuple[Sequence[Service], list[Models]]:
    """So many services that hold 10 bytes each, named a, b, c."""
    keeper, models = Residence(limit), [Models(max_waiting) for _ in range(count)]
    made = [serving(each) for each in models]
    for name, each in zip("abcdef", made, strict=False):
        each.name = name
        keeper.enter(each, 10)
    await keeper.settle()
    return made, models


def loaded(made: Sequence[Service]) -> str:
    return "".join(each.name for each in made if each.loaded)


async def close(made: Sequence[Service]) -> None:
    for each in made:
        await each.close()


def test_the_first_that_fit_stay_and_the_longest_unused_makes_room() -> None:
    async def test() -> None:
        made, models = await services(20)
        a, b, c = made
        assert loaded(made) == "ab"
        assert all(each.ready for each in made)
        assert [each.state for each in Repository(dict(zip("abc", made, strict=True))).index()] == [
            "READY",
            "READY",
            "COLD",
        ]
        assert await a.answer([b"1"]) == [1]
        assert await c.answer([b"1"]) == [2]  # the second of its stand-ins
        assert loaded(made) == "ac"
        assert models[2].anew == [False, True]
        assert await a.answer([b"1"]) == [1]
        assert await b.answer([b"1"]) == [2]
        assert loaded(made) == "ab"
        await close(made)

    run(test)


def test_one_that_holds_more_than_the_bound_runs_alone() -> None:
    async def test() -> None:
        made, _ = await services(5)
        assert loaded(made) == "a"
        assert await made[2].answer([b"1"]) == [2]
        assert loaded(made) == "c"
        await close(made)

    run(test)


def test_two_that_are_asked_at_once_and_do_not_fit_answer_in_turn() -> None:
    async def test() -> None:
        made, models = await services(10, 2)
        asked = [each.answer([b"1"]) for _ in range(4) for each in made]
        answers = await asyncio.gather(*asked)
        assert len(answers) == 8
        assert len(models[0].built) + len(models[1].built) <= 4  # and not once for each request
        await close(made)

    run(test)


def test_requests_wait_for_a_cold_service_within_their_bounds() -> None:
    async def test() -> None:
        made, models = await services(10, 2, max_waiting=2)
        first = made[0].replica
        first.gate.clear()  # type: ignore[attr-defined]
        inside = asyncio.create_task(made[0].answer([b"1"]))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(made[1].answer([b"1", b"2"]))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="2 images wait already"):
            await made[1].answer([b"3"])
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(DeadlineError, match="not loaded in time"):
            await made[1].answer([b"4"], timeout_s=0.01)
        first.gate.set()  # type: ignore[attr-defined]
        assert await inside == [1]
        assert await made[1].answer([b"5"]) == [2]
        assert made[0].cold
        assert made[1].inside == 0
        assert len(models[1].built) == 2
        await close(made)

    run(test)


def test_what_cannot_be_loaded_again_says_why_and_is_not_tried_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        made, models = await services(10, 2)
        models[1].broken = "the file is cut"
        for _ in range(5):
            with pytest.raises(ModelError, match="the file is cut"):
                await made[1].answer([b"1"])
        assert models[1].anew == [False, True]
        models[1].broken = None
        monkeypatch.setattr(residence, "_PAUSE_S", 0)
        assert await made[1].answer([b"1"]) == [2]
        await close(made)

    run(test)


def test_who_is_unloaded_on_purpose_stays_so_until_it_is_loaded_with_room_made() -> None:
    async def test() -> None:
        made, _ = await services(10, 2)
        both = Repository(dict(zip("ab", made, strict=True)))
        await both.unload("b")
        assert [each.state for each in both.index()] == ["READY", "UNLOADED"]
        assert both.ready
        await both.load("b")
        assert [each.state for each in both.index()] == ["COLD", "READY"]
        await close(made)

    run(test)


def test_every_state_has_words_in_the_open_inference_protocol() -> None:
    async def test() -> None:
        made, _ = await services(10, 3)
        all_three = Repository(dict(zip("abc", made, strict=True)))
        await all_three.unload("c")
        listed = {each["name"]: (each["state"], each["reason"]) for each in index(all_three)}
        cold = "unloaded to make room; its next request loads it"
        assert listed == {"a": ("READY", ""), "b": ("READY", cold), "c": ("UNAVAILABLE", "unloaded")}
        await close(made)

    run(test)


def test_the_process_has_resident_memory() -> None:
    assert (resident_bytes() > 10 << 20) == sys.platform.startswith("linux")
