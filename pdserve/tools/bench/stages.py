"""Where a server's time went during a run, from what its ``/metrics`` says before and after."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_STAGES = "pdserve_stage_seconds"
_BATCHES = "pdserve_batch_images"

# The way of an image through a server; a stage that is not known here comes after these.
_ORDER = ("decode", "preprocess", "queue", "infer", "detect", "embed", "postprocess", "search")


@dataclass(frozen=True)
class Stage:
    """``mean_ms`` of a stage over ``count`` passes, with the model it is of (or none)."""

    stage: str
    model: str
    mean_ms: float
    count: int


@dataclass(frozen=True)
class Batches:
    """``mean`` images in ``count`` batches of a model."""

    model: str
    mean: float
    count: int


@dataclass(frozen=True)
class ServerSide:
    """The server's own figures of one run."""

    stages: tuple[Stage, ...]
    batches: tuple[Batches, ...]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "stages": [
                {"stage": s.stage, "model": s.model, "mean_ms": round(s.mean_ms, 3), "count": s.count}
                for s in self.stages
            ],
            "batches": [
                {"model": b.model, "mean_images": round(b.mean, 3), "count": b.count} for b in self.batches
            ],
        }


# (family, stage, model) -> (sum, count)
Counters = Mapping[tuple[str, str, str], tuple[float, float]]


def read_counters(text: str) -> Counters:
    """The sums and counts of stages and batches in Prometheus's text format.

    Raises ValueError for a text that is not of that format.
    """
    from prometheus_client.parser import text_string_to_metric_families

    parts: dict[tuple[str, str, str], dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        if family.name not in (_STAGES, _BATCHES):
            continue
        for sample in family.samples:
            part = sample.name.removeprefix(family.name)
            if part in ("_sum", "_count"):
                key = (family.name, sample.labels.get("stage", ""), sample.labels.get("model", ""))
                parts.setdefault(key, {})[part] = sample.value
    return {key: (part.get("_sum", 0.0), part.get("_count", 0.0)) for key, part in parts.items()}


def between(before: Counters, after: Counters) -> ServerSide | None:
    """What happened between two readings; None where nothing did, or the server began anew meanwhile."""
    stages: list[Stage] = []
    batches: list[Batches] = []
    for (family, stage, model), (total, count) in after.items():
        total_before, count_before = before.get((family, stage, model), (0.0, 0.0))
        passes = count - count_before
        if passes < 0:
            return None
        if not passes:
            continue
        mean = (total - total_before) / passes
        if family == _STAGES:
            stages.append(Stage(stage, model, 1000 * mean, int(passes)))
        else:
            batches.append(Batches(model, mean, int(passes)))
    if not stages and not batches:
        return None
    stages.sort(key=lambda s: _ORDER.index(s.stage) if s.stage in _ORDER else len(_ORDER))
    return ServerSide(tuple(stages), tuple(batches))
