"""Those who change a gallery over HTTP: one at a time, few wait, not for long, and they may go away."""

import asyncio
import functools
import json
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from starlette.requests import Request

from pdserve.errors import ClosedError, FetchError, OverloadedError
from pdserve.index.plan import Change
from pdserve.services.budget import Entrance
from pdserve.services.http import gallery
from pdserve.services.http.gallery import MAX_WAITING, Writers
from pdserve.services.protocols import Context
from pdserve.services.service import Service
from pdserve.services.telemetry.metrics import Metrics
from pdserve.settings import ServerSettings

DONE = Change(Path(), 1, 1)


def on_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    @functools.wraps(test)
    def run() -> None:
        asyncio.run(test())

    return run


class Work:
    """Goes on when it is told to; counts how many were at it, at once and in all."""

    def __init__(self) -> None:
        self.go, self.begun = threading.Event(), threading.Event()
        self.count = self.at_once = self.most = 0

    def __call__(self, cancel: threading.Event) -> Change:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        self.count += 1
        self.begun.set()
        assert self.go.wait(30)
        self.at_once -= 1
        return DONE


async def refreshed() -> None:
    pass


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(3000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it took more than 30 s")


@on_a_loop
async def test_one_at_a_time_and_few_wait() -> None:
    work, writers = Work(), Writers(refreshed)
    tasks = [asyncio.create_task(writers.run(work)) for _ in range(MAX_WAITING)]
    await until(work.begun.is_set)
    with pytest.raises(OverloadedError, match=f"{MAX_WAITING} changes of the gallery wait already"):
        await writers.run(work)
    work.go.set()
    assert await asyncio.gather(*tasks) == [DONE] * MAX_WAITING
    assert (work.count, work.most) == (MAX_WAITING, 1)
    await writers.run(work)  # there is room again


@on_a_loop
async def test_who_leaves_is_taken_out_and_its_work_never_begins() -> None:
    first, second, writers = Work(), Work(), Writers(refreshed)
    running = asyncio.create_task(writers.run(first))
    await until(first.begun.is_set)
    waiting = [asyncio.create_task(writers.run(second)) for _ in range(MAX_WAITING - 1)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    more = asyncio.create_task(writers.run(Work()))  # there is room for it
    await asyncio.sleep(0)
    assert not more.done()
    more.cancel()
    first.go.set()
    assert await running == DONE
    assert second.count == 0


@on_a_loop
async def test_who_leaves_while_its_change_is_made_does_not_let_the_next_in_before() -> None:
    first, second, writers = Work(), Work(), Writers(refreshed)
    running = asyncio.create_task(writers.run(first))
    await until(first.begun.is_set)
    second.go.set()
    waiting = asyncio.create_task(writers.run(second))
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.sleep(0.05)
    assert second.count == 0
    first.go.set()
    assert await waiting == DONE
    assert running.cancelled()


@on_a_loop
async def test_the_wait_ends() -> None:
    first, writers = Work(), Writers(refreshed)
    running = asyncio.create_task(writers.run(first))
    await until(first.begun.is_set)
    with pytest.raises(OverloadedError, match=r"was being changed for 0.05 s; ask again"):
        await writers.run(Work(), 0.05)
    first.go.set()
    await running

    def behind_another_process(cancel: threading.Event) -> Change:
        assert cancel.wait(30)
        raise FetchError("Waiting was interrupted.")

    with pytest.raises(OverloadedError, match="was being changed for"):
        await writers.run(behind_another_process, 0.05)


class Reloaded(Service):
    """Its embedder is another one after each of the first ``times`` requests for vectors."""

    cold = False

    replica: Any = SimpleNamespace(  # type: ignore[assignment]
        settings=SimpleNamespace(first_model=SimpleNamespace(timeout_ms=None))
    )
    index: Any = SimpleNamespace(folder=Path(), refresh=refreshed)  # type: ignore[assignment]

    def __init__(self, times: int) -> None:
        self.times, self.asked = times, 0

    @property
    def embedder(self) -> Any:
        return SimpleNamespace(fingerprint=str(min(self.asked, self.times)))

    async def embed(self, images: Any, timeout_s: float | None = None) -> Any:
        self.asked += 1
        return [np.full(3, self.asked, np.float32) for _ in images]


@pytest.mark.parametrize(("times", "asked"), [(0, 1), (1, 2), (2, 3)])
def test_images_are_embedded_again_by_the_embedder_that_a_reload_has_brought(
    times: int, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[Any] = []

    def append(images: Any, vectors: Any, folder: Path, embedder: Any, **_: Any) -> Change:
        added.append((vectors[0, 0], embedder.fingerprint))
        return DONE

    monkeypatch.setattr(gallery, "append_embedded", append)
    asyncio.run(post(Reloaded(times)))
    assert added == [(asked, str(times))]


def test_a_reload_that_follows_the_other_is_told() -> None:
    with pytest.raises(ClosedError, match="embedder was replaced meanwhile; send the images again"):
        asyncio.run(post(Reloaded(3)))


async def post(service: Service) -> None:
    """Add an image over HTTP."""
    entrance = Entrance(ServerSettings(name="x"))
    options = SimpleNamespace(gallery_writes=True)
    routes = gallery.routes(Context(service, entrance, Metrics(), options))
    body = json.dumps({"images": [{"image": "QUJD", "label": "red"}]}).encode()
    sent = asyncio.Event()

    async def receive() -> Any:
        if sent.is_set():
            await asyncio.get_running_loop().create_future()  # the caller stays
        sent.set()
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    scope = {"type": "http", "method": "POST", "path": "/v1/gallery", "headers": headers, "query_string": b""}
    await next(each for each in routes if each.method == "POST").endpoint(Request(scope, receive))
