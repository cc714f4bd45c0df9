"""How much faster is it? Both engines in turn in one run, as noise of the machine then strikes both."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

import numpy as np

from pdserve.engines import Engine
from pdserve.vision.types import Array

BATCHES = (1, 8)
_SECONDS = 2.0  # of a batch size
_LEAST, _MOST = 3, 50  # runs of each


@dataclass(frozen=True)
class Speed:
    """Median milliseconds of a batch, in one instance on all cores."""

    batch: int
    float_ms: float
    optimized_ms: float

    @property
    def ratio(self) -> float:
        """Over 1: the optimised model is faster."""
        return self.float_ms / self.optimized_ms


def measure(floats: Engine, optimized: Engine, feeds: Mapping[str, Array]) -> list[Speed]:
    """Time both on one image's feeds, repeated to each batch that the model takes. Raises EngineError."""
    free = all(shape[:1] == (-1,) for shape in floats.shapes.values())
    return [_measure(floats, optimized, feeds, batch) for batch in (BATCHES if free else BATCHES[:1])]


def _measure(floats: Engine, optimized: Engine, feeds: Mapping[str, Array], batch: int) -> Speed:
    given = {alias: np.repeat(array, batch, axis=0) for alias, array in feeds.items()}
    engines = (floats, optimized)
    for engine in engines:
        engine.run(given)
    times: tuple[list[float], list[float]] = ([], [])
    ends = time.perf_counter() + _SECONDS
    while len(times[0]) < _LEAST or (len(times[0]) < _MOST and time.perf_counter() < ends):
        for engine, spent in zip(engines, times, strict=True):
            since = time.perf_counter()
            engine.run(given)
            spent.append((time.perf_counter() - since) * 1000)
    return Speed(batch, round(median(times[0]), 3), round(median(times[1]), 3))
