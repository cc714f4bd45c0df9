"""The settings of a service: flags over environment over ``config.yml`` over defaults, frozen.

``config.yml`` is Paddle Serving's own (``worker_num``, ``http_port``, ``dag``, ``op``), plus one block
``pdserve:`` that Paddle Serving ignores; config_yml.py reads it. The environment's names are
``PDSERVE_`` and the setting in capitals: ``PDSERVE_HTTP_PORT=8080``, ``PDSERVE_ENGINE=onnx``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from pdserve.errors import SettingsError


class SettingsGroup(BaseModel):
    """A group of settings, frozen; a service's own options are one. Refuses names that it does not have."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)


Auto = Literal["auto"]
_AtLeastOne = Annotated[int, Field(ge=1)]


class ModelSettings(SettingsGroup):
    """How one model is run.

    ``devices``: "cpu", or "gpu:0" for each GPU; ``threads`` per instance; ``instances`` per device.
    "auto" is what suits device and engine. ``ir_optim`` and ``use_mkldnn`` are Paddle's switches, None
    where nobody asked. Times are milliseconds; ``timeout_ms`` None means no limit. An engine that takes
    longer than ``hang_s`` seconds over a batch counts as hung.
    """

    model: str
    engine: str = "auto"
    devices: tuple[str, ...] = ("cpu",)
    threads: _AtLeastOne | Auto = "auto"
    instances: _AtLeastOne | Auto = "auto"
    precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    ir_optim: bool | None = None
    use_mkldnn: bool | None = None
    tensorrt: bool = False
    fetch_list: tuple[str, ...] = ()
    max_batch_size: _AtLeastOne | Auto = "auto"
    max_queue_delay_ms: float = Field(default=0, ge=0)
    max_queue_size: int = Field(default=256, ge=1)
    timeout_ms: int | None = Field(default=None, ge=1)
    hang_s: float = Field(default=60, gt=0)


class PreprocessSettings(SettingsGroup):
    """The preprocessing of a classifier, where its own description is not enough or not wanted.

    The fields are those of one usual chain: resize, crop, normalise.
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


class PostprocessSettings(SettingsGroup):
    """The labels of a classifier and how they are chosen, where its own description is not enough."""

    labels: Path | None = None
    top_k: int | None = Field(default=None, ge=1)
    threshold: float | None = Field(default=None, ge=0, le=1)
    postprocess: Mapping[str, Any] | None = None


class ClassificationOptions(PreprocessSettings, PostprocessSettings):
    """The options of classification: preprocessing and postprocessing."""


class ServerSettings(SettingsGroup):
    """The doors. A port of None keeps that door shut, 0 takes any free one.

    ``name`` is the service's name in the pipeline protocol. Limits: ``max_body_bytes`` per request,
    ``max_header_bytes`` for its head, ``max_part_bytes`` per part of a form, ``max_pixels`` per image,
    ``max_images`` per request. Seconds:
    ``header_timeout_s`` for the head of a request to come in, ``body_timeout_s`` for the next part of its
    body, ``keep_alive_s`` for which an idle connection is kept, ``grace_s`` in which a stopping server
    lets running requests finish.

    ``api_key`` and the lines of ``api_key_file`` are what callers must show one of; neither: nobody is
    asked. ``tls_cert`` and ``tls_key`` are PEM files, both or none. ``cors_origins`` are the web pages
    that may ask from a browser, "*" for any.
    """

    name: str
    host: str = Field(default="127.0.0.1", min_length=1)
    http_port: int | None = Field(default=None, ge=0, le=65535)
    rpc_port: int | None = Field(default=None, ge=0, le=65535)
    max_body_bytes: int = Field(default=256 * 1024 * 1024, ge=1)
    max_part_bytes: int = Field(default=256 * 1024 * 1024, ge=1)
    max_pixels: int = Field(default=64_000_000, ge=1)
    max_images: int = Field(default=64, ge=1)
    max_header_bytes: int = Field(default=32 * 1024, ge=1024)
    header_timeout_s: float = Field(default=10, gt=0)
    body_timeout_s: float = Field(default=30, gt=0)
    keep_alive_s: float = Field(default=75, gt=0)
    grace_s: float = Field(default=30, ge=0)
    api_key: SecretStr | None = None
    api_key_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    cors_origins: tuple[str, ...] = ()
    prometheus_port: int | None = Field(default=None, ge=0, le=65535)
    log_file: Path | None = None
    log_format: Literal["text", "json"] = "text"


class RecognitionOptions(SettingsGroup):
    """How a picture is recognised; the defaults are the guide's.

    ``index`` is a name or a folder. Of the detector's boxes over ``det_threshold`` the best
    ``max_det_results`` are looked up, and the whole picture; an answer needs ``score_threshold``;
    boxes that overlap a better answer's by more than ``nms_threshold`` (IoU) are dropped.
    """

    index: str = "drink_dataset_v1.0"
    det_threshold: float = Field(default=0.2, ge=0, le=1)
    max_det_results: int = Field(default=5, ge=1)
    score_threshold: float = 0.5
    nms_threshold: float = Field(default=0.05, ge=0, le=1)
    top_k: int = Field(default=1, ge=1)
    gallery_writes: bool = False


@dataclass(frozen=True)
class Sources:
    """Where each setting came from, for a runtime that cannot honour all of them.

    ``given``: setting -> the option or the environment variable that gave it; ``block``: the settings in
    the file's block ``pdserve:``; ``content``: the file as it is written, empty where there is none.
    """

    given: Mapping[str, str] = field(default_factory=dict)
    block: frozenset[str] = frozenset()
    content: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ServiceSettings:
    """All settings of one service of the SERVICES table.

    ``models``: by role, in the order of an image's way; a role that was left out ("none") is missing.
    ``options``: the service's own. ``config_dir``: the configuration file's folder, from which its
    relative paths start. ``notes`` are logged once at start.
    """

    kind: str
    server: ServerSettings
    models: Mapping[str, ModelSettings]
    options: Any
    config_dir: Path = field(default_factory=Path)
    notes: tuple[str, ...] = ()
    sources: Sources = field(default_factory=Sources)

    @property
    def first_model(self) -> ModelSettings:
        """The settings of the model that images wait for first."""
        return next(iter(self.models.values()))


class _Role(Protocol):
    @property
    def default(self) -> str: ...
    @property
    def optional(self) -> bool: ...


class _Entry(Protocol):
    """What `resolve` needs of an entry of the SERVICES table."""

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def http_port(self) -> int: ...
    @property
    def rpc_port(self) -> int: ...
    @property
    def roles(self) -> Mapping[str, _Role]: ...
    @property
    def operators(self) -> Mapping[str, str]: ...
    def options_type(self) -> type[Any]: ...


_Group = TypeVar("_Group", bound=SettingsGroup)


def resolve(
    service: _Entry, flags: Mapping[str, Any], environ: Mapping[str, str], config: Path | None = None
) -> ServiceSettings:
    """Resolve a service's settings: flags over environment over configuration file over defaults.

    ``flags``: setting -> value, None where the flag was not given. What is said of engines, devices and
    batches holds for all models of a service, except that the configuration file may tell them apart.
    Raises SettingsError with the setting's name, where it came from and what was wrong with it.
    """
    options = service.options_type()
    merged = _Merged(service, flags, environ, config, (ServerSettings, ModelSettings, options))
    models = {role: merged.group(ModelSettings, role) for role in service.roles}
    return ServiceSettings(
        service.kind,
        merged.server(),
        {role: m for role, m in models.items() if not (service.roles[role].optional and m.model == "none")},
        merged.group(options),
        merged.config_dir,
        merged.notes,
        merged.sources,
    )


class _Merged:
    """All that was given for one service, from everywhere."""

    def __init__(
        self,
        service: _Entry,
        flags: Mapping[str, Any],
        environ: Mapping[str, str],
        config: Path | None,
        groups: Sequence[type[SettingsGroup]],
    ) -> None:
        from pdserve.config_yml import read_config

        operators = {operator: role for role, operator in service.operators.items()}
        names = {name for group in groups for name in group.model_fields} | set(operators.values())
        read = read_config(config, names, operators or None) if config else None
        self.config_dir = config.parent if config else Path()
        self.notes = read.notes if read else ()
        self._config = config
        self._defaults = {
            "name": service.name,
            "http_port": service.http_port,
            "rpc_port": service.rpc_port,
            **{role: each.default for role, each in service.roles.items()},
        }
        self._in_file = dict(read.settings) if read else {}
        self._models = read.models if read else {}
        self._in_environment = {
            name: _from_environment(name, environ[key])
            for name in sorted(names)
            if environ.get(key := f"PDSERVE_{name.upper()}")  # empty counts as absent
        }
        self._in_flags = {name: value for name, value in flags.items() if value is not None}
        self._given = {
            **{name: f"PDSERVE_{name.upper()}" for name in self._in_environment},
            **{name: f"--{name.replace('_', '-')}" for name in self._in_flags},
        }
        block, content = (frozenset(read.block), read.content) if read else (frozenset(), {})
        self.sources = Sources(self._given, block, content)

    def server(self) -> ServerSettings:
        """The listeners, at least one of them on."""
        server = self.group(ServerSettings)
        if server.http_port is None and server.rpc_port is None:
            raise SettingsError("http_port and rpc_port are both off, so nobody could ask; give one of them.")
        return server

    def group(self, group: type[_Group], role: str | None = None) -> _Group:
        """One group of settings; with a ``role``, those of that model."""
        in_file = dict(self._models.get(role or "", {})) | self._in_file
        said = self._in_environment | self._in_flags
        if said.get("devices") == ("cpu",):
            in_file.pop("tensorrt", None)  # it goes with the file's GPU, which is put aside
        merged = {**self._defaults, **in_file, **said}
        if role:
            said_model = said.get(role) or in_file.get(role) or in_file.get("model")
            merged["model"] = said_model or self._defaults[role]
        origin = dict.fromkeys(in_file, str(self._config)) | self._given
        return _validated(group, merged, origin)


def _from_environment(name: str, text: str) -> Any:
    """Environment values are text; lists are written with commas, as in ``PDSERVE_MEAN=0.5,0.5,0.5``."""
    listed = name in ("devices", "fetch_list", "mean", "std", "resize", "cors_origins")
    return tuple(part.strip() for part in text.split(",")) if listed else text


def _validated(group: type[_Group], merged: Mapping[str, Any], origin: Mapping[str, str]) -> _Group:
    try:
        return group(**{name: value for name, value in merged.items() if name in group.model_fields})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        where = origin.get(name, name)
        if name == "api_key":  # which no message may show
            raise SettingsError(f"{where}: {name} is no text; put it in quotation marks.") from None
        raise SettingsError(f"{where}: {name} is {first['input']!r}: {first['msg']}.") from error
