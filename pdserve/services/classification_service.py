"""The classification pipeline as a running service: threads, a queue before the engines."""

import asyncio
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pdserve.answers import Label
from pdserve.errors import PdserveError
from pdserve.pipelines.classification import ClassificationPipeline
from pdserve.pipelines.loading import stamp
from pdserve.services.batcher import Batcher
from pdserve.services.engine_queue import for_engines
from pdserve.services.served import Served
from pdserve.services.service import Pool
from pdserve.services.telemetry.metrics import Metrics
from pdserve.services.telemetry.stages import Stages
from pdserve.settings import ServiceSettings
from pdserve.vision.types import Tensor

Open = Callable[[bool], tuple[ClassificationPipeline, ServiceSettings]]
"""Opens a pipeline by the settings in force, or (True) by what they are when read anew."""


class _Generation:
    """See pdserve.services.reload.Generation."""

    def __init__(
        self,
        pipeline: ClassificationPipeline,
        settings: ServiceSettings,
        pool: Pool,
        metrics: Metrics,
        on_broken: Callable[["_Generation", str], None],
    ) -> None:
        self.pipeline = pipeline
        self.loaded = pipeline.stamp
        self.server, self.model = settings.server, settings.first_model
        self._pool = pool
        self._metrics = metrics
        self._stages = Stages(metrics)
        self._name = pipeline.model.name
        self._batcher: Batcher[Tensor, Tensor] = for_engines(
            pipeline.infer,
            pipeline.engines,
            settings.models["model"],
            lambda cause: on_broken(self, cause),
            metrics,
            self._name,
        )

    @property
    def room(self) -> int:
        return self._batcher.room

    def start(self) -> None:
        self._batcher.start()
        self._metrics.queue(self._name, lambda: self._batcher.waiting)
        engine = self.pipeline.engines[0]
        self._metrics.model(
            "classifier", self._name, engine.name, ",".join(self.model.devices), self.model.precision
        )

    async def answer(
        self, images: Sequence[bytes | PdserveError], top_k: int | None, deadline: float | None
    ) -> list[list[Label] | PdserveError]:
        prepared = await asyncio.gather(
            *(self._pool.attempt(self._prepare, image, deadline) for image in images)
        )
        for each in prepared:
            if not isinstance(each, PdserveError):
                self._stages.record("decode", each.decode_s, self._name, each.ended - each.preprocess_s)
                self._stages.record("preprocess", each.preprocess_s, self._name, each.ended)
        tensors = [each.tensor for each in prepared if not isinstance(each, PdserveError)]
        rows = iter(await self._batcher.submit(tensors, deadline))
        started = time.perf_counter()
        answers = [
            each if isinstance(each, PdserveError) else self._read(next(rows), top_k) for each in prepared
        ]
        self._stages.record("postprocess", time.perf_counter() - started, self._name)
        return answers

    def _prepare(self, data: bytes) -> "_Prepared":
        begun = time.perf_counter()
        image = self.pipeline.decode(data)
        decoded = time.perf_counter()
        tensor = self.pipeline.preprocess(image)
        ended = time.perf_counter()
        return _Prepared(tensor, decoded - begun, ended - decoded, ended)

    def _read(self, scores: Tensor | PdserveError, top_k: int | None) -> list[Label] | PdserveError:
        return scores if isinstance(scores, PdserveError) else self.pipeline.read(scores, top_k)

    def stamp(self) -> Hashable:
        return stamp([self.pipeline.model])

    def check(self) -> None:
        self.pipeline.check()

    def retire(self) -> None:
        self._batcher.retire()

    async def close(self) -> None:
        await self._batcher.close()
        self.pipeline.close()

    async def abandon(self) -> None:
        """Nothing here goes on without the engines."""


@dataclass(frozen=True)
class _Prepared:
    """An image ready for the engine; durations in seconds, ``ended`` on time.perf_counter's clock."""

    tensor: Tensor
    decode_s: float
    preprocess_s: float
    ended: float


class ClassificationService(Served[_Generation]):
    """See pdserve.services.service.Service; an answer is an image's labels, best first."""

    kind = "classification"

    def __init__(self, open_pipeline: Open, metrics: Metrics) -> None:
        def build(anew: bool, pool: Pool, metrics: Metrics) -> _Generation:
            pipeline, settings = open_pipeline(anew)
            return _Generation(
                pipeline, settings, pool, metrics, lambda *told: self.generations.broken(*told)
            )

        super().__init__(build, metrics)

    def result(self, answer: list[Label]) -> Mapping[str, Any]:
        # Spelt out: dataclasses.asdict takes ten times as long.
        return {
            "labels": [
                {"class_id": each.class_id, "label": each.label, "score": each.score} for each in answer
            ]
        }

    def fields(self, answers: Sequence[list[Label]]) -> Mapping[str, str]:
        """``label`` and ``prob``, each the repr of a list with an entry per image."""
        labels = [[label.label.strip().replace(",", "") for label in answer] for answer in answers]
        scores = [[float(np.float32(label.score)) for label in answer] for answer in answers]
        # Attribute models answer with several labels that belong together, others with alternatives.
        if self.generations.current.pipeline.description.postprocess.kind in ("Topk", "ThreshOutput"):
            return {"label": repr([row[0] for row in labels]), "prob": repr([row[0] for row in scores])}
        return {"label": repr(labels), "prob": repr(scores)}
