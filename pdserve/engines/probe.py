"""Does an engine really run on a device? Asked with a tiny model that ships with the package.

``probe_model/`` holds a network of the usual operators (convolution, batch normalisation, pooling, a
linear layer, softmax) on 3×32×32, and in ``expected.json`` what Paddle computes for ``probe_input``.
``tests/engines/make_models.py`` makes it.
"""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np

from pdserve.engines.device import Device
from pdserve.errors import EngineError
from pdserve.vision.types import Tensor

PROBE_MODEL = Path(__file__).with_name("probe_model")


def probe_input(batch: int = 2) -> Tensor:
    """The images that ``expected.json`` is about, (batch, 3, 32, 32)."""
    return np.sin(np.arange(batch * 3 * 32 * 32, dtype=np.float32)).reshape(batch, 3, 32, 32)


def probe(engine: str, device: Device) -> str:
    """Run the tiny model and return the engine's description.

    Raises what ``load`` raises, and EngineError where the numbers are wrong.
    """
    from pdserve.engines import load
    from pdserve.formats.serving_model import open_serving_model

    values = json.loads((PROBE_MODEL / "expected.json").read_text("utf-8"))
    expected = np.array(values["prediction"], np.float32)
    with tempfile.TemporaryDirectory(prefix="pdserve-") as scratch:
        # A copy, as the engine onnx keeps its conversion beside the model.
        folder = Path(shutil.copytree(PROBE_MODEL, Path(scratch) / "probe_serving"))
        loaded = load(open_serving_model(folder), engine=engine, device=device)
        try:
            found = loaded.run({"image": probe_input(len(expected))})["prediction"]
        finally:
            loaded.close()
    if not np.allclose(found, expected, rtol=1e-4, atol=1e-6):
        off = float(np.abs(found - expected).max())
        raise EngineError(f"{loaded.description} computes wrong numbers: {off:.2g} off on the probe model.")
    return loaded.description
