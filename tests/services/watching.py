"""A service that needs no model behind real listeners, and what is seen of it from outside."""

import asyncio
import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import uvicorn

from pdserve.errors import ImageError, OverloadedError, PdserveError
from pdserve.services.telemetry.metrics import Metrics, Stages


@dataclass(frozen=True)
class Size:
    """The answer for an image."""

    size: int

    labels = ()  # of the Open Inference Protocol, which knows what services of the kind answer


def _size(image: bytes | PdserveError) -> Size | PdserveError:
    return image if isinstance(image, PdserveError) else Size(len(image))


class FakeService:
    """Answers an image with its size. Some images have a meaning: see `_answer`."""

    kind = "classification"
    names = frozenset({"imagenet", "classification"})
    ready = True

    def __init__(self, metrics: Metrics) -> None:
        self._stages = Stages(metrics)
        self.slow = self.cancelled = 0  # images that take long: begun, and let go

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def answer(
        self,
        images: Sequence[bytes | PdserveError],
        top_k: int | None = None,
        timeout_s: float | None = None,
        parameters: Any = None,
    ) -> list[Any]:
        return await self._stages.answers(len(images), self._answer(images))

    async def _answer(self, images: Sequence[bytes | PdserveError]) -> list[Any]:
        if b"full" in images:
            raise OverloadedError("9 images wait already; ask again in a moment.")
        if b"broken" in images:
            raise ValueError("a fault of ours in /home/somebody")
        if b"slow" in images:
            self.slow += 1
            try:
                await asyncio.sleep(20)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        self._stages.record("queue", 0.002, "fake", time.perf_counter() - 0.01)
        self._stages.record("infer", 0.01, "fake")
        return [ImageError("no image") if image == b"bad" else _size(image) for image in images]

    def fields(self, answers: Sequence[Size]) -> Mapping[str, str]:
        return {"label": repr([answer.size for answer in answers])}


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
    """Serve an application on a free port, in a thread; its address."""
    opened = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
    thread = threading.Thread(target=server.run, args=([opened],))
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{opened.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        opened.close()


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait until this is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


def counted(metrics: Metrics, expected: Mapping[tuple[str, str], float]) -> None:
    """Requests are counted so, by route and code; a request counts once its answer is on its way."""
    with contextlib.suppress(AssertionError):
        until(lambda: requests(metrics) == expected, 5)
    assert requests(metrics) == expected


def numbers(metrics: Metrics) -> dict[str, float]:
    """All samples: as they are written, labels in alphabetical order, to their values."""
    text = metrics.exposition()[0].decode()
    return {name: float(value) for name, value in re.findall(r"^([^#\n].*) (\S+)$", text, re.MULTILINE)}


def requests(metrics: Metrics) -> dict[tuple[str, str], float]:
    """Requests by route and code."""
    pattern = re.compile(r'pdserve_requests_total\{code="(.*)",route="(.*)"\}')
    found = ((pattern.fullmatch(name), value) for name, value in numbers(metrics).items())
    return {(match[2], match[1]): value for match, value in found if match}
