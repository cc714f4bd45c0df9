"""A whole service: requests through limits, replicas and batchers, while models and indexes change."""

import asyncio
from collections.abc import Hashable, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

from pdserve.errors import (
    ClosedError,
    DeadlineError,
    EngineError,
    IndexFolderError,
    ModelError,
    OverloadedError,
    PdserveError,
)
from pdserve.services.batcher import RetiredError
from pdserve.services.budget import Entrance
from pdserve.services.replica import Pool, Replica
from pdserve.services.service import Service
from pdserve.settings import ModelSettings, ServerSettings, ServiceSettings
from tests.simulation.patches import SimulatedThread
from tests.simulation.world import NoMetrics, World

HANG_S = 5.0
MAX_WAITING = 6
ENTRY: Any = SimpleNamespace(kind="classification")


@cache
def settings(batch: int, timeout_ms: int | None) -> ServiceSettings:
    model = ModelSettings(
        model="m", max_queue_size=MAX_WAITING, hang_s=HANG_S, max_batch_size=batch, timeout_ms=timeout_ms
    )
    return ServiceSettings("classification", ServerSettings(name="imagenet"), {"classifier": model}, None)


@cache
def entrance() -> Entrance:
    """Budgets so large that nothing ever waits for them; small ones are another world's."""
    return Entrance(settings(1, None).server)


class ServiceWorld(World):
    """Requests, reloads, published models and indexes, engines that fail and hang; a stop at the end."""

    async def main(self) -> None:
        chance = self.chance
        self.settings = settings(chance.choice((1, 2)), chance.choice((None, None, 1000)))
        self.sick = 0.0 if self.maybe(0.7) else 0.2
        self.unbuildable = 0.0 if self.maybe(0.7) else 0.4
        self.published = 1  # the index's version on the disk, and the models'
        self.files = 1
        self.hung: set[Any] = set()
        self.troubled = False
        self.pipelines: list[Standin] = []
        self.stopped = False
        self.seen = 0
        unbuildable, self.unbuildable = self.unbuildable, 0.0
        self.service = Service(ENTRY, self.build, NoMetrics())  # type: ignore[arg-type]
        self.unbuildable = unbuildable
        self.limit = MAX_WAITING + self.service.replica.capacity
        self.service.start()
        self.asked = 0
        self.calls: set[asyncio.Task[Any]] = set()
        tasks = [self.loop.create_task(self.ask()) for _ in range(chance.randint(1, 4))]
        changes = [self.publish_index, self.publish_models, self.hang_up, self.ask]
        for _ in range(chance.randint(0, 4)):
            await asyncio.sleep(self.loop.pause())
            tasks.append(self.loop.create_task(chance.choice(changes)()))
        if self.maybe(0.5):
            await asyncio.gather(*tasks)
        if self.maybe(0.1):
            await asyncio.sleep(12)  # time enough for all that was published to be taken
            self.taken()
        self.note("it stops")
        self.stopped = True
        self.service.stop()
        if self.maybe(0.7):
            await self.ended()
        else:
            await asyncio.sleep(self.loop.pause())
        for call in self.calls:  # as the listeners do when the grace is over
            call.cancel()
        await self.ended()
        await self.service.close()
        await asyncio.gather(*tasks)
        self.over()

    async def ended(self) -> None:
        """Until no request runs."""
        if self.calls:
            await asyncio.wait(tuple(self.calls))

    def build(self, read_settings: bool, pool: Pool) -> Replica:
        if self.maybe(self.unbuildable):
            self.note("models cannot be loaded")
            raise ModelError("told to fail")
        pipeline = Standin(self, len(self.pipelines) + 1)
        self.note("pipeline {} is built", pipeline.number)
        self.pipelines.append(pipeline)
        budgets = entrance()
        return Replica(pipeline, self.settings, pool, NoMetrics(), budgets)  # type: ignore[arg-type]

    # What happens

    async def ask(self) -> None:
        chance = self.chance
        number = self.asked
        self.asked += 1
        images = [b"%d:%d" % (number, place) for place in range(chance.randint(1, 3))]
        timeout_s = None if self.maybe(0.7) else self.loop.pause()
        limit = self.settings.first_model.timeout_ms
        # The time-out of the settings begins anew with each engine that is asked.
        late: float | None = None
        full = ready = False
        index = 0

        async def answer() -> list[Any]:
            nonlocal late, full, ready, index
            if self.stopped:
                raise ClosedError("the listeners take no more")
            call = asyncio.current_task()
            assert call
            self.calls.add(call)
            call.add_done_callback(self.calls.discard)
            late = None if timeout_s is None else self.loop.time() + timeout_s
            full = self.service.inside > 0 and self.service.inside + len(images) > self.limit
            ready = self.service.ready
            index = self.service.index.loaded.version if self.service.index else 0
            self.note("{} asks for {} images, until {}", number, len(images), late)
            return await self.service.answer(images, None, timeout_s)

        def answered(results: list[Any]) -> None:
            self.check(not full, "{} is answered, and there was no room", number)
            self.check(len(results) == len(images), "{} has {} results", number, len(results))
            for image, result in zip(images, results, strict=True):
                if isinstance(result, PdserveError):
                    self.check(self.troubled, "{} has {!r}, and no engine had trouble", image, result)
                    continue
                given, version = result
                self.check(given == image, "{} has the answer of {}", image, given)
                self.check(version >= index, "{} is of index {}, and {} was active", image, version, index)
            self.in_time(number, late)

        def failed(error: BaseException) -> None:
            if isinstance(error, OverloadedError):
                self.check(full, "{} is refused, and there was room", number)
            elif isinstance(error, DeadlineError):
                limited = late is not None and self.loop.time() >= late
                self.check(limited or limit, "{} fails before its time", number)
            elif isinstance(error, RetiredError):
                self.check(False, "{} is told that its engine is retired", number)
            elif isinstance(error, ClosedError):
                self.check(not ready or self.stopped, "{} is refused by one who is ready", number)
            else:
                self.check(isinstance(error, EngineError) and self.hung, "{} fails: {!r}", number, error)
            self.in_time(number, late)

        await self.request(
            str(number), answer, answered, failed, leave=self.maybe(0.2), stopped=lambda: self.stopped
        )
        self.check(0 <= self.service.inside <= self.limit, "{} images are inside", self.service.inside)

    def in_time(self, number: int, late: float | None) -> None:
        # Work in a thread is not broken off, and takes up to 2 s here; so does its way there and back.
        self.check(late is None or self.loop.time() <= late + 6, "{} is answered after its time", number)

    async def publish_index(self) -> None:
        self.published += 1
        self.note("index {} is published", self.published)

    async def publish_models(self) -> None:
        self.files += 1
        self.note("models {} are published", self.files)

    async def hang_up(self) -> None:
        self.note("SIGHUP")
        await self.service.reloader.reload(read_settings=True)

    # What must hold

    def taken(self) -> None:
        """What was published is active, if nothing failed."""
        if self.sick or self.unbuildable or not self.service.index:
            return
        version = self.service.index.loaded.version
        self.check(version == self.published, "index {} is published, {} is active", self.published, version)

    def over(self) -> None:
        service = self.service
        self.check(service.inside == 0, "{} images are left inside", service.inside)
        self.check(not service.reloader._tasks, "the reloader has tasks left")
        for pipeline in self.pipelines:
            if pipeline.number in self.hung:
                self.check(not pipeline.closed, "pipeline {} is closed, and hangs", pipeline.number)
                continue
            unused = pipeline.started == 0  # one that was still being built at the stop
            self.check(
                pipeline.closed == 1 or unused, "{} is closed {} times", pipeline.number, pipeline.closed
            )
            all_stopped = all(thread.stopped for thread in pipeline.infer.threads)
            self.check(all_stopped or self.hung, "a thread of {} runs on", pipeline.number)


class Index:
    """A version of an index."""

    def __init__(self, world: ServiceWorld, version: int) -> None:
        self.folder = Folder(world)
        self.version = version
        self.count = 1


class Folder:
    """An index's folder."""

    name = "index"

    def __init__(self, world: ServiceWorld) -> None:
        self._world = world

    @property
    def published(self) -> int:
        return self._world.published


class Engine:
    """A pipeline's engines; see `SimulatedThread`."""

    def __init__(self, world: ServiceWorld, pipeline: "Standin") -> None:
        self.threads: list[SimulatedThread] = []
        self._world = world
        self._pipeline = pipeline
        self.running = 0

    def given(self, items: Sequence[Any]) -> None:
        self._world.check(not self._pipeline.closed, "a closed engine is given {}", items)
        self.running += 1

    def __call__(self, items: Sequence[Any], engine: int) -> Any:
        world = self._world
        world.check(not self._pipeline.closed, "an engine is closed while it runs {}", items)
        world.note("an engine of {} runs {}", self._pipeline.number, items)
        if world.maybe(world.sick):
            world.troubled = True
            if world.maybe(0.3):
                world.note("it hangs")
                world.hung.add(self._pipeline.number)
                return SimulatedThread.HANGS
            self.running -= 1
            raise EngineError("told to fail")
        self.running -= 1
        return list(items)


class Standin:
    """A pipeline that answers an image with itself and the index's version."""

    embedder = None
    max_pixels = 1 << 20
    working_bytes = 0

    def __init__(self, world: ServiceWorld, number: int) -> None:
        self.world = world
        self.number = number
        self.loaded: Hashable = world.files
        self.index: Index | None = Index(world, world.published)
        self.infer = Engine(world, self)
        self.closed = 0
        self.inside = 0
        model = world.settings.first_model
        self.models = {
            "classifier": SimpleNamespace(
                role="classifier", name="m", engines=[SimpleNamespace(instances=2, name="simulated")],
                settings=model, infer=self.infer,
            )
        }  # fmt: skip

    @property
    def started(self) -> int:
        return len(self.infer.threads)

    async def answer(self, images: Sequence[Any], steps: Any, top_k: int | None) -> list[Any]:
        self.inside += 1
        try:
            decoded = [await steps.work(_same, image) for image in images]
            inferred = await steps.infer("classifier", decoded)
            version = self.index.version if self.index else 0
            return [each if isinstance(each, PdserveError) else (each, version) for each in inferred]
        finally:
            self.inside -= 1

    def signature(self) -> Hashable:
        if self.world.maybe(0.02):
            raise OSError("too many open files")
        return self.world.files

    def load_index(self) -> Index:
        if self.world.maybe(self.world.unbuildable):
            raise IndexFolderError("told to fail")
        self.world.note("index {} is loaded", self.world.published)
        return Index(self.world, self.world.published)

    def check(self) -> None:
        if self.world.maybe(self.world.sick):
            raise EngineError("it does not run")

    def close(self) -> None:
        self.closed += 1
        self.world.note("pipeline {} is closed", self.number)
        self.world.check(not self.inside, "{} is closed with requests inside", self.number)
        self.world.check(not self.infer.running, "{} is closed while its engine runs", self.number)


def _same(image: Any) -> Any:
    return image
