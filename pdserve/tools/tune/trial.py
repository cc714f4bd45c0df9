"""A candidate that was tried, and which of several is the best for a goal."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from pdserve.tools.tune.candidates import Candidate, changes

# Better by less than this, in one measurement of seconds, is no better.
MARGIN = 0.03


@dataclass(frozen=True)
class Round:
    """One measurement: images per second, latencies in ms."""

    images_per_s: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Trial:
    """A candidate and what it came to, or why it was ``refused``. ``engine``: the one that ran."""

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
    """The most images per second; with ``p99_ms``, among what keeps that bound."""

    p99_ms: float | None = None

    def kept(self, trial: Trial) -> bool:
        """Whether a trial keeps the bound."""
        return self.p99_ms is None or trial.p99_ms <= self.p99_ms

    def better(self, trial: Trial, best: Trial) -> bool:
        """Whether a trial is better than the best so far, by more than chance has it."""
        if self.kept(trial) != self.kept(best):
            return self.kept(trial)
        if self.kept(trial):
            return trial.images_per_s > best.images_per_s * (1 + MARGIN)
        return trial.p99_ms < best.p99_ms * (1 - MARGIN)

    def choose(self, finalists: Sequence[Trial]) -> Trial | None:
        """The simplest of those that are as good as the best; None where none keeps the bound.

        As good: within the margin of the best's images per second, or in one round no slower. The rounds of
        all are measured in turn, so that what else slows the machine strikes all in the same round.
        """
        fit = [trial for trial in finalists if self.kept(trial)]
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
