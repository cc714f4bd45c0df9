"""mosec: a server in Rust, workers in processes, batches made dynamically.

Its examples of image classifiers: a stage that prepares images, and one that infers in batches.
"""

import os
from typing import Any

from mosec import Server, Worker

from benchmarks.rivals.task import BATCH, PATH, PORT, WAIT_S, answer, image, open_task


class Prediction(Worker):
    """Images that waited together in, an answer each out."""

    def __init__(self) -> None:
        super().__init__()
        self.task = open_task()

    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
        prepared = [self.task.prepare(image(body)) for body in data]
        return [answer(fields) for fields in self.task.infer(prepared)]


if __name__ == "__main__":
    os.environ |= {"MOSEC_ADDRESS": "127.0.0.1", "MOSEC_PORT": str(PORT)}
    server = Server()
    server.append_worker(
        Prediction, num=1, max_batch_size=BATCH, max_wait_time=int(WAIT_S * 1000), route=PATH, timeout=120
    )
    server.run()
