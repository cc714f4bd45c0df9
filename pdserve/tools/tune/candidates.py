"""The candidates to try, in stages: each tries variants of the best so far.

A full grid would take hours and find little more. First the engines, then for each model the precisions,
then instances and threads, then batches, then delays.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from pdserve.engines.device import cores
from pdserve.settings import ModelSettings, ServiceSettings

Candidate: TypeAlias = Mapping[str, Mapping[str, Any]]
"""For each model of a service by its role (model; detector, embedder) the settings in NAMES."""

Stage: TypeAlias = Callable[[Candidate], Iterator[Candidate]]

NAMES = ("engine", "precision", "instances", "threads", "max_batch_size", "max_queue_delay_ms")
DEFAULTS: Mapping[str, Any] = {name: ModelSettings.model_fields[name].default for name in NAMES}

_MOST_IMAGES = 32  # in a batch; more is for batch work, not for a server
_CROPS = 6  # of an image, for a model after a detector: five boxes and the whole
_DELAYS_MS = (1, 4)


def applied(settings: ServiceSettings, candidate: Candidate) -> ServiceSettings:
    """The settings with a candidate's in their place."""
    updated = {role: m.model_copy(update=dict(candidate[role])) for role, m in settings.models.items()}
    return replace(settings, models=updated)


def plain(settings: ServiceSettings, fixed: Mapping[str, Any]) -> Candidate:
    """The defaults for all models, except for what is ``fixed``."""
    return {role: {**DEFAULTS, **fixed} for role in settings.models}


def current(settings: ServiceSettings, fixed: Mapping[str, Any]) -> Candidate:
    """The settings as they are."""
    return {
        role: {name: getattr(model, name) for name in NAMES} | dict(fixed)
        for role, model in settings.models.items()
    }


def changes(candidate: Candidate) -> int:
    """How many of its settings are not the default."""
    return sum(candidate[role][name] != DEFAULTS[name] for role in candidate for name in NAMES)


def stages(
    settings: ServiceSettings, engines: Sequence[str], fixed: Mapping[str, Any], clients: int
) -> Iterator[Stage]:
    """The stages for a service. ``engines``: names beside the default's. ``fixed`` settings stay."""
    roles = settings.models
    if "engine" not in fixed:
        yield lambda best: ({r: {**best[r], "engine": name} for r in roles} for name in engines)
    if "precision" not in fixed:
        yield from (_precisions(role, fixed) for role in roles)
    for role, model in roles.items():
        yield _instances(role, gpu=any(device != "cpu" for device in model.devices))
    for number, role in enumerate(roles):
        yield _batches(role, clients * (_CROPS if number else 1))
    yield from (_delays(role) for role in roles)


def _with(best: Candidate, role: str, **values: Any) -> Candidate:
    return {**best, role: {**best[role], **values}}


def _precisions(role: str, fixed: Mapping[str, Any]) -> Stage:
    """Precisions other than the best's, with its engine and with the default one: an engine that is the
    fastest at float32 may have no other.
    """

    def stage(best: Candidate) -> Iterator[Candidate]:
        engines = (best[role]["engine"], fixed.get("engine", DEFAULTS["engine"]))
        for precision in ("fp32", "int8", "bf16", "fp16"):
            if precision == best[role]["precision"]:
                continue
            for engine in dict.fromkeys(engines):  # which all models of a service share
                everywhere = {r: {**values, "engine": engine} for r, values in best.items()}
                yield _with(everywhere, role, precision=precision)

    return stage


def _instances(role: str, gpu: bool) -> Stage:
    """On a CPU one with all cores, one that leaves a core to decoding, several that divide the cores, two
    that compete for them.
    """

    def stage(best: Candidate) -> Iterator[Candidate]:
        if gpu:
            yield from (_with(best, role, instances=count) for count in (1, 2, 4))
            return
        shares = [(1, cores()), (1, max(1, cores() - 1)), (2, cores())]
        count = 2
        while count <= cores():
            shares.append((count, cores() // count))
            count *= 2
        for instances, threads in dict.fromkeys(shares):
            yield _with(best, role, instances=instances, threads=threads)

    return stage


def _batches(role: str, waiting: int) -> Stage:
    """Powers of two, up to what could ever wait."""

    def stage(best: Candidate) -> Iterator[Candidate]:
        size = 1
        while size <= min(waiting, _MOST_IMAGES):
            yield _with(best, role, max_batch_size=size)
            size *= 2

    return stage


def _delays(role: str) -> Stage:
    def stage(best: Candidate) -> Iterator[Candidate]:
        if best[role]["max_batch_size"] != 1:  # a batch of one is full at once
            yield from (_with(best, role, max_queue_delay_ms=delay) for delay in _DELAYS_MS)

    return stage
