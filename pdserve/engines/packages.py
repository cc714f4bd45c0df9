"""Which packages each engine needs, which are installed, and what installs the rest."""

import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pdserve.engines.device import Device
from pdserve.errors import DeviceError, EngineMissingError

# Engine -> what it imports, and the distributions that bring it; the first is the CPU's.
_NEEDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "openvino": {"openvino": ("openvino",)},
    "paddle": {"paddle": ("paddlepaddle", "paddlepaddle-gpu")},
    "onnx": {
        "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
        "paddle2onnx": ("paddle2onnx",),
        "paddle": ("paddlepaddle", "paddlepaddle-gpu"),
    },
}
_INSTALL = {
    "openvino": "pip install openvino",
    "paddle": 'pip install "pdserve[paddle]"',
    "onnx": 'pip install "pdserve[onnx]"',
}
_INSTALL_GPU = {"onnx": 'pip install "pdserve[gpu]"', "paddle": 'pip install "pdserve[paddle-gpu]"'}


@dataclass(frozen=True)
class EngineInfo:
    """An engine as installed here: ``version`` of its main package, packages ``missing``, the pip line."""

    name: str
    installed: bool
    version: str | None
    missing: tuple[str, ...]
    install: str


def engine_info(name: str) -> EngineInfo:
    """Look at what is installed, without importing it."""
    needs = _NEEDS[name]
    missing = tuple(names[0] for module, names in needs.items() if not _installed(module))
    main = next(iter(needs.values()))
    return EngineInfo(name, not missing, _version(main), missing, _INSTALL[name])


def require(engine: str, module: str) -> None:
    """Raise EngineMissingError, with the pip line, unless ``module`` can be found."""
    if not _installed(module):
        raise EngineMissingError(
            f"The engine {engine} needs {_NEEDS[engine][module][0]}, which is not installed: "
            f"`{_INSTALL[engine]}`."
        )


def not_loading(engine: str, module: str, error: BaseException) -> EngineMissingError:
    """The error for a package that is there but cannot be imported."""
    return EngineMissingError(
        f"The engine {engine} does not load, {module} says {str(error).strip()!r}: `{_INSTALL[engine]}`."
    )


def no_cuda(engine: str, device: Device) -> DeviceError:
    """The error for a GPU that an engine was not built for."""
    if engine not in _INSTALL_GPU:
        return DeviceError(
            f"The engine {engine} runs on the CPU, not on {device}; "
            f"others can use a GPU: {cuda_install(tuple(_INSTALL_GPU))}."
        )
    cpu, gpu = _cuda_names(engine)
    instead = f" in place of {cpu}" if _version((cpu,)) else ""
    return DeviceError(
        f"{device} is not usable with the engine {engine}, whose package is not built for CUDA; "
        f"install {gpu}{instead}: `{_INSTALL_GPU[engine]}`."
    )


def cuda_install(engines: Sequence[str]) -> str:
    """The pip lines that bring these engines for CUDA, the easiest first."""
    return " or ".join(f"`{line}`" for name, line in _INSTALL_GPU.items() if name in engines)


def built_for_cuda(engines: Sequence[str]) -> bool:
    """Is one of these engines installed in a distribution for CUDA?"""
    return any(_version((_cuda_names(name)[1],)) for name in engines)


def _cuda_names(engine: str) -> tuple[str, ...]:
    return next(iter(_NEEDS[engine].values()))


def version(engine: str) -> str:
    """Version of the engine's main package, "unknown" where it has no metadata."""
    return _version(next(iter(_NEEDS[engine].values()))) or "unknown"


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # blocked, or half there
        return False


def _version(distributions: tuple[str, ...]) -> str | None:
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
