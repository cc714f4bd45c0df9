"""``pdserve show``: a model, an index, or a name of the catalog, in JSON and for a person."""

import json
from pathlib import Path
from typing import Any

import pytest

from pdserve.commands.show import describe
from pdserve.errors import UsageError
from pdserve.index.edit import append, build
from pdserve.models import record
from pdserve.models.home import Home
from pdserve.models.servers import RunningServer, registration
from tests.index.galleries import GridEmbedder, write_gallery
from tests.running import pdserve
from tests.tiny import build_embedder, build_serving_model


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home with a classifier that was fetched, and an index of two versions."""
    where = Home(tmp_path / "home")
    build_serving_model(where.models)
    record.write(
        where.inference_model("tiny"), name="tiny", source="https://host/tiny.tar", origin="/m/tiny.tar",
        sha256="ab" * 32, size=7,
    )  # fmt: skip
    images = write_gallery(tmp_path / "gallery")
    build(images[:-1], where.index("drinks"), GridEmbedder(name="tiny"))
    append(images[-1:], where.index("drinks"), GridEmbedder(name="tiny"))
    return where


def only(name: str, home: Home) -> dict[str, Any]:
    (found,) = describe(name, home)
    return found


def test_a_model(home: Home) -> None:
    found = only("tiny", home)
    date = found["source"].pop("date")
    assert date.startswith("20")
    assert found["source"] == {
        "source": "https://host/tiny.tar", "origin": "/m/tiny.tar", "sha256": "ab" * 32, "bytes": 7,
    }  # fmt: skip
    assert (found["what"], found["name"], found["task"]) == ("model", "tiny", "classification")
    assert [next(iter(each)) for each in found["chain"]] == [
        "ResizeImage", "CropImage", "NormalizeImage", "ToCHWImage",
    ]  # fmt: skip
    assert found["postprocess"] == {"Topk": {"topk": 3}}
    assert found["labels"] == {"count": 3, "first": ["red", "green", "blue"]}
    assert found["feeds"] == {"x": {"alias": "image", "dtype": "float32", "shape": [3, 32, 32]}}
    (fetch,) = found["fetches"].values()
    assert fetch["alias"] == "prediction"
    assert list(found["forms"]) == ["inference", "serving", "client"]
    assert found["indexes"] == ["drinks"]
    assert found["command"] == "pdserve serve classification --model tiny"
    assert (found["servers"], found["problems"]) == ([], [])


def test_an_index(home: Home) -> None:
    found = only("drinks", home)
    assert (found["what"], found["version"], found["previous"], found["versions"]) == ("index", 2, 1, [1, 2])
    assert (found["entries"], found["labels"], found["embedder"], found["type"]) == (20, 4, "tiny", "Flat")
    assert found["command"] == "pdserve serve recognition --index drinks"


def test_a_folder_of_ones_own(home: Home, tmp_path: Path) -> None:
    build_embedder(tmp_path / "own", "mine")
    found = only(str(tmp_path / "own" / "mine_infer"), home)
    assert (found["name"], list(found["forms"]), found["source"]) == ("mine", ["inference"], None)
    found = only(str(tmp_path / "own" / "mine_serving"), home)
    assert [each["alias"] for each in found["fetches"].values()] == ["features"]
    assert only(str(home.index("drinks")), home)["entries"] == 20
    assert only(str(tmp_path / "gallery"), home)["problems"]  # no model, and said so
    with pytest.raises(UsageError, match="There is no folder"):
        describe(str(tmp_path / "nowhere"), home)


def test_a_name_of_the_catalog_that_is_not_here(home: Home) -> None:
    found = only("PP-LCNet_x1_0", home)
    assert (found["what"], found["task"]) == ("catalog", "classification")
    assert found["source"].endswith("/PP-LCNet_x1_0_infer.tar")
    assert found["command"] == "pdserve fetch PP-LCNet_x1_0"
    with pytest.raises(UsageError, match=r"did you mean .*PP-LCNet_x1_0"):
        describe("PP_LCNet-x1.0", home)
    for name in ("", "a/b", "a\\b"):
        with pytest.raises(UsageError):
            describe(name, home)


def test_what_is_broken_is_shown_with_what_is_wrong(home: Home) -> None:
    (home.serving_model("tiny") / "inference.yml").write_text("PreProcess: 7", "utf-8")
    (home.inference_model("tiny") / "fetch.json").write_text("{", "utf-8")
    found = only("tiny", home)
    assert any("PreProcess is 7" in problem for problem in found["problems"])
    assert found["source"] is None
    assert found["labels"] == {"count": 3, "first": ["red", "green", "blue"]}  # of the inference model
    done = pdserve(home.root, "show", "tiny")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert "PreProcess is 7" in done.stderr


def test_for_a_person_and_as_json(home: Home) -> None:
    with registration(home) as place:
        place.write(
            RunningServer(
                7, "classification", "http://127.0.0.1:9", None, False, (str(home.serving_model("tiny")),)
            )
        )
        text = pdserve(home.root, "show", "tiny").stdout
        for words in (
            "tiny: a model", "ResizeImage(resize_short=32) → CropImage(size=32)", "3: red; green; blue",
            "x as image, float32 3×32×32", "/m/tiny.tar, SHA-256 abab", "used by",
            "classification at http://127.0.0.1:9 (pid 7)", "pdserve serve classification --model tiny",
        ):  # fmt: skip
            assert words in text, text
        done = pdserve(home.root, "show", "tiny", "--json")
        assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
        assert json.loads(done.stdout)["servers"][0]["pid"] == 7
    assert pdserve(home.root, "show", "no-such-thing").returncode == 2
    assert "20" in pdserve(home.root, "show", "drinks").stdout
    assert "pdserve fetch ResNet50_vd" in pdserve(home.root, "show", "ResNet50_vd").stdout
