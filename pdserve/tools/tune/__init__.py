"""``pdserve tune``: which settings serve a model best on this machine, found by trying them.

The path of candidates that were the best for a while is measured again, several times in turn, and of those
that are as good as the best the simplest is taken: seconds on a busy machine tell little apart.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pdserve import engines
from pdserve.errors import ImageError, PdserveError, UsageError
from pdserve.models.home import Home
from pdserve.tools.tune.candidates import Candidate, Settings, applied, current, plain, stages
from pdserve.tools.tune.measure import measure
from pdserve.tools.tune.trial import Goal, Trial

__all__ = ["Effort", "Goal", "Trial", "Tuning", "estimate", "tune"]

ROUNDS = 3
_FINALISTS = 5
_START_S = 1.5  # of a service, roughly


@dataclass(frozen=True)
class Effort:
    """How each candidate is tried: asked from ``clients`` at once for ``seconds``."""

    clients: int = 8
    seconds: float = 3


@dataclass
class Tuning:
    """All trials in order, the best of them measured again at the end, and the one that won.

    ``best`` is None where none reached the goal, and where it was ``interrupted``.
    """

    trials: list[Trial] = field(default_factory=list)
    best: Trial | None = None
    interrupted: bool = False


def estimate(settings: Settings, fixed: Mapping[str, Any], effort: Effort) -> tuple[int, float]:
    """About how many measurements `tune` makes, at most, and how many seconds they take."""
    start = plain(settings, fixed)
    others = _others(fixed, "")[1:]
    count = 1 + sum(len(list(stage(start))) for stage in stages(settings, others, fixed, effort.clients))
    count += ROUNDS * (_FINALISTS - 1)
    return count, count * (effort.seconds * 1.25 + _START_S)


def tune(
    settings: Settings,
    home: Home,
    images: Sequence[bytes],
    goal: Goal,
    *,
    fixed: Mapping[str, Any] | None = None,
    effort: Effort = Effort(),
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> Tuning:
    """Try candidates with ``images`` (files' bytes, in turn); those in ``fixed`` (setting -> value) stay.

    Ctrl-C ends it with what there is. Raises UsageError where no candidate runs at all, and ImageError for
    an image that cannot be read.
    """
    tuning = Tuning()
    try:
        _tune(tuning, _Bench(settings, home, images, effort, on_trial), goal, fixed or {})
    except KeyboardInterrupt:
        tuning.interrupted, tuning.best = True, None
    return tuning


@dataclass(frozen=True)
class _Bench:
    settings: Settings
    home: Home
    images: Sequence[bytes]
    effort: Effort
    on_trial: Callable[[Trial], None]

    def trial(self, candidate: Candidate, before: Trial | None = None) -> Trial:
        """Measure a candidate, once more where it was ``before``."""
        wanted = applied(self.settings, candidate)
        try:
            found, engine = measure(wanted, self.home, self.images, self.effort.clients, self.effort.seconds)
        except ImageError:
            raise
        except PdserveError as error:
            return Trial(candidate, refused=error.message)
        return Trial(candidate, (*(before.rounds if before else ()), found), engine)


def _tune(tuning: Tuning, bench: _Bench, goal: Goal, fixed: Mapping[str, Any]) -> None:
    path: list[Trial] = []

    def attempt(candidate: Candidate) -> None:
        if any(trial.candidate == candidate for trial in tuning.trials):
            return
        trial = bench.trial(candidate)
        tuning.trials.append(trial)
        bench.on_trial(trial)
        if trial.refused is None and (not path or goal.better(trial, path[-1])):
            path.append(trial)

    attempt(plain(bench.settings, fixed))
    attempt(current(bench.settings, fixed))
    if not path:  # the engine auto has tried them all
        raise UsageError(f"It does not run here as it is: {tuning.trials[-1].refused}")
    others = _others(fixed, path[0].engine)
    for stage in stages(bench.settings, others, fixed, bench.effort.clients):
        for candidate in stage(path[-1].candidate):
            attempt(candidate)
    if goal.kept(path[-1]):  # else nothing that was tried does
        tuning.best = goal.choose(_again(tuning, bench, path))


def _again(tuning: Tuning, bench: _Bench, path: Sequence[Trial]) -> list[Trial]:
    """Measure the first and the last few of the path, in turn, and put them in place of the trials."""
    finalists = list(path) if len(path) <= _FINALISTS else [path[0], *path[1 - _FINALISTS :]]
    if len(finalists) == 1:
        return finalists
    places = [tuning.trials.index(trial) for trial in finalists]
    for _ in range(ROUNDS - 1):
        for place in places:
            before = tuning.trials[place]
            trial = bench.trial(before.candidate, before)
            if trial.refused is None:
                tuning.trials[place] = trial
            bench.on_trial(trial)
    return [tuning.trials[place] for place in places]


def _others(fixed: Mapping[str, Any], running: str) -> list[str]:
    """The engines that are installed, but for the one that runs."""
    if "engine" in fixed:
        return []
    return [each.name for each in engines.available() if each.installed and each.name != running]
