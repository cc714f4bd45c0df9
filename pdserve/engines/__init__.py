"""Engines: each runs a serving model on one device. A name in a table, a module, one contract.

``load`` opens a serving model with one of them; ``Engine`` is what it returns.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name

import numpy as np

from pdserve.engines import table, trial
from pdserve.engines.base import LoadedModel, LoadRequest, Options
from pdserve.engines.device import Device, gpu_problem
from pdserve.engines.runner import Engine, check_config
from pdserve.engines.table import ENGINES, EngineInfo
from pdserve.errors import (
    DeviceError,
    EngineError,
    EngineMissingError,
    PdserveError,
    SettingsError,
    UnsupportedModelError,
    UsageError,
)
from pdserve.formats.model_files import read_program
from pdserve.formats.parameters import check_parameters
from pdserve.formats.serving_model import ServingModel, open_serving_model
from pdserve.vision.types import Tensor

__all__ = [
    "ENGINES",
    "PROBES",
    "PROBE_DETECTOR",
    "PROBE_MODEL",
    "Device",
    "Engine",
    "EngineInfo",
    "Options",
    "available",
    "load",
    "probe",
    "probe_input",
    "require",
]

# What makes ``auto`` try the next one; anything else is wrong with the model itself.
_NEXT = (EngineMissingError, DeviceError, UnsupportedModelError, SettingsError)

# A network of the usual operators (convolution, batch normalisation, pooling, a linear layer, softmax) on
# 3×32×32, with Paddle's results for ``probe_input`` in expected.json; tests/engines/make_models.py makes it.
PROBE_MODEL = Path(__file__).with_name("probe_model")

# A detector with its suppression: image as above and scale_factor (N, 2) -> rows (K, 6) and counts (N,).
PROBE_DETECTOR = Path(__file__).with_name("probe_detector")

# What ``probe`` runs, by the release of Paddle whose format it is in.
PROBES: Mapping[str, Path] = {"Paddle 2": PROBE_MODEL, "Paddle 3": PROBE_DETECTOR}


def available() -> list[EngineInfo]:
    """Every engine, and whether its packages are installed. Nothing is imported."""
    return [table.engine_info(name) for name in ENGINES]


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
    size: tuple[int, int] | None = None,
    tried: bool = False,
) -> Engine:
    """Load a serving model with the named engine, or with the best one that is installed and can run it.

    ``threads`` are CPU threads per instance (None: all cores), ``instances`` the number of concurrent runs
    (None: what suits the engine), ``precision`` is ``fp32``, ``fp16``, ``bf16`` or ``int8``.
    Device and precision are those asked for or an error, never others. int8 runs the form of the model that
    ``pdserve optimize`` published beside it, or the one in the folder ``optimized``.

    A model that is new here is first loaded and run in a child process (`trial`), on an image of ``size``
    (height, width) where the model leaves that free; ``tried`` says that it need not be.

    Raises ModelError for files that are missing, broken or at odds with the prototxt, and for an int8 form
    that is missing or is of another state of the model; EngineMissingError for a package that is not
    installed; DeviceError; UnsupportedModelError; SettingsError for an option that the engine does not have;
    UsageError for an engine that does not exist.
    """
    _require_known(engine)
    program = read_program(model.files)
    check_config(model, program.signature)
    check_parameters(model.files, program)
    _require_device(device, engine)
    candidates = [name for name, entry in ENGINES.items() if device.kind in entry.precisions]
    request = LoadRequest(
        model, program, device, threads, instances, precision, options or Options(), optimized, size
    )
    # What `optimize` asks for has come out of this very engine.
    tried = tried or optimized is not None
    if engine != "auto":
        return Engine(engine, request, _open(engine, request, tried), "asked for")
    refusals: dict[str, PdserveError] = {}
    for name in candidates:
        try:
            loaded = _open(name, request, tried)
        except _NEXT as error:
            refusals[name] = error
            continue
        why = "; ".join(f"not {other}: {error.message.rstrip('.')}" for other, error in refusals.items())
        return Engine(name, request, loaded, why or f"the first choice on {device.kind}")
    raise _none_left(request, refusals)


def require(engine: str, device: Device) -> None:
    """See that an engine is installed and a device is there, before a model for them is downloaded.

    Raises UsageError, EngineMissingError or DeviceError, as `load` does.
    """
    _require_known(engine)
    _require_device(device, engine)
    if engine != "auto":
        table.require(engine, next(iter(ENGINES[engine].packages)))


def _require_device(device: Device, engine: str = "auto") -> None:
    """Raise DeviceError, with all that is missing, for a GPU that this engine, or any, cannot use here."""
    if device.kind == "gpu":
        names = [name for name, entry in ENGINES.items() if "gpu" in entry.precisions]
        _require_gpu(device, [name for name in names if engine in ("auto", name)])


def _require_known(engine: str) -> None:
    if engine != "auto" and engine not in ENGINES:
        raise UsageError(f"There is no engine {engine!r}; there are auto, {', '.join(ENGINES)}.")


def _open(name: str, request: LoadRequest, tried: bool) -> LoadedModel:
    entry = ENGINES[name]
    table.require(name, next(iter(entry.packages)))
    _check_options(name, request)
    if not tried:
        derived = resolve_name(entry.derived)(request) if entry.derived else ()
        trial.require(name, entry.open, request, derived)
    return trial.open_model(name, entry.open, request)


def _check_options(name: str, request: LoadRequest) -> None:
    """Raise DeviceError or SettingsError for a device, precision or switch that the engine does not have."""
    entry, options = ENGINES[name], request.options
    if request.device.kind not in entry.precisions:
        raise table.no_cuda(name, request.device)
    precisions = entry.precisions[request.device.kind]
    if request.precision not in precisions:
        raise SettingsError(
            f"The engine {name} runs {' or '.join(precisions)} on {request.device}, not {request.precision}."
        )
    if entry.paddle_options:
        return
    for switch in ("ir_optim", "use_mkldnn"):
        if getattr(options, switch) is False:
            raise SettingsError(f"{switch}: False is for the engine paddle; {name} cannot do without.")
    if options.tensorrt:
        raise SettingsError(f"TensorRT is for the engine paddle on a GPU, not for {name}.")


def _require_gpu(device: Device, names: Sequence[str]) -> None:
    """Raise DeviceError, with all that is missing, where the driver has no such GPU for these engines."""
    problem = gpu_problem(device.index)
    if problem is None or not names:  # an engine that has no GPUs at all says so itself
        return
    if table.built_for_cuda(names):
        raise DeviceError(f"{device} is not usable: {problem}; fix that, or run with --cpu.")
    raise DeviceError(
        f"{device} is not usable: {problem}, and {' or '.join(names)} is not installed for CUDA: "
        f"{table.cuda_install(names)}, or run with --cpu."
    )


def _none_left(request: LoadRequest, refusals: dict[str, PdserveError]) -> PdserveError:
    kinds = {type(error) for error in refusals.values()}
    by_information = (DeviceError, UnsupportedModelError, SettingsError, EngineMissingError)
    kind = next(k for k in by_information if k in kinds)  # the most informative, where they differ
    names: dict[str, list[str]] = {}
    for name, error in refusals.items():
        names.setdefault(error.message, []).append(name)
    said = " ".join(f"[{', '.join(those)}] {message}" for message, those in names.items())
    return kind(f"No engine here can run {request.model.name} on {request.device}. {said}")


def probe_input(batch: int = 2) -> Tensor:
    """The images that the probe model's ``expected.json`` is about, (batch, 3, 32, 32) float32."""
    return np.sin(np.arange(batch * 3 * 32 * 32, dtype=np.float32)).reshape(batch, 3, 32, 32)


def probe(engine: str, device: Device, form: str = "Paddle 2") -> str:
    """Run a format's probe model on an engine and a device, and return the engine's description.

    Raises what ``load`` raises, and EngineError where the numbers are wrong.
    """
    values = json.loads((PROBES[form] / "expected.json").read_text("utf-8"))
    with tempfile.TemporaryDirectory(prefix="pdserve-") as scratch:
        # A copy, as a model's ONNX form is kept beside it.
        folder = Path(shutil.copytree(PROBES[form], Path(scratch) / "probe_serving"))
        # It comes with pdserve: nothing about it is new.
        loaded = load(open_serving_model(folder), engine=engine, device=device, tried=True)
        feeds = {"image": probe_input(), "scale_factor": np.array([[1, 1], [0.5, 2]], np.float32)}
        try:
            found = loaded.run({feed.alias: feeds[feed.alias] for feed in loaded.feeds})
        finally:
            loaded.close()
    for array, expected in zip(found.values(), values.values(), strict=True):
        if array.shape != np.shape(expected) or not np.allclose(array, expected, rtol=1e-4, atol=2e-5):
            raise EngineError(f"{loaded.description} computes wrong numbers on the probe model of {form}.")
    return loaded.description
