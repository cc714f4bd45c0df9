import os
import socket
import sys
from pathlib import Path

import pytest

from pdserve.commands.doctor import Check, _engine, _home, _ports, _proxies, _runtimes, _servers, examine
from pdserve.errors import EngineMissingError
from pdserve.models.home import Home
from pdserve.models.servers import RunningServer, registration
from pdserve.pipelines import SERVICES


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> list[Check]:
    return examine({"PDSERVE_HOME": str(tmp_path_factory.mktemp("home"))})


def test_what_pdserve_stands_on_is_there(report: list[Check]):
    packages = [finding for finding in report if finding.area == "package"]
    assert len(packages) > 5
    assert [finding for finding in packages if finding.state != "ok"] == []


def test_every_engine_ran_or_says_why_not(report: list[Check]):
    engines = {finding.name: finding for finding in report if finding.area == "engine"}
    assert set(engines) == {f"{e} on {d}" for e in ("openvino", "paddle", "onnx") for d in ("cpu", "gpu:0")}
    assert engines["openvino on cpu"].state == "ok"
    assert "OpenVINO" in engines["openvino on cpu"].detail
    for finding in engines.values():
        assert finding.state in ("ok", "missing"), finding
        assert (finding.remedy is None) == (finding.state == "ok"), finding


def missing(_: str, __: object, form: str) -> str:
    raise EngineMissingError("It needs a package, which is not installed: `pip install it`.")


def test_an_engine_that_runs_one_format_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_paddle_3(name: str, device: object, form: str) -> str:
        return "Its 1.0 on CPU" if form == "Paddle 3" else missing(name, device, form)

    monkeypatch.setattr("pdserve.engines.probe", only_paddle_3)
    finding = _engine("onnx", "cpu")
    assert (finding.state, finding.remedy) == ("note", "pip install it")
    assert finding.detail.startswith("Its 1.0 on CPU; models of Paddle 2 not: It needs a package")


def test_an_engine_that_is_missing_says_what_it_would_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    finding = _engine("onnx", "cpu")
    assert (finding.state, finding.remedy) == ("missing", 'pip install "pdserve[onnx]"')
    assert finding.detail.startswith("The engine onnx needs onnxruntime, which is not installed")
    assert "ONNX Runtime: CPU or CUDA" in finding.detail


@pytest.mark.full
def test_paddles_detectors_without_onednn_are_shown(report: list[Check]) -> None:
    (finding,) = (each for each in report if each.name == "paddle on cpu")
    if finding.state != "ok":
        pytest.skip(f"{finding.detail}: {finding.remedy}")
    assert "with oneDNN" in finding.detail
    assert "a detector of Paddle 3: Paddle" in finding.detail
    assert "without oneDNN" in finding.detail


@pytest.mark.skipif(sys.platform != "linux", reason="Paddle Serving runs on Linux only")
def test_a_python_without_paddle_serving_gets_the_command_that_brings_it(tmp_path: Path):
    environ = {"PDSERVE_HOME": str(tmp_path), "PDSERVE_PADDLE_SERVING_PYTHON": sys.executable}
    (finding,) = _runtimes(environ)
    assert (finding.area, finding.name, finding.state) == ("runtime", "paddle-serving", "missing")
    assert "lacks paddle-serving-server" in finding.detail
    assert finding.remedy == "pdserve runtime install paddle-serving"


def test_a_finding_as_json(report: list[Check]):
    assert set(report[0].to_json()) == {"area", "name", "state", "detail", "remedy"}


def test_running_servers(tmp_path: Path):
    environ = {"PDSERVE_HOME": str(tmp_path)}
    assert list(_servers(environ)) == []
    with registration(Home(tmp_path)) as place:
        place.write(RunningServer(7, "detection", "http://127.0.0.1:5", "127.0.0.1:6", False))
        (finding,) = _servers(environ)
    assert (finding.area, finding.name, finding.state) == ("server", "detection, pid 7", "ok")
    assert finding.detail == "http://127.0.0.1:5 and gRPC 127.0.0.1:6"


def test_a_taken_port():
    port = SERVICES["classification"].http_port
    with socket.socket() as taken:
        try:
            taken.bind(("127.0.0.1", port))
        except OSError:
            pytest.skip(f"port {port} is taken already")
        taken.listen()
        (finding,) = (each for each in _ports() if each.name == f"{port} (classification, HTTP)")
    assert finding.state == "taken"
    assert finding.remedy is not None
    assert "pdserve serve classification --http-port" in finding.remedy


@pytest.mark.parametrize(
    ("no_proxy", "state", "remedy"),
    [
        ("", "note", "no_proxy=127.0.0.1,localhost"),
        ("intern.example, 10.0.0.1", "note", "no_proxy=intern.example,10.0.0.1,127.0.0.1,localhost"),
        ("intern.example,localhost", "ok", None),
        ("*", "ok", None),
    ],
)
def test_proxies(no_proxy: str, state: str, remedy: str | None):
    """The remedy keeps what no_proxy has."""
    environ = {"http_proxy": "http://proxy:3128", "HTTPS_PROXY": "http://proxy:3128", "all_proxy": ""}
    findings = list(_proxies(environ | {"no_proxy": no_proxy}))
    assert [finding.name for finding in findings] == ["http_proxy", "HTTPS_PROXY"]
    for finding in findings:
        assert finding.state == state
        assert (finding.remedy or "").partition(" ")[2] == (remedy or "")


def test_home(tmp_path: Path):
    assert _home(tmp_path / "new" / "folder").state == "ok"
    (tmp_path / "file").write_bytes(b"")
    blocked = _home(tmp_path / "file")
    assert (blocked.state, blocked.remedy) == ("failed", "set PDSERVE_HOME to a folder of yours")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="needs a folder closed to this user")
def test_home_in_a_closed_folder(tmp_path: Path):
    (tmp_path / "closed").mkdir(mode=0)
    assert _home(tmp_path / "closed" / "home").state == "failed"
