"""Embedding: a model's features of an image, of length 1."""

from collections.abc import Mapping, Sequence

import numpy as np

from pdserve.answers import Embedding
from pdserve.models.home import Home
from pdserve.pipelines.base import Steps
from pdserve.pipelines.embedder import Embedder, check_embedder, embedder_model, open_embedder
from pdserve.pipelines.loading import open_model
from pdserve.pipelines.regions import Cut, Stage
from pdserve.settings import ModelSettings, ServiceSettings
from pdserve.vision.types import Image8, Tensor

# Of a number of the answer; float32 has no more of one that is near to 0.1.
_DECIMALS = 9


class Features(Stage):
    """Embeds the image."""

    lap = "embed"
    embedder: Embedder

    def __init__(self, role: str, embedder: Embedder, settings: ModelSettings) -> None:
        self.role, self.embedder = role, embedder
        self.model = embedder_model(embedder, settings)

    def prepare(self, part: Image8) -> Tensor:
        """See `Stage.prepare`."""
        return self.embedder.prepare(part)

    async def answer(self, cut: Cut, results: Sequence[Tensor], steps: Steps, top_k: int | None) -> Embedding:
        """See `Stage.answer`; ``top_k`` has no meaning here."""
        (vector,) = results
        numbers = np.round(vector.astype(np.float64), _DECIMALS).tolist()
        return Embedding(tuple(numbers), len(numbers))

    def fields(self, answers: Sequence[Embedding]) -> Mapping[str, str]:
        """``embedding``: the repr of a list of numbers per image."""
        return {"embedding": repr([list(each.embedding) for each in answers])}

    def check(self) -> None:
        """See `Stage.check`."""
        check_embedder(self.embedder)


def open_stage(role: str, settings: ServiceSettings, home: Home) -> Features:
    """Find, check and load the embedder that the settings name."""
    wanted = settings.models[role]
    _, loaded = open_model(wanted, home, settings.config_dir)
    stage = Features(role, open_embedder(wanted, home, settings.config_dir), wanted)
    stage.loaded = loaded
    return stage
