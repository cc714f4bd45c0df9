"""Paddle Serving's ``config.yml`` -> settings.

Every key of the published schema (paddle-serving-server 0.9.0) is applied, reported as a note where it
has no effect in one process, or rejected by name: none is dropped silently. Unknown keys are rejected too,
since a misspelt one would do nothing.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pdserve.errors import SettingsError
from pdserve.formats import yaml_file


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, content: Any) -> Any:
        """A key without a value takes its default, as in the published schema."""
        if not isinstance(content, dict):
            return content
        return {key: value for key, value in content.items() if value is not None}


class LocalServiceConf(_Schema):
    """``op.<name>.local_service_conf``."""

    model_path: str | None = Field(default=None, alias="model_config")
    client_type: str = "local_predictor"
    workdir: str = ""
    device_type: int = -1
    devices: str = ""
    thread_num: int | None = Field(default=None, ge=1)
    precision: str = "fp32"
    ir_optim: bool | None = None
    use_mkldnn: bool | None = None
    mem_optim: bool = True
    fetch_list: list[str] = []
    use_calib: bool = False
    mkldnn_cache_capacity: int = 0
    mkldnn_op_list: list[str] | None = None
    mkldnn_bf16_op_list: list[str] | None = None
    min_subgraph_size: int = 3
    dynamic_shape_info: dict[str, Any] | None = None


class OpConf(_Schema):
    """``op.<name>``; times in milliseconds, −1 for none."""

    concurrency: int | None = Field(default=None, ge=1)
    timeout: int = -1
    retry: int = Field(default=1, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    auto_batching_timeout: float = -1
    server_endpoints: list[str] = []
    client_config: str | None = None
    client_type: str | None = None
    fetch_list: list[str] = []
    use_encryption_model: bool = False
    encryption_key: str = ""
    local_service_conf: LocalServiceConf = LocalServiceConf()


class TracerConf(_Schema):
    """``dag.tracer``; −1 for never."""

    interval_s: int = -1


class DagConf(_Schema):
    """``dag``: how the old runtime wired its processes."""

    retry: int = Field(default=1, ge=1)
    client_type: str | None = None
    use_profile: bool = False
    channel_size: int = Field(default=0, ge=0)
    is_thread_op: bool | None = None
    channel_recv_frist_arrive: bool = False
    tracer: TracerConf = TracerConf()
    enable_prometheus: bool = False
    prometheus_port: int | None = Field(default=None, ge=1, le=65535)


class ConfigFile(_Schema):
    rpc_port: int | None = Field(default=None, ge=1, le=65535)
    http_port: int | None = Field(default=None, ge=1, le=65535)
    worker_num: int | None = Field(default=None, ge=1)
    build_dag_each_worker: bool = False
    grpc_gateway_port: int | None = None
    dag: DagConf = DagConf()
    op: dict[str, OpConf] = {}
    pdserve: dict[str, Any] = {}


@dataclass(frozen=True)
class ReadConfig:
    """A file's settings, each model's by its role, and notes on keys without effect.

    ``block``: the settings in the block ``pdserve:``. ``content``: the file as it is written.
    """

    settings: Mapping[str, Any]
    models: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...]
    block: Mapping[str, Any]
    content: Mapping[str, Any]


FILES = frozenset({"labels", "api_key_file", "tls_cert", "tls_key"})
"""Settings of the block ``pdserve:`` that name files."""

PROMETHEUS_PORT = 19393  # Paddle Serving's, where the file names none

_DEVICE_TYPES = {3: "ARM CPU", 4: "Kunlun XPU", 5: "Ascend 310", 6: "Ascend 910"}


def read_config(
    path: Path,
    known: Collection[str],
    roles: Mapping[str, str] | None = None,
    kind: str = "classification",
    role: str = "model",
) -> ReadConfig:
    """Read a service's ``config.yml``. Raises SettingsError naming file and key.

    ``known`` are the settings that the block ``pdserve:`` may hold. ``roles``: operator → the role of its
    model; None for a service of one model, whose operator gives the service its name: its ``kind``, and
    the ``role`` of its model.
    """
    conf, content = _read(path)
    settings = _server_settings(conf)
    if conf.pdserve.get("services") is not None:
        raise SettingsError(
            f"{path}: pdserve.services has services of their own kinds; type `pdserve serve --config {path}`."
        )
    if roles is None:
        if len(conf.op) > 1:
            raise SettingsError(f"{path}: op has {', '.join(conf.op)}; a {kind} service has one model.")
        roles = dict.fromkeys(conf.op, role)
        settings |= dict(zip(("name",), conf.op, strict=False))
    models: dict[str, Mapping[str, Any]] = {}
    notes = _server_notes(conf)
    for name, op in conf.op.items():
        if name not in roles:
            raise SettingsError(
                f"{path}: op.{name} is no operator of this service; it has {', '.join(roles)}."
            )
        models[roles[name]] = found = _op(f"{path}: op.{name}", op)
        notes += _op_notes(f"op.{name}", op)
        if named := _named_by_path(found.get("model", ""), path.parent):
            notes.append(f"op.{name}: {found['model']} is not there, so {named} of pdserve's home is taken")
            models[roles[name]] = {**found, "model": named}
    block = _block(path, conf, known)
    return ReadConfig(settings | block, models, _noted(path, notes), block, content)


def read_server(path: Path, known: Collection[str]) -> ReadConfig:
    """Read what a ``config.yml`` says of the server; its services are in the block, under ``services``.

    ``known``: the server's settings. Raises SettingsError, also for operators, which are one service's.
    """
    conf, content = _read(path)
    if conf.op:
        raise SettingsError(
            f"{path}: op.{next(iter(conf.op))} is a model of one service; with several, each names its "
            "models in `pdserve: services:`."
        )
    block = _block(path, conf, {*known, "services"})
    settings = _server_settings(conf) | {name: each for name, each in block.items() if name != "services"}
    return ReadConfig(settings, {}, _noted(path, _server_notes(conf)), block, content)


def _read(path: Path) -> tuple[ConfigFile, dict[str, Any]]:
    """A file, checked, and as it is written. Raises SettingsError."""
    try:
        content = yaml_file.read(path)
    except OSError as error:
        raise SettingsError(f"Cannot read the configuration {path}: {error.strerror}.") from error
    except yaml_file.YamlError as error:
        raise SettingsError(f"{path} is no YAML that can be read: {error}.") from error
    if not isinstance(content, dict):
        raise SettingsError(f"{path} holds no settings; it should begin with keys such as http_port and op.")
    try:
        conf = ConfigFile.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise SettingsError(
                f"{path}: {key} is no setting that Paddle Serving or pdserve knows."
            ) from error
        if first["loc"][-1] == "[key]":
            key = ".".join(str(part) for part in first["loc"][:-2])
            raise SettingsError(
                f"{path}: {key} has the name {first['input']!r}, which is no text; put it in quotation marks."
            ) from error
        raise SettingsError(f"{path}: {key} is {first['input']!r}: {first['msg']}.") from error
    return conf, content


def _server_settings(conf: ConfigFile) -> dict[str, Any]:
    settings: dict[str, Any] = {"http_port": conf.http_port, "rpc_port": conf.rpc_port}
    if conf.dag.enable_prometheus:
        settings["prometheus_port"] = conf.dag.prometheus_port or PROMETHEUS_PORT
    return settings


def _block(path: Path, conf: ConfigFile, known: Collection[str]) -> dict[str, Any]:
    """The block ``pdserve:``. Raises SettingsError for what is not known."""
    block = {key: value for key, value in conf.pdserve.items() if value is not None}
    unknown = block.keys() - set(known)
    if unknown:
        raise SettingsError(f"{path}: pdserve.{min(unknown)} is no setting that pdserve knows.")
    for key in FILES & block.keys():  # relative to the configuration, wherever the server is started
        if isinstance(block[key], str):
            block[key] = path.parent / block[key]
    return block


def _noted(path: Path, notes: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{path.name}: {note}" for note in notes)


def _named_by_path(model: str, folder: Path) -> str | None:
    """The model that a relative path ``…/NAME_serving`` names which is not there; None for any other.

    Files written for the old runtime have such paths, from where its guide has the models converted to.
    """
    path = Path(model)
    if len(path.parts) < 2 or path.is_absolute() or not path.name.endswith("_serving"):
        return None
    there = path.is_dir() or (folder / path).is_dir()
    return None if there else path.name.removesuffix("_serving")


def _op(where: str, op: OpConf) -> dict[str, Any]:
    """Read an operator's settings. Raises SettingsError for what only the old runtime supports."""
    local = op.local_service_conf
    here = f"{where}.local_service_conf"
    if op.server_endpoints or op.client_config:
        raise SettingsError(f"{where}.server_endpoints names another server; pdserve runs the model itself.")
    for client in (op.client_type, local.client_type):
        if client not in (None, "local_predictor"):
            raise SettingsError(
                f"{where}: client_type {client} needs Paddle Serving's own runtime; use local_predictor."
            )
    if op.use_encryption_model:
        raise SettingsError(f"{where}.use_encryption_model is not supported; give the model as it is.")
    for key in ("use_calib", "mkldnn_op_list", "mkldnn_bf16_op_list", "dynamic_shape_info"):
        if getattr(local, key):
            raise SettingsError(f"{here}.{key} is not supported; remove it.")
    devices = _devices(here, local)
    settings: dict[str, Any] = {
        "devices": devices,
        "tensorrt": local.device_type == 2,
        "precision": local.precision.lower(),
        "fetch_list": tuple(local.fetch_list or op.fetch_list),
        "model": local.model_path,
        "threads": local.thread_num,
        "ir_optim": local.ir_optim,
        "use_mkldnn": local.use_mkldnn,
        # The old runtime distributes its workers over the devices; here the number is per device.
        "instances": op.concurrency and math.ceil(op.concurrency / len(devices)),
        "max_batch_size": op.batch_size,
        "max_queue_delay_ms": op.auto_batching_timeout if op.auto_batching_timeout > 0 else None,
        "timeout_ms": op.timeout if op.timeout > 0 else None,
    }
    return {key: value for key, value in settings.items() if value is not None}


def _devices(here: str, local: LocalServiceConf) -> tuple[str, ...]:
    """Read device_type and devices: −1 leaves it to devices, 0 CPU, 1 GPU, 2 GPU through TensorRT."""
    if local.device_type in _DEVICE_TYPES:
        raise SettingsError(
            f"{here}.device_type {local.device_type} ({_DEVICE_TYPES[local.device_type]}) is not supported; "
            "use 0 for the CPU, 1 for a GPU or 2 for TensorRT."
        )
    if local.device_type not in (-1, 0, 1, 2):
        raise SettingsError(
            f"{here}.device_type is {local.device_type}; use 0 (CPU), 1 (GPU) or 2 (TensorRT)."
        )
    numbers = [part.strip() for part in local.devices.split(",")]
    if local.device_type == 0 or (local.device_type == -1 and not any(numbers)):
        return ("cpu",)
    if not all(part.isdecimal() and len(part) < 10 for part in numbers):  # "0,,1" too: one may be missing
        raise SettingsError(
            f'{here}.devices is {local.devices!r}; give the GPUs\' numbers, as in "0" or "0,1".'
        )
    return tuple(f"gpu:{int(part)}" for part in numbers)


def _server_notes(conf: ConfigFile) -> list[str]:
    """Notes on keys of the old runtime's processes, which one process with batching replaces."""
    notes = []
    if conf.worker_num not in (None, 1):
        notes.append(f"worker_num {conf.worker_num} has no effect: one process takes any number of requests")
    if conf.build_dag_each_worker:
        notes.append("build_dag_each_worker has no effect: one process serves all")
    if conf.grpc_gateway_port is not None:
        notes.append("grpc_gateway_port has no effect: HTTP and gRPC are answered by one process")
    dag = conf.dag
    if dag.retry > 1:
        notes.append("dag.retry has no effect: requests do not cross processes that could lose them")
    if dag.channel_size:
        notes.append("dag.channel_size has no effect; set pdserve.max_queue_size")
    if dag.use_profile or dag.tracer.interval_s > 0:
        notes.append("dag.use_profile and dag.tracer have no effect; send the key pipeline.profile")
    if dag.channel_recv_frist_arrive:
        notes.append("dag.channel_recv_frist_arrive has no effect")
    if dag.is_thread_op is False:
        notes.append("dag.is_thread_op False has no effect: the model runs in threads of one process")
    if dag.client_type is not None:
        notes.append("dag.client_type has no effect: the model runs in this process")
    if dag.prometheus_port is not None and not dag.enable_prometheus:
        notes.append("dag.prometheus_port has no effect without dag.enable_prometheus: True")
    return notes


def _op_notes(where: str, op: OpConf) -> list[str]:
    local = op.local_service_conf
    notes = []
    if op.retry > 1:
        notes.append(f"{where}.retry has no effect: the model runs in this process")
    if op.encryption_key:
        notes.append(f"{where}.encryption_key has no effect: no model is encrypted")
    for key in ("mem_optim", "workdir", "mkldnn_cache_capacity", "min_subgraph_size"):
        if getattr(local, key) != LocalServiceConf.model_fields[key].default:
            notes.append(f"{where}.local_service_conf.{key} has no effect: the engine sees to it")
    return notes
