"""BentoML: a service that takes requests, and one with the model behind it that batches adaptively.

Its guide to adaptive batching: ``batchable=True`` on the model's service, called by the one that takes
requests, each in its own process.
"""

import os
import sys
from typing import Any

import bentoml

from benchmarks.rivals.task import BATCH, PATH, PORT, answer, image, open_task

# Not to be refused: a request may take as long as the slowest load of the comparison lets it wait.
PATIENCE_S = 120


@bentoml.service(workers=1, traffic={"timeout": PATIENCE_S})
class Model:
    """Images of requests that waited together in, the fields of an answer each out."""

    def __init__(self) -> None:
        self.task = open_task()

    @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=PATIENCE_S * 1000)
    def infer(self, images: list[str]) -> list[dict[str, str]]:
        prepared = [self.task.prepare(image({"value": [text]})) for text in images]
        return self.task.infer(prepared)


@bentoml.service(workers=1, traffic={"timeout": PATIENCE_S})
class Prediction:
    """Paddle Serving's route."""

    model = bentoml.depends(Model)

    @bentoml.api(route=PATH)
    async def prediction(self, key: list[str], value: list[str]) -> dict[str, Any]:
        (fields,) = await self.model.to_async.infer(images=value)
        return answer(fields)


if __name__ == "__main__":
    where = ("--host", "127.0.0.1", "--port", str(PORT))
    service = "benchmarks.rivals.bentoml:Prediction"
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", "serve", service, *where])
