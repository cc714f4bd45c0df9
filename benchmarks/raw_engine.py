"""The speed of the engine alone, in its own process: the reference of serving.py and compare.py.

Reads one JSON object per line and answers with one: what to run, how, and for how long; then images/s and
the median of the runs' durations. Engines stay loaded between lines, so that a measurement can be repeated
in turn with others.

``work`` is one of

- "engine": prepared tensors through the engine;
- "limit": image files through decoding, preprocessing, engine and labels, in threads on all cores;
- "recognition": a detector's run and an embedder's over ``crops`` crops, or as many as the image has;
- "recognition limit": image files through the whole of recognition;
- "answer": one image's, in the fields of Paddle Serving's protocol, by ``model`` or else by recognition.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pdserve import settings
from pdserve.answers import Objects
from pdserve.engines import Device, load
from pdserve.errors import PdserveError
from pdserve.models.find import open_model
from pdserve.models.home import Home
from pdserve.pipelines import SERVICES
from pdserve.pipelines.classification import open_classification
from pdserve.pipelines.regions import open_regions

HOME = Home.from_environ(os.environ)


@lru_cache(maxsize=1)  # one at a time: no other model's threads and memory beside it
def engine(model: str, device: str, precision: str, instances: int | None, threads: int | None) -> Any:
    """The engine that the server takes, loaded."""
    found = open_model(model, HOME)
    return load(found, device=Device.parse(device), precision=precision, instances=instances, threads=threads)


@lru_cache(maxsize=1)
def classifier(model: str, device: str, precision: str) -> Any:
    """The whole pipeline, without a server."""
    flags = {"model": model, "devices": (device,), "precision": precision}
    return open_classification(SERVICES["classification"].settings(flags, {}), HOME)


@lru_cache(maxsize=1)
def recogniser(device: str, precision: str) -> Any:
    """Detector and embedder."""
    return open_regions(recognition_settings(device, precision), HOME)


def recognition_settings(device: str, precision: str) -> settings.ServiceSettings:
    """The defaults, on a device."""
    return SERVICES["recognition"].settings({"devices": (device,), "precision": precision}, {})


def recognise(data: bytes, device: str, precision: str) -> Objects:
    """All of recognition, without a server."""
    (found,) = recogniser(device, precision).predict([data])
    if not isinstance(found, Objects):
        raise found
    return found


def answer(asked: dict[str, Any], device: str, precision: str) -> dict[str, str]:
    """The fields that a server is to answer with."""
    data = Path(asked["image"]).read_bytes()
    if "model" in asked:
        pipeline = classifier(asked["model"], device, precision)
        best = pipeline.read(pipeline.infer([pipeline.prepare(data)])[0], 1)[0]
        return {"label": repr([best.label.replace(",", "")]), "prob": repr([best.score])}
    objects = [
        {"bbox": list(each.bbox), "rec_docs": each.label, "rec_scores": each.score}
        for each in recognise(data, device, precision).objects
    ]
    return {"result": repr(objects)}


def measure(step: Callable[[], int], threads: int, seconds: float) -> dict[str, float]:
    """Call ``step`` in so many threads; it says how many images it did."""
    step()
    durations: list[float] = []
    images = [0] * threads
    started = time.perf_counter()
    end = started + seconds

    def loop(number: int) -> None:
        while (now := time.perf_counter()) < end:
            images[number] += step()
            durations.append(time.perf_counter() - now)

    workers = [threading.Thread(target=loop, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    elapsed = time.perf_counter() - started
    return {"images_per_s": sum(images) / elapsed, "run_ms": 1000 * float(np.median(durations))}


def work(asked: dict[str, Any]) -> dict[str, Any]:
    """What one line asks for."""
    device, precision = asked.get("device", "cpu"), asked.get("precision", "fp32")
    if asked["work"] == "answer":
        return answer(asked, device, precision)
    seconds = asked["seconds"]
    if asked["work"] == "engine":
        ready = engine(asked["model"], device, precision, asked.get("instances"), asked.get("engine_threads"))
        (feed,) = ready.feeds
        tensor = np.random.default_rng(0).random((asked["batch"], 3, 224, 224), np.float32)

        def run() -> int:
            ready.run({feed.alias: tensor})
            return int(asked["batch"])

        return measure(run, asked.get("threads") or ready.instances, seconds)
    if asked["work"] == "limit":
        data = Path(asked["image"]).read_bytes()
        pipeline = classifier(asked["model"], device, precision)

        def whole() -> int:
            pipeline.read(pipeline.infer([pipeline.prepare(data)])[0])
            return 1

        return measure(whole, asked["threads"], seconds)
    if asked["work"] == "recognition limit":
        data = Path(asked["image"]).read_bytes()

        def recognised() -> int:
            recognise(data, device, precision)
            return 1

        return measure(recognised, asked["threads"], seconds)
    recognition = recogniser(device, precision)
    image = recognition.decode(Path(asked["image"]).read_bytes())
    prepared = recognition.detectors[0].prepare(image)
    found = recognition.detectors[0].read(recognition.detect([prepared])[0], *image.shape[1::-1])
    crops = [recognition.embedder.prepare(image)] * asked.get("crops", len(found) + 1)

    def both() -> int:
        recognition.detect([prepared])
        recognition.embedder.infer(crops)
        return 1

    return measure(both, asked["threads"], seconds)


if __name__ == "__main__":
    for line in sys.stdin:
        try:
            answer = work(json.loads(line))
        except PdserveError as error:
            answer = {"error": error.message}
        print(json.dumps(answer), flush=True)
