"""Services by name, loaded and unloaded while requests come, with stand-ins that answer with their number."""

import asyncio
from typing import Any

import pytest

from pdserve.errors import ModelError, WrongServiceError
from pdserve.services.repository import Listed, Repository
from pdserve.services.service import NotLoadedError
from pdserve.services.telemetry.metrics import Metrics
from tests.services.test_reload import Models, run, serving
from tests.services.watching import FakeService


def fake(*names: str) -> Any:
    made = FakeService(Metrics())
    made.names = frozenset(names)
    return made


def test_a_name_is_found_exactly_or_where_only_one_answers_to_it() -> None:
    one, other = fake("a", "classification"), fake("b", "classification", "special")
    services = Repository({"a": one, "b": other})
    assert services.find("a") is one
    assert services.find("special") is other
    assert services.find("classification") is services.find("") is services.only is None
    assert [name for name, _ in services] == ["a", "b"]
    with pytest.raises(WrongServiceError, match=r"There is no service 'c' here; there is a and b\."):
        services.get("c")


def test_one_service_is_a_repository_and_answers_to_the_empty_name() -> None:
    one = fake("imagenet", "classification")
    services = Repository.of(one)
    assert services.alone
    assert Repository.of(services) is services
    assert services.find("") is services.find("imagenet") is services.find("classification") is one
    assert services.find("other") is None


def test_who_is_inside_has_an_answer_before_a_service_is_unloaded() -> None:
    async def test() -> None:
        models = Models()
        served = serving(models)
        services = Repository.of(served, "imagenet")
        first: Any = served.replica
        first.gate.clear()
        inside = asyncio.create_task(served.answer([b"1"]))
        await asyncio.sleep(0)
        unloading = asyncio.create_task(services.unload("imagenet"))
        await asyncio.sleep(0)
        with pytest.raises(NotLoadedError, match=r"is not loaded; load it first \(`pdserve load imagenet`\)"):
            await served.answer([b"2"])
        assert services.index() == [Listed("imagenet", "classification", "UNLOADED")]
        assert not services.ready
        assert not unloading.done()
        first.gate.set()
        assert await inside == [1]
        await unloading
        assert first.told == ["start", "forget", "close"]
        await services.unload("imagenet")  # which changes nothing
        await services.load("imagenet")
        assert services.ready
        assert models.anew == [False, True]
        assert await served.answer([b"3"]) == [2]
        assert services.index() == [Listed("imagenet", "classification", "READY")]
        await services.load("imagenet")  # a reload
        assert await served.answer([b"4"]) == [3]
        await served.close()

    run(test)


def test_what_cannot_be_loaded_says_why_and_stays_as_it_was() -> None:
    async def test() -> None:
        models = Models()
        served = serving(models)
        services = Repository.of(served)
        models.broken = "the file is cut"
        with pytest.raises(ModelError, match="the file is cut"):
            await services.load("imagenet")
        assert await served.answer([b"1"]) == [1]
        await services.unload("classification")
        with pytest.raises(ModelError, match="the file is cut"):
            await services.load("imagenet")
        assert not served.loaded
        models.broken = None
        await services.load("imagenet")
        assert await served.answer([b"1"]) == [2]
        with pytest.raises(WrongServiceError):
            await services.unload("nobody")
        await served.close()

    run(test)


def test_an_unload_waits_no_longer_than_a_stop_would() -> None:
    async def test() -> None:
        models = Models()
        served = serving(models)
        served._limits = served._limits.model_copy(update={"grace_s": 0.05})
        first: Any = served.replica
        first.gate.clear()
        inside = asyncio.create_task(served.answer([b"1"]))
        await asyncio.sleep(0)
        await served.unload()
        assert first.told[-1] == "close"
        first.gate.set()
        assert await inside == [1]
        await served.close()

    run(test)
