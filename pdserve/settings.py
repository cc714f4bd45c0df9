"""The settings of a service, each declared once; flags over environment over ``config.yml`` over defaults.

A field of a group below says all there is to say of a setting: panel in ``--help``, default, help, metavar,
bounds and, where they are not the usual ones, its options and its key in ``config.yml``. Usual are ``--NAME``
with dashes, ``PDSERVE_NAME`` in capitals in the environment, and ``pdserve.NAME`` in the file. Options and
reference tables are made of `describe`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from pdserve.environment import in_environment
from pdserve.errors import SettingsError

if TYPE_CHECKING:
    from pdserve.pipelines import ServiceEntry


class SettingsGroup(BaseModel):
    """A group of settings, frozen; a service's own options are one. Refuses names that it does not have."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Setting:
    """A setting as options and reference tables show it.

    ``flags``: its options, the usual one first; empty for none. ``key``: in ``config.yml``, where ``*`` is an
    operator's name. ``choices``: the import string of the table of its values, besides the default. ``kind``:
    of its value; a list is written with commas, or as a repeated option.
    """

    name: str
    help: str
    panel: str
    metavar: str
    flags: tuple[str, ...]
    key: str
    default: Any
    choices: str = ""
    kind: Literal["value", "switch", "list", "repeated"] = "value"

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return f"PDSERVE_{self.name.upper()}"

    @property
    def default_text(self) -> str:
        """The default in words; empty where there is none, or the model itself says."""
        default = self.default if isinstance(self.default, tuple) else (self.default,)
        return ",".join(str(each) for each in default if each is not None and each is not False)


PANELS = ("Model", "Device", "Preprocessing", "Results", "Server", "Batching", "Limits", "Security", "Log")
_USUAL = ("--NAME",)


def setting(
    panel: str,
    default: Any,
    help: str,  # noqa: A002 - the option's word
    metavar: str = "",
    *,
    flags: tuple[str, ...] = _USUAL,
    key: str = "",
    choices: str = "",
    **bounds: Any,
) -> Any:
    """Declare a setting as a field; ``bounds`` are pydantic's. For the rest see `Setting`."""
    extra: Any = {"setting": Setting("", help, panel, metavar, flags, key, default, choices)}
    return Field(default=default, json_schema_extra=extra, **bounds)


_model, _device, _preprocessing, _results, _server, _batching, _limit, _security, _log = (
    partial(setting, panel) for panel in PANELS
)

_Count = Annotated[int, Field(ge=1)] | Literal["auto"]
_CONF = "op.*.local_service_conf"


class ModelSettings(SettingsGroup):
    """How one model is run.

    ``devices``: "cpu", or "gpu:0" for each GPU; ``threads`` per instance; ``instances`` per device.
    "auto" is what suits device and engine. ``ir_optim`` and ``use_mkldnn`` are Paddle's switches, None
    where they are not set. Times are milliseconds; ``timeout_ms`` None means no limit.
    """

    model: str
    engine: str = _device(
        "auto",
        "What runs the model, see `pdserve doctor`; auto: the best installed.",
        "NAME",
        choices="pdserve.engines.table:ENGINES",
    )
    devices: tuple[str, ...] = _device(
        ("cpu",), 'GPU numbers, as in "0" or "0,1".', "IDS", flags=("--gpu", "--cpu"), key=f"{_CONF}.devices"
    )
    precision: Literal["fp32", "fp16", "bf16", "int8"] = _device(
        "fp32", "fp32, fp16, bf16 or int8.", "NAME", key=f"{_CONF}.precision"
    )
    threads: _Count = _device("auto", "CPU threads per instance.", "N|auto", key=f"{_CONF}.thread_num")
    ir_optim: bool | None = _device(None, "Paddle's graph passes.", flags=(), key=f"{_CONF}.ir_optim")
    use_mkldnn: bool | None = _device(None, "Paddle's oneDNN.", flags=(), key=f"{_CONF}.use_mkldnn")
    tensorrt: bool = _device(False, "Paddle's TensorRT.", flags=(), key=f"{_CONF}.device_type: 2")
    fetch_list: tuple[str, ...] = _model((), "Outputs to fetch.", flags=(), key=f"{_CONF}.fetch_list")
    instances: _Count = _batching("auto", "Engine instances per device.", "N|auto", key="op.*.concurrency")
    max_batch_size: _Count = _batching("auto", "Most images in a batch.", "N|auto", key="op.*.batch_size")
    max_queue_delay_ms: float = _batching(
        0, "How long a batch waits to fill.", "MS", key="op.*.auto_batching_timeout", ge=0
    )
    max_queue_size: int = _batching(256, "Most images that wait.", "N", ge=1)
    timeout_ms: int | None = _limit(None, "Time limit of a request.", "MS", key="op.*.timeout", ge=1)
    hang_s: float = _limit(60, "Time after which a running batch counts as hung.", "SECONDS", gt=0)


class PreprocessSettings(SettingsGroup):
    """A classifier's preprocessing, where the model's own is missing or not wanted."""

    resize_short: int | None = _preprocessing(None, "Resize the short side to this.", "PIXELS", ge=1)
    resize: tuple[int, int] | None = _preprocessing(None, "Resize to this width and height.", "W,H")
    interpolation: str | None = _preprocessing(None, "nearest, bilinear, bicubic, area or lanczos.", "NAME")
    backend: Literal["cv2", "pil"] | None = _preprocessing(None, "What resizes: cv2 or pil.", "NAME")
    crop: int | None = _preprocessing(None, "Center crop to a square of this side.", "PIXELS", ge=1)
    scale: float | str | None = _preprocessing(None, "Factor before the mean, as in 1/255.", "FACTOR")
    mean: tuple[float, float, float] | None = _preprocessing(None, "Mean per channel.", "R,G,B")
    std: tuple[float, float, float] | None = _preprocessing(None, "Standard deviation per channel.", "R,G,B")
    channel_order: Literal["rgb", "bgr"] | None = _preprocessing(None, "rgb or bgr.", "NAME")


class PostprocessSettings(SettingsGroup):
    """A classifier's labels and how they are chosen, where the model's own choice is not wanted."""

    labels: Path | None = _results(None, "Label names, one a line, or class id and name.", "FILE")
    top_k: int | None = _results(None, "Labels per image.", "N", ge=1)
    threshold: float | None = _results(None, "Score that a label needs.", "SCORE", ge=0, le=1)
    postprocess: Mapping[str, Any] | None = _results(None, "PostProcess of inference.yml.", flags=())


class ClassificationOptions(PreprocessSettings, PostprocessSettings):
    """The options of classification: preprocessing and postprocessing."""


class ServerSettings(SettingsGroup):
    """The listeners, their limits, their security, the log.

    A port of None is not opened, 0 takes any free one. ``name``: in the pipeline protocol. Callers must send
    ``api_key`` or a line of ``api_key_file``, where there is either. TLS takes two PEM files, or none.
    """

    name: str = _server(..., "Its name on Paddle Serving's routes.", flags=(), key="op.*")
    offline: bool = _model(False, "Download nothing; say what is missing.")
    host: str = _server("127.0.0.1", "Address to listen on; 0.0.0.0: all.", "ADDRESS", min_length=1)
    http_port: int | None = _server(None, "HTTP; 0: any free port.", "PORT", key="http_port", ge=0, le=65535)
    rpc_port: int | None = _server(None, "gRPC; 0: any free port.", "PORT", key="rpc_port", ge=0, le=65535)
    prometheus_port: int | None = _server(
        None, "Serve /metrics on this port too, without a key.", "PORT", ge=0, le=65535
    )
    grace_s: float = _server(
        30, "Time for running requests at a stop.", "SECONDS", flags=("--grace", "--grace-s"), ge=0
    )
    keep_alive_s: float = _server(75, "How long an idle connection is kept.", "SECONDS", gt=0)
    max_body_bytes: int = _limit(256 * 1024 * 1024, "Most bytes in a request's body.", "BYTES", ge=1)
    max_part_bytes: int = _limit(256 * 1024 * 1024, "Most bytes in one part of a form.", "BYTES", ge=1)
    max_header_bytes: int = _limit(32 * 1024, "Most bytes in a request's headers.", "BYTES", ge=1024)
    max_pixels: int = _limit(64_000_000, "Most pixels in an image.", "N", ge=1)
    max_request_pixels: int = _limit(1_000_000_000, "Most pixels in a request's images.", "N", ge=1)
    max_images: int = _limit(64, "Most images in a request.", "N", ge=1)
    max_inflight_bytes: int | None = _limit(
        None, "Memory for all bodies and images; default: a quarter of what there is.", "BYTES", ge=1 << 20
    )
    max_resident_bytes: int | None = _limit(None, "Memory for several services' models.", "BYTES", ge=1)
    max_connections: int = _limit(1024, "Most HTTP connections.", "N", ge=1)
    max_connections_per_address: int = _limit(512, "Most of them from one address, a proxy's too.", "N", ge=1)
    header_timeout_s: float = _limit(10, "Time for a request's headers to arrive.", "SECONDS", gt=0)
    body_timeout_s: float = _limit(30, "Time that a body may stand still.", "SECONDS", gt=0)
    api_key: SecretStr | None = _security(None, "A key that callers must send.", flags=())
    api_key_file: Path | None = _security(
        None,
        "Keys, one a line; callers must send one. Or one in PDSERVE_API_KEY.",
        "FILE",
        flags=("--api-key",),
    )
    tls_cert: Path | None = _security(None, "The certificate (PEM), for TLS.", "FILE")
    tls_key: Path | None = _security(None, "The certificate's private key (PEM).", "FILE")
    cors_origins: tuple[str, ...] = _security(
        (), "Origin of web pages that may call; * for any; repeatable.", "ORIGIN", flags=("--cors-origin",)
    )
    allowed_hosts: tuple[str, ...] = _security(
        (), "Host name that callers may use; * for any; repeatable.", "NAME", flags=("--allowed-host",)
    )
    grpc_reflection: bool = _security(False, "Describe gRPC's methods to callers with a key, too.")
    allow_image_urls: tuple[str, ...] = _security((), "Host to fetch images from; repeatable.", "HOST")
    log_file: Path | None = _log(None, "Log to this file too, rotating.", "FILE")
    log_format: Literal["text", "json"] = _log("text", "text or json.", "NAME")


@dataclass(frozen=True)
class Sources:
    """Where each setting came from, for a runtime that cannot honour all of them.

    ``given``: setting -> the option or environment variable that gave it; ``block``: the settings in
    the file's block ``pdserve:``; ``content``: the file as it is written, empty where there is none.
    ``models``: the roles whose model was named by an option, a variable or the file.
    """

    given: Mapping[str, str] = field(default_factory=dict)
    block: frozenset[str] = frozenset()
    content: Mapping[str, Any] = field(default_factory=dict)
    models: frozenset[str] = frozenset()


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


def describe(service: "ServiceEntry") -> list[Setting]:
    """All settings of a service, by panel."""
    found = [
        Setting(
            role,
            each.help,
            "Model",
            each.metavar,
            (f"--{role}",),
            f"op.{each.operator or '*'}.local_service_conf.model_config",
            each.default,
        )
        for role, each in service.roles.items()
    ]
    if service.sets and "model" not in service.roles:
        known = ", ".join(service.sets)
        text = f"Models that belong together: {known}."
        found.insert(0, Setting("model", text, "Model", "NAME", ("--model",), "pdserve.model", None))
    usual = {name: getattr(service, name) for name in ("name", "http_port", "rpc_port")}
    for group in (service.options_type(), ModelSettings, ServerSettings):
        fields = {name: info for name, info in group.model_fields.items() if name != "model"}
        found += [_described(name, info, usual.get(name, info.default)) for name, info in fields.items()]
    return sorted(found, key=lambda setting: PANELS.index(setting.panel))


def _described(name: str, info: FieldInfo, default: Any) -> Setting:
    extra: Any = info.json_schema_extra or {}
    plain = Setting("", info.description or "", "Results", "", _USUAL, "", None)
    found: Setting = extra.get("setting", plain)
    kind: Literal["value", "switch", "list", "repeated"] = "value"
    for each in (info.annotation, *get_args(info.annotation)):
        if get_origin(each) is tuple:
            kind = "repeated" if ... in get_args(each) and name != "devices" else "list"
        elif each is bool:
            kind = "switch"
    flags = (f"--{name.replace('_', '-')}",) if found.flags == _USUAL else found.flags
    key = found.key or f"pdserve.{name}"
    return replace(found, name=name, flags=flags, key=key, default=default, kind=kind)


_Group = TypeVar("_Group", bound=SettingsGroup)
_Values: TypeAlias = Mapping[str, Any]
_Texts: TypeAlias = Mapping[str, str]


def resolve(
    service: "ServiceEntry", flags: _Values, environ: _Texts, config: Path | None = None, read: Any = None
) -> ServiceSettings:
    """Resolve a service's settings: flags over environment over configuration file over defaults.

    ``flags``: setting -> value or its text, None where the flag was not given. Engine, device and batches
    hold for all models of a service, except that the configuration file may give each model its own.
    ``read``: what the file says, already read. Raises SettingsError: which setting, whence, what is wrong.
    """
    merged = _Merged(service, flags, environ, config, read)
    models = {role: merged.group(ModelSettings, role) for role in service.roles}
    return ServiceSettings(
        service.kind,
        merged.server(),
        {role: m for role, m in models.items() if not (service.roles[role].optional and m.model == "none")},
        merged.group(service.options_type()),
        merged.config_dir,
        merged.notes,
        merged.sources,
    )


class _Merged:
    """All that was given for one service, from everywhere."""

    def __init__(
        self, service: "ServiceEntry", flags: _Values, environ: _Texts, config: Path | None, read: Any
    ) -> None:
        from pdserve.config_yml import read_config

        settings = {setting.name: setting for setting in describe(service)}
        operators = {operator: role for role, operator in service.operators.items()}
        only = next(iter(service.roles))
        if read is None and config:
            read = read_config(config, settings, operators or None, service.kind, only)
        self.config_dir = config.parent if config else Path()
        self.notes = read.notes if read else ()
        self._config = config
        self._defaults = {name: getattr(service, name) for name in ("name", "http_port", "rpc_port")}
        self._roles = {role: each.default for role, each in service.roles.items()}
        self._service = service
        self._in_file = dict(read.settings) if read else {}
        self._models = read.models if read else {}
        texts, passed_over = in_environment(settings, environ)
        self.notes += passed_over
        in_environ = {name: _from_text(settings[name], text) for name, text in texts.items()}
        in_flags = {
            name: _from_text(settings.get(name), value) for name, value in flags.items() if value is not None
        }
        self._given = in_environ | in_flags
        self._origin = {name: settings[name].variable for name in in_environ} | {
            name: settings[name].flags[0] if name in settings and settings[name].flags else f"--{name}"
            for name in in_flags
        }
        block, content = (frozenset(read.block), read.content) if read else (frozenset(), {})
        self.sources = Sources(self._origin, block, content, frozenset(filter(self._model, self._roles)))

    def server(self) -> ServerSettings:
        """The listeners, at least one of them on."""
        server = self.group(ServerSettings)
        if server.http_port is None and server.rpc_port is None:
            raise SettingsError("http_port and rpc_port are both off, so nobody could ask; give one of them.")
        return server

    def _model(self, role: str) -> Any:
        named = self._given.get(role) or self._of_set(self._given, role) or self._in_file.get(role)
        return named or self._models.get(role, {}).get("model") or self._of_set(self._in_file, role)

    def group(self, group: type[_Group], role: str | None = None) -> _Group:
        """One group; with a ``role``, that model's."""
        in_file = dict(self._models.get(role or "", {})) | self._in_file
        if self._given.get("devices") == ("cpu",):
            in_file.pop("tensorrt", None)  # it goes with the file's GPU, which is put aside
        merged = {**self._defaults, **in_file, **self._given}
        merged |= {"model": self._model(role) or self._roles[role]} if role else {}
        return validated(group, merged, dict.fromkeys(in_file, str(self._config)) | self._origin)

    def _of_set(self, given: Mapping[str, Any], role: str) -> str | None:
        """The model of a role in the set that is named; None where none is. Raises SettingsError."""
        sets, name = self._service.sets, given.get("model")
        if not sets or name is None or "model" in self._service.roles:
            return None
        if name not in sets:
            each = " and ".join(f"--{role}" for role in self._roles)
            raise SettingsError(
                f"{self._origin.get('model', self._config)}: {self._service.kind} has no set of models "
                f"{name!r}; known are {', '.join(sets)}, and {each} name models one by one."
            )
        return sets[name].get(role)


def _from_text(setting: Setting | None, value: Any) -> Any:
    """A value as it is; the text of a list, such as ``0.5,0.5,0.5``, in its parts."""
    listed = setting is not None and setting.kind in ("list", "repeated") and isinstance(value, str)
    return tuple(part.strip() for part in value.split(",")) if listed else value


def validated(group: type[_Group], values: Mapping[str, Any], origin: Mapping[str, str]) -> _Group:
    """A group of settings from those values that are its own. Raises SettingsError, naming the ``origin``."""
    try:
        return group(**{name: value for name, value in values.items() if name in group.model_fields})
    except ValidationError as error:
        name = str((first := error.errors()[0])["loc"][0])
        where, bad, fault = f"{origin.get(name, name)}: {name} is", first["input"], first["msg"]
        if name == "api_key":  # which no message may show
            raise SettingsError(f"{where} no text; put it in quotation marks.") from None
        if first["type"] in ("missing", "too_long") and name in values:  # one number, or three, for W,H
            bad = ",".join(map(str, values[name]))
            fault = f"it takes {_described(name, group.model_fields[name], None).metavar}"
        raise SettingsError(f"{where} {bad!r}: {fault}.") from error
