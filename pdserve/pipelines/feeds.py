"""A model's own feeds, as a caller sends them, among the images that pass through the same engines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pdserve.errors import ClosedError, PdserveError, RequestError
from pdserve.pipelines.base import PipelineModel
from pdserve.vision.types import Array


class UnfitTensorsError(RequestError):
    """The model does not run on a caller's tensors. The engine is not at fault, and no failure of its."""

    code = "unfit_tensors"


@dataclass(frozen=True, eq=False, slots=True)
class Feeds:
    """One row: arrays by the feeds' aliases, each with a batch axis of one. Run as they are."""

    arrays: Mapping[str, Array]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(array.shape for array in self.arrays.values())


def prepared_feeds(model: PipelineModel, prepared: Any) -> Feeds:
    """What `PipelineModel.prepare` has made of an image, as feeds."""
    if isinstance(prepared, Mapping):
        return Feeds(prepared)
    return Feeds({model.engines[0].feeds[0].alias: prepared[np.newaxis]})


def infer(model: PipelineModel, items: Sequence[Any], engine: int = 0) -> Sequence[Any]:
    """Items of a batch -> a result for each: of `Feeds` the fetches by alias, of others what the model gives.

    Fetches have a batch axis. Feeds of one shape run together where that changes nothing. The result of
    feeds that the model does not run on is an UnfitTensorsError. Raises EngineError.
    """
    if not any(type(item) is Feeds for item in items):
        return model.infer(items, engine=engine)
    results: list[Any] = [None] * len(items)
    others = [place for place, item in enumerate(items) if type(item) is not Feeds]
    if others:
        found = model.infer([items[place] for place in others], engine=engine)
        for place, result in zip(others, found, strict=True):
            results[place] = result
    groups: dict[Any, list[int]] = {}
    for place, item in enumerate(items):
        if type(item) is Feeds:
            groups.setdefault(item.shapes if model.by_row else place, []).append(place)
    for places in groups.values():
        for place, result in zip(places, _together(model, [items[p] for p in places], engine), strict=True):
            results[place] = result
    return results


def _together(model: PipelineModel, rows: Sequence[Feeds], engine: int) -> Sequence[Any]:
    if len(rows) == 1:
        return [_run(model, rows[0].arrays, engine)]
    joined = {alias: np.concatenate([row.arrays[alias] for row in rows]) for alias in rows[0].arrays}
    found = _run(model, joined, engine)
    if isinstance(found, PdserveError) or any(len(array) != len(rows) for array in found.values()):
        return [_run(model, row.arrays, engine) for row in rows]
    return [{alias: array[at : at + 1] for alias, array in found.items()} for at in range(len(rows))]


def _run(
    model: PipelineModel, arrays: Mapping[str, Array], engine: int
) -> Mapping[str, Array] | UnfitTensorsError:
    try:
        found = model.engines[engine].run(arrays)
    except ClosedError:
        raise
    except PdserveError as error:
        # Which tensors come is up to callers: three that it cannot run must not have an engine rebuilt.
        return UnfitTensorsError(f"{model.name} does not run on these tensors: {error.message}")
    return {alias: array if array.ndim else array[np.newaxis] for alias, array in found.items()}
