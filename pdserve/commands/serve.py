"""``pdserve serve``: one command per service."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from pdserve.commands import options as o
from pdserve.commands.runtimes import RUNTIMES, load
from pdserve.errors import UsageError
from pdserve.pipelines import SERVICES

serve_app = typer.Typer(name="serve", help="Start a server.", no_args_is_help=True, rich_markup_mode=None)


@serve_app.command("classification")
def serve_classification(
    model: o.ModelOption = None,
    config: o.ConfigOption = None,
    runtime: o.RuntimeOption = "native",
    python: o.PythonOption = None,
    gpu: o.GpuOption = None,
    cpu: o.CpuOption = False,
    engine: o.EngineOption = None,
    precision: o.PrecisionOption = None,
    threads: o.ThreadsOption = None,
    instances: o.InstancesOption = None,
    host: o.HostOption = None,
    http_port: o.HttpPortOption = None,
    rpc_port: o.RpcPortOption = None,
    max_batch_size: o.MaxBatchSizeOption = None,
    max_queue_delay_ms: o.MaxQueueDelayOption = None,
    max_queue_size: o.MaxQueueSizeOption = None,
    timeout_ms: o.TimeoutMsOption = None,
    max_body_bytes: o.MaxBodyBytesOption = None,
    max_part_bytes: o.MaxPartBytesOption = None,
    max_pixels: o.MaxPixelsOption = None,
    max_images: o.MaxImagesOption = None,
    max_header_bytes: o.MaxHeaderBytesOption = None,
    header_timeout_s: o.HeaderTimeoutOption = None,
    body_timeout_s: o.BodyTimeoutOption = None,
    keep_alive_s: o.KeepAliveOption = None,
    hang_s: o.HangOption = None,
    grace_s: o.GraceOption = None,
    api_key: o.ApiKeyOption = None,
    tls_cert: o.TlsCertOption = None,
    tls_key: o.TlsKeyOption = None,
    cors_origin: o.CorsOption = None,
    prometheus_port: o.PrometheusPortOption = None,
    log_file: o.LogFileOption = None,
    log_format: o.LogFormatOption = None,
    labels: o.LabelsOption = None,
    top_k: o.TopKOption = None,
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
    """Serve image classification over HTTP and gRPC.

    Settings come from the options, else from PDSERVE_… in the environment (PDSERVE_HTTP_PORT=8080),
    else from the configuration file, else from defaults.
    """
    flags = dict(locals())

    given = o.as_settings(flags)
    _serve(
        "classification",
        lambda: SERVICES["classification"].settings(given, os.environ, config),
        runtime,
        python,
    )


@serve_app.command("recognition")
def serve_recognition(
    detector: o.DetectorOption = None,
    embedder: o.EmbedderOption = None,
    index: o.IndexOption = None,
    config: o.ConfigOption = None,
    runtime: o.RuntimeOption = "native",
    python: o.PythonOption = None,
    gpu: o.GpuOption = None,
    cpu: o.CpuOption = False,
    engine: o.EngineOption = None,
    precision: o.PrecisionOption = None,
    threads: o.ThreadsOption = None,
    instances: o.InstancesOption = None,
    host: o.HostOption = None,
    http_port: o.HttpPortOption = None,
    rpc_port: o.RpcPortOption = None,
    max_batch_size: o.MaxBatchSizeOption = None,
    max_queue_delay_ms: o.MaxQueueDelayOption = None,
    max_queue_size: o.MaxQueueSizeOption = None,
    timeout_ms: o.TimeoutMsOption = None,
    max_body_bytes: o.MaxBodyBytesOption = None,
    max_part_bytes: o.MaxPartBytesOption = None,
    max_pixels: o.MaxPixelsOption = None,
    max_images: o.MaxImagesOption = None,
    max_header_bytes: o.MaxHeaderBytesOption = None,
    header_timeout_s: o.HeaderTimeoutOption = None,
    body_timeout_s: o.BodyTimeoutOption = None,
    keep_alive_s: o.KeepAliveOption = None,
    hang_s: o.HangOption = None,
    grace_s: o.GraceOption = None,
    api_key: o.ApiKeyOption = None,
    tls_cert: o.TlsCertOption = None,
    tls_key: o.TlsKeyOption = None,
    cors_origin: o.CorsOption = None,
    prometheus_port: o.PrometheusPortOption = None,
    log_file: o.LogFileOption = None,
    log_format: o.LogFormatOption = None,
    det_threshold: o.DetThresholdOption = None,
    max_det_results: o.MaxDetResultsOption = None,
    score_threshold: o.ScoreThresholdOption = None,
    nms_threshold: o.NmsThresholdOption = None,
    top_k: o.NeighboursOption = None,
    gallery_writes: Annotated[
        bool | None, typer.Option("--gallery-writes", help="Let callers change the gallery over HTTP.")
    ] = None,
) -> None:
    """Serve image recognition (PP-ShiTu: detect, embed, look up in an index) over HTTP and gRPC.

    Settings come from the options, else from PDSERVE_… in the environment (PDSERVE_INDEX=drinks),
    else from the configuration file, else from defaults.
    """
    flags = dict(locals())

    given = o.as_settings(flags)
    _serve(
        "recognition", lambda: SERVICES["recognition"].settings(given, os.environ, config), runtime, python
    )


def _serve(kind: str, settle: Callable[[], Any], runtime: str, python: Path | None) -> None:
    if other := RUNTIMES.get(runtime):
        load(other.serve)(settle(), o.home(), python, os.environ)
        return
    if python:
        raise UsageError("--python goes with --runtime paddle-serving; pdserve's own runtime is this Python.")
    from pdserve.services import server

    server.serve(SERVICES[kind], settle, o.home())
