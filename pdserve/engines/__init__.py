"""Engines: what runs a serving model. A name in a table, a module, one contract.

``load`` opens a serving model with one of them; ``contract.Engine`` says what comes back.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from pdserve.engines import packages
from pdserve.engines.base import Engine, Opened, Options, Request, warm_up
from pdserve.engines.device import Device, gpu_problem
from pdserve.engines.feeds import check_config
from pdserve.engines.packages import EngineInfo
from pdserve.engines.probe import probe
from pdserve.engines.runner import Runner, gist
from pdserve.errors import (
    DeviceError,
    EngineMissingError,
    PdserveError,
    SettingsError,
    UnsupportedModelError,
    UsageError,
)
from pdserve.formats.model_files import read_program
from pdserve.formats.parameters import check_parameters
from pdserve.formats.serving_model import ServingModel
from pdserve.vision.types import Array

__all__ = [
    "ENGINES",
    "Array",
    "Device",
    "Engine",
    "EngineInfo",
    "Options",
    "available",
    "load",
    "probe",
    "warm_up",
]

# An engine is a function that takes a Request and returns an Opened.
ENGINES = {
    "openvino": "pdserve.engines.openvino:open_model",
    "paddle": "pdserve.engines.paddle:open_model",
    "onnx": "pdserve.engines.onnx:open_model",
}

# What ``auto`` tries, best first.
_BEST = {"cpu": ("openvino", "paddle", "onnx"), "gpu": ("paddle", "onnx")}

# What makes ``auto`` try the next one; anything else is wrong with the model itself.
_NEXT = (EngineMissingError, DeviceError, UnsupportedModelError, SettingsError)


def available() -> list[EngineInfo]:
    """Every engine, and whether its packages are installed. Nothing is imported."""
    return [packages.engine_info(name) for name in ENGINES]


def load(
    model: ServingModel,
    *,
    engine: str = "auto",
    device: Device,
    threads: int | None = None,
    instances: int | None = 1,
    precision: str = "fp32",
    options: Options | None = None,
    optimized: Path | None = None,
) -> Engine:
    """Load a serving model with the named engine, or with the best one that is installed and can run it.

    ``threads`` are CPU threads per instance (None: what the machine has), ``instances`` how many runs go
    on at once (None: what suits the engine), ``precision`` is ``fp32``, ``fp16``, ``bf16`` or ``int8``.
    Device and precision are those asked for or an error, never others. What int8 runs is the form of the
    model that ``pdserve optimize`` published beside it, or one in the folder ``optimized``.

    Raises ModelError for files that are missing, broken or at odds with the prototxt, and for an int8 form
    that is not there or is of another state of the model; EngineMissingError
    for a package that is not installed; DeviceError; UnsupportedModelError; SettingsError for an option
    that the engine does not have; UsageError for an engine that does not exist.
    """
    if engine != "auto" and engine not in ENGINES:
        raise UsageError(f"There is no engine {engine!r}; there are auto, {', '.join(ENGINES)}.")
    program = read_program(model.files)
    check_config(model, program.signature)
    check_parameters(model.files, program)
    if device.kind == "gpu":
        _require_gpu(device, [n for n in _BEST["gpu"] if engine in ("auto", n)])
    options = options or Options()
    request = Request(model, program, device, threads, instances, precision, options, optimized)
    if engine != "auto":
        return Runner(engine, request, _open(engine, request), "asked for")
    refusals: dict[str, PdserveError] = {}
    for name in _BEST[device.kind]:
        try:
            opened = _open(name, request)
        except _NEXT as error:
            refusals[name] = error
            continue
        why = "; ".join(f"not {other}: {error.message.rstrip('.')}" for other, error in refusals.items())
        return Runner(name, request, opened, why or f"the first choice on {device.kind}")
    raise _none_left(request, refusals)


def _open(name: str, request: Request) -> Opened:
    module, _, function = ENGINES[name].partition(":")
    try:
        opened: Opened = getattr(import_module(module), function)(request)
    except PdserveError:
        raise
    except Exception as error:  # each engine has its own kinds; the files are known to be whole
        raise UnsupportedModelError(f"{name} cannot run {request.model.name}: {gist(error)}.") from error
    return opened


def _require_gpu(device: Device, names: Sequence[str]) -> None:
    """Raise DeviceError, with all that is missing, where the driver has no such GPU for these engines."""
    problem = gpu_problem(device.index)
    if problem is None or not names:  # an engine that has no GPUs at all says so itself
        return
    if packages.built_for_cuda(names):
        raise DeviceError(f"{device} is not usable: {problem}; mend that, or run with --cpu.")
    raise DeviceError(
        f"{device} is not usable: {problem}, and {' or '.join(names)} is not installed for CUDA: "
        f"{packages.cuda_install(names)}, or run with --cpu."
    )


def _none_left(request: Request, refusals: dict[str, PdserveError]) -> PdserveError:
    kinds = {type(error) for error in refusals.values()}
    telling = (DeviceError, UnsupportedModelError, SettingsError, EngineMissingError)
    kind = next(k for k in telling if k in kinds)  # the most telling, where they differ
    said = " ".join(f"[{name}] {error.message}" for name, error in refusals.items())
    return kind(f"No engine here can run {request.model.name} on {request.device}. {said}")
