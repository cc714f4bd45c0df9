"""Options that several commands share, each declared once, and what they mean as settings."""

from collections.abc import Callable, Mapping
from enum import Enum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pdserve.commands.runtimes import RUNTIMES
from pdserve.errors import UsageError

if TYPE_CHECKING:
    from pdserve.models.home import Home


class Service(StrEnum):
    """The services there are."""

    classification = "classification"
    recognition = "recognition"


class Engine(StrEnum):
    """The engines there are."""

    auto = "auto"
    openvino = "openvino"
    paddle = "paddle"
    onnx = "onnx"


def one_of(*names: str) -> Callable[[str], str]:
    """A parser that takes one of some names, as of a table."""

    def parse(text: str) -> str:
        if text not in names:
            raise typer.BadParameter(f"{text!r} is not one of {', '.join(names)}.")
        return text

    return parse


def _count(text: str) -> int | str:
    """A number of something, or auto: what suits the machine."""
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is neither auto nor a whole number above 0.")
    return int(text)


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
ThreadsOption = Annotated[
    Any, typer.Option("--threads", parser=_count, metavar="N|auto", help="CPU threads per instance.")
]
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
    Any, typer.Option("--instances", parser=_count, metavar="N|auto", help="Engine instances per device.")
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
MaxBatchSizeOption = Annotated[
    Any, typer.Option("--max-batch-size", parser=_count, metavar="N|auto", help="Images per batch.")
]
MaxQueueDelayOption = Annotated[
    float | None,
    typer.Option("--max-queue-delay-ms", min=0, help="How long a batch waits to fill; 0: never."),
]
MaxQueueSizeOption = Annotated[
    int | None, typer.Option("--max-queue-size", min=1, help="Images that may wait.")
]
TimeoutMsOption = Annotated[int | None, typer.Option("--timeout-ms", min=1, help="Time limit of a request.")]
MaxBodyBytesOption = Annotated[int | None, typer.Option("--max-body-bytes", min=1, help="Limit of a body.")]
MaxPartBytesOption = Annotated[
    int | None, typer.Option("--max-part-bytes", min=1, help="Limit of a part of a form.")
]
MaxPixelsOption = Annotated[int | None, typer.Option("--max-pixels", min=1, help="Limit of an image.")]
MaxImagesOption = Annotated[int | None, typer.Option("--max-images", min=1, help="Limit of a request.")]
GraceOption = Annotated[
    float | None,
    typer.Option("--grace", "--grace-s", min=0, help="Seconds that running requests get at a stop."),
]
HangOption = Annotated[
    float | None,
    typer.Option("--hang-s", min=0.001, help="Seconds after which an engine's run counts as hung; 60."),
]
ApiKeyOption = Annotated[
    Path | None,
    typer.Option(
        "--api-key",
        metavar="FILE",
        help="A file of keys, one a line, of which callers must show one; or one in PDSERVE_API_KEY.",
    ),
]
TlsCertOption = Annotated[
    Path | None, typer.Option("--tls-cert", metavar="FILE", help="The certificate (PEM), for TLS.")
]
TlsKeyOption = Annotated[
    Path | None, typer.Option("--tls-key", metavar="FILE", help="Its private key (PEM).")
]
CorsOption = Annotated[
    list[str] | None,
    typer.Option("--cors-origin", metavar="ORIGIN", help="Web page that may ask from a browser; * for any."),
]
MaxHeaderBytesOption = Annotated[
    int | None, typer.Option("--max-header-bytes", min=1024, help="Limit of a request's head; 32768.")
]
HeaderTimeoutOption = Annotated[
    float | None, typer.Option("--header-timeout-s", min=0.001, help="Seconds for a request's head; 10.")
]
BodyTimeoutOption = Annotated[
    float | None,
    typer.Option("--body-timeout-s", min=0.001, help="Seconds that a body may stand still; 30."),
]
KeepAliveOption = Annotated[
    float | None,
    typer.Option("--keep-alive-s", min=0.001, help="Seconds that an idle connection is kept; 75."),
]


RuntimeOption = Annotated[
    str,
    typer.Option(
        "--runtime",
        parser=one_of("native", *RUNTIMES),
        metavar="|".join(("native", *RUNTIMES)),
        help="native: pdserve's own" + "".join(f"; {name}: {each.help}" for name, each in RUNTIMES.items()),
    ),
]
PythonOption = Annotated[
    Path | None,
    typer.Option("--python", metavar="PATH", help="The Python that has Paddle Serving, for that runtime."),
]


class LogFormat(StrEnum):
    """How the log is written."""

    text = "text"
    json = "json"


LogFormatOption = Annotated[LogFormat | None, typer.Option("--log-format", help="Lines of text, or of JSON.")]
PrometheusPortOption = Annotated[
    int | None,
    typer.Option("--prometheus-port", min=0, max=65535, help="Serve /metrics there, without a key, too."),
]
LogFileOption = Annotated[
    Path | None, typer.Option("--log-file", metavar="FILE", help="Log there too, rotating.")
]
ShownKeyOption = Annotated[
    Path | None,
    typer.Option(
        "--api-key",
        metavar="FILE",
        help="A file whose first line is the key to show; else the one in PDSERVE_API_KEY.",
    ),
]
TlsOption = Annotated[bool, typer.Option("--tls", help="Ask over TLS; https:// in --url says so, too.")]
CaOption = Annotated[
    Path | None,
    typer.Option("--ca", metavar="FILE", help="A private authority's certificate (PEM); asks over TLS."),
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
    flags["api_key_file"] = flags.pop("api_key", None)
    if flags.get("cors_origin"):
        flags["cors_origins"] = tuple(flags["cors_origin"])
    flags.pop("cors_origin", None)
    for name in ("config", "runtime", "python"):  # which are not of a service
        flags.pop(name, None)
    return flags


def service_flags(given: Mapping[str, Any], service: str) -> dict[str, Any]:
    """A command's arguments as flags for the settings of a service.

    Raises UsageError for an option that only another service has.
    """
    from pdserve.pipelines import SERVICES

    names = {kind: {*entry.roles, *entry.options_type().model_fields} for kind, entry in SERVICES.items()}
    own = {}
    for name, value in given.items():
        kinds = [kind for kind in SERVICES if name in names[kind]]
        if not kinds or service in kinds:
            own[name] = value
        elif value is not None:
            raise UsageError(f"--{name.replace('_', '-')} goes with --service {kinds[0]}.")
    return as_settings(own)


def home() -> "Home":
    """pdserve's home, by the environment."""
    import os

    from pdserve.models.home import Home

    return Home.from_environ(os.environ)
