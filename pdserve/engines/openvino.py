"""OpenVINO engine, for CPUs: reads ProgramDesc models as they are, and Paddle 3's in their ONNX form.

An instance is an infer request of a compiled model, with its own stream. A detector's NMS runs outside of
OpenVINO, which rounds the boxes and scores of Paddle 2's to two decimals; see pir_nms.py for Paddle 3's.
"""

import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pdserve.engines import detector_nms, int8, table
from pdserve.engines.base import Instance, LoadedModel, LoadRequest, thread_text
from pdserve.engines.graph import Graph, read_graph
from pdserve.engines.onnx_export import onnx_form
from pdserve.errors import DeviceError
from pdserve.formats.parameters import read_parameters
from pdserve.vision.types import Array

# Precision of what is not quantised, as the plugin calls it.
_HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}


def open_model(request: LoadRequest) -> LoadedModel:
    """Read and compile a model.

    Raises UnsupportedModelError, DeviceError, EngineMissingError, and ModelError for an int8 form that is
    missing, stale or broken.
    """
    graph = read_graph(request, "OpenVINO")
    core = import_openvino().Core()
    # The plugin would run what it has no instructions for in float32, without a word.
    if request.precision.upper() not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise DeviceError(f"This CPU has no {request.precision} instructions; use --precision fp32.")
    note = ""
    if request.precision == "int8":
        form = int8.read(request)
        model, note = core.read_model(form.program, form.weights), form.note
    else:
        model = read_model(core, request, graph)
    threads = request.cpu_shares(1)[0]
    hint = _HINTS[request.precision]
    if request.instances is not None or threads == 1:
        count = request.instances or 1
        instances = _compiled(core, model, graph, hint, count, threads * count)
        shared = thread_text(threads, count)
    else:
        (alone,) = _compiled(core, model, graph, hint, 1, threads)
        instances = cpu_streams(alone, _compiled(core, model, graph, hint, 2, threads))
        shared = f"{threads} threads for one run or two"
    return LoadedModel(
        instances, f"OpenVINO {table.version('openvino')} on CPU, {request.precision}{note}, {shared}"
    )


def derived_files(request: LoadRequest) -> list[Path]:
    """What is loaded in place of the model's own files: an int8 form, or Paddle 3's ONNX form, made here.

    Raises what `open_model` raises for them.
    """
    graph = read_graph(request, "OpenVINO")
    if request.precision == "int8":
        int8.read(request)
        return int8.files(request)
    return [onnx_form(request, graph).path] if request.model.files.kind == "PIR" else []


class RunCount:
    """Number of active runs."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = 0


# Of all models: they share the cores.
_ALL = RunCount()


def cpu_streams(alone: Instance, together: Sequence[Instance], runs: RunCount = _ALL) -> list[Instance]:
    """Instances of which a single run uses all cores, and concurrent runs share them out.

    As many as ``together`` has; a run that starts while no other is active goes to ``alone``. A CPU is best
    used by several runs at once, each on its own cores; but then a single run leaves the others idle.
    ResNet50_vd on two cores: 62 ms alone with both and 112 ms with one, while two runs of one core each do
    5 to 13 % more images per second than one after the other on both.
    """

    def instance(own: Instance) -> Instance:
        def run(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
            with runs.lock:
                # While alone's run is active, the count is above 0: it never has two.
                chosen = alone if runs.count == 0 else own
                runs.count += 1
            try:
                return chosen(feeds)
            finally:
                with runs.lock:
                    runs.count -= 1

        return run

    return [instance(own) for own in together]


def read_model(core: Any, request: LoadRequest, graph: Graph) -> Any:
    """The float model (openvino.Model), its outputs by the names that ``graph`` fetches.

    By path it takes a third less memory, but by path OpenVINO knows a model by its file's ending, which
    __model__ has not, and a program that was cut is in memory only. Raises what ``onnx_form`` raises.
    """
    files = request.model.files
    if files.kind == "PIR":
        form = onnx_form(request, graph)
        model = core.read_model(form.path)
        for fetch, name in form.outputs.items():
            if fetch != name:
                model.output(name).get_tensor().set_names({fetch})
        return model
    if graph.cut is None and files.params is not None and files.model.suffix == ".pdmodel":
        return core.read_model(files.model, files.params)
    return core.read_model(graph.program, read_parameters(files, request.program))


def _compiled(core: Any, model: Any, graph: Graph, hint: str, count: int, threads: int) -> list[Instance]:
    """``count`` instances, each with its own stream, that share ``threads``."""
    config = {"INFERENCE_PRECISION_HINT": hint, "NUM_STREAMS": count, "INFERENCE_NUM_THREADS": threads}
    compiled = core.compile_model(model, "CPU", config)
    outputs = {name: compiled.output(name) for name in graph.fetches}
    return [_instance(compiled, outputs, graph.cut) for _ in range(count)]


def _instance(compiled: Any, outputs: Mapping[str, Any], cut: detector_nms.Cut | None) -> Instance:
    infer = compiled.create_infer_request().infer

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        # Inputs are read in place; outputs are copied out of the request.
        results = infer(dict(feeds), share_inputs=True, share_outputs=False)
        found = {name: results[output] for name, output in outputs.items()}
        return found if cut is None else detector_nms.complete(cut, found)

    return run


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
        raise table.import_error("openvino", "openvino", error) from error
    finally:
        if block:
            del sys.modules["openvino_telemetry"]
    return openvino
