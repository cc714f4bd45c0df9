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
        o.Service | None, typer.Option("--service", help="Which to ask; the one that runs if not said.")
    ] = None,
    rpc: Annotated[bool, typer.Option("--rpc", help="Ask over gRPC instead of HTTP.")] = False,
    url: Annotated[
        str | None,
        typer.Option(
            "--url", help="http(s)://host:port, or (grpcs://)host:port with --rpc; this machine if not said."
        ),
    ] = None,
    api_key: o.ShownKeyOption = None,
    tls: o.TlsOption = False,
    ca: o.CaOption = None,
    top_k: o.TopKOption = None,
    as_json: o.Json = False,
    draw: Annotated[
        Path | None, typer.Option("--draw", metavar="DIR", help="Write the pictures with their labels.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=256, help="Images in flight.")] = 8,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.001, help="Seconds to wait for an answer.")
    ] = 60,
    local: Annotated[bool, typer.Option("--local", help="Run the model in this process; no server.")] = False,
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
    detector: o.DetectorOption = None,
    embedder: o.EmbedderOption = None,
    index: o.IndexOption = None,
    det_threshold: o.DetThresholdOption = None,
    max_det_results: o.MaxDetResultsOption = None,
    score_threshold: o.ScoreThresholdOption = None,
    nms_threshold: o.NmsThresholdOption = None,
) -> None:
    """Ask a running server about images; with --local, a model in this process."""
    given = dict(locals())
    from pdserve import predict as predicting
    from pdserve.clients.credentials import Access, key_to_send
    from pdserve.clients.discovery import find_service

    sources = predicting.find_sources(images)
    own = {name: given[name] for name in (*_MACHINE, *_CLASSIFICATION, *_RECOGNITION)}
    if local:
        if rpc or url or api_key or tls or ca:
            raise UsageError("--local asks no server; leave out --rpc, --url, --api-key, --tls and --ca.")
        kind = _local_kind(service, own)
        asked: Any = predicting.local(kind, o.as_settings(own | {"top_k": top_k}), os.environ, o.home())
    else:
        unfit = [name for name, value in own.items() if value not in (None, False)]
        if unfit:
            raise UsageError(
                f"--{unfit[0].replace('_', '-')} goes with --local; a server has its own settings."
            )
        access = Access(key_to_send(api_key, os.environ), tls, ca)
        kind = service.value if service else find_service(url, rpc, access)
        asked = predicting.remote(kind, url, rpc, timeout, top_k, access)
    if draw:
        from pdserve.vision.draw import load_font

        load_font()  # a wrong PDSERVE_FONT is reported now, not after a thousand answers
    what = "objects" if kind == "recognition" else "labels"
    bad = 0
    with asked as ask, console.image_bars(silent=len(sources) < 5) as bars:
        bars.start("predicting", len(sources), 0)
        for outcome in predicting.predict_all(sources, ask, jobs, what):
            bars.advance("predicting")
            picture = predicting.draw(outcome, draw) if draw else None
            bad += isinstance(outcome.answer, PdserveError)
            console.outcome(outcome, picture, as_json)
    raise typer.Exit(1 if bad else 0)


# Options that go with --local, by what they are for.
_MACHINE = ("gpu", "cpu", "engine", "threads")
_CLASSIFICATION = (
    "model", "labels", "threshold", "resize_short", "resize", "interpolation", "backend", "crop", "scale",
    "mean", "std", "channel_order",
)  # fmt: skip
_RECOGNITION = (
    "detector", "embedder", "index", "det_threshold", "max_det_results", "score_threshold", "nms_threshold",
)  # fmt: skip
_OF_KIND = {"classification": _CLASSIFICATION, "recognition": _RECOGNITION}


def _local_kind(service: o.Service | None, own: dict[str, Any]) -> str:
    """The service to be without a server: the one named, else the one that the options are of."""
    given = {kind: [name for name in names if own[name] is not None] for kind, names in _OF_KIND.items()}
    kind = service.value if service else next((kind for kind, names in given.items() if names), None)
    if kind is None or (kind == "classification" and own["model"] is None):
        raise UsageError("--local needs --model NAME, the model to run (or --service recognition).")
    for other, names in given.items():
        if other != kind and names:
            raise UsageError(f"--{names[0].replace('_', '-')} is for {other}, not for {kind}.")
    return kind
