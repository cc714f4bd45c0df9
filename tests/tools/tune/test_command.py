"""``pdserve tune`` as typed, with a tiny model."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pdserve.pipelines import SERVICES
from pdserve.tools.tune.candidates import NAMES
from tests.running import environment, pdserve, start
from tests.tiny import build_embedder, picture

pytestmark = pytest.mark.full

classification = SERVICES["classification"].settings

QUICK = ("--seconds", "0.1", "--clients", "2", "--engine", "openvino")
CONFIG = "op: {imagenet: {local_service_conf: {model_config: tiny}}}   # ours\nhttp_port: 18080\n"


def test_the_command_tries_prints_and_writes(tiny_home: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    config.write_text(CONFIG)
    done = pdserve(tiny_home, "tune", "--config", str(config), *QUICK, "--json")
    assert done.returncode == 0, done.stderr
    trials = [json.loads(line) for line in done.stdout.splitlines()]
    (best,) = (trial for trial in trials if trial["best"])
    assert best["images_per_s"] > 0
    assert best["engine"] == "openvino"
    tried = {name: {trial["settings"]["model"][name] for trial in trials} for name in NAMES}
    varied = {name for name, values in tried.items() if len(values) > 1}
    # A delay is not tried where batches of one were the best.
    assert varied | {"max_queue_delay_ms"} == set(NAMES) - {"engine"}
    refused = {t["settings"]["model"]["precision"]: t["refused"] for t in trials if "refused" in t}
    assert "pdserve optimize" in refused["int8"]  # nobody has made it
    assert "measurements" in done.stderr  # how long it will take
    model = classification({}, {}, config).first_model
    assert {name: getattr(model, name) for name in NAMES} == best["settings"]["model"]
    assert "# ours" in config.read_text()
    assert f"pdserve serve classification --config {config}" in done.stderr
    with start(tiny_home, "--config", str(config)) as server:
        assert "tiny on OpenVINO" in server.log


def test_recognition_is_tuned_model_by_model(tmp_path: Path) -> None:
    home = tmp_path / "home"
    build_embedder(home / "models")
    gallery = tmp_path / "gallery" / "red"
    gallery.mkdir(parents=True)
    (gallery / "a.png").write_bytes(picture((255, 0, 0)))
    built = ("--gallery", str(gallery.parent), "--out", "colors", "--model", "tiny_embedder")
    made = pdserve(home, "index", "build", *built)
    assert made.returncode == 0, made.stderr
    options = ("--detector", "none", "--embedder", "tiny_embedder", "--index", "colors")
    done = pdserve(
        home, "tune", "--service", "recognition", *options, *QUICK, "--precision", "fp32", "--json"
    )
    assert done.returncode == 0, done.stderr
    trials = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(set(trial["settings"]) == {"embedder"} for trial in trials)
    assert all(trial["settings"]["embedder"]["precision"] == "fp32" for trial in trials)
    assert f"Next: pdserve serve recognition {' '.join(options)}" in done.stderr


def test_the_table_and_what_to_type(tiny_home: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture((255, 0, 0)))
    (tmp_path / "b.png").write_bytes(b"no image")
    done = pdserve(tiny_home, "tune", "--model", "tiny", "--images", str(tmp_path), *QUICK, "--p99", "60000")
    assert done.returncode == 0, done.stderr
    assert "images/s" in done.stdout
    assert "best" in done.stdout
    assert f"skipped {tmp_path / 'b.png'}" in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Next: pdserve serve classification --model tiny --engine openvino")


@pytest.mark.posix
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_tells_what_was_found_and_writes_nothing(tiny_home: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    config.write_text(CONFIG)
    process = subprocess.Popen(
        [sys.executable, "-m", "pdserve", "tune", "--config", str(config), "--seconds", "0.5"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(tiny_home),
        text=True,
    )
    assert process.stderr
    for line in process.stderr:
        if "the defaults:" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "images/s" in out
    assert "nothing written" in err
    assert "Traceback" not in err
    assert config.read_text() == CONFIG


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "tiny", "--throughput", "--p99", "5"), "two goals"),
        (("--model", "nothing"), "nothing"),
        (("--model", "tiny", "--config", "nowhere.yml"), "nowhere.yml"),
        (("--model", "tiny", "--images", "nowhere"), "nowhere"),
        (("--model", "tiny", "--images", "{empty}"), "no images"),
        (("--model", "tiny", "--config", "{broken}"), "broken.yml"),
        (("--model", "tiny", "--precision", "int8"), "pdserve optimize"),
        (("--model", "tiny", "--precision", "int4"), "--precision"),
        (("--model", "tiny", "--service", "recognition"), "no set of models 'tiny'; known are PP-ShiTu"),
        (("--detector", "none"), "--detector goes with --service recognition"),
        (("--service", "recognition"), "pdserve"),
        (("--model", "tiny", "--p99", "0.0001", *QUICK), "Nothing keeps"),
    ],
)
def test_what_cannot_be_done_is_said(
    tiny_home: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    empty, broken = tmp_path / "empty", tmp_path / "broken.yml"
    empty.mkdir()
    broken.write_text("a: [1\n")
    words = [each.format(empty=empty, broken=broken) for each in options]
    # A host that has nothing, and says so at once.
    done = pdserve(tiny_home, "tune", *words, PDSERVE_MIRROR=str(empty))
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
