"""ONNX files: feeds, fetches and opset without the weights; a file that is cut or hostile is refused."""

from pathlib import Path

import numpy as np
import pytest

from pdserve.engines.onnx_converters import CONVERTERS, OPSET, Source
from pdserve.errors import ModelError
from pdserve.formats.model_files import find_model_files, read_program
from pdserve.formats.onnx import read_onnx
from pdserve.formats.program import TensorSpec
from tests.engines.models import TWO_HEADS


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    files = find_model_files(TWO_HEADS / "pir")
    source = Source(files.model, files, read_program(files), folder)
    assert CONVERTERS["p2o"].run(source, folder / "model.onnx") is None
    return folder / "model.onnx"


def test_feeds_and_fetches(made: Path) -> None:
    found = read_onnx(made)
    assert found.opset == OPSET
    assert found.signature.feeds == (
        TensorSpec("x", "float32", (-1, 3, 8, 8)),
        TensorSpec("scale", "float32", (-1, 1)),
    )
    assert found.signature.fetches == (
        TensorSpec("fetch_name_0", "float32", (-1, 5)),
        TensorSpec("fetch_name_1", "int64", (-1, 2)),
    )


def test_a_cut_file_is_refused_wherever_it_is_cut(made: Path, tmp_path: Path) -> None:
    data, cut = made.read_bytes(), tmp_path / "cut.onnx"
    for length in range(0, len(data), 7):
        cut.write_bytes(data[:length])
        with pytest.raises(ModelError, match=r"cut\.onnx is no whole ONNX file"):
            read_onnx(cut)


def test_noise_is_refused_or_read_and_nothing_else_is_raised(made: Path, tmp_path: Path) -> None:
    random, data, path = np.random.default_rng(0), made.read_bytes(), tmp_path / "m.onnx"
    refused = 0
    for _ in range(500):
        noisy = bytearray(data)
        for place in random.integers(0, len(data), 8):
            noisy[place] = random.integers(256)
        path.write_bytes(noisy)
        try:
            read_onnx(path)
        except ModelError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("content", [b"", b"\x00", b"PK\x03\x04", b"\xff" * 100, b"\x3a\x00\x42\x02\x10\x11"])
def test_what_is_no_onnx(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError, match="is no whole ONNX file"):
        read_onnx(tmp_path / "m.onnx")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Cannot read"):
        read_onnx(tmp_path / "m.onnx")
