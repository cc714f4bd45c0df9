"""The settings as a config.yml of Paddle Serving: the user's file, where there is one, with the other
settings written into it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pdserve.pipelines import SERVICES
from pdserve.settings import ModelSettings, ServiceSettings

_TRACER_S = 10

Content = dict[str, Any]
Ports = tuple[int | None, int | None]
"""HTTP's and gRPC's; None means no HTTP, and for gRPC any port that Paddle Serving takes."""


@dataclass(frozen=True)
class Operator:
    """An operator of the pipeline: its name, how its model runs, the model's folder and its fetches."""

    name: str
    model: ModelSettings
    folder: str
    fetches: tuple[str, ...]


@dataclass(frozen=True)
class Config:
    """``content`` is config.yml's; ``notes`` say what differs from what the user wrote."""

    content: Content
    notes: list[str] = field(default_factory=list)


def build(settings: ServiceSettings, operators: list[Operator], ports: Ports) -> Config:
    """The configuration of a service."""
    given = settings.sources.content
    of_file: Mapping[str, Any] = given.get("op") or {}
    if not SERVICES[settings.kind].operators:  # the file's only operator gives the service its name
        of_file = {settings.server.name: next(iter(of_file.values()), None)}
    notes: list[str] = []
    ops = {each.name: _op(of_file.get(each.name) or {}, each, notes) for each in operators}
    dag = _given(given.get("dag") or {}) | {"tracer": _given((given.get("dag") or {}).get("tracer") or {})}
    dag.pop("client_type", None)  # for operators that run elsewhere
    if dag.get("enable_prometheus") and dag["tracer"].get("interval_s", -1) <= 0:
        dag["tracer"]["interval_s"] = _TRACER_S
        notes.append(f"dag.tracer.interval_s is {_TRACER_S} here, as /metrics fails without it")
    if any(op["concurrency"] > 1 for op in ops.values()) and dag.get("is_thread_op", True):
        dag["is_thread_op"] = False
        notes.append("dag.is_thread_op is False here, as the threads would share one predictor")
    top = {key: given[key] for key in ("worker_num", "build_dag_each_worker") if given.get(key) is not None}
    listeners = _given(dict(zip(("http_port", "rpc_port"), ports, strict=True)))
    return Config(listeners | top | {"dag": dag, "op": ops}, notes)


def _op(of_file: Mapping[str, Any], operator: Operator, notes: list[str]) -> Content:
    model = operator.model
    local = _given(of_file.get("local_service_conf") or {})
    gpus = [device.removeprefix("gpu:") for device in model.devices if device != "cpu"]
    local |= {
        "model_config": operator.folder,
        "client_type": "local_predictor",
        "device_type": (2 if model.tensorrt else 1) if gpus else 0,
        "devices": ",".join(gpus),
        "precision": model.precision,
        "fetch_list": list(operator.fetches),
    }
    switches = {"thread_num": model.threads, "ir_optim": model.ir_optim, "use_mkldnn": model.use_mkldnn}
    local |= {key: value for key, value in switches.items() if value not in (None, "auto")}
    instances = 1 if model.instances == "auto" else model.instances
    retry = of_file.get("retry")
    return ({} if retry is None else {"retry": retry}) | {
        "concurrency": instances * len(model.devices),
        "timeout": model.timeout_ms or -1,
        **_batching(operator.name, model, notes),
        "local_service_conf": local,
    }


def _batching(name: str, model: ModelSettings, notes: list[str]) -> Content:
    size = 1 if model.max_batch_size == "auto" else model.max_batch_size
    if size > 1 and not model.max_queue_delay_ms:
        # It would wait for ever for the requests that fill a batch.
        notes.append(
            f"{name} takes one request at a time; Paddle Serving makes batches only where they may wait, "
            "with --max-queue-delay-ms or auto_batching_timeout"
        )
        size = 1
    return {
        "batch_size": size,
        "auto_batching_timeout": math.ceil(model.max_queue_delay_ms) if size > 1 else -1,
    }


def _given(part: Mapping[str, Any]) -> Content:
    return {key: value for key, value in part.items() if value is not None}
