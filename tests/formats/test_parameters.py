"""The parameter file's check, on files that are right and files that are nearly so."""

import shutil
from pathlib import Path

import pytest

from pdserve.errors import ModelError
from pdserve.formats.model_files import find_model_files, read_program
from pdserve.formats.parameters import check_parameters, read_parameters
from tests.engines.models import DETECTOR, PIR, PROBE, TWO_HEADS


@pytest.mark.parametrize(
    "folder", [PROBE, PIR, DETECTOR, *(TWO_HEADS / form for form in ("pdmodel", "pir", "separate"))], ids=str
)
def test_whole(folder: Path) -> None:
    files = find_model_files(folder)
    check_parameters(files, read_program(files))


def test_separate_files_read_as_one() -> None:
    one, many = (find_model_files(TWO_HEADS / form) for form in ("pdmodel", "separate"))
    assert many.params is None
    assert one.params is not None
    assert read_parameters(many, read_program(many)) == one.params.read_bytes()


def test_every_cut_is_seen(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(PROBE, tmp_path / "model"))
    files = find_model_files(folder)
    assert files.params is not None
    program, whole = read_program(files), files.params.read_bytes()
    for length in range(0, len(whole), 7):
        files.params.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"inference\.pd"):
            check_parameters(files, program)
    files.params.write_bytes(whole)
    check_parameters(files, program)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data + b"\0", "bytes follow the last"),
        (lambda data: data + data, "bytes follow the last"),
        (lambda data: b"\1" + data[1:], "there is no tensor where"),
        (lambda data: data[:16] + b"\xff\xff\xff\x7f" + data[20:], "there is no tensor where"),
        (lambda data: data[:4] + b"\xff" * 8 + data[12:], "there is no tensor where"),
    ],
    ids=["a byte more", "twice", "version", "description", "levels"],
)
def test_altered(tmp_path: Path, change: object, said: str) -> None:
    folder = Path(shutil.copytree(PROBE, tmp_path / "model"))
    files = find_model_files(folder)
    assert files.params is not None
    files.params.write_bytes(change(files.params.read_bytes()))  # type: ignore[operator]
    with pytest.raises(ModelError, match=said):
        check_parameters(files, read_program(files))
