"""Table of the engines: how each is loaded, what it runs, the packages it needs and what installs them."""

import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pdserve.engines.device import Device, gpu_problem
from pdserve.errors import DeviceError, EngineMissingError


@dataclass(frozen=True)
class EngineEntry:
    """One engine.

    ``open``: "module:function"; the function takes a LoadRequest and returns a LoadedModel. ``derived``:
    another that returns the files which are loaded beside or in place of the model's own, and makes those
    that can be made; "" for an engine that loads the model's own alone. ``precisions``:
    what it runs, by kind of device. ``packages``: module that it imports -> distributions that bring it, the
    CPU's first; the first module is the engine itself. ``install``: the pip line by kind of device.
    ``paddle_options``: whether it has Paddle's switches (base.Options).
    """

    open: str
    help: str
    precisions: Mapping[str, Sequence[str]]
    packages: Mapping[str, Sequence[str]]
    install: Mapping[str, str]
    paddle_options: bool = False
    derived: str = ""


_PADDLE = {"paddle": ("paddlepaddle", "paddlepaddle-gpu")}
_FLOAT = {"cpu": ("fp32",), "gpu": ("fp32", "fp16")}

# In the order in which ``auto`` tries them.
ENGINES: dict[str, EngineEntry] = {
    "openvino": EngineEntry(
        "pdserve.engines.openvino:open_model",
        "OpenVINO: the fastest on a CPU; runs INT8.",
        {"cpu": ("fp32", "fp16", "bf16", "int8")},
        {"openvino": ("openvino",)},
        {"cpu": "pip install openvino"},
        derived="pdserve.engines.openvino:derived_files",
    ),
    "paddle": EngineEntry(
        "pdserve.engines.paddle:open_model",
        "Paddle Inference: runs every model; CPU with oneDNN, or CUDA with TensorRT.",
        _FLOAT,
        _PADDLE,
        {"cpu": 'pip install "pdserve[paddle]"', "gpu": 'pip install "pdserve[paddle-gpu]"'},
        paddle_options=True,
    ),
    "onnx": EngineEntry(
        "pdserve.engines.onnx:open_model",
        "ONNX Runtime: CPU or CUDA, over a model that is converted once.",
        _FLOAT,
        {"onnxruntime": ("onnxruntime", "onnxruntime-gpu")},
        {"cpu": 'pip install "pdserve[onnx]"', "gpu": 'pip install "pdserve[gpu]"'},
        derived="pdserve.engines.onnx:derived_files",
    ),
}


@dataclass(frozen=True)
class EngineInfo:
    """An engine as installed here: its packages that are ``missing``, and the pip line."""

    name: str
    missing: Sequence[str]
    install: str

    @property
    def installed(self) -> bool:
        return not self.missing


def engine_info(name: str) -> EngineInfo:
    """Whether an engine's packages are installed; nothing is imported."""
    entry = ENGINES[name]
    missing = [names[0] for module, names in entry.packages.items() if not _installed(module)]
    return EngineInfo(name, missing, entry.install["cpu"])


def require(engine: str, module: str) -> None:
    """Raise EngineMissingError, with the pip line, unless ``module`` can be found."""
    entry = ENGINES[engine]
    if not _installed(module):
        raise EngineMissingError(
            f"The engine {engine} needs {entry.packages[module][0]}, which is not installed: "
            f"`{entry.install['cpu']}`."
        )


def import_error(engine: str, module: str, error: BaseException) -> EngineMissingError:
    """The error for a package that is installed but cannot be imported."""
    return EngineMissingError(
        f"The engine {engine} does not load, {module} says {str(error).strip()!r}: "
        f"`{ENGINES[engine].install['cpu']}`."
    )


def no_cuda(engine: str, device: Device) -> DeviceError:
    """The error for a GPU that an engine was not built for."""
    if "gpu" not in ENGINES[engine].install:
        return DeviceError(
            f"The engine {engine} runs on the CPU, not on {device}; "
            f"others can use a GPU: {cuda_install(tuple(ENGINES))}."
        )
    cpu, gpu = _distributions(engine)
    instead = f" in place of {cpu}" if _version((cpu,)) else ""
    return DeviceError(
        f"{device} is not usable with the engine {engine}, whose package is not built for CUDA; "
        f"install {gpu}{instead}: `{ENGINES[engine].install['gpu']}`."
    )


def require_cuda(engine: str, device: Device, built: bool) -> None:
    """Raise DeviceError unless the engine was ``built`` for CUDA and the driver has this GPU."""
    if not built:
        raise no_cuda(engine, device)
    if problem := gpu_problem(device.index):
        raise DeviceError(f"{device} is not usable: {problem}.")


def cuda_install(engines: Sequence[str]) -> str:
    """The pip lines that bring these engines for CUDA; ONNX Runtime's, the easiest to get, first."""
    lines = (ENGINES[name].install.get("gpu") for name in reversed(ENGINES) if name in engines)
    return " or ".join(f"`{line}`" for line in lines if line)


def built_for_cuda(engines: Sequence[str]) -> bool:
    """Whether one of these engines is installed in a distribution for CUDA."""
    return any(_version(_distributions(name)[1:]) for name in engines)


def version(engine: str) -> str:
    """Version of the engine's main package, "unknown" where it has no metadata."""
    return _version(_distributions(engine)) or "unknown"


def _distributions(engine: str) -> Sequence[str]:
    return next(iter(ENGINES[engine].packages.values()))


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # blocked, or half there
        return False


def _version(distributions: Sequence[str]) -> str | None:
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
