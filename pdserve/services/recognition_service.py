"""The recognition pipeline as a running service: a queue before each model, an index that may be replaced."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pdserve.errors import PdserveError
from pdserve.services.batching import Batcher, for_engines
from pdserve.services.embedding import Tensor
from pdserve.services.live_index import LiveIndex
from pdserve.services.recognition import Answer, Clock, RecognitionPipeline, Region, choose, regions
from pdserve.services.service import Pool, check_count
from pdserve.settings import RecognitionSettings
from pdserve.vision.boxes import Box, Floats
from pdserve.vision.decode import Image8
from pdserve.vision.detection import Prepared
from pdserve.vision.scores import score_of

log = logging.getLogger("pdserve")


def _described(box: Box | None) -> Mapping[str, Any] | None:
    """The detector's own box, corners in pixels and their fractions; None for the whole image."""
    if box is None:
        return None
    corners = [round(corner, 4) for corner in (box.x1, box.y1, box.x2, box.y2)]
    return {"bbox": corners, "score": score_of(box.score)}


class RecognitionService:
    """See pdserve.services.service.Service; an answer is the objects in an image.

    Images of all requests share the detector's queue, their crops the embedder's.
    """

    kind = "recognition"

    def __init__(
        self, pipeline: RecognitionPipeline, index: LiveIndex, settings: RecognitionSettings
    ) -> None:
        self.names = frozenset({settings.server.name, self.kind})
        self.ready = False
        self.index = index
        self.embedder = pipeline.embedder
        self._limits = settings.server
        self._pipeline = pipeline
        self._pool = Pool()
        self._detect: Batcher[Prepared, Floats] | None = None
        if settings.detector:
            self._detect = for_engines(pipeline.detect, settings.detector)
        self._embed: Batcher[Tensor, Tensor] = for_engines(pipeline.embedder.infer, settings.embedder)

    def start(self) -> None:
        if self._detect:
            self._detect.start()
        self._embed.start()
        self.index.start()
        self.ready = True

    async def answer(
        self, images: Sequence[bytes | PdserveError], top_k: int | None = None
    ) -> list[Answer | PdserveError]:
        """Objects of each image. Each is worked on by itself; the queues bring them together again."""
        check_count(images, self._limits)
        return await asyncio.gather(*(self._one(image, top_k) for image in images))

    async def _one(self, data: bytes | PdserveError, top_k: int | None) -> Answer | PdserveError:
        clock = Clock()
        image = await self._pool.attempt(self._pipeline.decode, data)
        if isinstance(image, PdserveError):
            return image
        clock.lap("decode")
        boxes = await self._boxes(image, clock)
        found = regions(image, boxes)
        crops = await self._pool.run(self._pipeline.crops, image, found)
        clock.lap("preprocess")
        vectors = await self._embed.submit(crops)
        clock.lap("embed")
        return await self._pool.run(self._look_up, found, vectors, top_k, clock)

    async def _boxes(self, image: Image8, clock: Clock) -> list[Box]:
        if self._detect is None:
            return []
        detector = self._pipeline.detectors[0]  # all are the same but for their device
        prepared = await self._pool.run(detector.prepare, image)
        clock.lap("preprocess")
        (rows,) = await self._detect.submit([prepared])
        height, width = image.shape[:2]
        boxes = detector.read(rows, width, height)
        clock.lap("detect")
        return boxes

    def _look_up(
        self, found: Sequence[Region], vectors: Sequence[Tensor], top_k: int | None, clock: Clock
    ) -> Answer:
        index = self.index.loaded  # one version for the whole of the image
        matches = index.search(np.stack(vectors), top_k or self._pipeline.options.top_k)
        objects = choose(found, matches, self._pipeline.options)
        clock.lap("search")
        return Answer(objects, index.version, clock.laps)

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

    async def close(self) -> None:
        self.ready = False
        if self._detect:
            await self._detect.close()
        await self._embed.close()
        await self.index.close()
        self._pool.close()
        self._pipeline.close()
