"""ONNX Runtime engine, on the CPU or with CUDA, over a model that was converted once.

One session for all instances: its ``run`` may be called from several threads at once.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pdserve.engines import detector_nms, table
from pdserve.engines.base import Instance, LoadedModel, LoadRequest, thread_text
from pdserve.engines.graph import Graph, read_graph
from pdserve.engines.onnx_export import OnnxForm, onnx_form
from pdserve.errors import DeviceError
from pdserve.vision.types import Array

_PROVIDERS = {"cpu": "CPUExecutionProvider", "gpu": "CUDAExecutionProvider"}


def open_model(request: LoadRequest) -> LoadedModel:
    """Convert if that has not been done, and create the session.

    Raises DeviceError, UnsupportedModelError, EngineMissingError, DiskError.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read at the import
    try:
        import onnxruntime as ort
    except (ImportError, OSError) as error:
        raise table.import_error("onnx", "onnxruntime", error) from error
    provider = _PROVIDERS[request.device.kind]
    provider_options = {}
    if request.device.kind == "gpu":
        table.require_cuda("onnx", request.device, provider in ort.get_available_providers())
        if hasattr(ort, "preload_dlls"):  # CUDA and cuDNN from their wheels, where those are installed
            ort.preload_dlls()
        provider_options["device_id"] = str(request.device.index)
    threads, instances = request.cpu_shares(2)
    if request.device.kind == "gpu":
        # Two runs at once: the copies of one go on beside the kernels of the other.
        instances = request.instances or 2
    graph, form = _form(request)
    session = ort.InferenceSession(
        str(form.path), _session_options(ort, threads), [(provider, provider_options)]
    )
    if provider not in session.get_providers():  # ONNX Runtime says so on standard error and goes on
        raise DeviceError(
            f"{request.device} is not usable: ONNX Runtime {ort.__version__} does not start CUDA, whose "
            "libraries (CUDA, cuDNN) are missing or of another release: "
            '`pip install "onnxruntime-gpu[cuda,cudnn]"`.'
        )
    session.disable_fallback()
    where = f"CPU, {request.precision}, {thread_text(threads, instances)}"
    if request.device.kind == "gpu":
        where = f"GPU {request.device.index}, {request.precision}"
    run = _instance(session, form, graph.cut if graph else None)
    return LoadedModel([run] * instances, f"ONNX Runtime {ort.__version__} on {where}")


def derived_files(request: LoadRequest) -> list[Path]:
    """What is loaded in place of the model's own files: its ONNX form, made here if there is none.

    Raises UnsupportedModelError, EngineMissingError, DiskError.
    """
    return [_form(request)[1].path]


def _form(request: LoadRequest) -> tuple[Graph | None, OnnxForm]:
    # What paddle2onnx gets of a Paddle 2 model is the model.
    graph = read_graph(request, "ONNX Runtime") if request.model.files.kind == "PIR" else None
    return graph, onnx_form(request, graph, half=request.precision == "fp16")


def _instance(session: Any, form: OnnxForm, cut: detector_nms.Cut | None) -> Instance:
    names, outputs = list(form.outputs), list(form.outputs.values())

    def run(arrays: Mapping[str, Array]) -> dict[str, Array]:
        found = dict(zip(names, session.run(outputs, dict(arrays)), strict=True))
        return found if cut is None else detector_nms.complete(cut, found)

    return run


def _session_options(ort: Any, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # only what kills: errors come as exceptions too
    # Spinning threads take the cores from those that work: 2.7 times the time on two shared cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options
