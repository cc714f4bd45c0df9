"""``pdserve export paddle-serving``: the folder of a service, for a machine that has Paddle Serving."""

import os
from pathlib import Path
from typing import Annotated

import typer

from pdserve import console
from pdserve.commands import options as o


def export(
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
    from pdserve.runtimes.paddle_serving import work_folder

    options = {name: flags[name] for name in flags if name not in ("out", "service", "as_json")}
    given = o.service_flags(options, service.value)
    made = work_folder.export(SERVICES[service.value].settings(given, os.environ, config), o.home(), out)
    for note in made.notes:
        console.say(f"Note: {note}.")
    if as_json:
        console.json_line({"path": str(made.path), "service": made.kind, "script": made.script})
    else:
        console.line(f"{made.kind}: {made.path}")
        console.say(f"Next: copy it to where Paddle Serving is and type `python3 {made.script}` in there.")
