"""``pdserve tune``: the settings that serve a model best on this machine."""

import itertools
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pdserve import console
from pdserve.commands import options as o
from pdserve.commands.missing import bring_service
from pdserve.errors import ImageError, InterruptError, UsageError
from pdserve.pipelines import SERVICES

if TYPE_CHECKING:
    from pdserve.settings import ServiceSettings
    from pdserve.tools.tune import Trial, Tuning
    from pdserve.tools.tune.candidates import Candidate

_LIMIT_BYTES = 64 << 20  # of images that are read
_NOISY = 0.2  # spread of a candidate's rounds from which the user is warned


@o.with_settings(
    SERVICES.values(), ("Model", "Device", "Preprocessing"), names=("labels",), without=("threads",)
)
def tune(
    images: Annotated[
        list[str] | None,
        typer.Option("--images", metavar="DIR|FILE", help="Your images. Default: a synthetic photograph."),
    ] = None,
    service: o.ServiceOption = "classification",
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="A config.yml; the best settings are written into it."),
    ] = None,
    throughput: Annotated[
        bool, typer.Option("--throughput", help="Goal: most images per second. The default goal.")
    ] = False,
    p99: Annotated[
        float | None,
        typer.Option("--p99", metavar="MS", min=0, help="Goal: most images per second within this latency."),
    ] = None,
    clients: Annotated[int, typer.Option("--clients", min=1, help="Requests at once.")] = 8,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="For each measurement.")] = 3,
    as_json: o.Json = False,
    **given: Any,
) -> None:
    """Try engines, precisions, instances, threads, batches and delays, and report which serve best.

    With --config the best settings are written into that file, else printed as a command. A precision is
    tried once `pdserve optimize` has made or compared it; with --engine or --precision no other is tried.
    Ctrl-C reports what was found until then.
    """
    if throughput and p99 is not None:
        raise UsageError("--throughput and --p99 are two goals; give one of them.")
    from pdserve.tools import tune as tuning
    from pdserve.tools.tune import config as config_file

    flags = o.flags(given, service)
    if config:
        if not config.is_file():
            raise UsageError(f"There is no file {config}; give a config.yml, as in configs/.")
        config_file.check(config)
    fixed = {name: flags[name] for name in ("engine", "precision") if flags.get(name, "auto") != "auto"}
    wanted = SERVICES[service].settings(flags, os.environ, config)
    goal = tuning.Goal(p99)
    effort = tuning.Effort(clients, seconds)
    files = _images(images)
    wanted = bring_service(wanted, o.home())
    count, total = tuning.estimate(wanted, fixed, effort)
    console.say(
        f"Up to {count} measurements of {seconds:g} s with {clients} clients, "
        f"about {_duration(total)}; other load on this machine is measured, too."
    )
    started, numbers = time.monotonic(), itertools.count(1)

    def on_trial(trial: tuning.Trial) -> None:
        number = next(numbers)
        left = max(0, count - number) * (time.monotonic() - started) / number
        console.say(f"[{number}/{count}, {_duration(left)} left] {_line(trial)}")

    outcome = tuning.tune(wanted, o.home(), files, goal, fixed=fixed, effort=effort, on_trial=on_trial)
    _report(outcome, as_json)
    if outcome.interrupted:
        raise InterruptError(
            "Interrupted; nothing is decided, and nothing written. The same command measures from the start."
        )
    if outcome.best is None:
        nearest = min(trial.p99_ms for trial in outcome.trials if trial.rounds)
        raise UsageError(
            f"Nothing keeps a p99 of {p99:g} ms with {clients} clients, {nearest:.1f} ms came nearest; "
            "give more with --p99, or fewer --clients."
        )
    _hand_over(outcome.best.candidate, wanted, config, given)


def _images(named: list[str] | None) -> list[bytes]:
    """The images that can be read; the others are reported."""
    from pdserve.tools.bench.targets import read_images, synthetic_photograph

    if not named:
        console.say("With a synthetic photograph of 640×480; your own, with --images, are better.")
        return [synthetic_photograph()]
    skipped: list[str] = []

    def skip(name: str, error: ImageError) -> None:
        skipped.append(name)
        console.say(f"skipped {name}: {error.message}")

    images, count = read_images(named, _LIMIT_BYTES, skip)
    if not images:
        raise UsageError(
            f"There is no image that can be read in {', '.join(named)}; give others with --images."
        )
    if len(images) + len(skipped) < count:
        console.say(f"With the first {len(images)} images: more would not fit in memory.")
    return images


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"


def _line(trial: "Trial") -> str:
    from pdserve.tools.tune.candidates import DEFAULTS

    what = " ".join(
        f"{name}={_cell(trial.candidate, name)}"
        for name in DEFAULTS
        if any(values[name] != DEFAULTS[name] for values in trial.candidate.values())
    )
    what = what or "the defaults"
    if trial.refused is not None:
        return f"{what}: does not run: {trial.refused}"
    last = trial.rounds[-1]
    again = " again" if len(trial.rounds) > 1 else ""
    return f"{what}{again}: {last.images_per_s:.1f} images/s, p99 {last.p99_ms:.0f} ms"


def _report(outcome: "Tuning", as_json: bool) -> None:
    """All trials: a table, the winner first, or JSON lines."""
    from pdserve.tools.tune.candidates import NAMES

    if as_json:
        for trial in outcome.trials:
            console.json_line(_to_json(trial) | {"best": trial is outcome.best})
        return
    ran = sorted(
        (t for t in outcome.trials if t.rounds),
        key=lambda t: (t is not outcome.best, -len(t.rounds), -t.images_per_s),
    )
    if not ran:
        return
    rows = [
        (
            *(_cell(trial.candidate, name) for name in NAMES),
            *(trial.images_per_s, trial.p50_ms, trial.p99_ms, len(trial.rounds)),
            "best" if trial is outcome.best else "",
        )
        for trial in ran
    ]
    roles = list(ran[0].candidate)
    columns = (*(name.replace("max_", "") for name in NAMES), "images/s", "p50 ms", "p99 ms", "rounds", "")
    title = f"{' / '.join(roles)} where they differ" if len(roles) > 1 else None
    console.table(columns, rows, title, digits=1)
    if (spread := max(trial.spread for trial in ran)) > _NOISY:
        console.say(
            f"The rounds of one candidate differ by {spread:.0%}: other load keeps this machine busy; "
            "tune when it is idle, or with more --seconds."
        )


def _to_json(trial: "Trial") -> dict[str, Any]:
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


def _cell(candidate: "Candidate", name: str) -> str:
    """A setting; of several models, where they differ, one after the other."""
    values = [settings[name] for settings in candidate.values()]
    shown = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return " / ".join(shown if len(set(shown)) > 1 else shown[:1])


def _hand_over(
    best: "Candidate", wanted: "ServiceSettings", config: Path | None, given: dict[str, Any]
) -> None:
    """Write the best settings into the file, or print the command that uses them."""
    from pdserve.tools.tune import config as config_file
    from pdserve.tools.tune.candidates import DEFAULTS, changes

    serve = f"pdserve serve {wanted.kind}"
    devices = max(len(model.devices) for model in wanted.models.values())
    if config:
        config_file.write(config, best, devices, wanted.kind)
        console.say(f"Written into {config}. Next: {serve} --config {config}")
        return
    named = (*SERVICES[wanted.kind].roles, "index", "gpu")
    options = [f"--{name} {given[name]}" for name in named if given.get(name) is not None]
    if any(len({values[name] for values in best.values()}) > 1 for name in DEFAULTS):
        console.say(f"Best, in a config.yml, for {' '.join([serve, *options])} --config FILE:")
        for text in config_file.snippet(best, devices, wanted.kind).rstrip().splitlines():
            console.say(text)
        return
    options += [
        f"--{name.replace('_', '-')} {_cell(best, name)}"
        for name, value in next(iter(best.values())).items()
        if value != DEFAULTS[name]
    ]
    if not changes(best):
        console.say("Nothing is better than the defaults.")
    console.say(f"Next: {' '.join([serve, *options])}")
