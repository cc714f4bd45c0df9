"""The guide's recognition, as typed by a new user, against reference values of the published service.

Boxes within 0.01 px, detector scores and similarities within 1e-4, the same neighbours and final result.
"""

import ast
import base64
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pdserve.clients import RpcClient
from pdserve.models.home import Home
from pdserve.pipelines import SERVICES
from pdserve.pipelines.regions import open_regions, regions
from tests.running import Server, pdserve, start

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
EXPECTED: dict[str, Any] = json.loads((GOLDEN / "recognition.json").read_text("utf-8"))

pytestmark = [pytest.mark.full, pytest.mark.mirror]


@pytest.fixture(scope="module")
def home(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that the default services need, fetched and converted without a name."""
    home = tmp_path_factory.mktemp("home")
    assert pdserve(home, "fetch", PDSERVE_MIRROR=str(mirror)).returncode == 0
    assert pdserve(home, "convert").returncode == 0
    return home


@pytest.fixture(scope="module")
def images(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The 23 images by their names in the reference."""
    folder = tmp_path_factory.mktemp("images")
    with tarfile.open(mirror / "dygraph/rec/data/drink_dataset_v1.0.tar") as archive:
        for member in archive:
            name = member.name.partition("/")[2]
            file = archive.extractfile(member)
            if name in EXPECTED and file:
                (folder / Path(name).name).write_bytes(file.read())
    return {name: folder / Path(name).name if "/" in name else GOLDEN / "images" / name for name in EXPECTED}


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    with start(home, service="recognition") as server:
        yield server


def check_result(objects: list[dict[str, Any]], name: str) -> None:
    wanted = EXPECTED[name]["result"]
    assert [(o["bbox"], o["label"]) for o in objects] == [(w["bbox"], w["rec_docs"]) for w in wanted]
    for found, each in zip(objects, wanted, strict=True):
        assert found["score"] == pytest.approx(each["rec_scores"], abs=1e-4)


def test_every_stage_agrees(home: Path, images: dict[str, Path]) -> None:
    wanted = SERVICES["recognition"].settings({}, {})
    pipeline = open_regions(wanted, Home(home))
    try:
        for name, path in images.items():
            image = pipeline.decode(path.read_bytes())
            height, width = image.shape[:2]
            (rows,) = pipeline.detect([pipeline.detectors[0].prepare(image)])
            found = regions(image, pipeline.detectors[0].read(rows, width, height))
            expected = EXPECTED[name]
            assert len(found) == len(expected["boxes"])
            for region, box in zip(found, expected["boxes"], strict=True):
                corners = (region.box.x1, region.box.y1, region.box.x2, region.box.y2)
                assert corners == pytest.approx(box["bbox"], abs=0.01)
                assert region.box.score == pytest.approx(box["score"], abs=1e-4)
            near = pipeline.index.search(pipeline.embedder.embed(pipeline.crop_images(image, found)), 1)
            for (match,), (entry, similarity) in zip(near, expected["nearest"], strict=True):
                assert f"{match.image}\t{match.label}" == entry
                assert match.similarity == pytest.approx(similarity, abs=1e-4)
    finally:
        pipeline.close()


def test_every_door_agrees(server: Server, home: Path, images: dict[str, Path]) -> None:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=120) as client:
        for name, path in images.items():
            (answer,) = client.post("/v1/recognition", content=path.read_bytes()).json()["results"]
            check_result(answer["objects"], name)
            assert set(answer["timings_ms"]) == {"decode", "preprocess", "detect", "embed", "search"}
            # The guide's request, and the published service's words.
            body = {"key": ["image"], "value": [base64.b64encode(path.read_bytes()).decode()]}
            old = client.post("/recognition/prediction", content=json.dumps(body)).json()
            assert (old["err_no"], old["key"]) == (0, ["result"])
            wanted = EXPECTED[name]["result"]
            for found, each in zip(ast.literal_eval(old["value"][0]), wanted, strict=True):
                assert list(found) == ["bbox", "rec_docs", "rec_scores"]
                assert (found["bbox"], found["rec_docs"]) == (each["bbox"], each["rec_docs"])
                assert found["rec_scores"] == pytest.approx(each["rec_scores"], abs=1e-4)
    with RpcClient(server.target, service="recognition") as rpc:
        names = list(images)[:5]
        answers = rpc.recognize_batch([images[name].read_bytes() for name in names])
    for name, objects in zip(names, answers, strict=True):
        assert isinstance(objects, list)
        check_result([vars(each) | {"bbox": list(each.bbox)} for each in objects], name)

    paths = [str(path) for path in images.values()]
    for door in (("--url", server.url), ("--rpc", "--service", "recognition", "--url", server.target)):
        done = pdserve(home, "predict", *paths, "--json", *door)
        assert done.returncode == 0, done.stderr
        rows = [json.loads(row) for row in done.stdout.splitlines()]
        assert [row["image"] for row in rows] == paths
        for row, name in zip(rows, images, strict=True):
            check_result(row["objects"], name)
            assert all(set(each) == {"bbox", "label", "score"} for each in row["objects"])


def test_several_images_in_a_request_are_each_recognised(server: Server, images: dict[str, Path]) -> None:
    names = list(images)[:4]
    files = [("images", (str(i), images[name].read_bytes())) for i, name in enumerate(names)]
    with httpx.Client(base_url=server.url, trust_env=False, timeout=120) as client:
        results = client.post("/v1/recognition", files=files).json()["results"]
        for name, answer in zip(names, results, strict=True):
            check_result(answer["objects"], name)
        body = {
            "key": names,
            "value": [base64.b64encode(images[name].read_bytes()).decode() for name in names],
        }
        old = client.post("/recognition/prediction", content=json.dumps(body)).json()
    lists = ast.literal_eval(old["value"][0])
    for name, objects in zip(names, lists, strict=True):
        assert [each["bbox"] for each in objects] == [each["bbox"] for each in EXPECTED[name]["result"]]


def test_without_a_detector_the_whole_image_is_recognised(home: Path, images: dict[str, Path]) -> None:
    path = images["test_images/0.jpg"]
    options = ("--local", "--service", "recognition", "--detector", "none", "--json")
    done = pdserve(home, "predict", str(path), *options)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["objects"]
    expected = EXPECTED["test_images/0.jpg"]
    assert found["bbox"] == expected["boxes"][-1]["bbox"]
    assert found["label"] == expected["nearest"][-1][0].partition("\t")[2]
    assert found["score"] == pytest.approx(expected["nearest"][-1][1], abs=1e-4)
