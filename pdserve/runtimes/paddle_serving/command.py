"""``pdserve export paddle-serving`` and ``pdserve runtime install paddle-serving``."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pdserve import console
from pdserve.commands import options as o

export_app = typer.Typer(
    name="export", help="Write a service for another runtime.", no_args_is_help=True, rich_markup_mode=None
)
runtime_app = typer.Typer(
    name="runtime", help="Install other runtimes.", no_args_is_help=True, rich_markup_mode=None
)


class Installable(StrEnum):
    """What can be installed."""

    paddle_serving = "paddle-serving"


@export_app.callback()
def export() -> None:
    """Write a service for another runtime."""


@export_app.command("paddle-serving")
def export_paddle_serving(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write.")],
    service: Annotated[
        o.Service, typer.Option("--service", help="Which service.")
    ] = o.Service.classification,
    config: o.ConfigOption = None,
    model: o.ModelOption = None,
    gpu: o.GpuOption = None,
    cpu: o.CpuOption = False,
    precision: o.PrecisionOption = None,
    threads: o.ThreadsOption = None,
    instances: o.InstancesOption = None,
    http_port: o.HttpPortOption = None,
    rpc_port: o.RpcPortOption = None,
    max_batch_size: o.MaxBatchSizeOption = None,
    max_queue_delay_ms: o.MaxQueueDelayOption = None,
    timeout_ms: o.TimeoutMsOption = None,
    labels: o.LabelsOption = None,
    threshold: o.ThresholdOption = None,
    resize_short: o.ResizeShortOption = None,
    resize: o.ResizeOption = None,
    interpolation: o.InterpolationOption = None,
    backend: o.BackendOption = None,
    crop: o.CropOption = None,
    scale: o.ScaleOption = None,
    mean: o.MeanOption = None,
    std: o.StdOption = None,
    channel_order: o.ChannelOption = None,
    detector: o.DetectorOption = None,
    embedder: o.EmbedderOption = None,
    index: o.IndexOption = None,
    det_threshold: o.DetThresholdOption = None,
    max_det_results: o.MaxDetResultsOption = None,
    score_threshold: o.ScoreThresholdOption = None,
    nms_threshold: o.NmsThresholdOption = None,
    as_json: o.Json = False,
) -> None:
    """Write the folder of a service for Paddle Serving: models, config.yml, service script, labels, index.

    It is self-contained, to be copied to a machine or into a container that has Paddle Serving.
    """
    flags = dict(locals())
    from pdserve.pipelines import SERVICES
    from pdserve.runtimes.paddle_serving.work_folder import export

    options = {name: flags[name] for name in flags if name not in ("out", "service", "as_json")}
    given = o.service_flags(options, service.value)
    made = export(SERVICES[service.value].settings(given, os.environ, config), o.home(), out)
    for note in made.notes:
        console.say(f"Note: {note}.")
    if as_json:
        console.json_line({"path": str(made.path), "service": made.kind, "script": made.script})
    else:
        console.line(f"{made.kind}: {made.path}")
        console.say(f"Next: copy it to where Paddle Serving is and type `python3 {made.script}` in there.")


@runtime_app.callback()
def runtime() -> None:
    """Install other runtimes."""


@runtime_app.command("install")
def install(
    name: Annotated[Installable, typer.Argument(help="The runtime.")],
    python: Annotated[
        Path | None,
        typer.Option("--python", metavar="PATH", help="A Python 3.8 or 3.9; default: one that is found."),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Make a Python environment with Paddle Serving, from your package index, for --runtime paddle-serving.

    It is checked by serving a tiny model, and replaces an installed one only when that succeeded.
    """
    from pdserve.runtimes.paddle_serving.install import install

    with console.download_bars() as progress:
        made = install(o.home(), python, os.environ, progress)
    if as_json:
        console.json_line(
            {"name": name.value, "python": str(made.path), "version": made.python, "packages": made.versions}
        )
    else:
        console.line(f"{name.value}: installed, {made}")
        console.say(f"Next: pdserve serve classification --runtime {name.value}")
