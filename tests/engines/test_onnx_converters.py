"""Converters in processes of their own: bounded in time and in what is kept of their output, and checked."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pdserve.engines.onnx_converters import CONVERTERS, Source, _command, _run, difference, run_python
from pdserve.formats.model_files import ModelFiles, find_model_files, read_program
from pdserve.formats.program import Program, Signature
from tests.engines.models import DATA, TWO_HEADS


def test_p2os_program_is_found_without_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    found = _command("p2o")
    assert found is not None
    assert found.is_absolute()
    assert found.stem == "p2o"


def test_a_converter_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    code = "import time; time.sleep(60)"
    problem = _run([sys.executable, "-c", code], tmp_path / "out", timeout_s=1)
    assert problem == "it took more than 1 s"


def test_what_it_prints_is_kept_in_part(tmp_path: Path) -> None:
    code = "print('x' * 100_000_000); print('Error: Unsupported operator: frobnicate'); raise SystemExit(1)"
    assert run_python(code, tmp_path / "out") == "Unsupported operator: frobnicate"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print('Error: it is broken.'); raise SystemExit(1)", "it is broken"),
        (
            "print(\"thread 'main' (7) panicked at a.rs:1:2:\\nout of bounds\\nnote: run\"); exit(101)",
            "out of bounds",
        ),
        ("print('Failed to convert PaddlePaddle model: no such thing.'); exit(1)", "no such thing"),
        ("raise SystemExit(3)", "it ended with status 3"),
        ("pass", "it ended with status 0"),
        ("open('out', 'w').close()", "it ended with status 0"),
    ],
)
def test_what_went_wrong_in_a_line(tmp_path: Path, code: str, said: str) -> None:
    assert run_python(code, tmp_path / "out") == said


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    assert "No such file" in str(_run([str(tmp_path / "gone")], tmp_path / "out"))


def converted(files: ModelFiles, program: Program, folder: Path) -> Path:
    out = folder / "model.onnx"
    assert CONVERTERS["p2o"].run(Source(files.model, files, program, folder), out) is None
    return out


def test_what_it_made_is_compared_with_the_program(tmp_path: Path) -> None:
    files = find_model_files(TWO_HEADS / "pir")
    program = read_program(files)
    out = converted(files, program, tmp_path)
    assert difference(out, program, "PIR") is None
    feeds, fetches = program.signature.feeds, program.signature.fetches

    def other(**changes: object) -> str | None:
        signature = Signature(changes.get("feeds", feeds), changes.get("fetches", fetches))  # type: ignore[arg-type]
        return difference(out, replace(program, signature=signature), "PIR")

    assert other(feeds=feeds[:1]) == "it made the feeds scale, x"
    assert other(feeds=(replace(feeds[0], dtype="float64"), feeds[1])) == (
        "it made the feed 'x' float32, not float64"
    )
    fixed = replace(feeds[0], shape=(-1, 3, 9, 8))
    assert other(feeds=(fixed, feeds[1])) == "it gave the feed 'x' the shape [-1, 3, 8, 8], not [-1, 3, 9, 8]"
    free = replace(feeds[0], shape=(-1, 3, -1, 8))
    assert "not [-1, 3, -1, 8]" in str(other(feeds=(free, feeds[1])))  # a free extent has to stay free
    assert "the shape" in str(other(feeds=(replace(feeds[0], shape=(-1, 3)), feeds[1])))
    assert other(fetches=fetches[:1]) == "it made 2 fetches of 1"
    assert other(fetches=(fetches[0], replace(fetches[1], dtype="int32"))) == (
        "it made the fetch 'fetch_name_1' int64, not int32"
    )
    out.write_bytes(out.read_bytes()[:-100])
    assert "is no whole ONNX file" in str(difference(out, program, "PIR"))


def test_parameters_in_a_file_each_are_joined(tmp_path: Path) -> None:
    """Those of the same network in the older format, which has them apart."""
    for path in (TWO_HEADS / "separate").iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / "__model__").unlink()
    shutil.copy(TWO_HEADS / "pir/inference.json", tmp_path)
    files = find_model_files(tmp_path)
    assert files.params is None
    work = tmp_path / "work"
    work.mkdir()
    program = read_program(files)
    assert difference(converted(files, program, work), program, "PIR") is None


def test_booleans_doubles_and_no_parameters(tmp_path: Path) -> None:
    files = find_model_files(DATA / "programs/branches")
    program = read_program(files)
    assert difference(converted(files, program, tmp_path), program, "PIR") is None


def test_there_is_no_version_where_a_package_is_missing() -> None:
    assert CONVERTERS["p2o"].version() is not None
    assert replace(CONVERTERS["p2o"], distributions=("p2o", "not-installed-here")).version() is None
    either = replace(CONVERTERS["p2o"], distributions=("p2o", "not-installed-here|numpy"))
    assert either.version() == CONVERTERS["p2o"].version()
