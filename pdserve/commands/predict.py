"""``pdserve predict``: ask a server, or a model in this process, about images."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from pdserve import console
from pdserve.commands import options as o
from pdserve.errors import PdserveError, UsageError


def predict(
    images: Annotated[
        list[str], typer.Argument(metavar="PATH|URL|DIR|-…", help="Images; - is standard input.")
    ],
    service: Annotated[
        o.Service, typer.Option("--service", help="Which service to ask.")
    ] = o.Service.classification,
    rpc: Annotated[bool, typer.Option("--rpc", help="Ask over gRPC instead of HTTP.")] = False,
    url: Annotated[
        str | None,
        typer.Option("--url", help="http://host:port, or host:port with --rpc; this machine if not said."),
    ] = None,
    top_k: o.TopKOption = None,
    as_json: o.Json = False,
    draw: Annotated[
        Path | None, typer.Option("--draw", metavar="DIR", help="Write the pictures with their labels.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=256, help="Images in flight.")] = 8,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.001, help="Seconds to wait for an answer.")
    ] = 60,
    local: Annotated[bool, typer.Option("--local", help="Run --model in this process; no server.")] = False,
    model: o.ModelOption = None,
    gpu: o.GpuOption = None,
    cpu: o.CpuOption = False,
    engine: o.EngineOption = None,
    threads: o.ThreadsOption = None,
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
) -> None:
    """Ask a running server about images; with --local, a model in this process."""
    given = dict(locals())
    from pdserve import predict as predicting

    sources = predicting.find_sources(images)
    own = {k: given[k] for k in _LOCAL_ONLY}
    if not local:
        unfit = [name for name, value in own.items() if value not in (None, False)]
        if unfit:
            raise UsageError(
                f"--{unfit[0].replace('_', '-')} goes with --local; a server has its own settings."
            )
        asked: Any = predicting.remote(service.value, url, rpc, timeout, top_k)
    elif rpc or url:
        raise UsageError("--local asks no server; leave out --rpc and --url.")
    elif not model:
        raise UsageError("--local needs --model NAME, the model to run.")
    else:
        asked = predicting.local(o.as_settings(own | {"top_k": top_k}), os.environ, o.home())
    bad = 0
    with asked as ask, console.counted("predicting", len(sources)) as bar:
        for outcome in predicting.predict_all(sources, ask, jobs):
            bar.step()
            picture = predicting.draw(outcome, draw) if draw else None
            bad += isinstance(outcome.answer, PdserveError)
            console.outcome(outcome, picture, as_json)
    raise typer.Exit(1 if bad else 0)


_LOCAL_ONLY = (
    "model", "gpu", "cpu", "engine", "threads", "labels", "threshold", "resize_short", "resize",
    "interpolation", "backend", "crop", "scale", "mean", "std", "channel_order",
)  # fmt: skip
