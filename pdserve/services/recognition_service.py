"""The recognition pipeline as a running service: a queue before each model, an index that may be replaced."""

import asyncio
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from pdserve.engines import Device, Engine
from pdserve.errors import PdserveError
from pdserve.index.search import LoadedIndex
from pdserve.pipelines.detector import Prepared
from pdserve.pipelines.embedder import Embedder
from pdserve.pipelines.loading import stamp
from pdserve.pipelines.recognition import Answer, Clock, RecognitionPipeline, Region, choose, regions
from pdserve.services.batcher import Batcher
from pdserve.services.engine_queue import for_engines
from pdserve.services.index_watch import LiveIndex
from pdserve.services.served import Served
from pdserve.services.service import Pool
from pdserve.services.telemetry.metrics import Metrics
from pdserve.services.telemetry.stages import Stages
from pdserve.settings import ModelSettings, ServiceSettings
from pdserve.vision.boxes import Box
from pdserve.vision.postprocess import score_of
from pdserve.vision.types import Floats, Image8, Tensor


def _described(box: Box | None) -> Mapping[str, Any] | None:
    """The detector's own box, corners in pixels and their fractions; None for the whole image."""
    if box is None:
        return None
    corners = [round(corner, 4) for corner in (box.x1, box.y1, box.x2, box.y2)]
    return {"bbox": corners, "score": score_of(box.score)}


class _Generation:
    """See pdserve.services.reload.Generation: models, and the index whose vectors they made.

    Images of all requests share the detector's queue, their crops the embedder's.
    """

    def __init__(
        self,
        pipeline: RecognitionPipeline,
        index: LoadedIndex,
        settings: ServiceSettings,
        pool: Pool,
        metrics: Metrics,
        on_broken: Callable[["_Generation", str], None],
        on_misfit: Callable[[], None],
    ) -> None:
        self.pipeline = pipeline
        self.loaded = pipeline.stamp
        device = Device.parse(settings.models["embedder"].devices[0])
        gpu = device.index if device.kind == "gpu" else None
        self.index = LiveIndex(index, pipeline.embedder, gpu, metrics, on_misfit)
        self.server, self.model = settings.server, settings.first_model
        self._settings = settings
        self._pool = pool
        self._metrics = metrics
        self._stages = Stages(metrics)
        self._embedder_name = pipeline.embedder.name
        self._detector_name = ""
        self._detect: Batcher[Prepared, Floats] | None = None
        self._detector_settings = settings.models.get("detector")
        if self._detector_settings and pipeline.detector_model:
            self._detector_name = pipeline.detector_model.name
            self._detect = for_engines(
                pipeline.detect,
                [detector.engine for detector in pipeline.detectors],
                self._detector_settings,
                lambda cause: on_broken(self, cause),
                metrics,
                self._detector_name,
            )
        self._embed: Batcher[Tensor, Tensor] = for_engines(
            pipeline.embedder.infer,
            pipeline.embedder.engines,
            settings.models["embedder"],
            lambda cause: on_broken(self, cause),
            metrics,
            self._embedder_name,
        )

    @property
    def room(self) -> int:
        return (self._detect or self._embed).room

    def start(self) -> None:
        if self._detect and self._detector_settings:
            detect = self._detect
            detect.start()
            self._metrics.queue(self._detector_name, lambda: detect.waiting)
            engine = self.pipeline.detectors[0].engine
            self._tell("detector", self._detector_name, engine, self._detector_settings)
        self._embed.start()
        self._metrics.queue(self._embedder_name, lambda: self._embed.waiting)
        self._tell(
            "embedder",
            self._embedder_name,
            self.pipeline.embedder.engines[0],
            self._settings.models["embedder"],
        )
        self.index.start()

    def _tell(self, role: str, name: str, engine: Engine, settings: ModelSettings) -> None:
        self._metrics.model(role, name, engine.name, ",".join(settings.devices), settings.precision)

    async def answer(
        self, images: Sequence[bytes | PdserveError], top_k: int | None, deadline: float | None
    ) -> list[Answer | PdserveError]:
        """Objects of each image. Each is worked on by itself; the queues bring them together again."""
        if len(images) == 1:
            return [await self._one(images[0], top_k, deadline)]
        works = [asyncio.ensure_future(self._one(image, top_k, deadline)) for image in images]
        try:
            return await asyncio.gather(*works)
        finally:
            for work in works:  # where one has failed for all
                work.cancel()

    async def _one(
        self, data: bytes | PdserveError, top_k: int | None, deadline: float | None
    ) -> Answer | PdserveError:
        clock = Clock()
        image = await self._pool.attempt(self.pipeline.decode, data, deadline)
        if isinstance(image, PdserveError):
            return image
        self._stages.record("decode", clock.lap("decode"))
        boxes = await self._boxes(image, clock, deadline)
        if isinstance(boxes, PdserveError):
            return boxes
        found = regions(image, boxes)
        crops = await self._pool.run(self.pipeline.crops, image, found, deadline=deadline)
        self._stages.record("preprocess", clock.lap("preprocess"), self._embedder_name)
        vectors: list[Tensor] = []
        for vector in await self._embed.submit(crops, deadline):
            if isinstance(vector, PdserveError):
                return vector
            vectors.append(vector)
        clock.lap("embed")
        answer = await self._pool.run(self._look_up, found, vectors, top_k, clock, deadline=deadline)
        self._stages.record("search", answer.timings_ms["search"] / 1000)
        return answer

    async def _boxes(self, image: Image8, clock: Clock, deadline: float | None) -> list[Box] | PdserveError:
        if self._detect is None:
            return []
        detector = self.pipeline.detectors[0]  # all are the same but for their device
        prepared = await self._pool.run(detector.prepare, image, deadline=deadline)
        self._stages.record("preprocess", clock.lap("preprocess"), self._detector_name)
        (rows,) = await self._detect.submit([prepared], deadline)
        if isinstance(rows, PdserveError):
            return rows
        height, width = image.shape[:2]
        begun = time.perf_counter()
        boxes = detector.read(rows, width, height)
        self._stages.record("postprocess", time.perf_counter() - begun, self._detector_name)
        clock.lap("detect")
        return boxes

    def _look_up(
        self, found: Sequence[Region], vectors: Sequence[Tensor], top_k: int | None, clock: Clock
    ) -> Answer:
        index = self.index.loaded  # one version for the whole of the image
        matches = index.search(np.stack(vectors), top_k or self.pipeline.options.top_k)
        objects = choose(found, matches, self.pipeline.options)
        clock.lap("search")
        return Answer(objects, index.version, clock.laps)

    def stamp(self) -> Hashable:
        return stamp(self.pipeline.models)

    def check(self) -> None:
        self.pipeline.check()

    def retire(self) -> None:
        if self._detect:
            self._detect.retire()
        self._embed.retire()

    async def close(self) -> None:
        if self._detect:
            await self._detect.close()
        await self._embed.close()
        await self.index.close()
        self.pipeline.close()

    async def abandon(self) -> None:
        await self.index.close()


Open = Callable[[bool], tuple[RecognitionPipeline, LoadedIndex, ServiceSettings]]
"""Opens models and index by the settings in force, or (True) by what they are when read anew."""


class RecognitionService(Served[_Generation]):
    """See pdserve.services.service.Service; an answer is the objects in an image."""

    kind = "recognition"

    def __init__(self, open_pipeline: Open, metrics: Metrics) -> None:
        def build(anew: bool, pool: Pool, metrics: Metrics) -> _Generation:
            return _Generation(
                *open_pipeline(anew),
                pool,
                metrics,
                lambda *told: self.generations.broken(*told),
                lambda: self.generations.reload_soon(),
            )

        super().__init__(build, metrics)

    @property
    def index(self) -> LiveIndex:
        """The index in force."""
        return self.generations.current.index

    @property
    def embedder(self) -> Embedder:
        """The embedder in force."""
        return self.generations.current.pipeline.embedder

    def result(self, answer: Answer) -> Mapping[str, Any]:
        return {
            "objects": [
                {
                    "bbox": list(each.bbox),
                    "label": each.label,
                    "score": score_of(each.score),
                    "matches": [
                        {"label": m.label, "image": m.image, "score": score_of(m.similarity)}
                        for m in each.matches
                    ],
                    "detection": _described(each.detection),
                }
                for each in answer.objects
            ],
            "index_version": answer.index_version,
            "timings_ms": answer.timings_ms,
        }

    def fields(self, answers: Sequence[Answer]) -> Mapping[str, str]:
        """``result``: the repr of a list of objects, or of such a list per image where there are several."""
        lists = [
            [
                {"bbox": list(each.bbox), "rec_docs": each.label, "rec_scores": float(np.float32(each.score))}
                for each in answer.objects
            ]
            for answer in answers
        ]
        return {"result": repr(lists[0] if len(lists) == 1 else lists)}
