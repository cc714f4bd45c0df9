"""Models of Paddle 3 through the real commands, from an empty home, against what PaddleX 3.7.2 answers.

Scores within 1e-4, boxes within 0.05 px (clamped to the image, over 0.2), features within 2e-4. The same on
each engine that is installed.
"""

import base64
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.running import Server, pdserve, start

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
EXPECTED: dict[str, dict[str, Any]] = json.loads((GOLDEN / "paddlex.json").read_text("utf-8"))
CLASSIFIERS = ("PP-HGNetV2-B0", "PP-LCNet_x1_0")
DETECTOR, EMBEDDER = "PP-ShiTuV2_det", "PP-ShiTuV2_rec"
# None: what is taken where none is asked for. Else the engine, and the module that it needs.
ENGINES = {"default": None, "onnx": "onnxruntime", "paddle": "paddle"}

Serve = Callable[..., AbstractContextManager[Server]]

pytestmark = [pytest.mark.full, pytest.mark.mirror]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with nothing in it: the commands that need a model fetch and convert it."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def serve(home: Path, mirror: Path) -> Serve:
    """Start ``pdserve serve SERVICE`` with these options, on the mirror."""

    def started(service: str, *options: str) -> AbstractContextManager[Server]:
        return start(home, *options, service=service, PDSERVE_MIRROR=str(mirror))

    return started


@pytest.fixture(scope="module")
def images(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The images by their names in the reference: the golden ones, and two of the data set's."""
    folder = tmp_path_factory.mktemp("images")
    with tarfile.open(mirror / "dygraph/rec/data/drink_dataset_v1.0.tar") as archive:
        for member in archive:
            path = Path(member.name)
            file = archive.extractfile(member) if path.parent.name == "test_images" else None
            if file and path.name in EXPECTED:
                (folder / path.name).write_bytes(file.read())
    own = {path.name: path for path in (*folder.iterdir(), *(GOLDEN / "images").iterdir())}
    return {name: own[name] for name in EXPECTED}


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> list[str]:
    """The options for an engine."""
    needs = ENGINES[request.param]
    if needs is None:
        return []
    if find_spec(needs) is None:
        pytest.skip(f'needs {needs}: pip install "pdserve[{request.param}]"')
    return ["--engine", request.param]


def results(server: Server, kind: str, images: Mapping[str, Path], query: str = "") -> dict[str, Any]:
    """Name -> the answer of /v1/KIND."""
    with httpx.Client(base_url=server.url, trust_env=False, timeout=120) as client:
        return {
            name: client.post(f"/v1/{kind}{query}", content=path.read_bytes()).json()["results"][0]
            for name, path in images.items()
        }


@pytest.mark.parametrize("model", CLASSIFIERS)
def test_classification(serve: Serve, images: dict[str, Path], engine: list[str], model: str) -> None:
    with serve("classification", "--model", model, *engine) as server:
        for name, answer in results(server, "classification", images, "?top_k=5").items():
            wanted = EXPECTED[name][model]
            assert [label["class_id"] for label in answer["labels"]] == [class_id for class_id, _ in wanted]
            scores = [label["score"] for label in answer["labels"]]
            assert scores == pytest.approx([score for _, score in wanted], abs=1e-4), name
        if not engine:
            numbers = httpx.get(f"{server.url}/metrics", trust_env=False, timeout=60).text
            assert 'engine="openvino"' in numbers


def check_boxes(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """Raise AssertionError unless boxes with scores are those of the reference, best first."""
    assert len(found) == len(wanted)
    for each, box in zip(found, wanted, strict=True):
        assert each["bbox"] == pytest.approx(box["bbox"], abs=0.05)
        assert each["score"] == pytest.approx(box["score"], abs=1e-4)


def test_detection(serve: Serve, images: dict[str, Path], engine: list[str]) -> None:
    with serve("detection", "--detector", DETECTOR, "--det-threshold", "0.2", *engine) as server:
        for name, answer in results(server, "detection", images).items():
            check_boxes(answer["objects"], EXPECTED[name][DETECTOR])
            assert {each["label"] for each in answer["objects"]} <= {"mainbody"}


def test_embedding(serve: Serve, images: dict[str, Path], engine: list[str]) -> None:
    """All images in one request of OpenAI's form: batches have no influence."""
    texts = [base64.b64encode(path.read_bytes()).decode() for path in images.values()]
    with serve("embedding", "--model", EMBEDDER, *engine) as server:
        body = {"model": EMBEDDER, "input": texts}
        made = httpx.post(f"{server.url}/v1/embeddings", json=body, trust_env=False, timeout=120).json()
        single = results(server, "embedding", images)
    for each, name in zip(made["data"], images, strict=True):
        for vector in (each["embedding"], single[name]["embedding"]):
            assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
            assert len(vector) == 512
            assert vector[::8] == pytest.approx(EXPECTED[name][EMBEDDER], abs=2e-4), name


@pytest.fixture(scope="module")
def index(home: Path, mirror: Path, images: dict[str, Path]) -> str:
    """A gallery of the images themselves, each its own label, as PaddleX has it."""
    gallery = home / "gallery"
    for name, path in images.items():
        (gallery / name).mkdir(parents=True)
        (gallery / name / name).write_bytes(path.read_bytes())
    options = ("--gallery", str(gallery), "--out", "golden", "--model", EMBEDDER)
    done = pdserve(home, "index", "build", *options, PDSERVE_MIRROR=str(mirror))
    assert done.returncode == 0, done.stderr
    out = home / "exported"
    done = pdserve(home, "index", "export", "golden", "--form", "paddlex", "--out", str(out))
    assert done.returncode == 0, done.stderr
    return str(out)


@pytest.fixture
def recognition(serve: Serve, index: str, engine: list[str]) -> Iterator[Server]:
    # Every box is looked up and stays in the answer.
    keep_all = ("--max-det-results", "100", "--score-threshold", "-1", "--nms-threshold", "1")
    models = ("--detector", DETECTOR, "--embedder", EMBEDDER, "--index", index)
    options = (*models, "--det-threshold", "0.2", *keep_all, *engine)
    with serve("recognition", *options) as server:
        yield server


def test_recognition(recognition: Server, images: dict[str, Path]) -> None:
    for name, answer in results(recognition, "recognition", images).items():
        (whole,) = [each for each in answer["objects"] if each["detection"] is None]
        # photo.jpg and progressive.jpg, for example, are nearly one picture.
        assert whole["score"] == pytest.approx(1, abs=1e-4)
        assert name in [match["label"] for match in whole["matches"]]
        boxes = [each["detection"] for each in answer["objects"] if each["detection"]]
        boxes.sort(key=lambda box: -box["score"])
        check_boxes(boxes, EXPECTED[name][DETECTOR])
