"""OpenVINO, the engine of choice on a CPU: reads ProgramDesc models as they are.

An instance is an infer request of a compiled model, with a stream of its own. A detector's suppression is
done outside of OpenVINO, which rounds the boxes and scores to two decimals.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pdserve.engines import detector_nms, int8, packages
from pdserve.engines.base import Instance, Opened, Request, shared_out
from pdserve.engines.device import cores
from pdserve.engines.elastic import elastic
from pdserve.errors import DeviceError, SettingsError, UnsupportedModelError
from pdserve.formats.parameters import read_parameters
from pdserve.vision.types import Array

# What the plugin is told to compute in what is not quantised.
_HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}


def open_model(request: Request) -> Opened:
    """Read and compile.

    Raises UnsupportedModelError, DeviceError, SettingsError, EngineMissingError, and ModelError for an int8
    form that is missing, stale or broken.
    """
    graph = read_graph(request)
    core = import_openvino().Core()
    # The plugin would run what it has no instructions for in float32, and say nothing.
    if request.precision.upper() not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise DeviceError(f"This CPU has no {request.precision} instructions; use --precision fp32.")
    note = ""
    if request.precision == "int8":
        form = int8.read(request)
        model, note = core.read_model(form.program, form.weights), form.note
    else:
        model = _read_model(core, request, graph)
    threads = request.threads or cores() if request.instances is None else request.cpu_shares(1)[0]
    hint = _HINTS[request.precision]
    if request.instances is not None or threads == 1:
        count = request.instances or 1
        instances = _compiled(core, model, graph, hint, count, threads * count)
        shared = shared_out(threads, count)
    else:
        (alone,) = _compiled(core, model, graph, hint, 1, threads)
        instances = elastic(alone, _compiled(core, model, graph, hint, 2, threads))
        shared = f"{threads} threads for one run or two"
    return Opened(
        instances, f"OpenVINO {packages.version('openvino')} on CPU, {request.precision}{note}, {shared}"
    )


def _read_model(core: Any, request: Request, graph: "Graph") -> Any:
    """The float model. By path it takes a third less memory, but by path OpenVINO knows a model by its file's
    ending, which __model__ has not, and a program that was cut is in memory only.
    """
    files = request.model.files
    if graph.cut is None and files.params is not None and files.model.suffix == ".pdmodel":
        return core.read_model(files.model, files.params)
    return core.read_model(graph.program, read_parameters(files, request.program))


def _compiled(core: Any, model: Any, graph: "Graph", hint: str, count: int, threads: int) -> list[Instance]:
    """So many instances, each with a stream of its own, that share out the threads."""
    config = {"INFERENCE_PRECISION_HINT": hint, "NUM_STREAMS": count, "INFERENCE_NUM_THREADS": threads}
    compiled = core.compile_model(model, "CPU", config)
    outputs = {name: compiled.output(name) for name in graph.fetches}
    return [_instance(compiled, outputs, graph.cut) for _ in range(count)]


@dataclass(frozen=True)
class Graph:
    """What OpenVINO is given of a model: ``program`` (ProgramDesc, serialised) and the names it fetches.

    ``cut``: where the suppression was cut off, what is to be done with these.
    """

    program: bytes
    fetches: tuple[str, ...]
    cut: detector_nms.Cut | None


def read_graph(request: Request) -> Graph:
    """The program, cut before its suppression if it has one.

    Raises UnsupportedModelError, SettingsError, DeviceError, EngineMissingError.
    """
    packages.require("openvino", "openvino")
    _refuse(request)
    program = request.model.files.model.read_bytes()
    cut = _cut(program, request)
    if cut is not None:
        return Graph(cut.program, cut.fetches, cut)
    return Graph(program, tuple(v.name for v in request.model.config.fetches), None)


def _cut(program: bytes, request: Request) -> detector_nms.Cut | None:
    """The program without its suppression; None where it has none. Raises UnsupportedModelError."""
    if detector_nms.OPERATOR not in request.program.operators:
        return None
    try:
        return detector_nms.cut(program)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(
            f"OpenVINO cannot run {request.model.name} exactly: {error.message.rstrip('.')}; "
            'use --engine paddle: `pip install "pdserve[paddle]"`.'
        ) from error


def _instance(compiled: Any, outputs: Mapping[str, Any], cut: detector_nms.Cut | None) -> Instance:
    infer = compiled.create_infer_request().infer

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        # Inputs are read where they lie; outputs are copied out of the request.
        results = infer(dict(feeds), share_inputs=True, share_outputs=False)
        found = {name: results[output] for name, output in outputs.items()}
        return found if cut is None else detector_nms.complete(cut, found)

    return run


def _refuse(request: Request) -> None:
    model, options = request.model, request.options
    if request.device.kind != "cpu":
        raise packages.no_cuda("openvino", request.device)
    if request.precision not in _HINTS:
        raise SettingsError(f"The engine openvino runs {', '.join(_HINTS)}, not {request.precision}.")
    for switch, off in (("ir_optim", options.ir_optim), ("use_mkldnn", options.use_mkldnn)):
        if off is False:
            raise SettingsError(f"{switch}: False is for the engine paddle; openvino cannot do without.")
    if options.tensorrt:
        raise SettingsError("TensorRT is for the engine paddle on a GPU, not for openvino.")
    if model.files.kind == "PIR":
        raise UnsupportedModelError(
            f"OpenVINO does not read {model.files.model.name}, Paddle 3's format; "
            'use --engine paddle (`pip install "pdserve[paddle]"`) or onnx (`pip install "pdserve[onnx]"`).'
        )


def import_openvino() -> Any:
    """Import openvino without its telemetry, which would report the import itself.

    OpenVINO has a stand-in for where ``openvino_telemetry`` is not installed: it gets that.
    """
    if "openvino" in sys.modules or "openvino_telemetry" in sys.modules:
        block = False
    else:
        block = True
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as error:
        raise packages.not_loading("openvino", "openvino", error) from error
    finally:
        if block:
            del sys.modules["openvino_telemetry"]
    return openvino
