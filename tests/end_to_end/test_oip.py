"""Foreign clients of the Open Inference Protocol, unmodified: tritonclient, kserve's, and mlserver's.

Each runs in an environment of its own, in the folder that PDSERVE_CLIENTS names, or ``.cache/clients``; it is
made there where it is missing. The scripts are in ``tests/data/oip``.
"""

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.running import Server, start
from tests.tiny import build_serving_model, expected, picture

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tests" / "data" / "oip"
FOLDER = Path(os.environ.get("PDSERVE_CLIENTS") or ROOT / ".cache" / "clients")
CLIENTS = {
    "tritonclient": "tritonclient[http,grpc]==2.73.0",
    "kserve": "kserve==0.21.0",
    "mlserver": "mlserver==1.7.1",
}
COLORS = ((255, 0, 0), (0, 0, 255))
SCORES = [expected(color) for color in COLORS]


def python_with(name: str) -> Path:
    """The Python of a client's environment, made where it is missing; skips where it cannot be made."""
    requirement = CLIENTS[name]
    folder = FOLDER / re.sub(r"[^\w.]+", "-", requirement)
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.exists():
        try:
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=300)
            install = [str(python), "-m", "pip", "install", "--quiet", requirement]
            subprocess.run(install, check=True, timeout=600, capture_output=True)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f'needs {folder} with `pip install "{requirement}"`: {str(error)[:200]}')
        done.touch()
    return python


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    build_serving_model(home / "models")
    for number, color in enumerate(COLORS):
        (home / f"{number}.png").write_bytes(picture(color))
    return home


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    with start(home, "--model", "tiny") as server:
        yield server


def run(command: list[str]) -> str:
    environ = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    environ.pop("PYTHONPATH", None)
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def ask(server: Server, home: Path, client: str, script: str, http: str) -> dict[str, Any]:
    files = [str(home / "0.png"), str(home / "1.png")]
    found: dict[str, Any] = json.loads(
        run([str(python_with(client)), str(SCRIPTS / script), http, server.target, *files]).splitlines()[-1]
    )
    return found


def right(scores: Any) -> None:
    assert scores[0] == pytest.approx(SCORES[0], abs=2e-5)
    assert scores[1] == pytest.approx(SCORES[1], abs=2e-5)


def test_tritons_client(server: Server, home: Path) -> None:
    found = ask(server, home, "tritonclient", "triton.py", f"127.0.0.1:{server.http_port}")
    for door in ("http", "grpc"):
        for call in ("live", "ready", "model ready", "version ready", "loaded"):
            assert found[f"{door} {call}"] is True, call
        assert found[f"{door} unloaded"] is False
        assert found[f"{door} server"]["name"] == "pdserve"
        assert found[f"{door} metadata"]["inputs"][0]["datatype"] == "BYTES"
        config = found[f"{door} config"]
        config = config.get("config", config)
        assert (config["name"], config["input"][0]["data_type"]) == ("tiny", "TYPE_FP32")
        assert found[f"{door} statistics"]["model_stats"][0]["name"] == "tiny"
        listed = found[f"{door} index"]
        assert (listed if door == "http" else listed["models"])[0]["state"] == "READY"
        for call in ("system shared memory", "system shared memory status", "cuda shared memory"):
            assert "Shared memory is not offered by this server" in found[f"{door} {call}"][2]
        kind, status, text = found[f"{door} no such model"]
        assert (kind, status[-3:] if door == "http" else status) == (
            ("InferenceServerException", "404")
            if door == "http"
            else ("InferenceServerException", "StatusCode.NOT_FOUND")
        )
        assert "There is no model 'none' here" in text
        assert "image[0]: The 8 bytes are no image" in found[f"{door} no image"][2]
        least = min(SCORES[0])
        assert found[f"{door} classes"] == [
            [f"{SCORES[0][0]:f}:0:red", f"{least:f}:1:green"],
            [f"{SCORES[1][2]:f}:2:blue", f"{least:f}:0:red"],
        ]
        assert [each[0]["label"] for each in found[f"{door} labels"]] == ["red", "blue"]
        assert found[f"{door} id"] == "mine"
        right(found[f"{door} async"])
        assert found[f"{door} aio ready"] is True
        right(found[f"{door} aio"])
    forms = ["http BYTES True True", "http BYTES True False"]
    forms += [
        f"http {kind} {given} {out}"
        for kind in ("FP32", "UINT8")
        for given in (True, False)
        for out in (True, False)
    ]
    for form in (*forms, "grpc BYTES", "grpc FP32", "grpc UINT8"):
        right(found[form])
    first, error, last = found["grpc stream"]
    assert (first[0], last[0]) == ("0", "2")
    right(first[1])
    right(last[1])
    assert "image[0]: The 8 bytes are no image" in error
    assert [each[0] for each in found["grpc aio stream"]] == ["0", "1"]
    right(found["grpc aio stream"][1][1])


def test_kserves_client(server: Server, home: Path) -> None:
    found = ask(server, home, "kserve", "kserve_client.py", server.url)
    for door in ("rest", "grpc"):
        for call in ("live", "ready", "model ready"):
            assert found[f"{door} {call}"] is True, call
        for datatype in ("BYTES", "FP32"):
            right(found[f"{door} {datatype}"])
    right(found["rest FP32 in JSON"])
    right(found["grpc FP32 in contents"])


@pytest.mark.parametrize("binary", [False, True])
def test_mlservers_infer(server: Server, tmp_path: Path, binary: bool) -> None:
    """Over HTTP, the only transport that `mlserver infer` has."""
    python = python_with("mlserver")
    lines = []
    for color in COLORS:
        text = base64.b64encode(picture(color)).decode()
        given = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [text]}
        lines.append(json.dumps({"inputs": [given], "outputs": [{"name": "prediction"}]}))
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    address = f"127.0.0.1:{server.http_port}"
    run([
        str(python.with_name("mlserver")), "infer", "--url", address, "--model-name", "tiny",
        "--input-data-path", str(tmp_path / "in.jsonl"), "--output-data-path", str(tmp_path / "out.jsonl"),
        "--transport", "rest", "--workers", "1", *(["--binary-data"] if binary else []),
    ])  # fmt: skip
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert len(answers) == len(COLORS)
    answers.sort(key=lambda answer: -answer["outputs"][0]["data"][0])
    for answer, scores in zip(answers, SCORES, strict=True):
        (output,) = answer["outputs"]
        assert output["data"] == pytest.approx(scores, abs=2e-5)
