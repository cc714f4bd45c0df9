"""Statistics of models, in the form of Triton's: requests, and the time that their parts took."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from pdserve.services.inference.models import InferenceModel, parts
from pdserve.services.inference.requests import VERSION
from pdserve.services.service import Answering, Service


@dataclass
class _Count:
    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += ns


@dataclass
class _Requests:
    """Of one name: requests of this protocol."""

    success: _Count = field(default_factory=_Count)
    fail: _Count = field(default_factory=_Count)
    images: int = 0
    last_ms: int = 0


_REQUESTS: "WeakKeyDictionary[Any, dict[str, _Requests]]" = WeakKeyDictionary()


def record(service: Answering, name: str, images: int, started_ns: int, *, success: bool) -> None:
    """Count a request to a model that is there; ``started_ns`` on time.perf_counter_ns's clock."""
    found = _REQUESTS.setdefault(service, {}).setdefault(name, _Requests())
    (found.success if success else found.fail).add(time.perf_counter_ns() - started_ns)
    if success:
        found.images += images
        found.last_ms = time.time_ns() // 1_000_000


# The stages of pdserve's own metrics that make one of the protocol's.
_STAGES = {
    "queue": ("queue",),
    "compute_input": ("decode", "preprocess"),
    "compute_infer": ("infer",),
    "compute_output": ("postprocess", "search"),
}


def statistics(models: Iterable[tuple[Answering, InferenceModel]]) -> list[dict[str, Any]]:
    """Of each model: its requests by this protocol, and what its engines did for all protocols together.

    ``execution_count`` is the number of batches; ``batch_stats`` are empty: the sizes of batches are in
    /metrics.
    """
    totals: dict[tuple[str, str], tuple[int, float]] = {}
    metrics = None  # that a server's services share
    found = []
    for service, model in models:
        if isinstance(service, Service) and service.metrics is not metrics:
            metrics = service.metrics
            totals = metrics.totals()
        asked = _REQUESTS.get(service, {}).get(model.name, _Requests())
        behind = [each.name for role, each in parts(service).items() if model.role in (None, role)]
        stats = {"success": _stage(asked.success), "fail": _stage(asked.fail)}
        for name, stages in _STAGES.items():
            stats[name] = _sum(totals, stages, behind)
        batches = [totals.get(("batch", name), (0, 0.0))[0] for name in behind]
        found.append(
            {
                "name": model.name,
                "version": VERSION,
                "last_inference": asked.last_ms,
                "inference_count": asked.images,
                "execution_count": sum(batches),
                "inference_stats": stats,
                "batch_stats": [],
            }
        )
    return found


def _stage(count: _Count) -> dict[str, int]:
    return {"count": count.count, "ns": count.ns}


def _sum(
    totals: dict[tuple[str, str], tuple[int, float]], stages: tuple[str, ...], models: list[str]
) -> dict[str, int]:
    found = [totals.get((stage, model), (0, 0.0)) for stage in stages for model in models]
    return {"count": sum(count for count, _ in found), "ns": round(sum(s for _, s in found) * 1e9)}
