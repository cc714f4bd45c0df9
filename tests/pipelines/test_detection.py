"""Detection: a service that is one file and one entry of the table, over every protocol and command."""

import ast
import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from PIL import Image

from pdserve.clients import HttpClient, RpcClient
from pdserve.convert import convert
from pdserve.pipelines import SERVICES
from tests.detectors import HEIGHT, WIDTH, paint, write_detector
from tests.running import Server, pdserve, start

OPTIONS = ("--detector", "tiny_detector")
WANTED = [
    {"bbox": [0, 0, 4, 3], "class_id": 0, "label": "cup", "score": 250 / 255},
    {"bbox": [4, 0, 8, 4], "class_id": 1, "label": "spoon", "score": 204 / 255},
]


def png() -> bytes:
    """A picture in which the tiny detector finds a cup and a spoon."""
    out = io.BytesIO()
    boxes, scores = [[0, 0, 4, 3], [4, 0, 8, 4]], [[250, 0], [0, 204]]
    Image.fromarray(paint(boxes, scores)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("detection")
    source = write_detector(home / "models" / "tiny_detector_infer", normalized=True)
    (source / "inference.yml").write_text(yaml.safe_dump({"label_list": ["cup", "spoon"]}), "utf-8")
    convert(source, home / "models" / "tiny_detector_serving", home / "models" / "tiny_detector_client")
    (home / "picture.png").write_bytes(png())
    return home


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    with start(home, *OPTIONS, service="detection") as server:
        yield server


def check(objects: object) -> None:
    assert isinstance(objects, list)
    for found, wanted in zip(objects, WANTED, strict=True):
        assert list(found) == ["bbox", "class_id", "label", "score"]
        assert list(found["bbox"]) == pytest.approx(wanted["bbox"], abs=1e-3)
        assert (found["class_id"], found["label"]) == (wanted["class_id"], wanted["label"])
        assert found["score"] == pytest.approx(wanted["score"], abs=1e-4)


def test_over_v1(server: Server) -> None:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        (answer,) = client.post("/v1/detection", content=png()).json()["results"]
        assert list(answer) == ["objects"]
        check(answer["objects"])
        (best,) = client.post("/v1/detection?top_k=1", content=png()).json()["results"]
        assert len(best["objects"]) == 1
        files = [("images", (f"{i}.png", data)) for i, data in enumerate((png(), b"none", png()))]
        first, bad, last = client.post("/v1/detection", files=files).json()["results"]
        check(first["objects"])
        check(last["objects"])
        assert bad["error"]["code"] == "bad_image"


def test_over_the_pipeline_protocol(server: Server) -> None:
    body = {"key": ["image"], "value": [base64.b64encode(png()).decode()]}
    for name in ("detection", SERVICES["detection"].name):
        answer = httpx.post(f"{server.url}/{name}/prediction", json=body, trust_env=False).json()
        assert (answer["err_no"], answer["key"]) == (0, ["result"])
        (objects,) = ast.literal_eval(answer["value"][0])
        check(objects)


def test_the_clients_read_it(server: Server) -> None:
    for client in (HttpClient(server.url, "detection"), RpcClient(server.target, "detection")):
        with client:
            good, bad = client.ask([png(), b"none"])
            check([vars(each) for each in good.objects])
            assert isinstance(bad, Exception)


def test_it_is_described_and_measured(server: Server) -> None:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        document = client.get("/openapi.json").json()
        assert "post" in document["paths"]["/v1/detection"]
        assert "class_id" in json.dumps(document)
        assert "/v1/gallery" not in document["paths"]
        metrics = client.get("/metrics").text
    assert 'pdserve_requests_total{code="200",route="/v1/detection"}' in metrics
    assert 'role="detector"' in metrics
    counted = [line for line in metrics.splitlines() if line.startswith("pd_query_request_success_total")]
    assert float(counted[0].split()[1]) > 0


def test_predict_finds_and_draws_it(server: Server, home: Path, tmp_path: Path) -> None:
    picture = str(home / "picture.png")
    for options in (("--url", server.url), ("--local", "--service", "detection", *OPTIONS)):
        done = pdserve(home, "predict", picture, "--json", "--draw", str(tmp_path), *options)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        check(found["objects"])
        assert Path(found["picture"]).stat().st_size > 0
    shown = pdserve(home, "predict", picture, "--url", server.url).stdout
    assert "cup" in shown
    assert "spoon" in shown


def test_bench_asks_it(server: Server, home: Path) -> None:
    done = pdserve(
        home, "bench", server.url, "--requests", "4", "--clients", "1", "--json",
        "--images", str(home / "picture.png"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[0])["errors"] in ({}, 0)


def test_labels_of_the_callers_own(home: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("mug\nfork\n", "utf-8")
    done = pdserve(
        home, "predict", str(home / "picture.png"), "--local", "--service", "detection", *OPTIONS,
        "--labels", str(tmp_path / "labels.txt"), "--json",
    )  # fmt: skip
    assert [each["label"] for each in json.loads(done.stdout)["objects"]] == ["mug", "fork"]


def test_an_exported_folder_of_any_name_is_served_in_place(home: Path, tmp_path: Path) -> None:
    """Chain, labels and the least score are those of its infer_cfg.yml; what is asked for comes first."""
    folder = write_detector(tmp_path / "my model", normalized=True)
    normalize = {"is_scale": True, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    description = {
        "draw_threshold": 0.9,
        "Preprocess": [
            {"type": "Resize", "target_size": [HEIGHT, WIDTH], "keep_ratio": False, "interp": 2},
            {"type": "NormalizeImage", **normalize},
            {"type": "Permute"},
        ],
        "label_list": ["cup", "spoon"],
    }
    (folder / "infer_cfg.yml").write_text(yaml.safe_dump(description), "utf-8")
    asked = ("predict", str(home / "picture.png"), "--local", "--service", "detection", "--json")
    done = pdserve(home, *asked, "--detector", str(folder), "--det-threshold", "0.2")
    assert done.returncode == 0, done.stderr
    check(json.loads(done.stdout)["objects"])
    best = pdserve(home, *asked, "--detector", str(folder))
    assert [each["label"] for each in json.loads(best.stdout)["objects"]] == ["cup"]
