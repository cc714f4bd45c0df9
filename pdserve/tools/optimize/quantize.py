"""INT8 by NNCF's post-training quantisation, for OpenVINO.

What is quantised is the graph that the engine runs, a detector's cut before its suppression, after OpenVINO's
own folding and fusing: a Paddle model comes with weights behind reshapes and normalisations of their own,
which NNCF takes for activations. Weights take half of their 8 bits' range (NNCF's overflow fix): processors
without VNNI add pairs of products in 16 bits and saturate otherwise. Activations have the range of all images
rather than that of the average one, beyond which bright images were clipped. The first two convolutions stay
float: on 302 crops, many of them of what EfficientNet_lite0 does not know, they took half of the error, and
of the time less than could be measured.
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from pdserve.engines import Engine, Options
from pdserve.engines.base import LoadRequest
from pdserve.engines.detector_nms import complete
from pdserve.engines.graph import Graph, read_graph
from pdserve.engines.int8 import PROGRAM
from pdserve.engines.openvino import import_openvino, read_model
from pdserve.engines.runner import summary
from pdserve.errors import EngineMissingError, PdserveError, UnsupportedModelError
from pdserve.files import disk_errors
from pdserve.formats.model_files import read_program
from pdserve.progress import Progress
from pdserve.tools.optimize.images import ImageFile
from pdserve.tools.optimize.tasks import Prepared, Task
from pdserve.vision.types import Array

CALIBRATING = "calibrating"
_STEM = 2
_RANKED = 32  # images that order the layers, where some go back to float
_CONVOLUTIONS = ("Convolution", "GroupConvolution")
INSTALL = 'pip install "pdserve[optimize]"'


def require() -> str:
    """NNCF's version. Raises EngineMissingError, with the pip line, where it is not installed."""
    try:
        if importlib.util.find_spec("nncf") is not None:
            return importlib.metadata.version("nncf")
    except (ImportError, ValueError, importlib.metadata.PackageNotFoundError):
        pass
    raise EngineMissingError(f"int8 is made with nncf, which is not installed: `{INSTALL}`.")


def quantize(
    task: Task,
    files: Sequence[ImageFile],
    folder: Path,
    *,
    preset: str,
    max_drop: float | None,
    progress: Progress,
) -> None:
    """Write the INT8 form of a model into ``folder``.

    ``preset``: NNCF's, ``mixed`` (symmetric weights, asymmetric activations) or ``performance`` (both
    symmetric). ``max_drop``: layers go back to float, the most harmful first, until on these images no more
    than this share of agreement is lost; None: all stay quantised. Raises UnsupportedModelError,
    EngineMissingError, ImageError for an image that cannot be read any more, DiskError.
    """
    nncf = _import_nncf()
    model = task.model
    program = read_program(model.files)
    request = LoadRequest(model, program, task.engine.device, None, 1, "fp32", Options())
    graph, ov = read_graph(request, "OpenVINO"), import_openvino()
    offline = importlib.import_module("openvino._offline_transformations")
    float_model = read_model(ov.Core(), request, graph)
    offline.apply_moc_transformations(float_model, cf=True)
    names = {v.alias: v.name for v in model.config.feeds}
    samples: Sequence[Prepared] = _Samples(task, files, progress)
    if max_drop is not None:
        samples = list(samples)  # read again for every layer

    def feeds(prepared: Prepared) -> dict[str, Array]:
        return {names[alias]: array for alias, array in prepared.feeds.items()}

    data = nncf.Dataset(samples, feeds)
    how: dict[str, Any] = {
        "preset": nncf.QuantizationPreset(preset),
        "target_device": nncf.TargetDevice.CPU,
        "subset_size": len(files),
        "ignored_scope": nncf.IgnoredScope(names=_left_float(float_model, graph), validate=False),
    }
    ranges = importlib.import_module("nncf.quantization.range_estimator").RangeEstimatorParametersSet
    advanced = nncf.AdvancedQuantizationParameters(
        overflow_fix=nncf.OverflowFix.ENABLE, activations_range_estimator_params=ranges.MINMAX
    )
    try:
        with _silenced():
            if max_drop is None:
                made = nncf.quantize(float_model, data, advanced_parameters=advanced, **how)
            else:
                made = nncf.quantize_with_accuracy_control(
                    float_model,
                    data,
                    data,
                    _Validation(task, samples, graph, feeds),
                    max_drop=max_drop,
                    advanced_quantization_parameters=advanced,
                    advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                        ranking_subset_size=_RANKED, num_ranking_workers=1
                    ),
                    **how,
                )
    except PdserveError:  # of an image, or of images that cannot decide
        raise
    except Exception as error:  # NNCF raises many kinds
        raise UnsupportedModelError(f"nncf does not quantise {model.name}: {summary(error)}.") from error
    with disk_errors(folder):
        ov.save_model(made, str(folder / PROGRAM), compress_to_fp16=False)


def _left_float(model: Any, graph: Graph) -> list[str]:
    """The operators that are not quantised: the stem, but of a model that has hardly more convolutions; and
    of a detector what comes after the last of these, where it is pixels that are computed with.
    """
    ops = model.get_ordered_ops()
    convolutions = [op.get_friendly_name() for op in ops if op.get_type_name() in _CONVOLUTIONS]
    names = convolutions[:_STEM] if len(convolutions) > 2 * _STEM else []
    if graph.cut is None:
        return names
    before: set[str] = set()  # of a convolution, at any distance
    for op in reversed(ops):
        users = [i.get_node() for output in op.outputs() for i in output.get_target_inputs()]
        if any(u.get_type_name() in _CONVOLUTIONS or u.get_friendly_name() in before for u in users):
            before.add(op.get_friendly_name())
    quantised = {*before, *convolutions}
    return names + [op.get_friendly_name() for op in ops if op.get_friendly_name() not in quantised]


class _Samples(Sequence[Prepared]):
    """The images as the service would prepare them, read one at a time, as often as NNCF iterates."""

    def __init__(self, task: Task, files: Sequence[ImageFile], progress: Progress) -> None:
        self._task = task
        self._files = files
        self._progress = progress

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: Any) -> Any:
        return self._task.prepare(self._files[index].read())

    def __iter__(self) -> Iterator[Prepared]:
        self._progress.start(CALIBRATING, len(self), 0)
        for index in range(len(self)):
            yield self[index]
            self._progress.advance(CALIBRATING, 1)
        self._progress.done(CALIBRATING)


class _Validation:
    """How accuracy control judges a model: by its agreement with the float one.

    Called with a compiled model and samples; gives the agreement, and per sample the model's outputs, by
    whose distance from the float model's NNCF orders the layers.
    """

    def __init__(self, task: Task, samples: Sequence[Prepared], graph: Graph, feeds: Any) -> None:
        self._task = task
        self._graph = graph
        self._feeds = feeds
        self._floats = [task.answers([sample], task.engine)[0] for sample in samples]

    def __call__(self, compiled: Any, samples: Iterable[Prepared]) -> tuple[float, list[list[Array]] | None]:
        outputs: list[list[Array]] = []
        answers = []
        for sample in samples:
            results = compiled(self._feeds(sample))
            found = {name: np.array(results[name]) for name in self._graph.fetches}
            outputs.append(list(found.values()))
            if self._graph.cut is not None:
                found = complete(self._graph.cut, found)
            answers += self._task.answers([sample], cast(Engine, _Recorded(self._task.engine, found)))
        if len(answers) < len(self._floats):  # NNCF asks one first, to see what comes
            return 0.0, outputs
        return self._task.compare(self._floats, answers).value, outputs


class _Recorded:
    """An Engine that gives one run's outputs, which are there already."""

    def __init__(self, engine: Engine, found: Mapping[str, Array]) -> None:
        self._engine = engine
        self._found = found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {v.alias: self._found[v.name] for v in self._engine.fetches}


def _import_nncf() -> Any:
    """Import nncf without its telemetry, and undo what the import does to the rest of the process.

    It makes its own class that of all later loggers, and its logger writes on standard output.
    """
    require()
    import_openvino()
    block = "openvino_telemetry" not in sys.modules
    loggers = logging.getLoggerClass()
    try:
        if block:
            sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nncf: Any = importlib.import_module("nncf")
    except ImportError as error:
        raise EngineMissingError(f"nncf does not load, it says {str(error)!r}: `{INSTALL}`.") from error
    finally:
        if block:
            del sys.modules["openvino_telemetry"]
        logging.setLoggerClass(loggers)
    nncf.set_log_level(logging.CRITICAL)
    return nncf


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Without NNCF's progress bars on standard output and its warnings."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
