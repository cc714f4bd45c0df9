"""``pdserve tune``: the settings that serve a model best on this machine."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pdserve import console
from pdserve.commands import options as o
from pdserve.errors import UsageError
from pdserve.tools.tune import reports

if TYPE_CHECKING:
    from pdserve.tools.tune import Goal, Tuning
    from pdserve.tools.tune.candidates import Candidate, Settings

_LIMIT_BYTES = 64 << 20  # of images that are read


def tune(
    images: Annotated[
        list[str] | None,
        typer.Option("--images", metavar="DIR|FILE", help="Your images. Default: a synthetic photograph."),
    ] = None,
    service: Annotated[
        o.Service, typer.Option("--service", help="The service that is to run.")
    ] = o.Service.classification,
    model: o.ModelOption = None,
    detector: o.DetectorOption = None,
    embedder: o.EmbedderOption = None,
    index: o.IndexOption = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="A config.yml; the winner is written into it."),
    ] = None,
    throughput: Annotated[
        bool, typer.Option("--throughput", help="Most images per second; the goal if not said.")
    ] = False,
    p99: Annotated[
        float | None,
        typer.Option("--p99", metavar="MS", min=0, help="Most images per second within this latency."),
    ] = None,
    clients: Annotated[int, typer.Option("--clients", min=1, help="How many ask at once.")] = 8,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="For each measurement.")] = 3,
    gpu: o.GpuOption = None,
    cpu: o.CpuOption = False,
    engine: Annotated[o.Engine | None, typer.Option("--engine", help="Try no other.")] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="Try no other: fp32, fp16, bf16 or int8.")
    ] = None,
    labels: o.LabelsOption = None,
    resize_short: o.ResizeShortOption = None,
    resize: o.ResizeOption = None,
    interpolation: o.InterpolationOption = None,
    backend: o.BackendOption = None,
    crop: o.CropOption = None,
    scale: o.ScaleOption = None,
    mean: o.MeanOption = None,
    std: o.StdOption = None,
    channel_order: o.ChannelOption = None,
    as_json: o.Json = False,
) -> None:
    """Try engines, precisions, instances, threads, batches and delays, and tell which serve best.

    With --config the winning settings are written into that file, else printed as what to type. A precision
    is tried once `pdserve optimize` has made or compared it. Ctrl-C tells what was found until then.
    """
    given = dict(locals())
    if throughput and p99 is not None:
        raise UsageError("--throughput and --p99 are two goals; give one of them.")
    _check_options(given, service)
    if config and not config.is_file():
        raise UsageError(f"There is no file {config}; give a config.yml, as in configs/.")
    from pdserve import settings
    from pdserve.tools import tune as tuning
    from pdserve.tools.tune import config as file

    if config:
        file.check(config)
    asked = (*_SERVICE_OPTIONS[service], "gpu", "cpu", "engine", "precision")
    flags = o.as_settings({name: given[name] for name in asked})
    fixed = {name: flags[name] for name in ("engine", "precision") if flags[name] not in (None, "auto")}
    wanted: Settings = getattr(settings, service.value)(flags, os.environ, config)
    goal = tuning.Goal(p99)
    effort = tuning.Effort(clients, seconds)
    pictures = _images(images)
    count, lasts = tuning.estimate(wanted, fixed, effort)
    console.say(
        f"Up to {count} measurements of {seconds:g} s with {clients} clients, "
        f"some {reports.duration(lasts)}; what else keeps this machine busy is measured, too."
    )
    outcome = tuning.tune(
        wanted,
        o.home(),
        pictures,
        goal,
        fixed=fixed,
        effort=effort,
        on_trial=reports.Progress(count).say,
    )
    reports.tell(outcome, as_json)
    if outcome.best is None:
        raise typer.Exit(_without_winner(outcome, goal, clients))
    _hand_over(outcome.best.candidate, wanted, service, given)


_PREPROCESSING = (
    "labels", "resize_short", "resize", "interpolation", "backend", "crop", "scale", "mean", "std",
    "channel_order",
)  # fmt: skip
_SERVICE_OPTIONS = {
    o.Service.classification: ("model", *_PREPROCESSING),
    o.Service.recognition: ("detector", "embedder", "index"),
}


def _check_options(given: dict[str, Any], service: o.Service) -> None:
    for other, names in _SERVICE_OPTIONS.items():
        wrong = [name for name in names if given[name] is not None]
        if other is not service and wrong:
            option = wrong[0].replace("_", "-")
            raise UsageError(f"--{option} is for --service {other.value}; add that, or leave it out.")


def _images(named: list[str] | None) -> list[bytes]:
    """The images, but for those that cannot be read, which are told."""
    from pdserve.errors import ImageError
    from pdserve.predict import find_sources
    from pdserve.tools.bench.targets import synthetic_photograph
    from pdserve.vision.decode import decode

    if not named:
        console.say("With a synthetic photograph of 640×480; your own, with --images, tell more.")
        return [synthetic_photograph()]
    found: list[bytes] = []
    left = _LIMIT_BYTES
    for source in find_sources(named):
        try:
            data = source.read()
            decode(data)
        except ImageError as error:
            console.say(f"skipped {source.name}: {error.message}")
            continue
        left -= len(data)
        if found and left < 0:
            console.say(f"With the first {len(found)} images: more would not fit in memory.")
            break
        found.append(data)
    if not found:
        raise UsageError(
            f"There is no image that can be read in {', '.join(named)}; give others with --images."
        )
    return found


def _without_winner(outcome: "Tuning", goal: "Goal", clients: int) -> int:
    """Say why, and the exit code."""
    if outcome.interrupted:
        console.say("Stopped; nothing is decided, and nothing written.")
        return 1
    nearest = min((t for t in outcome.trials if t.rounds), key=lambda trial: trial.p99_ms)
    raise UsageError(
        f"Nothing keeps a p99 of {goal.p99_ms:g} ms with {clients} clients, {nearest.p99_ms:.1f} ms came "
        "nearest; give more with --p99, or fewer --clients."
    )


def _hand_over(best: "Candidate", wanted: "Settings", service: o.Service, given: dict[str, Any]) -> None:
    """Write the winner into the file, or say what to type."""
    from pdserve.tools.tune import config as file
    from pdserve.tools.tune.candidates import DEFAULTS, changes, models

    serve = f"pdserve serve {service.value}"
    devices = max(len(model.devices) for model in models(wanted).values())
    if given["config"]:
        file.write(given["config"], best, devices)
        console.say(f"Written into {given['config']}. Next: {serve} --config {given['config']}")
        return
    named = ("model", "detector", "embedder", "index", "gpu")
    options = [f"--{name} {given[name]}" for name in named if given[name] is not None]
    different = {name for name in DEFAULTS if len({values[name] for values in best.values()}) > 1}
    if different:
        console.say(f"Best, in a config.yml, for {' '.join([serve, *options])} --config FILE:")
        console.say(file.snippet(best, devices).rstrip())
        return
    shared = next(iter(best.values()))
    options += [
        f"--{name.replace('_', '-')} {reports.cell(best, name)}"
        for name, value in shared.items()
        if value != DEFAULTS[name]
    ]
    if not changes(best):
        console.say("Nothing is better than the defaults.")
    console.say(f"Next: {' '.join([serve, *options])}")
