"""One measurement: a service is opened as by ``serve`` and loaded in a closed loop, without HTTP."""

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pdserve.engines import int8
from pdserve.errors import ModelError, PdserveError
from pdserve.models.find import open_model
from pdserve.models.home import Home
from pdserve.pipelines import SERVICES
from pdserve.services.replica import Replica
from pdserve.services.service import Service
from pdserve.services.telemetry.metrics import Metrics
from pdserve.settings import ServiceSettings

_WARM_UP = 0.25  # of the measured time, before it


@dataclass(frozen=True)
class Round:
    """One measurement: images per second, latencies in ms."""

    images_per_s: float
    p50_ms: float
    p99_ms: float


def measure(
    settings: ServiceSettings, home: Home, images: Sequence[bytes], clients: int, seconds: float
) -> tuple[Round, str]:
    """Send ``images`` (files' bytes, in turn) from ``clients`` at once for ``seconds``; returns the figures
    and the engine that ran.

    Raises what opening a service raises; ModelError for a precision that has not been compared with float32;
    and the error of an image.
    """
    return asyncio.run(_measure(settings, home, images, clients, seconds))


async def _measure(
    settings: ServiceSettings, home: Home, images: Sequence[bytes], clients: int, seconds: float
) -> tuple[Round, str]:
    service, engine = await asyncio.to_thread(_open, settings, home)
    service.start()
    requests: list[tuple[float, float]] = []
    numbers = itertools.count()

    async def client() -> None:
        while True:
            since = time.perf_counter()
            await _ask(service, images[next(numbers) % len(images)])
            ended = time.perf_counter()
            requests.append((since, ended))
            if ended >= end and len(requests) >= clients:
                return

    try:
        _check_compared(settings, home)  # once it is known that it runs at all
        await _ask(service, images[0])
        begin = time.perf_counter() + _WARM_UP * seconds
        end = begin + seconds
        await asyncio.gather(*(client() for _ in range(clients)))
    finally:
        await service.close()
    return summarize(requests, begin, end), engine


def summarize(requests: Sequence[tuple[float, float]], begin: float, end: float) -> Round:
    """Requests, each from and to a moment, as a round from ``begin`` to ``end``, in seconds.

    Each counts by the share of it that fell between, so that it does not matter where in a batch the time
    begins and ends. If none ended in that time, the round lasts until the first that did.
    """
    end = max(end, min(ended for _, ended in requests if ended > begin))
    within = [(since, ended) for since, ended in requests if ended > begin and since < end]
    done = sum((min(ended, end) - max(since, begin)) / (ended - since) for since, ended in within)
    p50, p99 = np.percentile([ended - since for since, ended in within], (50, 99))
    return Round(done / (end - begin), 1000 * float(p50), 1000 * float(p99))


async def _ask(service: Service, image: bytes) -> None:
    (answer,) = await service.answer([image])
    if isinstance(answer, PdserveError):
        raise answer


def _open(settings: ServiceSettings, home: Home) -> tuple[Service, str]:
    entry, metrics = SERVICES[settings.kind], Metrics()
    pipeline = entry.open(settings, home)
    service = Service(entry, lambda _, pool: Replica(pipeline, settings, pool, metrics), metrics)
    engines = [model.engines[0].name for model in pipeline.models.values()]
    return service, ", ".join(dict.fromkeys(engines))


def _check_compared(settings: ServiceSettings, home: Home) -> None:
    """An int8 model that opens has been compared when it was published; bf16 and fp16 run without that."""
    for model in settings.models.values():
        if model.precision in ("bf16", "fp16"):
            found = open_model(model.model, home, settings.config_dir)
            if not (int8.folder(found, model.precision) / int8.REPORT).is_file():
                raise ModelError(
                    f"{model.precision} of {found.name} has not been compared with fp32: "
                    f"type `{int8.command(found, model.precision)}`."
                )
