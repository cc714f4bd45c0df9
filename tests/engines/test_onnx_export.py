"""The ONNX form: by which converter, where it is kept, who may read it, and when it is made again."""

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pdserve.engines import PROBE_DETECTOR, Device, load, probe_input
from pdserve.engines.onnx_converters import CONVERTERS, Source
from pdserve.engines.onnx_export import FOLDER
from pdserve.errors import EngineMissingError, UnsupportedModelError
from tests.engines.models import PIR, PROBE, needs, serving_model

CPU = Device()


def kept(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / FOLDER).glob("*.onnx"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of Paddle 3."""
    return Path(shutil.copytree(PIR, tmp_path / "model"))


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What p2o has converted in this process."""
    done: list[Path] = []
    run = CONVERTERS["p2o"].run

    def counting(source: Source, out: Path) -> str | None:
        done.append(source.model)
        return run(source, out)

    monkeypatch.setitem(CONVERTERS, "p2o", replace(CONVERTERS["p2o"], run=counting))
    return done


def run(folder: Path, engine: str = "openvino", **options: str) -> np.ndarray:
    opened = load(serving_model(folder), engine=engine, device=CPU, **options)
    try:
        return opened.run({"image": probe_input(1)})["prediction"]
    finally:
        opened.close()


def alter(folder: Path) -> None:
    """Another model: the last weight of the linear layer is 9."""
    params = folder / "inference.pdiparams"
    params.write_bytes(params.read_bytes()[:-4] + np.float32(9).tobytes())


def age(folder: Path, hours: float = 1) -> None:
    """As if the forms were last used then."""
    then = time.time() - hours * 3600
    for record in (folder / FOLDER).glob("*.json"):
        os.utime(record, (then, then))


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """As if these converters were not installed."""
    for name in names:
        gone = replace(CONVERTERS[name], distributions=(f"{name}-is-not-here",))
        monkeypatch.setitem(CONVERTERS, name, gone)


def test_converted_once_and_again_for_other_weights(folder: Path, conversions: list[Path]) -> None:
    first = run(folder)
    (name,) = kept(folder)
    assert name.endswith(f"-p2o{CONVERTERS['p2o'].version()}-opset17.onnx")
    np.testing.assert_array_equal(run(folder), first)
    assert len(conversions) == 1
    alter(folder)
    assert np.abs(run(folder) - first).max() > 1e-3
    assert len(conversions) == 2
    assert len(kept(folder)) == 2  # another process may be about to read the older one


@needs("onnx")
@pytest.mark.full
def test_the_engines_share_it(folder: Path, conversions: list[Path]) -> None:
    np.testing.assert_allclose(run(folder), run(folder, "onnx"), rtol=1e-5, atol=1e-7)
    assert len(conversions) == 1
    run(folder, "onnx")
    assert len(kept(folder)) == 1


def test_what_is_stale_is_removed(folder: Path) -> None:
    run(folder)
    (first,) = kept(folder)
    age(folder)
    half_written = folder / FOLDER / ".x.onnx.0123456789ab.tmp"
    half_written.write_bytes(b"of a process that was killed")
    alter(folder)
    run(folder)
    (second,) = kept(folder)
    assert second != first
    assert not half_written.exists()
    assert sorted(p.name for p in (folder / FOLDER).glob("*.json")) == [f"{second}.json"]


def test_another_release_of_the_converter_makes_it_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, conversions: list[Path]
) -> None:
    run(folder)
    (name,) = kept(folder)
    older = name.replace(f"p2o{CONVERTERS['p2o'].version()}", "p2o0.0.9")
    for ending in ("", ".json"):
        (folder / FOLDER / f"{name}{ending}").rename(folder / FOLDER / f"{older}{ending}")
    record = folder / FOLDER / f"{older}.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"version": "0.0.9"}))
    age(folder)
    run(folder)
    assert (kept(folder), len(conversions)) == ([name], 2)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def _one_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


BROKEN = {
    "cut": _cut,
    "empty": lambda path: path.write_bytes(b""),
    "a byte": _one_byte,
    "no record": lambda path: path.with_name(f"{path.name}.json").unlink(),
    "broken record": lambda path: path.with_name(f"{path.name}.json").write_text('{"bytes": []'),
    "of another revision": lambda path: path.with_name(f"{path.name}.json").write_text(
        path.with_name(f"{path.name}.json").read_text().replace('"revision": ', '"revision": 1')
    ),
    "record of another form": lambda path: path.with_name(f"{path.name}.json").write_text("[1]"),
}


@pytest.mark.parametrize(
    "how", ["cut", *(pytest.param(n, marks=pytest.mark.full) for n in BROKEN if n != "cut")]
)
def test_a_broken_form_is_made_again(folder: Path, conversions: list[Path], how: str) -> None:
    right = run(folder)
    (name,) = kept(folder)
    before = (folder / FOLDER / name).read_bytes()
    BROKEN[how](folder / FOLDER / name)
    np.testing.assert_array_equal(run(folder), right)
    assert (kept(folder), len(conversions)) == ([name], 2)
    assert (folder / FOLDER / name).read_bytes() == before
    run(folder)
    assert len(conversions) == 2


def test_a_copied_model_keeps_its_form(folder: Path, tmp_path: Path, conversions: list[Path]) -> None:
    run(folder)
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)  # with other times
    run(tmp_path / "copy")
    assert len(conversions) == 1


@pytest.mark.posix
@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX modes")
def test_other_users_may_read_it(folder: Path) -> None:
    before = os.umask(0o022)
    try:
        run(folder)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder / FOLDER).glob("*.onnx*")}
    assert set(modes.values()) == {0o644}
    assert stat.S_IMODE((folder / FOLDER).stat().st_mode) == 0o755


@pytest.mark.full
def test_two_processes_make_one(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.engines.test_onnx_export import run;"
        "print(run(Path(sys.argv[1])).tolist())"
    )
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True, env=environ
        )
        for _ in range(3)
    ]
    answers = {process.communicate(timeout=120)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(answers) == 1
    assert len(kept(folder)) == 1
    assert sorted(p.suffix for p in (folder / FOLDER).iterdir()) == [".json", ".lock", ".onnx"]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX folders")
def test_a_folder_that_cannot_be_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conversions: list[Path]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (folder / FOLDER).write_text("in the way")  # as root, nothing is read-only
    run(folder)
    (form,) = tmp_path.rglob("pdserve/onnx/*.onnx")
    run(folder)
    assert len(conversions) == 1

    # What the cache has of a model that is gone goes when another one comes, and of no other.
    gone = Path(shutil.copytree(PIR, tmp_path / "gone"))
    alter(gone)
    (gone / FOLDER).write_text("in the way")
    run(gone)
    assert len(list(form.parent.glob("*.onnx"))) == 2
    for record in form.parent.glob("*.json"):
        os.utime(record, (1, 1))
    shutil.rmtree(gone)
    third = Path(shutil.copytree(PROBE_DETECTOR, tmp_path / "third"))
    (third / FOLDER).write_text("in the way")
    load(serving_model(third), engine="openvino", device=CPU).close()
    forms = list(form.parent.glob("*.onnx"))
    assert len(forms) == 2
    assert form in forms


@needs("onnx")
@pytest.mark.full
def test_where_p2o_fails_paddle2onnx_is_tried(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = run(folder)
    shutil.rmtree(folder / FOLDER)
    failing = replace(CONVERTERS["p2o"], run=lambda source, out: "Unsupported operator: x")
    monkeypatch.setitem(CONVERTERS, "p2o", failing)
    for engine in ("openvino", "onnx"):
        np.testing.assert_allclose(run(folder, engine), right, rtol=1e-5, atol=1e-7)
    assert [name.split("-")[1] for name in kept(folder)] == [
        f"paddle2onnx{CONVERTERS['paddle2onnx'].version()}"
    ]
    assert "does not convert model (Unsupported operator: x)" in caplog.text  # not silent


def unconvertible(folder: Path) -> Path:
    program = folder / "inference.json"
    program.write_text(program.read_text().replace("1.hardswish", "1.frobnicate"))
    return folder


def test_an_operator_that_p2o_lacks_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "paddle2onnx")
    with pytest.raises(UnsupportedModelError) as caught:
        run(unconvertible(folder))
    version = CONVERTERS["p2o"].version()
    assert caught.value.message.startswith(
        f"p2o {version} does not convert model (Unsupported operator: frobnicate); use --engine paddle: "
    )
    assert '`pip install "pdserve[paddle]"`, or try paddle2onnx: `pip install "pdserve[onnx]"`' in str(
        caught.value
    )
    assert kept(folder) == []


def test_without_a_converter_the_pip_line_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = run(folder)
    without(monkeypatch, "p2o", "paddle2onnx")
    np.testing.assert_array_equal(run(folder), right)  # what is there needs no converter
    shutil.rmtree(folder / FOLDER)
    with pytest.raises(EngineMissingError, match="model to ONNX needs p2o-is-not-here, which") as caught:
        run(folder)
    assert caught.value.message.endswith("not installed: `pip install p2o`.")


@needs("onnx")
@pytest.mark.full
def test_half_precision_is_a_form_of_its_own(folder: Path) -> None:
    single, half = run(folder, "onnx"), None
    model = serving_model(folder)
    from pdserve.engines.base import LoadRequest, Options
    from pdserve.engines.onnx_export import onnx_form
    from pdserve.formats.model_files import read_program

    request = LoadRequest(model, read_program(model.files), CPU, None, 1, "fp16", Options())
    half = onnx_form(request, half=True).path
    assert half.name.endswith("-opset17-fp16.onnx")
    assert len(kept(folder)) == 2
    np.testing.assert_array_equal(run(folder, "onnx"), single)


@needs("onnx")
@pytest.mark.full
def test_a_model_of_paddle_2_is_converted_by_paddle2onnx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(PROBE, tmp_path / "model"))
    first = run(folder, "onnx")
    (name,) = kept(folder)
    assert name.endswith("-opset17.onnx")
    without(monkeypatch, "paddle2onnx")
    np.testing.assert_array_equal(run(folder, "onnx"), first)  # from the file, without the converter
    alter(folder)
    with pytest.raises(EngineMissingError, match="paddle2onnx-is-not-here"):
        run(folder, "onnx")
