"""``pdserve list``: what is in the home, whole, broken or in use."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pdserve.index.edit import build
from pdserve.models.home import Home
from pdserve.models.servers import RunningServer, registration
from tests.index.galleries import GridEmbedder, write_gallery
from tests.running import pdserve
from tests.tiny import build_serving_model


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home with a converted model, a fetched one, and an index."""
    where = Home(tmp_path / "home")
    build_serving_model(where.models)
    shutil.copytree(where.inference_model("tiny"), where.inference_model("ResNet50_vd"))
    images = write_gallery(tmp_path / "gallery")
    build(images, where.index("drinks"), GridEmbedder(name="tiny"))
    return where


def listed(home: Home) -> dict[str, Any]:
    """The JSON lines by name."""
    done = pdserve(home.root, "list", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return {each["name"]: each for each in map(json.loads, done.stdout.splitlines())}


def size(folder: Path) -> int:
    found = {(s.st_dev, s.st_ino): s.st_size for p in folder.rglob("*") if p.is_file() for s in [p.stat()]}
    return sum(found.values())


def test_models_and_indexes(home: Home) -> None:
    onnx = home.serving_model("tiny") / ".pdserve"
    (onnx / "int8").mkdir(parents=True)
    (onnx / "int8" / "report.json").write_bytes(b"{}")
    (onnx / "abc-p2o0.1.2-opset17.onnx").write_bytes(bytes(900))
    of_inference = home.inference_model("tiny") / ".pdserve" / "abd-p2o0.1.2-opset17.onnx"
    of_inference.parent.mkdir()
    of_inference.write_bytes(bytes(100))
    (onnx / "abc-p2o0.1.2-opset17-fp16.onnx").write_bytes(bytes(500))
    found = listed(home)
    assert list(found) == ["ResNet50_vd", "tiny", "drinks"]
    forms = found["tiny"]["forms"]
    assert list(forms) == ["inference", "serving", "client", "int8", "onnx", "onnx fp16"]
    assert (forms["onnx"]["bytes"], forms["onnx fp16"]["bytes"], forms["int8"]["bytes"]) == (1000, 500, 2)
    assert forms["serving"]["bytes"] == size(home.serving_model("tiny")) - 1402
    assert forms["inference"]["path"] == str(home.inference_model("tiny"))
    parts = sum(size(folder) for folder in home.models.glob("tiny_*"))
    assert (found["tiny"]["what"], found["tiny"]["bytes"]) == ("model", parts)
    assert found["tiny"]["task"] == "classification"
    assert list(found["ResNet50_vd"]["forms"]) == ["inference"]
    drinks = found["drinks"]
    assert (drinks["what"], drinks["version"], drinks["entries"], drinks["labels"]) == ("index", 1, 20, 4)
    assert (drinks["embedder"], drinks["path"]) == ("tiny", str(home.index("drinks")))
    assert drinks["bytes"] == size(home.index("drinks"))  # the versions' files have two names
    assert all(each["servers"] == each["problems"] == [] for each in found.values())


def test_as_tables(home: Home) -> None:
    done = pdserve(home.root, "list")
    assert (done.returncode, done.stderr) == (0, "")
    heads, *rows = [line.split() for line in done.stdout.splitlines() if line.strip("─ ")]
    assert heads == ["model", "task", "forms", "size", "state", "used", "by"]
    assert rows[0][:3] == ["ResNet50_vd", "classification", "inference"]
    assert rows[0][-2:] == ["ok", "-"]
    assert rows[1][:5] == ["tiny", "classification", "inference,", "serving,", "client"]
    assert rows[3][:5] == ["drinks", "1", "20", "4", "tiny"]


def test_what_a_running_server_uses(home: Home) -> None:
    server = RunningServer(
        7, "recognition", "http://127.0.0.1:9", None, False,
        models=(str(home.serving_model("tiny")),), index=str(home.index("drinks")),
    )  # fmt: skip
    with registration(home) as place:
        place.write(server)
        found = listed(home)
        (used,) = found["tiny"]["servers"]
        assert (used["pid"], used["kind"], used["http"]) == (7, "recognition", "http://127.0.0.1:9")
        assert found["drinks"]["servers"] == [used]
        assert found["ResNet50_vd"]["servers"] == []
        text = pdserve(home.root, "list").stdout
        assert text.count("recognition at http://127.0.0.1:9 (pid 7)") == 2


def test_what_is_broken_is_said(home: Home) -> None:
    (home.inference_model("tiny") / "inference.pdmodel").unlink()
    (home.serving_model("tiny") / "serving_server_conf.prototxt").write_bytes(b"\xff{{{")
    (home.models / "empty_serving").mkdir()
    (home.models / "strange").mkdir()
    (home.models / "notes.txt").touch()
    (home.index("drinks") / ".versions" / "1" / "vector.index").write_bytes(b"")
    (home.index("torn")).mkdir()
    (home.index("torn") / "index.json").write_text('{"format": 1', "utf-8")
    (home.index("nothing")).mkdir()
    (home.index("other") / "index").mkdir(parents=True)
    (home.index("other") / "index" / "vector.index").touch()
    done = pdserve(home.root, "list")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    said = [line.partition(": ")[0] for line in done.stderr.splitlines()]
    assert said == ["empty", "tiny", "tiny", "strange", "drinks", "nothing", "other", "torn"]
    assert done.stdout.count("broken") == 7
    by_name = {
        each["name"]: each
        for each in map(json.loads, pdserve(home.root, "list", "--json").stdout.splitlines())
    }
    assert "no serving_server_conf.prototxt" in by_name["empty"]["problems"][0]
    assert "vector.index has 0 bytes" in by_name["drinks"]["problems"][0]
    assert by_name["strange"]["forms"] == {}
    assert by_name["torn"]["version"] is None
    assert by_name["ResNet50_vd"]["problems"] == []


def test_links_are_not_followed(home: Home, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.move(home.inference_model("tiny"), outside)
    try:
        home.inference_model("tiny").symlink_to(outside)
    except OSError:
        pytest.skip("no links here")
    home.inference_model("lost").symlink_to(tmp_path / "nowhere")
    home.inference_model("loop").symlink_to(home.inference_model("loop"))
    (home.serving_model("tiny") / "round").symlink_to(home.models)
    found = listed(home)
    form = found["tiny"]["forms"]["inference"]
    assert (form["link"], form["bytes"] < 1000) == (str(outside), True)
    assert "leads nowhere" in found["lost"]["problems"][0]
    assert "leads nowhere" in found["loop"]["problems"][0]


def test_nothing(tmp_path: Path) -> None:
    done = pdserve(tmp_path, "list")
    assert (done.returncode, done.stdout) == (0, "")
    assert "pdserve fetch --list" in done.stderr
    done = pdserve(tmp_path, "list", "--json")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
