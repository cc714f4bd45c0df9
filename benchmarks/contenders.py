"""Who is compared, how each is set, and the command that starts it."""

import os
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

from ruamel.yaml import YAML

from benchmarks.process_tree import MARK
from benchmarks.rivals.environment import ROOT

# The model that stands for recognition: detector, embedder and index together.
RECOGNITION = "PP-ShiTu"
DETECTOR, EMBEDDER = "picodet_PPLCNet_x2_5_mainbody_lite_v1.0", "general_PPLCNet_x2_5_lite_v1.0"
MODELS = ("ResNet50_vd", "EfficientNet_lite0", RECOGNITION)


@dataclass(frozen=True)
class Contender:
    """``kind`` is raw (no server), pdserve, int8 (pdserve too), paddle-serving or rival."""

    name: str
    title: str
    kind: str
    settings: str


CONTENDERS = {
    each.name: each
    for each in (
        Contender(
            "raw-engine",
            "raw engine",
            "raw",
            "OpenVINO, float32; prepared tensors, no server: one run at a time for one client, else the best "
            "of 1 or 2 runs at once with batches of 1, 4 and 8",
        ),
        Contender(
            "raw-pipeline",
            "raw pipeline",
            "raw",
            "image files through decoding, preprocessing, engine and labels, no server: one thread for one "
            "client, else the best of 2, 3 and 4",
        ),
        Contender("pdserve", "pdserve", "pdserve", "`pdserve serve`, no option but the model; float32"),
        Contender(
            "pdserve-int8",
            "pdserve INT8",
            "int8",
            "the same with `--precision int8`, of `pdserve optimize`",
        ),
        Contender(
            "paddle-serving",
            "Paddle Serving, as shipped",
            "paddle-serving",
            "0.9.0 with Paddle 2.6.2 and the guide's config.yml: `concurrency: 1`, its own defaults for the "
            "rest (`ir_optim` and `use_mkldnn` off), by pdserve's `--runtime paddle-serving` (whose "
            "own memory is not counted)",
        ),
        Contender(
            "paddle-serving-tuned",
            "Paddle Serving, tuned",
            "paddle-serving",
            "the same with `ir_optim: True`, `use_mkldnn: True`, `thread_num: 2`, `concurrency: 2`, "
            "`worker_num: 8` (requests at once; its gRPC thread pool)",
        ),
        Contender(
            "litserve",
            "LitServe",
            "rival",
            "0.2.19: `max_batch_size=8`, `batch_timeout=0.002`, `workers_per_device=1`",
        ),
        Contender(
            "ray_serve",
            "Ray Serve",
            "rival",
            "2.60.0: `serve.batch(max_batch_size=8, batch_wait_timeout_s=0.002)`, one replica, "
            "`max_ongoing_requests=256`",
        ),
        Contender("mosec", "mosec", "rival", "0.9.8: `max_batch_size=8`, `max_wait_time=2`, one worker"),
        Contender(
            "bentoml",
            "BentoML",
            "rival",
            "1.4.40: `batchable=True`, `max_batch_size=8`, one worker each for requests and the model",
        ),
        Contender(
            "fastapi_lock",
            "FastAPI, one lock",
            "rival",
            "0.165.0 on uvicorn 0.54.0: as PaddleX's basic serving, decoding in threads, the pipeline under "
            "one lock, no batching",
        ),
    )
}


@dataclass(frozen=True)
class Switches:
    """Of Paddle Serving's config.yml; the defaults are the guide's."""

    worker_num: int = 1
    concurrency: int = 1
    local: dict[str, bool | int] = field(default_factory=dict)


# What one would turn in config.yml: for the whole, for each op, for each op's model.
_TUNED = Switches(8, 2, {"ir_optim": True, "use_mkldnn": True, "thread_num": 2})


@dataclass(frozen=True)
class Pythons:
    """The interpreters: of each rival that could be installed, and of Paddle Serving where there is one."""

    rivals: dict[str, Path]
    paddle_serving: Path | None


@dataclass(frozen=True)
class Launch:
    """A command, its environment, and where the server will answer."""

    command: list[str]
    environment: dict[str, str]
    url: str


def service(model: str) -> str:
    """classification or recognition."""
    return "recognition" if model == RECOGNITION else "classification"


def launch(one: Contender, model: str, home: Path, folder: Path, pythons: Pythons, mark: str) -> Launch:
    """How to start a contender on a free port. ``folder`` is a fresh one, for its files."""
    http, rpc = _free_port(), _free_port()
    environment = _environment(home) | {MARK: mark}
    if one.kind == "rival":
        environment |= {"PYTHONPATH": str(ROOT), "RIVAL_MODEL": model, "RIVAL_PORT": str(http)}
        command = [str(pythons.rivals[one.name]), "-m", f"benchmarks.rivals.{one.name}"]
        return Launch(command, environment, f"http://127.0.0.1:{http}")
    command = [sys.executable, "-m", "pdserve", "serve", service(model), "--cpu"]
    command += ["--http-port", str(http), "--rpc-port", str(rpc)]
    if one.kind == "int8":
        command += ["--precision", "int8"]
    if one.kind == "paddle-serving":
        command += ["--runtime", "paddle-serving", "--python", str(pythons.paddle_serving)]
        switches = _TUNED if one.name == "paddle-serving-tuned" else Switches()
        command += ["--config", str(_config(model, home, folder, http, rpc, switches))]
    elif model != RECOGNITION:
        command += ["--model", model]
    return Launch(command, environment, f"http://127.0.0.1:{http}")


def _config(model: str, home: Path, folder: Path, http: int, rpc: int, switches: Switches) -> Path:
    """The guide's config.yml for a CPU, with these switches."""

    def op(name: str, **more: object) -> dict[str, object]:
        local = {
            "model_config": str(home / "models" / f"{name}_serving"),
            "device_type": 0,
            "devices": "",
            "client_type": "local_predictor",
        }
        return {
            "concurrency": switches.concurrency,
            "local_service_conf": {**local, **more, **switches.local},
        }

    if model == RECOGNITION:
        ops = {
            "det": op(DETECTOR),
            "rec": op(EMBEDDER, fetch_list=["features"]),
        }
    else:
        ops = {"imagenet": op(model, fetch_list=["prediction"])}
    content = {
        "worker_num": switches.worker_num,
        "http_port": http,
        "rpc_port": rpc,
        "dag": {"is_thread_op": False},
        "op": ops,
    }
    path = folder / "config.yml"
    YAML(typ="safe").dump(content, path)
    return path


def _environment(home: Path) -> dict[str, str]:
    """This process's, without its PDSERVE_ settings and proxies; nothing reports home."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PDSERVE_", "RIVAL_")) and not key.lower().endswith("_proxy")
    }
    silent = {"RAY_USAGE_STATS_ENABLED": "0", "BENTOML_DO_NOT_TRACK": "True"}
    return kept | silent | {"PDSERVE_HOME": str(home), "PYTHONUTF8": "1"}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
