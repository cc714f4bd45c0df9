"""Which engine is taken, and what is said where none can be."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pdserve.engines import ENGINES, Device, Options, available, load
from pdserve.engines.device import gpu_problem
from pdserve.engines.onnx_converters import CONVERTERS
from pdserve.errors import (
    DeviceError,
    EngineMissingError,
    ModelError,
    SettingsError,
    UsageError,
)
from tests.engines.models import DETECTOR, PIR, PROBE, needs, serving_model, warm_up

CPU = Device()
no_gpu = pytest.mark.skipif(gpu_problem(0) is None, reason="there is a GPU here")


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """As if these were not installed."""
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


@needs("openvino")
def test_auto_takes_openvino_on_a_cpu() -> None:
    engine = load(serving_model(PROBE), device=CPU)
    assert engine.name == "openvino"
    assert engine.reason == "the first choice on cpu"
    engine.close()


@pytest.fixture
def no_p2o(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with a model of Paddle 3, as if p2o were not installed."""
    monkeypatch.setitem(CONVERTERS, "p2o", replace(CONVERTERS["p2o"], distributions=("not-installed-here",)))
    monkeypatch.setitem(
        CONVERTERS, "paddle2onnx", replace(CONVERTERS["paddle2onnx"], distributions=("nor-this",))
    )
    return Path(shutil.copytree(PIR, tmp_path / "model"))


@needs("openvino")
def test_auto_takes_openvino_for_paddle_3(tmp_path: Path) -> None:
    engine = load(serving_model(Path(shutil.copytree(PIR, tmp_path / "model"))), device=CPU)
    assert (engine.name, engine.reason) == ("openvino", "the first choice on cpu")
    engine.close()


@needs("openvino")
@needs("paddle")
def test_auto_goes_on_where_openvino_does_not(no_p2o: Path) -> None:
    engine = load(serving_model(no_p2o), device=CPU)
    assert engine.name == "paddle"
    assert engine.reason.startswith("not openvino: ")
    assert "not-installed-here" in engine.reason
    engine.close()


@needs("openvino")
def test_auto_takes_openvino_for_a_detector() -> None:
    engine = load(serving_model(DETECTOR), device=CPU)
    assert (engine.name, engine.reason) == ("openvino", "the first choice on cpu")
    engine.close()


@needs("paddle")
def test_auto_takes_the_engine_that_has_the_option() -> None:
    engine = load(serving_model(PROBE), device=CPU, options=Options(ir_optim=False, use_mkldnn=False))
    assert engine.name == "paddle"
    assert "oneDNN" not in engine.description
    warm_up(engine)
    engine.close()


@needs("paddle")
def test_auto_goes_on_where_a_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "openvino")
    engine = load(serving_model(PROBE), device=CPU)
    assert engine.name == "paddle"
    assert "openvino, which is not installed" in engine.reason
    engine.close()


def test_none_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "openvino", "paddle", "onnxruntime")
    with pytest.raises(EngineMissingError, match="No engine here can run probe_model on cpu"):
        load(serving_model(PROBE), device=CPU)


@needs("openvino")
def test_the_telling_error_where_none_is_left(monkeypatch: pytest.MonkeyPatch, no_p2o: Path) -> None:
    without(monkeypatch, "paddle", "onnxruntime")
    with pytest.raises(EngineMissingError, match=r"\[openvino\] .*not-installed-here.*`pip install p2o`"):
        load(serving_model(no_p2o), device=CPU)


@needs("openvino")
@needs("onnx")
def test_what_two_engines_say_is_said_once(monkeypatch: pytest.MonkeyPatch, no_p2o: Path) -> None:
    without(monkeypatch, "paddle")
    with pytest.raises(EngineMissingError) as caught:
        load(serving_model(no_p2o), device=CPU)
    assert "[openvino, onnx] Converting model to ONNX needs" in caught.value.message
    assert caught.value.message.count("pip install p2o") == 1


@pytest.mark.parametrize(
    ("engine", "module", "line"),
    [
        ("openvino", "openvino", "pip install openvino"),
        ("paddle", "paddle", 'pip install "pdserve[paddle]"'),
        ("onnx", "onnxruntime", 'pip install "pdserve[onnx]"'),
    ],
)
def test_missing_package(monkeypatch: pytest.MonkeyPatch, engine: str, module: str, line: str) -> None:
    without(monkeypatch, module)
    with pytest.raises(EngineMissingError) as caught:
        load(serving_model(PROBE), engine=engine, device=CPU)
    assert f"`{line}`" in caught.value.message
    info = {i.name: i for i in available()}[engine]
    assert not info.installed
    assert info.missing[0] in caught.value.message
    assert info.install == line


def test_unknown_engine() -> None:
    with pytest.raises(UsageError, match="no engine 'tensorflow'; there are auto, openvino, paddle, onnx"):
        load(serving_model(PROBE), engine="tensorflow", device=CPU)


@no_gpu
@pytest.mark.parametrize(
    ("engine", "lines"),
    [
        ("auto", ["pdserve[gpu]", "pdserve[paddle-gpu]"]),
        ("paddle", ["pdserve[paddle-gpu]"]),
        ("onnx", ["pdserve[gpu]"]),
        ("openvino", ["pdserve[gpu]", "pdserve[paddle-gpu]"]),
    ],
)
def test_a_gpu_that_is_not_there(engine: str, lines: list[str]) -> None:
    with pytest.raises(DeviceError) as caught:
        load(serving_model(PROBE), engine=engine, device=Device("gpu", 0))
    assert "gpu:0" in caught.value.message
    for line in lines:
        assert f'`pip install "{line}"`' in caught.value.message


@needs("openvino")
@needs("paddle")
@needs("onnx")
@pytest.mark.parametrize(
    ("engine", "options", "said"),
    [
        ("openvino", {"options": Options(use_mkldnn=False)}, "use_mkldnn: False is for the engine paddle"),
        ("openvino", {"options": Options(tensorrt=True)}, "TensorRT"),
        ("paddle", {"precision": "fp16"}, "paddle runs fp32 on cpu, not fp16"),
        ("paddle", {"options": Options(tensorrt=True)}, "TensorRT needs a GPU"),
        ("onnx", {"precision": "bf16"}, "onnx runs fp32 on cpu, not bf16"),
        ("onnx", {"precision": "int8"}, "onnx runs fp32 on cpu, not int8"),
        ("paddle", {"precision": "int8"}, "paddle runs fp32 on cpu, not int8"),
        ("onnx", {"options": Options(ir_optim=False)}, "ir_optim: False is for the engine paddle"),
    ],
)
def test_options_are_refused_by_name(engine: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(serving_model(PROBE), engine=engine, device=CPU, **options)  # type: ignore[arg-type]
    assert said in caught.value.message


@needs("openvino")
@pytest.mark.parametrize("engine", ["openvino", "auto"])
def test_int8_that_was_never_made_says_what_makes_it(engine: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(serving_model(PROBE), engine=engine, device=CPU, precision="int8")
    assert "pdserve optimize" in caught.value.message


@needs("openvino")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_runs_or_says_why_not(precision: str) -> None:
    try:
        engine = load(serving_model(PROBE), engine="openvino", device=CPU, precision=precision)
    except DeviceError as error:
        assert precision in error.message  # noqa: PT017
        return
    warm_up(engine)
    engine.close()


def test_nothing_is_imported_before_it_is_used() -> None:
    heavy = {"openvino", "paddle", "onnxruntime", "paddle2onnx"}
    code = "import sys; from pdserve.engines import available; available();"
    code += f"print({heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# Run in a separate process: load with the engine, then say what the process looks like.
SIDE_EFFECTS = """
import logging, os, signal, sys, warnings
from pathlib import Path
warnings.simplefilter("error")
caught = []
signal.signal(signal.SIGTERM, lambda *_: caught.append(1))
environ, handlers = dict(os.environ), logging.getLogger().handlers[:]
from pdserve.engines import Device, probe
probe(sys.argv[1], Device())
signal.raise_signal(signal.SIGTERM)
assert caught, "the handler of SIGTERM is gone"
assert logging.getLogger().handlers == handlers, "the root logger has another handler"
new = {k for k in os.environ if os.environ[k] != environ.get(k)} - {"LD_LIBRARY_PATH", "CUSTOM_DEVICE_ROOT"}
assert new <= {"ORT_DISABLE_TELEMETRY"}, new
assert "openvino_telemetry" not in sys.modules
"""


@pytest.mark.parametrize("name", ENGINES)
def test_the_process_stays_ours(name: str, tmp_path: Path) -> None:
    mark = needs(name)
    if mark.args[0]:
        pytest.skip(mark.kwargs["reason"])
    environ = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", SIDE_EFFECTS, name], env=environ, cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    # The telemetry of OpenVINO and of ONNX Runtime would have left its identifiers here.
    assert not (tmp_path / "intel").exists()
    assert not list(tmp_path.rglob("deviceid"))
