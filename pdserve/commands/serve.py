"""``pdserve serve``: one command per service."""

import os
from pathlib import Path
from typing import Annotated

import typer

from pdserve.commands import options as o

serve_app = typer.Typer(name="serve", help="Start a server.", no_args_is_help=True, rich_markup_mode=None)


@serve_app.command("classification")
def serve_classification(
    model: o.ModelOption = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="A config.yml in Paddle Serving's form.")
    ] = None,
    gpu: o.GpuOption = None,
    cpu: o.CpuOption = False,
    engine: o.EngineOption = None,
    precision: Annotated[str | None, typer.Option("--precision", help="fp32, fp16, bf16 or int8.")] = None,
    threads: o.ThreadsOption = None,
    instances: Annotated[
        int | None, typer.Option("--instances", min=1, help="Engine instances per device.")
    ] = None,
    host: Annotated[
        str | None, typer.Option("--host", help="Address to listen on; 127.0.0.1 if not said.")
    ] = None,
    http_port: Annotated[
        int | None,
        typer.Option("--http-port", min=0, max=65535, help="HTTP port; 18080 if not said, 0 for any."),
    ] = None,
    rpc_port: Annotated[
        int | None,
        typer.Option("--rpc-port", min=0, max=65535, help="gRPC port; 9993 if not said, 0 for any."),
    ] = None,
    max_batch_size: Annotated[
        int | None, typer.Option("--max-batch-size", min=1, help="Images per batch.")
    ] = None,
    max_queue_delay_ms: Annotated[
        float | None,
        typer.Option("--max-queue-delay-ms", min=0, help="How long a batch waits to fill; 0: never."),
    ] = None,
    max_queue_size: Annotated[
        int | None, typer.Option("--max-queue-size", min=1, help="Images that may wait.")
    ] = None,
    timeout_ms: Annotated[
        int | None, typer.Option("--timeout-ms", min=1, help="Time limit of a request.")
    ] = None,
    max_body_bytes: Annotated[
        int | None, typer.Option("--max-body-bytes", min=1, help="Limit of a body.")
    ] = None,
    max_pixels: Annotated[int | None, typer.Option("--max-pixels", min=1, help="Limit of an image.")] = None,
    max_images: Annotated[int | None, typer.Option("--max-images", min=1, help="Limit of a request.")] = None,
    grace_s: Annotated[
        float | None, typer.Option("--grace-s", min=0, help="Seconds that running requests get at a stop.")
    ] = None,
    log_file: Annotated[
        Path | None, typer.Option("--log-file", metavar="FILE", help="Log there too, rotating.")
    ] = None,
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
    from pdserve import settings
    from pdserve.services.server import serve_classification as serve

    serve(settings.classification(o.as_settings(flags), os.environ, config), o.home())
