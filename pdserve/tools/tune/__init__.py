"""``pdserve tune``: find the settings that serve a model best on this machine, by trying them.

The candidates that improved on the best so far are measured again, several times in turn, and of those that
are as good as the best the simplest is taken: one measurement of seconds on a busy machine decides little.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from pdserve import engines
from pdserve.errors import ImageError, PdserveError, UsageError
from pdserve.models.home import Home
from pdserve.settings import ServiceSettings
from pdserve.tools.tune.candidates import Candidate, applied, changes, current, plain, stages
from pdserve.tools.tune.measure import Round, measure

__all__ = ["Effort", "Goal", "Round", "Trial", "Tuning", "estimate", "tune"]

ROUNDS = 3
# Better by less than this, in one measurement of seconds, is no better.
MARGIN = 0.03
_FINALISTS = 5
_START_S = 1.5  # of a service, roughly


@dataclass(frozen=True)
class Effort:
    """How each candidate is tried: ``clients`` at once send requests for ``seconds``."""

    clients: int = 8
    seconds: float = 3


@dataclass(frozen=True)
class Trial:
    """A candidate and its rounds, or why it was ``refused``. ``engine``: the one that ran."""

    candidate: Candidate
    rounds: tuple[Round, ...] = ()
    engine: str = ""
    refused: str | None = None

    @property
    def images_per_s(self) -> float:
        """Median of the rounds, as the latencies are."""
        return median(each.images_per_s for each in self.rounds)

    @property
    def p50_ms(self) -> float:
        return median(each.p50_ms for each in self.rounds)

    @property
    def p99_ms(self) -> float:
        return median(each.p99_ms for each in self.rounds)

    @property
    def spread(self) -> float:
        """By how much the rounds' images per second differ, as a share of their median."""
        found = [each.images_per_s for each in self.rounds]
        return (max(found) - min(found)) / median(found)


@dataclass(frozen=True)
class Goal:
    """The most images per second; with ``p99_ms``, among the trials within that bound."""

    p99_ms: float | None = None

    def is_met(self, trial: Trial) -> bool:
        """Whether a trial is within the bound."""
        return self.p99_ms is None or trial.p99_ms <= self.p99_ms

    def better(self, trial: Trial, best: Trial) -> bool:
        """Whether a trial is better than the best so far, by more than chance."""
        if self.is_met(trial) != self.is_met(best):
            return self.is_met(trial)
        if self.is_met(trial):
            return trial.images_per_s > best.images_per_s * (1 + MARGIN)
        return trial.p99_ms < best.p99_ms * (1 - MARGIN)

    def choose(self, finalists: Sequence[Trial]) -> Trial | None:
        """The simplest of those that are as good as the best; None where none is within the bound.

        As good: within the margin of the best's images per second, or in one round no slower. The rounds of
        all are measured in turn, so that other load on the machine slows all in the same round.
        """
        fit = [trial for trial in finalists if self.is_met(trial)]
        if not fit:
            return None
        best = max(fit, key=lambda trial: trial.images_per_s)
        as_good = [
            trial
            for trial in fit
            if trial.images_per_s >= best.images_per_s * (1 - MARGIN)
            or any(a.images_per_s >= b.images_per_s for a, b in zip(trial.rounds, best.rounds, strict=False))
        ]
        return min(as_good, key=lambda trial: (changes(trial.candidate), -trial.images_per_s))


@dataclass
class Tuning:
    """All trials in order, the best of them measured again at the end, and the one that won.

    ``best`` is None where none met the goal, and where it was ``interrupted``.
    """

    trials: list[Trial] = field(default_factory=list)
    best: Trial | None = None
    interrupted: bool = False


def estimate(settings: ServiceSettings, fixed: Mapping[str, Any], effort: Effort) -> tuple[int, float]:
    """About how many measurements `tune` makes, at most, and how many seconds they take."""
    start = plain(settings, fixed)
    others = _others(fixed, "")[1:]
    count = 1 + sum(len(list(stage(start))) for stage in stages(settings, others, fixed, effort.clients))
    count += ROUNDS * (_FINALISTS - 1)
    return count, count * (effort.seconds * 1.25 + _START_S)


def tune(
    settings: ServiceSettings,
    home: Home,
    images: Sequence[bytes],
    goal: Goal,
    *,
    fixed: Mapping[str, Any] | None = None,
    effort: Effort = Effort(),
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> Tuning:
    """Try candidates with ``images`` (files' bytes, in turn); those in ``fixed`` (setting -> value) stay.

    Ctrl-C ends it with the trials so far. Raises UsageError where no candidate runs at all, and ImageError
    for an image that cannot be read.
    """
    tuning = Tuning()

    def trial(candidate: Candidate, before: Trial | None = None) -> Trial:
        """Measure a candidate, or add a round to those ``before``."""
        wanted = applied(settings, candidate)
        try:
            found, engine = measure(wanted, home, images, effort.clients, effort.seconds)
        except ImageError:
            raise
        except PdserveError as error:
            return Trial(candidate, refused=error.message)
        return Trial(candidate, (*(before.rounds if before else ()), found), engine)

    def improvements() -> list[Trial]:
        """Try all candidates; those that were the best when they were tried."""
        path: list[Trial] = []

        def attempt(candidate: Candidate) -> None:
            if any(each.candidate == candidate for each in tuning.trials):
                return
            found = trial(candidate)
            tuning.trials.append(found)
            on_trial(found)
            if found.refused is None and (not path or goal.better(found, path[-1])):
                path.append(found)

        attempt(plain(settings, fixed or {}))
        attempt(current(settings, fixed or {}))
        if not path:  # the engine auto has tried them all
            raise UsageError(f"It does not run here as it is: {tuning.trials[-1].refused}")
        others = _others(fixed or {}, path[0].engine)
        for stage in stages(settings, others, fixed or {}, effort.clients):
            for candidate in stage(path[-1].candidate):
                attempt(candidate)
        return path

    def measured_again(path: Sequence[Trial]) -> list[Trial]:
        """Measure the first and the last few of the path, in turn, and replace their trials."""
        finalists = list(path) if len(path) <= _FINALISTS else [path[0], *path[1 - _FINALISTS :]]
        if len(finalists) == 1:
            return finalists
        places = [tuning.trials.index(each) for each in finalists]
        for _ in range(ROUNDS - 1):
            for place in places:
                before = tuning.trials[place]
                found = trial(before.candidate, before)
                if found.refused is None:
                    tuning.trials[place] = found
                on_trial(found)
        return [tuning.trials[place] for place in places]

    try:
        path = improvements()
        if goal.is_met(path[-1]):  # else no candidate does
            tuning.best = goal.choose(measured_again(path))
    except KeyboardInterrupt:
        tuning.interrupted, tuning.best = True, None
    return tuning


def _others(fixed: Mapping[str, Any], running: str) -> list[str]:
    """The installed engines other than the one that runs."""
    if "engine" in fixed:
        return []
    return [each.name for each in engines.available() if each.installed and each.name != running]
