"""A model that is new is loaded in a child process first; what passed there is not tried again."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pdserve import engines
from pdserve.engines import ENGINES, Device, trial
from pdserve.engines.base import LoadedModel, LoadRequest, Options
from pdserve.errors import ModelError, UnsupportedModelError
from pdserve.formats.model_files import read_program
from pdserve.formats.program import Program, Signature, TensorSpec
from pdserve.formats.serving_model import open_serving_model
from tests.engines.models import PROBE

HERE = "tests.engines.test_trial"
TRIED = Path("tried")


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of records of this test's own; what children do is noted in the folder that this one is in."""
    monkeypatch.setenv("PDSERVE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home" / "trials"


@pytest.fixture
def request_(tmp_path: Path) -> LoadRequest:
    folder = Path(shutil.copytree(PROBE, tmp_path / "probe_serving"))
    model = open_serving_model(folder)
    return LoadRequest(model, read_program(model.files), Device(), 1, 1, "fp32", Options())


def succeed(request: LoadRequest) -> LoadedModel:
    with TRIED.open("a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")
    return LoadedModel([lambda feeds: {}], "nothing")


def crash(request: LoadRequest) -> LoadedModel:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError("not reached")


def crash_when_run(request: LoadRequest) -> LoadedModel:
    return LoadedModel([lambda feeds: os.kill(os.getpid(), signal.SIGABRT)], "nothing")  # type: ignore[list-item, return-value]


def refuse(request: LoadRequest) -> LoadedModel:
    raise RuntimeError("no such operator")


def rewrite(request: LoadRequest) -> LoadedModel:
    path = request.model.files.model
    path.write_bytes(path.read_bytes())
    return LoadedModel([], "nothing")


def tried() -> list[int]:
    """The processes that loaded the model."""
    return list(map(int, TRIED.read_text("utf-8").split())) if TRIED.exists() else []


def test_a_new_model_is_tried_once_in_another_process(request_: LoadRequest) -> None:
    for _ in range(2):
        trial.require("openvino", f"{HERE}:succeed", request_, [])
    assert len(tried()) == 1
    assert tried() != [os.getpid()]


@pytest.mark.posix
@pytest.mark.parametrize(
    ("function", "signal_"), [("crash", "11 (SIGSEGV)"), ("crash_when_run", "6 (SIGABRT)")]
)
def test_a_crash_is_one_sentence_and_this_process_goes_on(
    request_: LoadRequest, function: str, signal_: str
) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        trial.require("openvino", f"{HERE}:{function}", request_, [])
    assert caught.value.message == (
        f"The engine openvino does not load {request_.model.name}: tried in a process of its own, it was "
        f"ended by signal {signal_}; fetch or export the model again, or give another --engine."
    )
    assert not any(folder.exists() for folder in trial.folders())


def test_a_refusal_is_the_engines(request_: LoadRequest) -> None:
    with pytest.raises(UnsupportedModelError, match=r"^openvino cannot run .*: no such operator\.$"):
        trial.require("openvino", f"{HERE}:refuse", request_, [])


@pytest.mark.full
def test_whatever_else_is_loaded_is_new(request_: LoadRequest, tmp_path: Path) -> None:
    derived = tmp_path / "form.onnx"
    derived.write_bytes(b"one")

    def tried_for(engine: str, request: LoadRequest) -> int:
        before = len(tried())
        trial.require(engine, f"{HERE}:succeed", request, [derived])
        return len(tried()) - before

    assert tried_for("openvino", request_) == 1
    assert tried_for("onnx", request_) == 1
    assert tried_for("openvino", replace(request_, precision="bf16")) == 1
    assert tried_for("openvino", replace(request_, options=Options(ir_optim=True))) == 1
    derived.write_bytes(b"two")
    assert tried_for("openvino", request_) == 1
    path = request_.model.files.params
    assert path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert tried_for("openvino", request_) == 1
    # Of threads, instances and a copy of the same files nothing is new.
    copy = open_serving_model(Path(shutil.copytree(request_.model.path, tmp_path / "copy_serving")))
    assert tried_for("openvino", replace(request_, model=copy, threads=3, instances=2)) == 0


@pytest.mark.full
def test_files_that_change_meanwhile_are_not_taken(request_: LoadRequest) -> None:
    with pytest.raises(ModelError, match=r"are being written; try again when they are whole\.$"):
        trial.require("openvino", f"{HERE}:rewrite", request_, [])


@pytest.mark.full
def test_without_a_place_for_records_it_is_tried_each_time(
    request_: LoadRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PDSERVE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        trial.require("openvino", f"{HERE}:succeed", request_, [])
    assert len(tried()) == 2


def test_records_are_bounded(request_: LoadRequest, records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_MOST", 3)
    records.mkdir(parents=True)
    for number in range(5):
        (records / str(number)).touch()
        os.utime(records / str(number), (number, number))
    trial.require("openvino", f"{HERE}:succeed", request_, [])
    left = sorted(path.name for path in records.iterdir())
    assert len(left) == 3
    assert {"3", "4"} < set(left)


def test_free_extents_are_the_image() -> None:
    feeds = (
        TensorSpec("image", "float32", (-1, 3, -1, -1)),
        TensorSpec("scale_factor", "float32", (-1, 2)),
        TensorSpec("fixed", "float32", (1, 3, 8, 8)),
    )
    program = Program(Signature(feeds, ()), frozenset(), ())
    assert trial.shapes(program, (32, 48)) == {
        "image": [1, 3, 32, 48],
        "scale_factor": [1, 2],
        "fixed": [1, 3, 8, 8],
    }
    assert trial.shapes(program, None)["image"] == [1, 3, 224, 224]


@pytest.mark.posix
def test_load_tries_first_and_auto_goes_on_to_the_next(
    request_: LoadRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENGINES, "openvino", replace(ENGINES["openvino"], open=f"{HERE}:crash"))
    with pytest.raises(UnsupportedModelError, match=r"it was ended by signal 11 \(SIGSEGV\)"):
        engines.load(request_.model, engine="openvino", device=Device())
    for other in ("paddle", "onnx"):
        monkeypatch.setitem(
            ENGINES, other, replace(ENGINES[other], open=f"{HERE}:succeed", packages={"json": ()}, derived="")
        )
    loaded = engines.load(request_.model, device=Device())
    assert loaded.name == "paddle"
    assert "signal 11 (SIGSEGV)" in loaded.reason


def test_the_real_engine_is_loaded_here_after_its_trial(request_: LoadRequest, records: Path) -> None:
    loaded = engines.load(request_.model, engine="openvino", device=Device(), threads=1)
    try:
        (feed,) = loaded.feeds
        assert all(np.isfinite(out).all() for out in loaded.run({feed.alias: engines.probe_input()}).values())
    finally:
        loaded.close()
    assert len(list(records.iterdir())) == 1
