"""What ``pdserve tune`` prints."""

import time
from typing import TYPE_CHECKING, Any

from pdserve import console

if TYPE_CHECKING:
    from pdserve.tools.tune import Trial, Tuning
    from pdserve.tools.tune.candidates import Candidate

_APART = 0.2  # from which rounds of the same are told to be no good measurement


class Progress:
    """A line for each measurement, and how long the others will take."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._done = 0
        self._begun = time.monotonic()

    def say(self, trial: "Trial") -> None:
        """A measurement is done."""
        self._done += 1
        each = (time.monotonic() - self._begun) / self._done
        left = max(0, self._count - self._done) * each
        console.say(f"[{self._done}/{self._count}, {duration(left)} left] {_line(trial)}")


def tell(outcome: "Tuning", as_json: bool) -> None:
    """All trials: a table, the winner first, or JSON lines."""
    from pdserve.tools.tune.candidates import NAMES

    if as_json:
        for trial in outcome.trials:
            console.json_line(_described(trial) | {"best": trial is outcome.best})
        return
    ran = sorted(
        (t for t in outcome.trials if t.rounds),
        key=lambda t: (t is not outcome.best, -len(t.rounds), -t.images_per_s),
    )
    if not ran:
        return
    rows = [
        (
            *(cell(trial.candidate, name) for name in NAMES),
            *(trial.images_per_s, trial.p50_ms, trial.p99_ms),
            len(trial.rounds),
            "best" if trial is outcome.best else "",
        )
        for trial in ran
    ]
    roles = list(ran[0].candidate)
    columns = (*(name.replace("max_", "") for name in NAMES), "images/s", "p50 ms", "p99 ms", "rounds", "")
    title = f"{' / '.join(roles)} where they differ" if len(roles) > 1 else None
    console.table(columns, rows, title, digits=1)
    if (apart := max(trial.spread for trial in ran)) > _APART:
        console.say(
            f"The rounds of one candidate differ by {apart:.0%}: something else keeps this machine busy; "
            "tune when it is quiet, or with more --seconds."
        )


def cell(candidate: "Candidate", name: str) -> str:
    """A setting; of several models, where they differ, one after the other."""
    values = [settings[name] for settings in candidate.values()]
    shown = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return " / ".join(shown if len(set(shown)) > 1 else shown[:1])


def duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"


def _described(trial: "Trial") -> dict[str, Any]:
    settings = {role: dict(values) for role, values in trial.candidate.items()}
    if trial.refused is not None:
        return {"settings": settings, "refused": trial.refused}
    return {
        "settings": settings,
        "engine": trial.engine,
        "images_per_s": round(trial.images_per_s, 2),
        "p50_ms": round(trial.p50_ms, 2),
        "p99_ms": round(trial.p99_ms, 2),
        "rounds": len(trial.rounds),
    }


def _line(trial: "Trial") -> str:
    from pdserve.tools.tune.candidates import DEFAULTS

    what = " ".join(
        f"{name}={cell(trial.candidate, name)}"
        for name in DEFAULTS
        if any(values[name] != DEFAULTS[name] for values in trial.candidate.values())
    )
    what = what or "the defaults"
    if trial.refused is not None:
        return f"{what}: not here: {trial.refused}"
    last = trial.rounds[-1]
    again = " again" if len(trial.rounds) > 1 else ""
    return f"{what}{again}: {last.images_per_s:.1f} images/s, p99 {last.p99_ms:.0f} ms"
