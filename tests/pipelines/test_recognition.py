"""Recognition as a real server, with a tiny embedder and a gallery of colours, built by the real command."""

import ast
import base64
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from pdserve.clients import HttpClient, RpcClient
from pdserve.index.search import Match
from pdserve.models.home import Home
from pdserve.pipelines import SERVICES
from pdserve.pipelines.options import SearchOptions
from pdserve.pipelines.recognition import choose
from pdserve.pipelines.regions import Region
from pdserve.services.http.browsers import WRITE_HEADER
from pdserve.vision.boxes import Box
from tests.running import Server, pdserve, start
from tests.services.http.described import check_response
from tests.services.watching import until
from tests.tiny import build_embedder, build_serving_model, picture

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "黄色": (255, 255, 0)}
OPTIONS = ("--embedder", "tiny_embedder", "--detector", "none", "--index", "colors")


def shade(name: str, factor: float) -> bytes:
    """A darker picture of a colour: another file, the same direction of its features."""
    r, g, b = (round(each * factor) for each in COLORS[name])
    return picture((r, g, b))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the embedder, and the index of three colours (yellow comes later)."""
    home = tmp_path_factory.mktemp("built") / "home"
    build_embedder(home / "models")
    gallery = home / "indexes" / "colors" / "gallery"
    for name in ("red", "green", "blue"):
        (gallery / name).mkdir(parents=True)
        for i, factor in enumerate((1, 0.8, 0.6)):
            (gallery / name / f"{i}.png").write_bytes(shade(name, factor))
    done = pdserve(
        home, "index", "build", "--gallery", str(gallery), "--out", "colors", "--model", "tiny_embedder"
    )
    assert done.returncode == 0, done.stderr
    return home


@pytest.fixture
def home(built: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return shutil.copytree(built, tmp_path / "home")


@pytest.fixture(scope="module")
def unchanged(built: Path) -> Iterator[Server]:
    """A server for all tests that change nothing."""
    with start(built, *OPTIONS, "--gallery-writes", service="recognition") as server:
        yield server


@pytest.fixture
def server(home: Path) -> Iterator[Server]:
    with start(home, *OPTIONS, "--gallery-writes", service="recognition") as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    headers = {WRITE_HEADER: "1"}
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60, headers=headers) as client:
        yield client


def recognised(client: httpx.Client, data: bytes, **query: Any) -> dict[str, Any]:
    response = client.post("/v1/recognition", content=data, params=query)
    assert response.status_code == 200, response.text
    (result,) = response.json()["results"]
    return dict(result)


def best(client: httpx.Client, data: bytes) -> str | None:
    objects = recognised(client, data)["objects"]
    return str(objects[0]["label"]) if objects else None


def append(client: httpx.Client, label: str, *images: bytes) -> httpx.Response:
    files = [("images", (f"{i}.png", image)) for i, image in enumerate(images)]
    headers = {WRITE_HEADER: "1"}
    return client.post("/v1/gallery", files=files, data={"label": label}, headers=headers)


def test_what_is_recognised(client: httpx.Client) -> None:
    result = recognised(client, shade("green", 0.7), top_k=4)
    assert result["index_version"] == 1
    assert set(result["timings_ms"]) >= {"decode", "embed", "search"}
    (found,) = result["objects"]
    assert found["bbox"] == [0, 0, 40, 30]
    assert found["label"] == "green"
    assert found["score"] == pytest.approx(1, abs=1e-3)
    assert found["detection"] is None
    assert [match["label"] for match in found["matches"]][:3] == ["green"] * 3
    assert len(found["matches"]) == 4
    assert {match["image"] for match in found["matches"]} >= {"green/0.png", "green/1.png", "green/2.png"}


def test_openapi_describes_what_comes(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()

    def follow(schema: dict[str, Any]) -> dict[str, Any]:
        name = schema.get("$ref", "").rpartition("/")[2]
        return dict(document["components"]["schemas"][name]) if name else schema

    described = document["paths"]
    assert set(described["/v1/gallery"]) == {"get", "post", "delete"}
    schema = described["/v1/recognition"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    wanted = follow(follow(schema)["properties"]["results"]["items"]["anyOf"][0])
    result = recognised(client, shade("red", 0.9))
    assert set(result) == set(wanted["required"])
    check_response(document, "/v1/recognition", client.post("/v1/recognition", content=shade("red", 0.9)))
    check_response(document, "/v1/gallery", client.get("/v1/gallery"))
    assert result["objects"][0]["detection"] is None
    assert set(result["objects"][0]) == set(follow(wanted["properties"]["objects"]["items"])["required"])


@pytest.mark.parametrize("wanted", [10_001, 999_999_999])
def test_more_entries_than_anybody_reads_are_refused(unchanged: Server, wanted: int) -> None:
    with httpx.Client(base_url=unchanged.url, trust_env=False, timeout=60) as client:
        response = client.post("/v1/recognition", content=shade("green", 0.7), params={"top_k": wanted})
        assert response.status_code == 400, response.text
        assert f"top_k is {wanted}; " in response.text
        assert len(recognised(client, shade("green", 0.7), top_k=1000)["objects"][0]["matches"]) == 9
    assert "Traceback" not in unchanged.log


def test_nothing_similar_is_no_object(home: Path) -> None:
    with (
        start(home, *OPTIONS, "--score-threshold", "0.9", service="recognition") as server,
        httpx.Client(base_url=server.url, trust_env=False) as client,
    ):
        assert recognised(client, picture((200, 200, 200)))["objects"] == []
        assert best(client, shade("red", 0.5)) == "red"


def test_the_old_route_and_grpc(server: Server, client: httpx.Client) -> None:
    text = base64.b64encode(shade("red", 0.9)).decode()
    body = client.post("/recognition/prediction", json={"key": ["image"], "value": [text]}).json()
    assert (body["err_no"], body["key"]) == (0, ["result"])
    (found,) = ast.literal_eval(body["value"][0])
    assert list(found) == ["bbox", "rec_docs", "rec_scores"]
    assert (found["bbox"], found["rec_docs"]) == ([0, 0, 40, 30], "red")
    assert client.post("/imagenet/prediction", json={"key": ["a"], "value": [text]}).json()["err_no"] == 3002
    with RpcClient(server.target, service="recognition") as rpc:
        (found_object,) = rpc.recognize(shade("blue", 0.9), top_k=2)
    assert (found_object.label, found_object.bbox) == ("blue", (0, 0, 40, 30))
    assert len(found_object.matches) == 2


def test_a_bad_image_among_good_ones(server: Server) -> None:
    with HttpClient(server.url, service="recognition") as http:
        first, second, third = http.recognize_batch([shade("red", 0.9), b"hello", shade("blue", 0.9)])
    assert isinstance(first, list)
    assert isinstance(third, list)
    assert (first[0].label, third[0].label) == ("red", "blue")
    assert isinstance(second, Exception)


def test_predict_finds_out_which_service_answers(server: Server, home: Path, tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(shade("green", 0.9))
    done = pdserve(home, "predict", str(image), "--json", "--url", server.url)
    assert json.loads(done.stdout) == {
        "image": str(image),
        "objects": [{"bbox": [0, 0, 40, 30], "label": "green", "score": pytest.approx(1, abs=1e-3)}],
    }


def test_the_gallery_over_http(server: Server, client: httpx.Client, home: Path) -> None:
    assert client.get("/v1/gallery").json()["count"] == 9
    assert best(client, shade("黄色", 0.5)) in ("red", "green")

    response = append(client, "黄色", shade("黄色", 1), shade("黄色", 0.8))
    assert response.status_code == 200, response.text
    assert (response.json()["added"], response.json()["count"]) == (2, 11)
    version = response.json()["index_version"]
    assert client.get("/v1/gallery").json()["index_version"] == version
    assert recognised(client, shade("黄色", 0.5))["index_version"] == version
    assert best(client, shade("黄色", 0.5)) == "黄色"

    again = append(client, "黄色", shade("黄色", 1)).json()
    assert (again["added"], again["present"], again["count"]) == (0, 1, 11)

    removed = client.delete("/v1/gallery", params={"label": "黄色"})
    assert (removed.json()["removed"], removed.json()["count"]) == (2, 9)
    assert best(client, shade("黄色", 0.5)) in ("red", "green")

    # JSON, and what the commands see of it.
    body = {"images": [{"image": base64.b64encode(shade("黄色", 1)).decode(), "label": "yellow"}]}
    assert client.post("/v1/gallery", json=body).json()["added"] == 1
    info = json.loads(pdserve(home, "index", "info", "--index", "colors", "--json").stdout.splitlines()[0])
    assert info["count"] == 10


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (lambda c: append(c, "x", b"no image"), 400),
        (lambda c: append(c, "", picture((1, 2, 3))), 400),
        (lambda c: append(c, "a\tb", picture((1, 2, 3))), 400),
        (lambda c: c.post("/v1/gallery", json={"images": []}), 400),
        (lambda c: c.post("/v1/gallery", json={"images": [{"image": "***", "label": "x"}]}), 400),
        (lambda c: c.post("/v1/gallery", json={"images": [{"label": "x"}]}), 400),
        (lambda c: c.post("/v1/gallery", content=b""), 400),
        (lambda c: c.delete("/v1/gallery"), 400),
        (lambda c: c.delete("/v1/gallery", params={"id": "x"}), 400),
        (lambda c: c.delete("/v1/gallery", params={"label": "nothing"}), 404),
        (lambda c: c.delete("/v1/gallery", params={"image": "../../etc/passwd"}), 404),
    ],
)
def test_bad_changes_change_nothing(
    unchanged: Server, request_: Callable[[httpx.Client], httpx.Response], status: int
) -> None:
    headers = {WRITE_HEADER: "1"}
    with httpx.Client(base_url=unchanged.url, trust_env=False, timeout=60, headers=headers) as client:
        response = request_(client)
        shown = client.get("/v1/gallery").json()
    assert response.status_code == status, response.text
    assert response.json()["error"]["message"]
    assert str(Path.home()) not in response.text
    assert "colors" not in response.text  # no path of this machine
    assert (shown["count"], shown["index_version"]) == (9, 1)
    assert "Traceback" not in unchanged.log


def test_writing_is_off_unless_asked_for(home: Path) -> None:
    with (
        start(home, *OPTIONS, service="recognition") as server,
        httpx.Client(base_url=server.url, trust_env=False) as client,
    ):
        assert append(client, "x", picture((1, 2, 3))).status_code == 403
        assert client.delete("/v1/gallery", params={"label": "red"}).status_code == 403
        assert client.get("/v1/gallery").json()["writes"] is False


def test_an_image_over_the_limit_is_not_added(home: Path) -> None:
    limited = (*OPTIONS, "--gallery-writes", "--max-pixels", "1199")  # a picture has 40 × 30
    with (
        start(home, *limited, service="recognition") as server,
        httpx.Client(base_url=server.url, trust_env=False) as client,
    ):
        response = append(client, "x", picture((1, 2, 3)))
        assert response.status_code == 413  # as at every other door
        message = response.json()["error"]["message"]
        assert "40×30 pixels, more than the limit of 1199" in message
        assert "--strict" not in message  # which is no option of a caller's
        assert client.get("/v1/gallery").json()["count"] == 9


@pytest.mark.full
def test_a_published_index_is_picked_up_without_losing_a_request(
    server: Server, client: httpx.Client, home: Path, tmp_path: Path
) -> None:
    extra = tmp_path / "yellow.png"
    extra.write_bytes(shade("黄色", 1))
    stop = threading.Event()
    seen: list[tuple[int, str]] = []
    failed: list[str] = []

    def ask() -> None:
        with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as own:
            while not stop.is_set():
                response = own.post("/v1/recognition", content=shade("黄色", 0.6))
                if response.status_code != 200:
                    failed.append(response.text)
                    return
                result = response.json()["results"][0]
                seen.append((result["index_version"], result["objects"][0]["label"]))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        listed = tmp_path / "list.txt"
        listed.write_text("yellow.png\tyellow\n", "utf-8")
        options = ("--gallery", str(tmp_path), "--labels", str(listed), "--index", "colors")
        done = pdserve(home, "index", "append", *options)
        assert done.returncode == 0, done.stderr
        until(lambda: any(version == 2 for version, _ in seen))
        assert pdserve(home, "index", "rollback", "--index", "colors").returncode == 0
        until(lambda: seen[-1][0] != 2)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failed == []
    versions = {version for version, _ in seen}
    assert {1, 2} <= versions
    # Each answer is explained by the version that it names: yellow is in the second one only.
    assert all((label == "yellow") == (version == 2) for version, label in seen)


@pytest.mark.full
def test_another_embedder_is_refused_by_name(home: Path) -> None:
    build_serving_model(home / "models", "other")
    patch = ("--feed", "image=x", "--fetch", "prediction=features")
    assert pdserve(home, "alias", str(home / "models" / "other_serving"), *patch).returncode == 0
    ports = ("--http-port", "0", "--rpc-port", "0")
    options = ("--embedder", "other", "--detector", "none", "--index", "colors")
    done = pdserve(home, "serve", "recognition", *options, *ports)
    assert done.returncode == 1
    assert "tiny_embedder" in done.stderr
    assert "other" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_embedder_that_nobody_named_is_a_warning(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    recognition = SERVICES["recognition"]
    default = recognition.roles["embedder"].default
    build_embedder(home / "models", default)

    def warned(index: str, **flags: str) -> list[str]:
        caplog.clear()
        settings = recognition.settings({"index": index, "detector": "none", **flags}, {})
        recognition.open(settings, Home(home)).close()
        return [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]

    assert warned("colors", embedder="tiny_embedder") == []
    for name in ("foreign", "drink_dataset_v1.0"):  # without a manifest, as PaddleClas and PaddleX write them
        folder = home / "indexes" / name
        folder.mkdir()
        for file in ("vector.index", "id_map.pkl"):
            shutil.copy(home / "indexes" / "colors" / "index" / file, folder)
    (line,) = warned("foreign")
    assert line.startswith(f"index {home / 'indexes' / 'foreign'} does not say which embedder made it, and ")
    assert f"--embedder names none: {default}, the default, is taken" in line
    for name in (default, "tiny_embedder"):  # somebody says so, and nobody knows it
        (line,) = warned("foreign", embedder=name)
        assert line.endswith(f"made it; if not {name}, answers are wrong without an error")
    assert warned("drink_dataset_v1.0") == []  # made by the default embedder


def test_models_of_another_service_in_the_environment(home: Path) -> None:
    done = pdserve(home, "serve", "recognition", PDSERVE_MODEL="ResNet50_vd")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "pdserve: PDSERVE_MODEL: recognition has no set of models 'ResNet50_vd'; known are PP-ShiTu, "
        "PP-ShiTuV2, and --detector and --embedder name models one by one.\n"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--index", "nothing"), "pdserve index build"),
        (("--embedder", "nothing"), "nothing"),
        (("--detector", "nothing"), "nothing"),
        (("--detector", "tiny_embedder"), "image"),
        (("--det-threshold", "2"), "det-threshold"),
        (("--gpu", "0"), "--cpu"),
    ],
)
def test_what_is_wrong_is_said_before_a_port_is_opened(
    home: Path, options: tuple[str, ...], said: str
) -> None:
    ports = ("--http-port", "0", "--rpc-port", "0")
    done = pdserve(home, "serve", "recognition", *OPTIONS, *options, *ports)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "ready" not in done.stderr
    assert "Traceback" not in done.stderr


def test_the_guides_configuration_names_two_models(home: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    config.write_text(
        """
worker_num: 1
http_port: 18081
rpc_port: 9994
dag:
    is_thread_op: False
op:
    rec:
        concurrency: 1
        local_service_conf:
            model_config: ../../models/tiny_embedder_serving
            device_type: 1
            devices: "0"
            client_type: local_predictor
            fetch_list: ["features"]
    det:
        concurrency: 1
        local_service_conf:
            client_type: local_predictor
            device_type: 1
            devices: '0'
            fetch_list: ["save_infer_model/scale_0.tmp_1"]
            model_config: ../../models/picodet_PPLCNet_x2_5_mainbody_lite_v1.0_serving/
"""
    )
    done = pdserve(home, "serve", "recognition", "--config", str(config))
    assert done.returncode == 1
    assert "gpu:0" in done.stderr
    options = ("--config", str(config), "--cpu", "--detector", "none", "--index", "colors")
    with start(home, *options, service="recognition") as server, HttpClient(server.url) as http:
        assert http.recognize(shade("red", 0.5))[0].label == "red"


def test_suppression_keeps_the_most_similar_of_overlapping_boxes() -> None:
    def region(*corners: float) -> Region:
        return Region(Box(*corners, 0.9), True)

    def near(label: str, similarity: float) -> list[Match]:
        return [Match(label, f"{label}.png", similarity, 0)]

    found = [region(0, 0, 10.9, 10), region(1, 0, 11, 10), region(50, 50, 60, 60), region(80, 80, 90, 90)]
    matches = [near("a", 0.7), near("b", 0.9), near("c", 0.6), near("d", 0.4)]
    objects = choose(found, matches, SearchOptions(index="x"))
    assert [(o.label, o.bbox) for o in objects] == [("b", (1, 0, 11, 10)), ("c", (50, 50, 60, 60))]
    assert choose([], [], SearchOptions(index="x")) == ()
    assert np.isclose(objects[0].score, 0.9)
