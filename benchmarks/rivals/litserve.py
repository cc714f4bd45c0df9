"""LitServe: an API of decode, predict and encode in a worker process, behind FastAPI.

Its guide to batching: ``max_batch_size`` with a short ``batch_timeout`` on the LitAPI, ``predict`` over a
list. One worker per device is its default, and the engine has all cores.
"""

from typing import Any

import litserve

from benchmarks.rivals.task import BATCH, PATH, PORT, WAIT_S, answer, image, open_task


class Prediction(litserve.LitAPI):
    """One image in, one answer out."""

    def setup(self, device: str) -> None:
        self.task = open_task()

    def decode_request(self, request: dict[str, Any]) -> Any:
        return self.task.prepare(image(request))

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, prepared: list[Any]) -> list[dict[str, str]]:
        return self.task.infer(prepared)

    def unbatch(self, output: list[dict[str, str]]) -> list[dict[str, str]]:
        return output

    def encode_response(self, output: dict[str, str]) -> dict[str, Any]:
        return answer(output)


if __name__ == "__main__":
    api = Prediction(max_batch_size=BATCH, batch_timeout=WAIT_S, api_path=PATH)
    # A request may take as long as the slowest load of the comparison lets it wait.
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=1, timeout=120)
    server.run(host="127.0.0.1", port=PORT, log_level="warning", generate_client_file=False)
