"""Paddle Inference engine: reads every format, runs every operator; CPU with oneDNN, or CUDA.

An instance is a predictor; the others are clones of the first and share its weights.
"""

import logging
import os
import re
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from pdserve.engines import table
from pdserve.engines.base import LoadedModel, LoadRequest, thread_text
from pdserve.errors import SettingsError, UnsupportedModelError
from pdserve.files import disk_errors
from pdserve.formats.parameters import read_parameters
from pdserve.vision.types import Array

_GPU_POOL_MB = 256  # what the memory pool starts with; it grows
_TENSORRT_WORKSPACE = 1 << 30
_GUESSED = 64  # height and width, where a model leaves them free


def open_model(request: LoadRequest) -> LoadedModel:
    """Create the predictors.

    Raises DeviceError, SettingsError, EngineMissingError, UnsupportedModelError, ModelError, DiskError.
    """
    if request.options.tensorrt:
        if request.device.kind != "gpu":
            raise SettingsError("TensorRT needs a GPU; give --gpu 0, or leave TensorRT out.")
        if request.model.files.kind == "PIR":
            raise SettingsError("TensorRT takes .pdmodel files in Paddle Inference, not Paddle 3's .json.")
    paddle = _import_paddle()
    if request.device.kind == "gpu":
        table.require_cuda("paddle", request.device, paddle.is_compiled_with_cuda())
    onednn = request.device.kind == "cpu" and request.options.use_mkldnn is not False
    instances, problem = _instances(request, onednn), None
    if onednn and request.model.files.kind == "PIR" and (problem := _onednn_problem(instances[0], request)):
        if request.options.use_mkldnn:
            raise SettingsError(
                f"Paddle {paddle.__version__} does not run {request.model.name} with oneDNN ({problem}); "
                "leave out use_mkldnn: True."
            )
        onednn, instances = False, _instances(request, False)
    where = _where(request, onednn, problem)
    return LoadedModel(instances, f"Paddle {paddle.__version__} on {where}")


def _instances(request: LoadRequest, onednn: bool) -> "list[_Instance]":
    first = _create(request, onednn)
    # One instance by default, on a GPU too: the OpenMP threads of several would compete for the cores.
    # Cloned before the first run: oneDNN then turns the shared weights, and later clones fail.
    predictors = [first, *(first.clone() for _ in range((request.instances or 1) - 1))]
    # On a CPU they run one at a time: two that run at once fail now and then with "std::exception", clones or
    # not (seen with oneDNN, Paddle 3.3.1).
    turn = nullcontext() if request.device.kind == "gpu" else threading.Lock()
    return [_Instance(p, request, onednn, turn) for p in predictors]


def _onednn_problem(instance: "_Instance", request: LoadRequest) -> str | None:
    """Why Paddle cannot run this program with oneDNN, or None.

    Paddle 3.3.1 prepares operators for oneDNN at the first run, all of them before any runs, and fails at
    those whose attributes it cannot hand on, such as a list of doubles (nearest_interp's scale, in most
    detectors). Which operators go to oneDNN is its own affair, so nothing but a run shows it. What else
    may be wrong with this run, on ones and with free extents guessed, is not of interest.
    """
    try:
        instance(
            {
                spec.name: np.ones(
                    [n if n > 0 else _GUESSED if i > 1 else 1 for i, n in enumerate(spec.shape)], spec.dtype
                )
                for spec in request.program.signature.feeds
            }
        )
    except Exception as error:
        found = re.search(r"ConvertPirAttribute2RuntimeAttribute not support \S*", str(error))
        return found[0] if found else None
    return None


def _create(request: LoadRequest, onednn: bool) -> Any:
    from paddle import inference

    with tempfile.TemporaryDirectory(prefix="pdserve-") as scratch:
        return inference.create_predictor(_configured(inference, request, onednn, Path(scratch)))


def _configured(inference: Any, request: LoadRequest, onednn: bool, scratch: Path) -> Any:
    config = _config(inference, request, scratch)
    if request.device.kind == "gpu":
        _use_gpu(inference, config, request)
    else:
        config.disable_gpu()
        config.set_cpu_math_library_num_threads(request.cpu_shares(1)[0])
        if onednn:
            config.enable_mkldnn()
            # With oneDNN it writes over values that are needed again (Paddle 3.3.1): all numbers of
            # ConvNeXt are wrong, and those of maximum(x, |x|) beside rsqrt(|x|).
            config.delete_pass("inplace_pass")
        else:
            config.disable_mkldnn()
    config.switch_ir_optim(request.options.ir_optim is not False)
    # The older executor takes twice as long for a batch of one once it has seen a larger batch.
    config.enable_new_executor()
    config.disable_glog_info()
    return config


def _where(request: LoadRequest, onednn: bool, problem: str | None) -> str:
    if request.device.kind == "gpu":
        using = " with TensorRT" if request.options.tensorrt else ""
        return f"GPU {request.device.index}{using}, {request.precision}"
    using = (
        " with oneDNN" if onednn else f" without oneDNN (it fails on this program: {problem})" * bool(problem)
    )
    return f"CPU{using}, {request.precision}, {thread_text(*request.cpu_shares(1))}"


def _config(inference: Any, request: LoadRequest, scratch: Path) -> Any:
    files = request.model.files
    if files.params is not None:
        return inference.Config(str(files.model), str(files.params))
    if files.kind == "PIR":  # of whose bytes, read from memory, Paddle 3.3.1 dies
        if not request.program.parameters:
            raise UnsupportedModelError(f"Paddle does not run {request.model.name}, which has no parameters.")
        joined = scratch / "inference.pdiparams"
        with disk_errors(joined):
            joined.write_bytes(read_parameters(files, request.program))
        return inference.Config(str(files.model), str(joined))
    config = inference.Config()
    program, parameters = files.model.read_bytes(), read_parameters(files, request.program)
    config.set_model_buffer(program, len(program), parameters, len(parameters))
    return config


def _use_gpu(inference: Any, config: Any, request: LoadRequest) -> None:
    kinds = inference.PrecisionType
    precision = kinds.Half if request.precision == "fp16" else kinds.Float32
    config.enable_use_gpu(_GPU_POOL_MB, request.device.index, precision)
    if request.options.tensorrt:
        config.enable_tensorrt_engine(
            workspace_size=_TENSORRT_WORKSPACE,
            max_batch_size=1,  # not used: the shapes are dynamic
            min_subgraph_size=3,
            precision_mode=precision,
            use_static=False,
            use_calib_mode=False,
        )
        config.enable_tuned_tensorrt_dynamic_shape()  # the ranges are those of the runs so far


class _Instance:
    """A predictor, with a guard around its first run.

    Some operators then write on standard output, which is for results. And a predictor whose first run
    fails keeps failing, whatever it is fed (seen with oneDNN): it is replaced.
    """

    def __init__(
        self, predictor: Any, request: LoadRequest, onednn: bool, turn: "AbstractContextManager[object]"
    ) -> None:
        self._request = request
        self._onednn = onednn
        self._turn = turn
        self._ran = False
        self._bind(predictor)

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if self._ran:
            return self._run(feeds)
        try:
            with _stdout_to_stderr():
                outputs = self._run(feeds)
        except Exception:
            self._bind(_create(self._request, self._onednn))
            raise
        self._ran = True
        return outputs

    def _bind(self, predictor: Any) -> None:
        config = self._request.model.config
        self._predictor = predictor
        self._inputs = {v.name: predictor.get_input_handle(v.name) for v in config.feeds}
        self._outputs = {v.name: predictor.get_output_handle(v.name) for v in config.fetches}

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        for name, array in feeds.items():
            self._inputs[name].copy_from_cpu(array)
        with self._turn:
            self._predictor.run()
        return {name: handle.copy_to_cpu() for name, handle in self._outputs.items()}


_stdout = threading.Lock()


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Redirect standard output of the whole process, C++ included."""
    with _stdout:
        try:
            saved = os.dup(1)
        except OSError:  # a process without standard output
            yield
            return
        try:
            sys.stdout.flush()
            os.dup2(2, 1)
            yield
        finally:
            os.dup2(saved, 1)
            os.close(saved)


def _import_paddle() -> Any:
    """Import paddle, and undo its side effects on the process."""
    with warnings.catch_warnings(), _undone():
        warnings.simplefilter("ignore")
        try:
            import paddle
        except (ImportError, OSError) as error:  # OSError: a library of CUDA that is not there
            raise table.import_error("paddle", "paddle", error) from error
        paddle.disable_signal_handler()
    return paddle


@contextmanager
def _undone() -> Iterator[None]:
    """Undo what importing Paddle does: it sets OMP_NUM_THREADS=1, a root log handler and one for SIGTERM.

    Python's own SIGTERM handler can be put back in the main thread only; elsewhere, one that was set
    before the first Paddle model was loaded is lost, so a server sets its handlers after loading.
    """
    omp = os.environ.get("OMP_NUM_THREADS")
    root = logging.getLogger()
    handlers = root.handlers[:]
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if omp is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        root.handlers[:] = handlers
        if threading.current_thread() is threading.main_thread() and on_term is not None:
            signal.signal(signal.SIGTERM, on_term)
