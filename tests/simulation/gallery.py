"""The gallery: writers by HTTP and from other processes, readers, and the watch that takes new versions."""

import asyncio
import json
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
from starlette.requests import Request

from pdserve.errors import DiskError, IndexFolderError, OverloadedError
from pdserve.services.budget import Entrance
from pdserve.services.http import bodies, gallery
from pdserve.services.protocols import Context
from pdserve.services.service import Service
from pdserve.services.watch import IndexWatch
from pdserve.settings import ServerSettings
from tests.simulation.world import NoMetrics, World

OPTIONS = SimpleNamespace(gallery_writes=True)
IMAGE = "QUJD"


@cache
def entrance() -> Entrance:
    return Entrance(ServerSettings(name="gallery"))


class Version:
    """A version of the index in memory: its labels."""

    type, metric, dimension, embedder = "Flat", "IP", 3, None

    def __init__(self, world: "GalleryWorld") -> None:
        self.folder: Any = world.folder
        self.version = world.version
        self.labels = world.labels
        self.count = len(self.labels)


class Pipeline:
    """What has the active version."""

    def __init__(self, world: "GalleryWorld") -> None:
        self._world = world
        self._index = Version(world)
        self.load_index = world.load_index

    @property
    def index(self) -> Version:
        return self._index

    @index.setter
    def index(self, newer: Version) -> None:
        self._world.note("version {} is active", newer.version)
        goes_on = newer.version >= self._index.version
        self._world.check(goes_on, "version {} takes the place of {}", newer.version, self._index.version)
        self._index = newer


class Folder:
    """The index's folder, as the watch sees it."""

    name = "index"

    def __init__(self, world: "GalleryWorld") -> None:
        self.world = world

    @property
    def published(self) -> int:
        return self.world.version


class Served(Service):
    """As much of a service as the routes need."""

    cold = False
    embedder: Any = SimpleNamespace(fingerprint="f")  # type: ignore[assignment]
    replica: Any = SimpleNamespace(  # type: ignore[assignment]
        settings=SimpleNamespace(first_model=SimpleNamespace(timeout_ms=None))
    )

    def __init__(self, index: IndexWatch) -> None:
        self._index = index

    async def embed(self, images: Any, timeout_s: float | None = None) -> Any:
        return await asyncio.to_thread(lambda: [np.zeros(3, np.float32) for _ in images])

    @property
    def index(self) -> IndexWatch:
        return self._index


class GalleryWorld(World):
    """What was acknowledged is there; no reader goes back to an older version."""

    async def main(self) -> None:
        chance = self.chance
        self.version = 1
        self.labels: frozenset[str] = frozenset({"first"})
        self.dropped: dict[str, int] = {}
        self.sick = 0.0 if self.maybe(0.7) else 0.3
        self.folder = Folder(self)
        pipeline: Any = Pipeline(self)
        self.watch = IndexWatch(pipeline, NoMetrics(), lambda: None)  # type: ignore[arg-type]
        self.watch.start()
        context = Context(Served(self.watch), entrance(), NoMetrics(), OPTIONS)  # type: ignore[arg-type]
        self.endpoints = {route.method: route.endpoint for route in gallery.routes(context)}
        tasks = []
        for number in range(chance.randint(1, 6)):
            work = chance.choice((self.add, self.add, self.drop, self.read, self.other_process))
            tasks.append(self.loop.create_task(work(f"label {number}")))
            if self.maybe(0.5):
                await asyncio.sleep(self.loop.pause())
        await asyncio.gather(*tasks)
        if self.maybe(0.1) and not self.sick:
            await asyncio.sleep(12)
            active = self.watch.loaded.version
            self.check(active == self.version, "{} is published, {} is active", self.version, active)
        self.note("it closes")
        await self.watch.close()

    # Who reads and writes

    async def add(self, label: str) -> None:
        body = json.dumps({"images": [{"image": IMAGE, "label": label}]}).encode()

        def answered(content: Any) -> None:
            if self.sick:  # what was written could not be loaded, perhaps
                return
            made = content["index_version"]
            active: Any = self.watch.loaded
            version = active.version
            self.check(version >= made, "{} is acknowledged as {}, {} is active", label, made, version)
            there = label in active.labels or self.dropped.get(label, 0) > made
            self.check(there, "{} is acknowledged, and is not there", label)

        await self.ask("POST", label, answered, body=body)

    async def drop(self, label: str) -> None:
        label = self.chance.choice(sorted(self.labels) or ["none"])

        def answered(content: Any) -> None:
            active = self.watch.loaded
            taken = active.version >= content["index_version"] or self.sick
            self.check(taken, "the removal of {} is not active", label)

        await self.ask("DELETE", label, answered, query=f"label={label.replace(' ', '%20')}")

    async def read(self, label: str) -> None:
        before = self.watch.loaded.version

        def answered(content: Any) -> None:
            now = content["index_version"]
            self.check(now >= before, "a reader sees version {} after {}", now, before)

        await self.ask("GET", "a reader", answered)

    async def other_process(self, label: str) -> None:
        await asyncio.sleep(self.loop.pause())
        self.publish(self.labels | {label})
        self.note("another process publishes {} with {}", self.version, label)

    async def ask(self, method: str, name: str, answered: Any, body: bytes = b"", query: str = "") -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        scope = {"type": "http", "method": method, "path": "/v1/gallery", "headers": headers}
        scope["query_string"] = query.encode()
        body_left = [True]
        message = {"type": "http.request", "body": body, "more_body": False}

        async def receive() -> Any:
            if not body_left:
                await self.loop.create_future()  # until the caller goes, which nobody here does
            body_left.clear()
            return message

        async def call() -> Any:
            self.note("{} {}", method, name)
            try:
                answer = await self.endpoints[method](Request(scope, receive))
            finally:
                bodies.release(scope)
            return json.loads(bytes(answer.body))

        def failed(error: BaseException) -> None:
            told = isinstance(error, DiskError) and self.sick
            self.check(told or isinstance(error, OverloadedError), "{} fails: {!r}", name, error)

        await self.request(name, call, answered, failed, leave=self.maybe(0.2))

    # The disk

    def publish(self, labels: frozenset[str]) -> int:
        for label in self.labels - labels:
            self.dropped[label] = self.version + 1
        self.version += 1
        self.labels = labels
        return self.version

    def load_index(self) -> Version:
        if self.maybe(self.sick):
            raise IndexFolderError("told to fail")
        loaded = Version(self)
        self.note("version {} is loaded", loaded.version)
        return loaded

    def append_embedded(self, images: Any, *_: Any, **__: Any) -> Any:
        return self.changed(self.labels | {each.image.label for each in images})

    def remove(self, *_: Any, labels: Any = (), **__: Any) -> Any:
        return self.changed(self.labels - set(labels))

    def changed(self, labels: frozenset[str]) -> Any:
        if self.maybe(self.sick):
            raise DiskError("told to fail")
        made = self.publish(labels)
        self.note("version {} is written", made)
        return SimpleNamespace(version=made)


def described(change: Any) -> dict[str, Any]:
    return {"index_version": change.version}


def writing(name: str) -> Any:
    """A stand-in for `append` or `remove` of the index, for whichever world's folder it is given."""

    def work(*arguments: Any, **named: Any) -> Any:
        (folder,) = (each for each in arguments if isinstance(each, Folder))
        return getattr(folder.world, name)(*arguments, **named)

    return work
