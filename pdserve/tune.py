"""``pdserve tune``: which settings serve a model best on this machine, found by trying them.

Each candidate is opened as its service would open it, and asked in a closed loop, decoding and all, but
without HTTP around it. Engine and precision are settled first, then instances and threads, then batch and
delay, each with the best of what came before: a full grid would take an hour to tell little more.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pdserve import engines
from pdserve.engines.device import cores
from pdserve.errors import PdserveError, SettingsError, UsageError
from pdserve.home import Home
from pdserve.services.classification import open_classification
from pdserve.services.classification_service import ClassificationService
from pdserve.services.metrics import Metrics
from pdserve.services.recognition import open_index, open_recognition
from pdserve.services.recognition_service import RecognitionService
from pdserve.settings import ClassificationSettings, RecognitionSettings

# What is tried, and what is written.
NAMES = ("engine", "precision", "instances", "threads", "max_batch_size", "max_queue_delay_ms")

Settle = Callable[[Mapping[str, Any]], ClassificationSettings | RecognitionSettings]
"""Settings, with these on top of what the user has said."""


@dataclass(frozen=True)
class Trial:
    """A candidate and what it came to: images/s and latencies in ms, or why it could not be tried."""

    settings: Mapping[str, Any]
    images_per_s: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    refused: str | None = None


@dataclass(frozen=True)
class Goal:
    """The most images per second; with ``p99_ms``, among what keeps that bound."""

    p99_ms: float | None = None

    def best(self, trials: Sequence[Trial]) -> Trial | None:
        """The best trial; None where none keeps the bound."""
        fit = [t for t in trials if t.refused is None and t.p99_ms <= (self.p99_ms or float("inf"))]
        return max(fit, key=lambda t: t.images_per_s, default=None)

    def nearest(self, trials: Sequence[Trial]) -> Trial | None:
        """The best trial, or else the one that misses the bound by the least."""
        ran = [t for t in trials if t.refused is None]
        return self.best(trials) or min(ran, key=lambda t: t.p99_ms, default=None)


@dataclass
class Tuning:
    """All trials in order, and the one that won; None where none reached the goal."""

    trials: list[Trial] = field(default_factory=list)
    best: Trial | None = None


def tune(
    settle: Settle,
    home: Home,
    images: Sequence[bytes],
    goal: Goal,
    *,
    clients: int = 8,
    seconds: float = 3,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> Tuning:
    """Try candidates with ``images`` (files' bytes, in turn) from ``clients`` at once, ``seconds`` each.

    Raises UsageError where no candidate runs at all, and ImageError for an image that cannot be read.
    """
    tuning = Tuning()
    chosen: Mapping[str, Any] = {}
    for stage in (_engines, _instances, _batches):
        for candidate in stage(settle(chosen)):
            wanted = {**chosen, **candidate}
            if any(trial.settings == wanted for trial in tuning.trials):
                continue
            trial = _tried(settle, wanted, home, images, clients, seconds)
            tuning.trials.append(trial)
            on_trial(trial)
        nearest = goal.nearest(tuning.trials)
        if nearest is None:
            reasons = "; ".join(dict.fromkeys(trial.refused or "" for trial in tuning.trials))
            raise UsageError(f"None of the engines here runs it: {reasons}")
        chosen = nearest.settings
    tuning.best = goal.best(tuning.trials)
    return tuning


def _models(settings: ClassificationSettings | RecognitionSettings) -> list[Any]:
    if isinstance(settings, ClassificationSettings):
        return [settings.model]
    return [model for model in (settings.detector, settings.embedder) if model]


def _engines(settings: ClassificationSettings | RecognitionSettings) -> Iterator[dict[str, Any]]:
    """Every engine that is installed at every precision; what it cannot do it says when it is opened."""
    for info, precision in itertools.product(engines.available(), ("fp32", "bf16", "fp16", "int8")):
        if info.installed:
            yield {"engine": info.name, "precision": precision}


def _instances(settings: ClassificationSettings | RecognitionSettings) -> Iterator[dict[str, Any]]:
    """One, two and four at once; threads for each that share the cores out, or all of them."""
    if any(device != "cpu" for model in _models(settings) for device in model.devices):
        yield from ({"instances": count} for count in (1, 2, 4))
        return
    for count in (1, 2, 4):
        for threads in sorted({max(1, cores() // count), cores()}):
            yield {"instances": count, "threads": threads}


def _batches(settings: ClassificationSettings | RecognitionSettings) -> Iterator[dict[str, Any]]:
    for size, delay in itertools.product((1, 2, 4, 8, 16, 32), (0, 2)):
        if size > 1 or delay == 0:  # nothing fills a batch of one
            yield {"max_batch_size": size, "max_queue_delay_ms": delay}


def _tried(
    settle: Settle,
    wanted: Mapping[str, Any],
    home: Home,
    images: Sequence[bytes],
    clients: int,
    seconds: float,
) -> Trial:
    try:
        return asyncio.run(_run(settle(wanted), wanted, home, images, clients, seconds))
    except PdserveError as error:
        if isinstance(error, SettingsError) or not isinstance(error, UsageError):
            return Trial(wanted, refused=error.message)
        raise


async def _run(
    settings: ClassificationSettings | RecognitionSettings,
    wanted: Mapping[str, Any],
    home: Home,
    images: Sequence[bytes],
    clients: int,
    seconds: float,
) -> Trial:
    service = await asyncio.to_thread(_open, settings, home)
    service.start()
    try:
        await _ask(service, images[0])
        latencies: list[float] = []
        numbers = itertools.count()
        begun = time.perf_counter()

        async def client() -> None:
            while (asked := time.perf_counter()) < begun + seconds:
                await _ask(service, images[next(numbers) % len(images)])
                latencies.append(time.perf_counter() - asked)

        await asyncio.gather(*(client() for _ in range(clients)))
        elapsed = time.perf_counter() - begun
    finally:
        await service.close()
    p50, p99 = (1000 * float(np.percentile(latencies, p)) for p in (50, 99))
    return Trial(wanted, len(latencies) / elapsed, p50, p99)


async def _ask(service: ClassificationService | RecognitionService, image: bytes) -> None:
    (answer,) = await service.answer([image])
    if isinstance(answer, PdserveError):
        raise answer


def _open(
    settings: ClassificationSettings | RecognitionSettings, home: Home
) -> ClassificationService | RecognitionService:
    if isinstance(settings, ClassificationSettings):
        classifier = open_classification(settings, home)
        return ClassificationService(lambda anew: (classifier, settings), Metrics())
    recogniser = open_recognition(settings, home)
    index = open_index(settings, home, recogniser.embedder)
    return RecognitionService(lambda anew: (recogniser, index, settings), Metrics())


def write(path: Path, best: Trial) -> None:
    """Write a trial's settings into the block ``pdserve:`` of a config.yml; the rest, comments too, stays.

    Raises SettingsError where the file cannot be read or written.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    yaml = YAML()
    yaml.preserve_quotes = True
    newer = path.with_name(f"{path.name}.new")
    try:
        content = yaml.load(path.read_text("utf-8"))
        block = content.get("pdserve") if hasattr(content, "get") else None
        if block is None:
            content["pdserve"] = block = {}
        block.update(best.settings)
        with newer.open("w", encoding="utf-8") as file:
            yaml.dump(content, file)
        newer.replace(path)
    except (OSError, YAMLError, UnicodeDecodeError, TypeError) as error:
        newer.unlink(missing_ok=True)
        raise SettingsError(f"Cannot write the settings into {path}: {error}.") from error
