"""What all services have in common: generations of a pipeline, threads for images, and their counting."""

from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from pdserve.errors import PdserveError
from pdserve.services.memory import give_back_freed_memory
from pdserve.services.reload import Generation, Generations
from pdserve.services.service import Pool, check_count
from pdserve.services.telemetry.metrics import Metrics
from pdserve.services.telemetry.stages import Stages
from pdserve.settings import ModelSettings, ServerSettings


class OwnGeneration(Generation, Protocol):
    """A generation that knows its settings: the doors', and of the model that images wait for first."""

    @property
    def server(self) -> ServerSettings: ...
    @property
    def model(self) -> ModelSettings: ...


G = TypeVar("G", bound=OwnGeneration)


class Served(Generic[G]):
    """A Service (see service.py) but for what it answers with.

    ``build`` opens a generation, as for Generations, with the threads and the metrics to use.
    """

    kind: str

    def __init__(self, build: Callable[[bool, Pool, Metrics], G], metrics: Metrics) -> None:
        self._stages = Stages(metrics)
        self._pool = Pool()

        def opened(anew: bool) -> G:
            generation = build(anew, self._pool, metrics)
            give_back_freed_memory()
            return generation

        first = opened(False)
        self._limits = first.server
        self.names = frozenset({first.server.name, self.kind})
        self.generations: Generations[G] = Generations(
            first,
            opened,
            first.model.max_queue_size,
            first.model.hang_s,
            metrics,
        )

    @property
    def ready(self) -> bool:
        return self.generations.ready

    def start(self) -> None:
        self.generations.start()

    async def answer(
        self,
        images: Sequence[bytes | PdserveError],
        top_k: int | None = None,
        timeout_s: float | None = None,
    ) -> list[Any]:
        """See Service.answer."""
        check_count(images, self._limits)
        return await self._stages.answers(len(images), self.generations.answer(images, top_k, timeout_s))

    def stop(self) -> None:
        self.generations.stop()

    async def close(self) -> None:
        await self.generations.close()
        self._pool.close()
