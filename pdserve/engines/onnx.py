"""ONNX Runtime, on the CPU or with CUDA, over a model that paddle2onnx converted once.

One session for all instances: its ``run`` may be called from several threads at once.
"""

import os
from collections.abc import Mapping
from typing import Any

from pdserve.engines import packages
from pdserve.engines.base import Instance, Opened, Request, shared_out
from pdserve.engines.device import gpu_problem
from pdserve.engines.onnx_export import onnx_file
from pdserve.errors import DeviceError, SettingsError, UnsupportedModelError
from pdserve.vision.types import Array

_PROVIDERS = {"cpu": "CPUExecutionProvider", "gpu": "CUDAExecutionProvider"}


def open_model(request: Request) -> Opened:
    """Convert if that has not been done, and create the session.

    Raises DeviceError, UnsupportedModelError, SettingsError, EngineMissingError, DiskError.
    """
    packages.require("onnx", "onnxruntime")
    _refuse(request)
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read at the import
    try:
        import onnxruntime as ort
    except (ImportError, OSError) as error:
        raise packages.not_loading("onnx", "onnxruntime", error) from error
    provider = _PROVIDERS[request.device.kind]
    provider_options = {}
    if request.device.kind == "gpu":
        _require_cuda(ort, request)
        provider_options["device_id"] = str(request.device.index)
    threads, instances = request.cpu_shares(2)
    if request.device.kind == "gpu":
        # Two runs at once: the copies of one go on beside the kernels of the other.
        instances = request.instances or 2
    session = ort.InferenceSession(
        str(onnx_file(request)), _session_options(ort, threads), [(provider, provider_options)]
    )
    if provider not in session.get_providers():  # ONNX Runtime says so on standard error and goes on
        raise DeviceError(
            f"{request.device} is not usable: ONNX Runtime {ort.__version__} does not start CUDA, whose "
            "libraries (CUDA, cuDNN) are missing or of another release: "
            '`pip install "onnxruntime-gpu[cuda,cudnn]"`.'
        )
    session.disable_fallback()
    where = f"CPU, {request.precision}, {shared_out(threads, instances)}"
    if request.device.kind == "gpu":
        where = f"GPU {request.device.index}, {request.precision}"
    run = _instance(session, request)
    return Opened(
        [run] * instances,
        f"ONNX Runtime {ort.__version__} on {where}",
    )


def _instance(session: Any, request: Request) -> Instance:
    # paddle2onnx keeps the names of feeds but calls fetches by their place, so outputs go by place.
    signature = request.program.signature
    names = [spec.name for spec in signature.fetches]
    feeds = sorted(i.name for i in session.get_inputs())
    if feeds != sorted(s.name for s in signature.feeds) or len(session.get_outputs()) != len(names):
        raise UnsupportedModelError(f"paddle2onnx changed the feeds or fetches of {request.model.name}.")

    def run(arrays: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip(names, session.run(None, dict(arrays)), strict=True))

    return run


def _session_options(ort: Any, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # only what kills: errors come as exceptions too
    # Spinning threads take the cores from those that work: 2.7 times the time on two shared cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _require_cuda(ort: Any, request: Request) -> None:
    if _PROVIDERS["gpu"] not in ort.get_available_providers():
        raise packages.no_cuda("onnx", request.device)
    if problem := gpu_problem(request.device.index):
        raise DeviceError(f"{request.device} is not usable: {problem}.")
    if hasattr(ort, "preload_dlls"):  # CUDA and cuDNN from their wheels, where those are installed
        ort.preload_dlls()


def _refuse(request: Request) -> None:
    options = request.options
    allowed = ("fp32", "fp16") if request.device.kind == "gpu" else ("fp32",)
    if request.precision not in allowed:
        raise SettingsError(
            f"The engine onnx runs {' or '.join(allowed)} on {request.device}, not {request.precision}."
        )
    for switch, off in (("ir_optim", options.ir_optim), ("use_mkldnn", options.use_mkldnn)):
        if off is False:
            raise SettingsError(f"{switch}: False is for the engine paddle, not for onnx.")
    if options.tensorrt:
        raise SettingsError("TensorRT is for the engine paddle on a GPU, not for onnx.")
