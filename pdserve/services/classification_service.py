"""The classification pipeline as a running service: threads, a queue before the engines."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pdserve.errors import PdserveError
from pdserve.services.batching import Batcher, for_engines
from pdserve.services.classification import ClassificationPipeline, Tensor
from pdserve.services.service import Pool, check_count
from pdserve.settings import ModelSettings, ServerSettings
from pdserve.vision.scores import Label


class ClassificationService:
    """See pdserve.services.service.Service; an answer is an image's labels, best first."""

    kind = "classification"

    def __init__(
        self, pipeline: ClassificationPipeline, server: ServerSettings, model: ModelSettings
    ) -> None:
        self.names = frozenset({server.name, self.kind})
        self.ready = False
        self._limits = server
        self._pipeline = pipeline
        # Attribute models answer with several labels that belong together, others with alternatives.
        self._one_label = pipeline.description.postprocess.kind in ("Topk", "ThreshOutput")
        self._pool = Pool()
        self._batcher: Batcher[Tensor, Tensor] = for_engines(pipeline.infer, model)

    def start(self) -> None:
        self._batcher.start()
        self.ready = True

    async def answer(
        self, images: Sequence[bytes | PdserveError], top_k: int | None = None
    ) -> list[list[Label] | PdserveError]:
        """Labels of each image; the images of one request run as one batch."""
        check_count(images, self._limits)
        prepared = await asyncio.gather(
            *(self._pool.attempt(self._pipeline.prepare, image) for image in images)
        )
        rows = iter(await self._batcher.submit([t for t in prepared if not isinstance(t, PdserveError)]))
        return [
            each if isinstance(each, PdserveError) else self._pipeline.read(next(rows), top_k)
            for each in prepared
        ]

    def result(self, answer: list[Label]) -> Mapping[str, Any]:
        return {"labels": [asdict(label) for label in answer]}

    def fields(self, answers: Sequence[list[Label]]) -> Mapping[str, str]:
        """``label`` and ``prob``, each the repr of a list with an entry per image."""
        labels = [[label.label.strip().replace(",", "") for label in answer] for answer in answers]
        scores = [[float(np.float32(label.score)) for label in answer] for answer in answers]
        if self._one_label:
            return {"label": repr([row[0] for row in labels]), "prob": repr([row[0] for row in scores])}
        return {"label": repr(labels), "prob": repr(scores)}

    async def close(self) -> None:
        self.ready = False
        await self._batcher.close()
        self._pool.close()
        self._pipeline.close()
