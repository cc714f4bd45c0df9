"""OpenVINO, the engine of choice on a CPU: reads ProgramDesc models as they are.

One compiled model; an instance is one of its infer requests, with a stream of its own. A detector's
suppression is done outside of OpenVINO, which rounds the boxes and scores to two decimals.
"""

import sys
from collections.abc import Mapping
from typing import Any

from pdserve.engines import packages, suppression
from pdserve.engines.contract import Array, Instance, Opened, Request, shared_out
from pdserve.errors import DeviceError, SettingsError, UnsupportedModelError
from pdserve.parameters import read_parameters

_PRECISIONS = {"fp32": "f32", "bf16": "bf16"}


def open_model(request: Request) -> Opened:
    """Read and compile. Raises UnsupportedModelError, DeviceError, SettingsError, EngineMissingError."""
    packages.require("openvino", "openvino")
    _refuse(request)
    ov = _import_openvino()
    core = ov.Core()
    hint = _PRECISIONS[request.precision]
    if hint == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise DeviceError("This CPU has no bf16 instructions; use --precision fp32.")
    files = request.model.files
    program, fetches = files.model.read_bytes(), tuple(v.name for v in request.model.config.fetches)
    cut = _cut(program, request)
    if cut is not None:
        program, fetches = cut.program, cut.fetches
    # In memory, since by path OpenVINO knows a model by its file's ending, and __model__ has none.
    model = core.read_model(program, read_parameters(files, request.program))
    config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint, "NUM_STREAMS": request.instances}
    if request.threads:
        config["INFERENCE_NUM_THREADS"] = request.threads * request.instances
    compiled = core.compile_model(model, "CPU", config)
    outputs = {name: compiled.output(name) for name in fetches}
    threads = max(1, compiled.get_property("INFERENCE_NUM_THREADS") // request.instances)
    return Opened(
        [_instance(compiled, outputs, cut) for _ in range(request.instances)],
        f"OpenVINO {packages.version('openvino')} on CPU, {request.precision}, "
        f"{shared_out(threads, request.instances)}",
    )


def _cut(program: bytes, request: Request) -> suppression.Cut | None:
    """The program without its suppression; None where it has none. Raises UnsupportedModelError."""
    if suppression.OPERATOR not in request.program.operators:
        return None
    try:
        return suppression.cut(program)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(
            f"OpenVINO cannot run {request.model.name} exactly: {error.message.rstrip('.')}; "
            'use --engine paddle: `pip install "pdserve[paddle]"`.'
        ) from error


def _instance(compiled: Any, outputs: Mapping[str, Any], cut: suppression.Cut | None) -> Instance:
    infer = compiled.create_infer_request().infer

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        # Inputs are read where they lie; outputs are copied out of the request.
        results = infer(dict(feeds), share_inputs=True, share_outputs=False)
        found = {name: results[output] for name, output in outputs.items()}
        return found if cut is None else suppression.complete(cut, found)

    return run


def _refuse(request: Request) -> None:
    model, options = request.model, request.options
    if request.device.kind != "cpu":
        raise packages.no_cuda("openvino", request.device)
    if request.precision not in _PRECISIONS:
        raise SettingsError(f"The engine openvino runs fp32 or bf16, not {request.precision}.")
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


def _import_openvino() -> Any:
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
