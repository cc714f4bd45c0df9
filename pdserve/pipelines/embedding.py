"""Embedding: image files in, a model's features out, of length 1."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pdserve.answers import Embedding
from pdserve.errors import PdserveError
from pdserve.models.home import Home
from pdserve.pipelines.base import Pipeline, PipelineModel, Steps
from pdserve.pipelines.embedder import Embedder, check_embedder, embed_images, open_embedder
from pdserve.pipelines.loading import open_model
from pdserve.settings import ModelSettings, ServiceSettings
from pdserve.vision.decode import MAX_PIXELS
from pdserve.vision.types import Tensor

# Of a number of the answer; float32 has no more of one that is near to 0.1.
_DECIMALS = 9


@dataclass(eq=False, kw_only=True)
class EmbeddingPipeline(Pipeline[Embedding]):
    """An embedder, and nothing around it."""

    embedder: Embedder
    settings: ModelSettings
    max_pixels: int = MAX_PIXELS
    loaded: Hashable = None

    @cached_property
    def models(self) -> Mapping[str, PipelineModel]:
        embedder = self.embedder
        return {
            "model": PipelineModel(
                "embedder", embedder.model, embedder.engines, self.settings, embedder.infer
            )
        }

    async def embed(
        self, images: Sequence[bytes | PdserveError], steps: Steps
    ) -> list[Tensor | PdserveError]:
        """See `Pipeline.embed`."""
        return await embed_images(self.embedder, "model", images, self.try_decode, steps)

    async def answer(
        self, images: Sequence[bytes | PdserveError], steps: Steps, top_k: int | None = None
    ) -> list[Embedding | PdserveError]:
        """See `Pipeline.answer`; ``top_k`` has no meaning here."""
        return [
            each if isinstance(each, PdserveError) else _answer(each)
            for each in await self.embed(images, steps)
        ]

    def fields(self, answers: Sequence[Embedding]) -> Mapping[str, str]:
        """``embedding``: the repr of a list of numbers per image."""
        return {"embedding": repr([list(each.embedding) for each in answers])}

    def check(self) -> None:
        """Run every engine once. Raises EngineError."""
        check_embedder(self.embedder)


def _answer(vector: Tensor) -> Embedding:
    numbers = np.round(vector.astype(np.float64), _DECIMALS).tolist()
    return Embedding(tuple(numbers), len(numbers))


def open_embedding(settings: ServiceSettings, home: Home) -> EmbeddingPipeline:
    """Find, check, load and warm up an embedder; see `ServiceEntry.open`."""
    wanted = settings.models["model"]
    _, loaded = open_model(wanted, home, settings.config_dir)
    embedder = open_embedder(wanted, home, settings.config_dir)
    return EmbeddingPipeline(
        embedder=embedder, settings=wanted, max_pixels=settings.server.max_pixels, loaded=loaded
    ).checked()
