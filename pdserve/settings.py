"""What a server is told: flags over environment over ``config.yml`` over defaults, frozen.

``config.yml`` is Paddle Serving's own (``worker_num``, ``http_port``, ``dag``, ``op``), plus one block
``pdserve:`` that Paddle Serving ignores; config_file.py reads it. The environment's names are
``PDSERVE_`` and the setting in capitals: ``PDSERVE_HTTP_PORT=8080``, ``PDSERVE_ENGINE=onnx``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pdserve.errors import SettingsError


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)


class ModelSettings(_Frozen):
    """How one model is run.

    ``devices``: "cpu", or "gpu:0" for each GPU; ``threads`` per instance, None for what the machine
    has; ``instances`` per device. ``ir_optim`` and ``use_mkldnn`` are Paddle's switches, None where
    nobody asked. Times are milliseconds; ``timeout_ms`` None means no limit.
    """

    model: str
    engine: str = "auto"
    devices: tuple[str, ...] = ("cpu",)
    threads: int | None = Field(default=None, ge=1)
    instances: int = Field(default=1, ge=1)
    precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    ir_optim: bool | None = None
    use_mkldnn: bool | None = None
    tensorrt: bool = False
    fetch_list: tuple[str, ...] = ()
    max_batch_size: int = Field(default=8, ge=1)
    max_queue_delay_ms: float = Field(default=0, ge=0)
    max_queue_size: int = Field(default=256, ge=1)
    timeout_ms: int | None = Field(default=None, ge=1)


class ResultSettings(_Frozen):
    """What goes in and comes out of a classifier, where its own description is not enough or wanted.

    The preprocessing fields are those of one usual chain: resize, crop, normalise.
    """

    resize_short: int | None = Field(default=None, ge=1)
    resize: tuple[int, int] | None = None  # width, height
    interpolation: str | None = None
    backend: Literal["cv2", "pil"] | None = None
    crop: int | None = Field(default=None, ge=1)
    scale: float | str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    channel_order: Literal["rgb", "bgr"] | None = None
    labels: Path | None = None
    top_k: int | None = Field(default=None, ge=1)
    threshold: float | None = Field(default=None, ge=0, le=1)
    postprocess: Mapping[str, Any] | None = None


class ServerSettings(_Frozen):
    """The doors. A port of None keeps that door shut, 0 takes any free one.

    ``name`` is the service's name in the pipeline protocol. Limits: ``max_body_bytes`` per request,
    ``max_pixels`` per image, ``max_images`` per request. ``grace_s``: how long a stopping server lets
    running requests finish, in seconds.
    """

    name: str
    host: str = Field(default="127.0.0.1", min_length=1)
    http_port: int | None = Field(default=None, ge=0, le=65535)
    rpc_port: int | None = Field(default=None, ge=0, le=65535)
    max_body_bytes: int = Field(default=256 * 1024 * 1024, ge=1)
    max_pixels: int = Field(default=64_000_000, ge=1)
    max_images: int = Field(default=64, ge=1)
    grace_s: float = Field(default=30, ge=0)
    log_file: Path | None = None


@dataclass(frozen=True)
class ClassificationSettings:
    """All of ``pdserve serve classification``. ``notes`` are said once at start."""

    server: ServerSettings
    model: ModelSettings
    results: ResultSettings
    base: Path = field(default_factory=Path)
    notes: tuple[str, ...] = ()


CLASSIFICATION_DEFAULTS: Mapping[str, Any] = {
    "name": "imagenet",
    "http_port": 18080,
    "rpc_port": 9993,
    "model": "ResNet50_vd",
}

_GROUPS: tuple[type[_Frozen], ...] = (ServerSettings, ModelSettings, ResultSettings)
_Group = TypeVar("_Group", bound=_Frozen)


def classification(
    flags: Mapping[str, Any], environ: Mapping[str, str], config: Path | None = None
) -> ClassificationSettings:
    """Settle the settings of a classification service.

    ``flags``: setting → value, None where the flag was not given. Raises SettingsError with the
    setting's name, where it came from and what was wrong with it.
    """
    from pdserve.config_file import read_config

    read = read_config(config) if config else None
    in_file = dict(read.settings) if read else {}
    in_environment = {
        name: _from_environment(name, environ[key])
        for group in _GROUPS
        for name in group.model_fields
        if environ.get(key := f"PDSERVE_{name.upper()}")  # empty is as good as not there
    }
    in_flags = {name: value for name, value in flags.items() if value is not None}
    if {**in_environment, **in_flags}.get("devices") == ("cpu",):
        in_file.pop("tensorrt", None)  # it goes with the file's GPU, which is put aside
    merged = {**CLASSIFICATION_DEFAULTS, **in_file, **in_environment, **in_flags}
    origin = {
        **dict.fromkeys(in_file, str(config)),
        **{name: f"PDSERVE_{name.upper()}" for name in in_environment},
        **{name: f"--{name.replace('_', '-')}" for name in in_flags},
    }
    server = _validated(ServerSettings, merged, origin)
    if server.http_port is None and server.rpc_port is None:
        raise SettingsError("http_port and rpc_port are both off, so nobody could ask; give one of them.")
    return ClassificationSettings(
        server,
        _validated(ModelSettings, merged, origin),
        _validated(ResultSettings, merged, origin),
        config.parent if config else Path(),
        read.notes if read else (),
    )


def _from_environment(name: str, text: str) -> Any:
    """Environment values are text; lists are written with commas, as in ``PDSERVE_MEAN=0.5,0.5,0.5``."""
    listed = name in ("devices", "fetch_list", "mean", "std", "resize")
    return tuple(part.strip() for part in text.split(",")) if listed else text


def _validated(group: type[_Group], merged: Mapping[str, Any], origin: Mapping[str, str]) -> _Group:
    try:
        return group(**{name: value for name, value in merged.items() if name in group.model_fields})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise SettingsError(
            f"{origin.get(name, name)}: {name} is {first['input']!r}: {first['msg']}."
        ) from error
