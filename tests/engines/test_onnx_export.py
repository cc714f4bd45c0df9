"""The converted model: where it is kept, and when it is converted again."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pdserve.engines import Device, load, probe_input
from pdserve.engines.onnx_converters import CONVERTERS
from pdserve.engines.onnx_export import FOLDER
from pdserve.errors import EngineMissingError
from tests.engines.models import PROBE, needs, serving_model

pytestmark = needs("onnx")


def kept(folder: Path, ending: str = "") -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.endswith(ending))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PROBE, tmp_path / "model"))


def run(folder: Path) -> np.ndarray:
    engine = load(serving_model(folder), engine="onnx", device=Device())
    try:
        return engine.run({"image": probe_input(1)})["prediction"]
    finally:
        engine.close()


def test_converted_once_and_again_for_other_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(folder)
    (name,) = kept(folder / FOLDER, ".onnx")
    assert name.endswith("-opset17.onnx")
    with monkeypatch.context() as patch:
        gone = replace(CONVERTERS["paddle2onnx"], distributions=("not-installed-here",))
        patch.setitem(CONVERTERS, "paddle2onnx", gone)
        np.testing.assert_array_equal(run(folder), first)  # from the file, without the converter

        params = folder / "inference.pdiparams"
        data = bytearray(params.read_bytes())
        data[-4:] = np.float32(9).tobytes()  # the last weight of the linear layer
        params.write_bytes(data)
        with pytest.raises(EngineMissingError, match="not-installed-here"):
            run(folder)
    assert np.abs(run(folder) - first).max() > 1e-3
    assert len(kept(folder / FOLDER, ".onnx")) == 2  # another process may be about to read the older one


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX folders")
def test_a_folder_that_cannot_be_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (folder / FOLDER).write_text("in the way")  # as root, nothing is read-only
    run(folder)
    assert len(list(tmp_path.rglob("pdserve/onnx/*.onnx"))) == 1
    run(folder)
