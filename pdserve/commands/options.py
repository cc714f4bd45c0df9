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
        flags[name] = _numbers(flags[name])
    flags["devices"] = devices(flags.pop("gpu"), flags.pop("cpu"))
    flags.pop("config", None)
    return flags


def home() -> "Home":
    """pdserve's home, by the environment."""
    import os

    from pdserve.home import Home

    return Home.from_environ(os.environ)
