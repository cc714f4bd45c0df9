"""``pdserve tune``: the settings that serve a model best on this machine."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pdserve import console
from pdserve.commands import options as o
from pdserve.errors import UsageError

if TYPE_CHECKING:
    from pdserve.settings import ClassificationSettings, RecognitionSettings
    from pdserve.tune import Trial

_LIMIT_BYTES = 256 << 20  # of images that are read


def tune(
    images: Annotated[
        list[str] | None,
        typer.Option("--images", metavar="DIR|FILE", help="Your images; a made-up photograph if not said."),
    ] = None,
    service: Annotated[
        o.Service, typer.Option("--service", help="The service that is to run.")
    ] = o.Service.classification,
    model: o.ModelOption = None,
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
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="For each candidate.")] = 3,
    gpu: o.GpuOption = None,
    cpu: o.CpuOption = False,
    as_json: o.Json = False,
) -> None:
    """Try engines, precisions, instances, threads, batches and delays, and tell which serve best.

    With --config the winning settings are written into the file's block pdserve:.
    """
    if throughput and p99 is not None:
        raise UsageError("--throughput and --p99 are two goals; give one of them.")
    if model and service is o.Service.recognition:
        raise UsageError("--model is for classification; name recognition's models in --config.")
    if config and not config.is_file():
        raise UsageError(f"There is no file {config}; give a config.yml, as in configs/.")
    from pdserve import settings
    from pdserve import tune as tuning
    from pdserve.bench.pictures import made_up_photograph, read_images

    said = o.as_settings({"model": model, "gpu": gpu, "cpu": cpu})

    def settle(wanted: Mapping[str, Any]) -> "ClassificationSettings | RecognitionSettings":
        make = getattr(settings, service.value)
        found: ClassificationSettings | RecognitionSettings = make(said | dict(wanted), os.environ, config)
        return found

    given = read_images(images, _LIMIT_BYTES)[0] if images else [made_up_photograph()]
    if not images:
        console.say("With a made-up photograph of 640×480; your own, with --images, tell more.")
    outcome = tuning.tune(
        settle,
        o.home(),
        given,
        tuning.Goal(p99),
        clients=clients,
        seconds=seconds,
        on_trial=lambda trial: console.say(_line(trial)),
    )
    if as_json:
        for trial in outcome.trials:
            console.json_line(_described(trial) | {"best": trial is outcome.best})
    else:
        ran = sorted((t for t in outcome.trials if t.refused is None), key=lambda t: -t.images_per_s)
        rows = [[*map(str, _cells(t)), t.images_per_s, t.p50_ms, t.p99_ms] for t in ran]
        console.table((*tuning.NAMES, "images/s", "p50 ms", "p99 ms"), rows, digits=1)
    if outcome.best is None:
        raise UsageError(
            f"Nothing keeps a p99 of {p99:g} ms with {clients} clients; give more, or fewer clients."
        )
    if config:
        tuning.write(config, outcome.best)
        console.say(f"written into {config}")
    console.say("best: " + " ".join(f"--{k.replace('_', '-')} {v}" for k, v in outcome.best.settings.items()))


def _cells(trial: "Trial") -> list[Any]:
    from pdserve.tune import NAMES

    return [trial.settings.get(name, "auto") for name in NAMES]


def _described(trial: "Trial") -> dict[str, Any]:
    if trial.refused is not None:
        return {"settings": dict(trial.settings), "refused": trial.refused}
    return {
        "settings": dict(trial.settings),
        "images_per_s": round(trial.images_per_s, 2),
        "p50_ms": round(trial.p50_ms, 2),
        "p99_ms": round(trial.p99_ms, 2),
    }


def _line(trial: "Trial") -> str:
    what = " ".join(f"{name}={value}" for name, value in trial.settings.items())
    if trial.refused is not None:
        return f"{what}: not here: {trial.refused}"
    return f"{what}: {trial.images_per_s:.1f} images/s, p99 {trial.p99_ms:.0f} ms"
