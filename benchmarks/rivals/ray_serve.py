"""Ray Serve: a deployment behind its HTTP proxy, with its dynamic batching.

Its guide to batching: an async method under ``serve.batch``; its guide to performance: CPUs reserved for the
replica, ``max_ongoing_requests`` above the batch size.
"""

import signal
import threading
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from benchmarks.rivals.task import BATCH, PATH, PORT, WAIT_S, answer, image, open_task


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
class Prediction:
    """One image in, one answer out."""

    def __init__(self) -> None:
        self.task = open_task()

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_S)
    async def infer(self, prepared: list[Any]) -> list[dict[str, str]]:
        return self.task.infer(prepared)

    async def __call__(self, request: Request) -> dict[str, Any]:
        prepared = self.task.prepare(image(await request.json()))
        return answer(await self.infer(prepared))


if __name__ == "__main__":
    ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(Prediction.bind(), route_prefix=PATH)
    ended = threading.Event()
    # After ray.init, whose own handler would end this process with a core dump.
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    while not ended.wait(1):
        pass
    serve.shutdown()
    ray.shutdown()
