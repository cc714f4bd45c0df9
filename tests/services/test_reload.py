"""Pipelines that take each other's place, with stand-ins that answer with their own number."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Hashable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from pdserve.errors import ClosedError, DeadlineError, EngineError, ModelError, OverloadedError
from pdserve.pipelines import SERVICES
from pdserve.services import reload
from pdserve.services.batcher import RetiredError
from pdserve.services.budget import Entrance
from pdserve.services.replica import Requests
from pdserve.services.service import Service
from pdserve.services.telemetry.metrics import Metrics
from pdserve.settings import ModelSettings, ServerSettings, ServiceSettings


class Models:
    """Builds stand-ins, numbered from 1; ``files`` are on the disk, ``broken`` fails building, ``unseen``
    looking at the files."""

    def __init__(self, max_waiting: int = 10) -> None:
        self.max_waiting = max_waiting
        self.files: Hashable = "first"
        self.broken: str | None = None
        self.unseen: str | None = None
        self.built: list[Standin] = []
        self.anew: list[bool] = []
        self.works = True

    def build(self, anew: bool = False, pool: object = None) -> "Standin":
        self.anew.append(anew)
        if self.broken:
            raise ModelError(self.broken)
        self.built.append(Standin(self, len(self.built) + 1))
        return self.built[-1]


class Standin:
    capacity = 2
    index = None
    pipeline = SimpleNamespace(embedder=None, models={})

    def __init__(self, models: Models, number: int) -> None:
        model = ModelSettings(model="m", max_queue_size=models.max_waiting, hang_s=5)
        server = ServerSettings(name="imagenet", max_images=100)
        self.settings = ServiceSettings("classification", server, {"model": model}, None)
        self.requests = Requests()
        self.entrance = Entrance(server)
        self.models = models
        self.number = number
        self.loaded = models.files
        self.gate = asyncio.Event()
        self.gate.set()
        self.retired = asyncio.Event()
        self.told: list[str] = []

    def start(self, owner: object) -> None:
        self.told.append("start")

    async def answer(
        self, images: Sequence[Any], top_k: int | None, deadline: float | None, parameters: Any
    ) -> list[int]:
        retired = asyncio.create_task(self.retired.wait())
        opened = asyncio.create_task(self.gate.wait())
        await asyncio.wait((retired, opened), return_when=asyncio.FIRST_COMPLETED)
        retired.cancel()
        opened.cancel()
        if self.retired.is_set():
            raise RetiredError("given up")
        return [self.number] * len(images)

    def forget(self) -> None:
        self.told.append("forget")

    def signature(self) -> Hashable:
        if self.models.unseen:
            raise OSError(self.models.unseen)
        return self.models.files

    def check(self) -> None:
        if not self.models.works:
            raise EngineError("it does not run")

    def retire(self) -> None:
        self.retired.set()

    async def close(self) -> None:
        self.told.append("close")

    async def abandon(self) -> None:
        self.told.append("abandon")


def serving(models: Models, build: Any = None) -> Service:
    service = Service(SERVICES["classification"], build or models.build, Metrics())
    service.start()
    return service


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came")


def test_a_reload_swaps_when_the_next_is_built_and_fails_nobody() -> None:
    async def test() -> None:
        models = Models()
        served = serving(models)
        first = served.replica
        first.gate.clear()
        under_way = asyncio.create_task(served.answer([b""], None, None))
        await asyncio.sleep(0)
        await served.reloader.reload(read_settings=True)
        assert models.anew == [False, True]
        assert served.ready
        assert await served.answer([b"", b""], None, None) == [2, 2]
        assert first.told == ["start"]  # somebody still asks it
        first.gate.set()
        assert await under_way == [1]
        await until(lambda: first.told == ["start", "close"])
        await served.close()
        assert served.replica.told == ["start", "close"]

    run(test)


def test_what_cannot_be_loaded_leaves_the_old_in_force(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        models = Models()
        served = serving(models)
        models.broken = "a file is missing"
        await served.reloader.reload()
        assert await served.answer([b""], None, None) == [1]
        assert "a file is missing" in caplog.text
        await served.close()

    run(test)


def test_changed_files_are_loaded_once_they_have_come_to_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "INTERVAL_S", 0.05)

    async def test() -> None:
        models = Models()
        served = serving(models)
        models.files = "second"
        await until(lambda: served.replica.number == 2)
        models.broken = "half a file"
        models.files = "third"
        await until(lambda: len(models.anew) == 3)
        await asyncio.sleep(0.3)
        assert len(models.anew) == 3  # it is not tried again and again
        models.broken = None
        models.files = "fourth"
        await until(lambda: served.replica.number == 3)
        await served.close()

    run(test)


def test_files_that_cannot_be_looked_at_for_a_while_are_watched_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reload, "INTERVAL_S", 0.01)

    async def test() -> None:
        models = Models()
        served = serving(models)
        models.unseen = "too many open files"
        await until(lambda: "cannot be looked at" in caplog.text)
        models.files = "second"
        models.unseen = None
        await until(lambda: served.replica.number == 2)
        assert caplog.text.count("too many open files") == 1
        await served.close()

    run(test)


def test_a_hanging_engine_is_replaced_and_who_waits_gets_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def test() -> None:
        models = Models()
        served = serving(models)
        first = served.replica
        first.gate.clear()
        waiting = asyncio.create_task(served.answer([b""], None, None))
        await asyncio.sleep(0)
        served.reloader.broken(first, "hanging")
        served.reloader.broken(first, "hanging")  # as its other instances may say, too
        await until(lambda: served.replica is not first)
        assert await waiting == [2]
        assert first.told == ["start", "abandon"]
        assert served.reloader.hangs == 1
        assert served.ready
        await served.close()
        assert "rebuilt" in caplog.text

    run(test)


def test_nothing_is_ready_while_an_engine_is_rebuilt() -> None:
    async def test() -> None:
        models = Models()
        hold = threading.Event()
        hold.set()

        def build(anew: bool, pool: object) -> Standin:
            hold.wait(10)
            return models.build(anew)

        served = serving(models, build)
        first = served.replica
        hold.clear()
        models.works = False
        first.gate.clear()
        patient = asyncio.create_task(served.answer([b""], None, None))
        hurried = asyncio.create_task(served.answer([b""], None, 0.3))
        await asyncio.sleep(0)
        served.reloader.broken(first, "failing")
        await until(lambda: not served.ready)
        with pytest.raises(ClosedError, match="rebuilt"):
            await served.answer([b""], None, None)
        with pytest.raises(DeadlineError):
            await hurried
        hold.set()
        assert await patient == [2]
        assert served.ready
        assert first.told == ["start", "close"]
        await served.close()

    run(test)


def test_an_engine_that_works_on_a_blank_image_is_not_rebuilt() -> None:
    async def test() -> None:
        models = Models()
        served = serving(models)
        served.reloader.broken(served.replica, "failing")
        await asyncio.sleep(0.2)
        assert served.replica.number == 1
        assert served.ready
        await served.close()

    run(test)


def test_rebuilding_is_tried_until_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "_PAUSES_S", (0.01,))

    async def test() -> None:
        models = Models()
        served = serving(models)
        models.works, models.broken = False, "no memory"
        served.reloader.broken(served.replica, "failing")
        await until(lambda: len(models.anew) > 3)
        assert not served.ready
        models.broken = None
        await until(lambda: served.ready)
        assert await served.answer([b""], None, None) == [2]
        await served.close()

    run(test)


def test_engines_that_hang_again_and_again_end_the_server() -> None:
    async def test() -> None:
        models = Models()
        served = serving(models)
        for number in range(1, reload.MAX_HANGS + 1):
            await until(lambda number=number: served.ready and served.replica.number == number)
            served.reloader.broken(served.replica, "hanging")
        await asyncio.wait_for(served.reloader.failed.wait(), 5)
        assert not served.ready
        await served.close()
        assert "close" not in served.replica.told

    run(test)


def test_more_images_than_may_wait_are_refused_at_once() -> None:
    async def test() -> None:
        served = serving(Models(max_waiting=3))  # and two in the engine
        served.replica.gate.clear()
        inside = [asyncio.create_task(served.answer([b""] * 2, None, None)) for _ in range(2)]
        await asyncio.sleep(0)
        assert served.inside == 4
        with pytest.raises(OverloadedError, match="4 images"):
            await served.answer([b""] * 2, None, None)
        inside.append(asyncio.create_task(served.answer([b""], None, None)))
        await asyncio.sleep(0)
        served.replica.gate.set()
        await asyncio.gather(*inside)
        assert served.inside == 0
        assert await served.answer([b""] * 20, None, None) == [1] * 20  # alone, however many
        await served.close()

    run(test)


def test_who_is_cancelled_makes_room() -> None:
    async def test() -> None:
        served = serving(Models())
        served.replica.gate.clear()
        gone = asyncio.create_task(served.answer([b""], None, None))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert served.inside == 0
        await served.close()

    run(test)
