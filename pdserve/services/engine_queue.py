"""The queue before a model's engines, as its settings say."""

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

from pdserve.engines import Engine
from pdserve.engines.device import cores
from pdserve.services.batcher import Batcher
from pdserve.services.telemetry.metrics import Metrics
from pdserve.settings import ModelSettings

Item = TypeVar("Item")
Result = TypeVar("Result")


def for_engines(
    infer: Callable[..., Sequence[Result]],
    engines: Sequence[Engine],
    model: ModelSettings,
    on_broken: Callable[[str], None],
    metrics: Metrics,
    name: str,
) -> Batcher[Item, Result]:
    """A queue before a model's engines: a worker for each instance on each device.

    ``name`` is the model's, for the metrics. ``infer(items, engine=N)`` runs a batch on the N-th device's
    engine.
    """
    return Batcher(
        [
            functools.partial(infer, engine=number)
            for number, engine in enumerate(engines)
            for _ in range(engine.instances)
        ],
        max_batch_size=batch_size(engines[0], model),
        max_queue_delay_ms=model.max_queue_delay_ms,
        timeout_ms=model.timeout_ms,
        hang_s=model.hang_s,
        on_broken=on_broken,
        metrics=metrics,
        model=name,
    )


def batch_size(engine: Engine, model: ModelSettings) -> int:
    """What was asked for; else what a GPU needs to be busy, or a CPU, whose cores are with few images.

    A delay is asked for so that batches fill: then there is something to fill on a CPU, too.
    """
    if model.max_batch_size != "auto":
        return model.max_batch_size
    if engine.device.kind == "gpu":
        return 32
    return 8 if model.max_queue_delay_ms else min(8, max(1, cores() // 2))
