"""Options that several commands share, each declared once, and what they mean as settings."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pdserve.errors import UsageError

if TYPE_CHECKING:
    from pdserve.home import Home


class Service(str, Enum):
    """The services there are."""

    classification = "classification"
    recognition = "recognition"


class Engine(str, Enum):
    """The engines there are."""

    auto = "auto"
    openvino = "openvino"
    paddle = "paddle"
    onnx = "onnx"


Json = Annotated[bool, typer.Option("--json", help="One JSON object per line on standard output.")]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME|DIR", help="A converted model's name, or a serving folder."),
]
EngineOption = Annotated[
    Engine | None,
    typer.Option("--engine", help="What runs the model; auto picks the best that is installed."),
]
GpuOption = Annotated[
    str | None,
    typer.Option("--gpu", metavar="IDS", help='GPU numbers, as in "0" or "0,1".', show_default=False),
]
CpuOption = Annotated[bool, typer.Option("--cpu", help="Run on the CPU, whatever the configuration says.")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads per instance.")]
LabelsOption = Annotated[
    Path | None,
    typer.Option("--labels", metavar="FILE", help="Label names, one a line, or class id and name."),
]
ResizeShortOption = Annotated[
    int | None, typer.Option("--resize-short", min=1, help="Resize the short side to this.")
]
ResizeOption = Annotated[
    str | None, typer.Option("--resize", metavar="W,H", help="Resize to this width and height.")
]
InterpolationOption = Annotated[
    str | None, typer.Option("--interpolation", help="nearest, bilinear, bicubic, area, lanczos.")
]
BackendOption = Annotated[str | None, typer.Option("--backend", help="The library that resizes: cv2 or pil.")]
CropOption = Annotated[
    int | None, typer.Option("--crop", min=1, help="Centre crop to a square of this side.")
]
ScaleOption = Annotated[str | None, typer.Option("--scale", help="Factor before the mean, as in 1/255.")]
MeanOption = Annotated[str | None, typer.Option("--mean", metavar="R,G,B", help="Mean per channel.")]
StdOption = Annotated[
    str | None, typer.Option("--std", metavar="R,G,B", help="Standard deviation per channel.")
]
ChannelOption = Annotated[str | None, typer.Option("--channel-order", help="rgb or bgr.")]
TopKOption = Annotated[int | None, typer.Option("--top-k", min=1, help="How many labels an image gets.")]
ThresholdOption = Annotated[
    float | None, typer.Option("--threshold", min=0, max=1, help="Score from which a label counts.")
]


DetectorOption = Annotated[
    str | None,
    typer.Option("--detector", metavar="NAME|DIR|none", help="The detector; none recognises whole images."),
]
EmbedderOption = Annotated[
    str | None, typer.Option("--embedder", metavar="NAME|DIR", help="The model that makes the features.")
]
IndexOption = Annotated[
    str | None, typer.Option("--index", metavar="NAME|DIR", help="The index of the gallery to search.")
]
DetThresholdOption = Annotated[
    float | None, typer.Option("--det-threshold", min=0, max=1, help="Score that a box needs; 0.2.")
]
MaxDetResultsOption = Annotated[
    int | None, typer.Option("--max-det-results", min=1, help="Boxes that are looked up, at most; 5.")
]
ScoreThresholdOption = Annotated[
    float | None, typer.Option("--score-threshold", help="Similarity that an answer needs; 0.5.")
]
NmsThresholdOption = Annotated[
    float | None,
    typer.Option("--nms-threshold", min=0, max=1, help="Overlap from which the less similar box goes; 0.05."),
]
NeighboursOption = Annotated[
    int | None, typer.Option("--top-k", min=1, help="Nearest gallery entries told for an object; 1.")
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="A config.yml in Paddle Serving's form.")
]
PrecisionOption = Annotated[str | None, typer.Option("--precision", help="fp32, fp16, bf16 or int8.")]
InstancesOption = Annotated[
    int | None, typer.Option("--instances", min=1, help="Engine instances per device.")
]
HostOption = Annotated[
    str | None, typer.Option("--host", help="Address to listen on; 127.0.0.1 if not said.")
]
HttpPortOption = Annotated[
    int | None,
    typer.Option(
        "--http-port", min=0, max=65535, help="HTTP port; the service's own if not said, 0 for any."
    ),
]
RpcPortOption = Annotated[
    int | None,
    typer.Option("--rpc-port", min=0, max=65535, help="gRPC port; the service's own if not said, 0 for any."),
]
MaxBatchSizeOption = Annotated[int | None, typer.Option("--max-batch-size", min=1, help="Images per batch.")]
MaxQueueDelayOption = Annotated[
    float | None,
    typer.Option("--max-queue-delay-ms", min=0, help="How long a batch waits to fill; 0: never."),
]
MaxQueueSizeOption = Annotated[
    int | None, typer.Option("--max-queue-size", min=1, help="Images that may wait.")
]
TimeoutMsOption = Annotated[int | None, typer.Option("--timeout-ms", min=1, help="Time limit of a request.")]
MaxBodyBytesOption = Annotated[int | None, typer.Option("--max-body-bytes", min=1, help="Limit of a body.")]
MaxPixelsOption = Annotated[int | None, typer.Option("--max-pixels", min=1, help="Limit of an image.")]
MaxImagesOption = Annotated[int | None, typer.Option("--max-images", min=1, help="Limit of a request.")]
GraceOption = Annotated[
    float | None, typer.Option("--grace-s", min=0, help="Seconds that running requests get at a stop.")
]
LogFileOption = Annotated[
    Path | None, typer.Option("--log-file", metavar="FILE", help="Log there too, rotating.")
]


def devices(gpu: str | None, cpu: bool) -> tuple[str, ...] | None:
    if gpu is not None and cpu:
        raise UsageError("--gpu and --cpu contradict each other; give one of them.")
    if cpu:
        return ("cpu",)
    if gpu is None:
        return None
    numbers = [part.strip() for part in gpu.split(",")]
    if not all(part.isdecimal() for part in numbers):
        raise UsageError(f'--gpu is {gpu!r}; give the GPUs\' numbers, as in "0" or "0,1".')
    return tuple(f"gpu:{int(part)}" for part in numbers)


def _numbers(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(","))


def as_settings(given: dict[str, Any]) -> dict[str, Any]:
    """A command's arguments as settings."""
    flags = {name: value.value if isinstance(value, Enum) else value for name, value in given.items()}
    for name in ("resize", "mean", "std"):
        if name in flags:
            flags[name] = _numbers(flags[name])
    flags["devices"] = devices(flags.pop("gpu"), flags.pop("cpu"))
    flags.pop("config", None)
    return flags


def home() -> "Home":
    """pdserve's home, by the environment."""
    import os

    from pdserve.home import Home

    return Home.from_environ(os.environ)
