"""Serving models for these tests, and which engines and devices there are to run them."""

from pathlib import Path

import numpy as np
import pytest

from pdserve.engines import ENGINES, PROBE_MODEL, Device, Engine, table
from pdserve.engines.device import gpu_problem
from pdserve.engines.onnx_converters import CONVERTERS
from pdserve.formats.model_files import find_model_files, read_program
from pdserve.formats.program import TensorSpec
from pdserve.formats.prototxt import ModelConfig, Variable
from pdserve.formats.serving_model import ServingModel

DATA = Path(__file__).parents[1] / "data"
PROBE = PROBE_MODEL
PIR = DATA / "engines/pir"
DETECTOR = DATA / "engines/detector"
BOTH = DATA / "engines/both"
TWO_HEADS = DATA / "programs/two_heads"

# The models' own names -> what the tests call them.
ALIASES = {"softmax_0.tmp_0": "prediction", "fetch_name_0": "prediction", "fetch_name_1": "best"} | {
    "top_k_v2_0.tmp_1": "best"
}


def serving_model(folder: Path) -> ServingModel:
    """A folder with a model as a serving model, all its feeds and fetches under the names above."""
    files = find_model_files(folder)
    signature = read_program(files).signature

    def variable(spec: TensorSpec) -> Variable:
        known = tuple(extent for extent in spec.shape if extent > 0)
        return Variable(spec.name, ALIASES.get(spec.name, spec.name), spec.dtype, known)

    config = ModelConfig(tuple(map(variable, signature.feeds)), tuple(map(variable, signature.fetches)))
    return ServingModel(folder, folder.name, files, config)


def warm_up(engine: Engine, batch: int = 1, size: tuple[int, int] | None = None) -> None:
    """Run once on ones; ``size`` is (height, width) where these are free, other free extents are 1."""
    feeds = {}
    for feed in engine.feeds:
        shape = list(engine.shapes[feed.alias])
        for axis, extent in enumerate(shape):
            if extent < 0:
                spatial = len(shape) == 4 and axis >= 2 and size is not None
                shape[axis] = batch if axis == 0 else size[axis - 2] if spatial and size else 1
        feeds[feed.alias] = np.ones(shape, feed.dtype)
    engine.run(feeds)


def engine_params() -> list[object]:
    """Every engine on every device, with a skip that says why where there is none.

    All but the default engine are part of `make check` alone.
    """
    params = []
    for name in ENGINES:
        for device in ("cpu", "gpu:0") if name != "openvino" else ("cpu",):
            marks = [pytest.mark.full] if name != "openvino" else []
            marks += [pytest.mark.gpu] if device != "cpu" else []
            if why := _lacks(name, device):
                marks.append(pytest.mark.skip(reason=why))
            params.append(pytest.param(name, Device.parse(device), id=f"{name}-{device}", marks=marks))
    return params


def _lacks(name: str, device: str) -> str | None:
    info = table.engine_info(name)
    if not info.installed:
        return f"{name} needs {', '.join(info.missing)}: {info.install}"
    if name == "onnx" and (unread := unconverted()):
        return f"{unread} cannot be converted for onnx: {info.install}"
    if device != "cpu":
        if problem := gpu_problem(0):
            return problem
        if not table.built_for_cuda([name]):
            return f"{name} is not built for CUDA here"
    return None


def unconverted() -> str | None:
    """A format of programs that nothing installed here converts to ONNX."""
    found = {kind for c in CONVERTERS.values() if c.version() for kind in c.reads}
    return next((kind for kind in ("PIR", "ProgramDesc") if kind not in found), None)


def needs(name: str) -> pytest.MarkDecorator:
    """A mark that skips a test where an engine is not installed."""
    why = _lacks(name, "cpu")
    return pytest.mark.skipif(why is not None, reason=why or "")
