"""PaddleX's serving protocol: a replay of what PaddleX's own server answered, and what it does better."""

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from pdserve.answers import Label
from pdserve.errors import ImageError
from pdserve.services.auth import Keys
from pdserve.services.http.app import build_app
from pdserve.services.http.paddlex import _drawn
from pdserve.services.http.paddlex_operations import OPERATIONS, Drawing, DrawnObject, Served
from pdserve.services.telemetry.metrics import Metrics
from pdserve.settings import ServerSettings
from tests.running import Server
from tests.services.http.replaying import Caller, forms, recorded, wanted_log_id
from tests.services.watching import FakeService, served
from tests.tiny import NAMES, picture

PATH = "/image-classification"
RECORDED = {each["name"]: each for each in recorded("classification")}
NOT_BASE64 = "The image is not base64."
FETCHES_NOTHING = "The image is an address, and this server fetches nothing"
# What is answered otherwise on purpose: status, and how the message begins. PaddleX says 500 for all but two.
DIFFERENT = {
    'image ""': (400, "image is empty"),
    "not base64": (400, NOT_BASE64),
    "base64 without its padding": (400, NOT_BASE64),
    "base64 of a text": (400, "The 17 bytes are no image in a known format."),
    "logId of another bad request": (400, NOT_BASE64),
    "logId, a number": (422, '[{"type": "string_type", "loc": "body.image"'),
    "an address": (400, FETCHES_NOTHING),
    "an address that is not there": (400, FETCHES_NOTHING),
    "an address where nobody answers": (400, FETCHES_NOTHING),
    "an address of a file": (400, NOT_BASE64),
}


@pytest.fixture(scope="module")
def caller(tiny_server: Server) -> Iterator[Caller]:
    with httpx.Client(base_url=tiny_server.url, trust_env=False, timeout=60) as client:
        yield Caller(client)


@pytest.mark.parametrize("name", RECORDED)
def test_a_replay_of_what_paddlex_answered(caller: Caller, name: str) -> None:
    exchange = RECORDED[name]
    response = caller.ask(exchange)
    if name == "unknown route":  # which belongs to no protocol; Paddle Serving's gateway says it so
        assert (response.status_code, response.text) == (404, "Not Found\n")
        return
    assert response.headers["content-type"] == exchange["response"]["type"]
    found = caller.shown(response.json())
    assert found.pop("logId") == wanted_log_id(exchange)
    theirs = dict(exchange["answer"])
    theirs.pop("logId")
    if name in DIFFERENT:
        status, text = DIFFERENT[name]
        assert (response.status_code, exchange["response"]["status"]) == (
            status,
            200 if name == "an address" else 500,
        )
        assert found == {"errorCode": status, "errorMsg": found["errorMsg"]}
        assert found["errorMsg"].startswith(text)
        return
    if name == "a data URL":
        assert (response.status_code, exchange["response"]["status"]) == (200, 500)
        return
    assert response.status_code == exchange["response"]["status"]
    assert ("allow" in response.headers) == (response.status_code == 405)  # which PaddleX leaves out
    assert set(forms(found)) == set(forms(theirs))
    if response.status_code != 200 or name == "health":
        assert found == theirs
        return
    assert list(response.json()) == ["logId", *theirs]  # in PaddleX's order
    assert found["result"].get("image") == theirs["result"].get("image")  # a JPEG, of the size of the picture
    wanted = min(len(theirs["result"]["categories"]), len(NAMES))
    assert len(found["result"]["categories"]) == wanted


def test_as_it_is_installed_paddlex_answers_for_one_class_alone() -> None:
    """In 3.7.2 the class ids of an image come nested, and its own server cannot write them."""
    found = {each["name"]: each["response"]["status"] for each in recorded("classification_as_installed")}
    assert found == {"an image": 500, "drawn by default": 500, "topk 1": 200, "topk 3": 500}


def post(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post(PATH, json=body)


def test_scores_are_those_of_v1(tiny_server: Server) -> None:
    data = picture((200, 40, 90))
    with httpx.Client(base_url=tiny_server.url, trust_env=False, timeout=60) as client:
        (wanted,) = client.post("/v1/classification", content=data).json()["results"]
        found = post(client, image=base64.b64encode(data).decode(), visualize=False).json()["result"]
    assert found == {
        "categories": [
            {"id": each["class_id"], "name": each["label"], "score": each["score"]}
            for each in wanted["labels"]
        ]
    }


def test_a_log_id_is_given_back_as_far_as_it_is_one(tiny_server: Server) -> None:
    image = base64.b64encode(picture((0, 0, 255))).decode()
    with httpx.Client(base_url=tiny_server.url, trust_env=False, timeout=60) as client:
        for given, echoed in (("mine", True), ("a" * 200, True), ("a" * 201, False), ("a" * 5000, False)):
            answer = post(client, image=image, visualize=False, logId=given).json()
            assert (answer["logId"] == given) == echoed
            assert "bytes" not in answer["logId"]  # what stands for a long text within the server
        assert len({post(client, image=image, logId="").json()["logId"] for _ in range(3)}) == 3


def test_few_of_many_faults_are_named(tiny_server: Server) -> None:
    with httpx.Client(base_url=tiny_server.url, trust_env=False, timeout=60) as client:
        answer = client.post("/object-detection", json={})
        assert answer.status_code == 404  # a route is there for the service that runs, alone
        cut = client.post(PATH, content=b"[" * 5000, headers={"Content-Type": "application/json"})
        assert (cut.status_code, cut.json()["errorCode"]) == (422, 422)
        many = client.post(PATH, json={"image": "", "more": list(range(30_000))})
        assert (many.status_code, many.json()["errorCode"]) == (413, 413)


def fake(**settings: Any) -> Any:
    metrics = Metrics()
    service = FakeService(metrics)
    keys = Keys("k" * 32, None) if settings.pop("keyed", False) else None
    return service, build_app(service, ServerSettings(name="imagenet", **settings), metrics, keys=keys)


def test_every_error_has_the_envelope() -> None:
    service, app = fake(keyed=True, max_body_bytes=1000)
    key = {"X-API-Key": "k" * 32}
    with served(app) as url, httpx.Client(base_url=url, trust_env=False) as client:
        assert client.get("/health").json()["errorMsg"] == "Healthy"  # without a key, as any probe
        refused = client.post(PATH, json={"image": "QUJD"})
        large = client.post(PATH, json={"image": "QUJD" * 1000}, headers=key)
        full = client.post(PATH, json={"image": base64.b64encode(b"full").decode()}, headers=key)
        service.ready = False
        starting = client.get("/health")
    for response, status in ((refused, 401), (large, 413), (full, 503), (starting, 503)):
        content = response.json()
        assert response.status_code == content["errorCode"] == status
        assert content.keys() == {"logId", "errorCode", "errorMsg"}
    assert refused.headers["www-authenticate"]
    assert full.headers["retry-after"] == starting.headers["retry-after"] == "1"
    assert starting.json()["errorMsg"] == "The service is not ready."


def test_a_failure_of_the_server_says_nothing_of_it(caplog: pytest.LogCaptureFixture) -> None:
    _, app = fake()
    with served(app) as url, httpx.Client(base_url=url, trust_env=False) as client:
        answer = post(client, image=base64.b64encode(b"broken").decode())
    assert (answer.status_code, answer.json()["errorMsg"]) == (500, "internal error")
    assert "a fault of ours" in caplog.text


@pytest.mark.parametrize(
    ("answer", "postprocess", "models", "paths"),
    [
        ("Labels", "Topk", "", [PATH]),
        ("Labels", "ThreshOutput", "", [PATH]),
        (
            "Labels",
            "MultiLabelThreshOutput",
            "",
            ["/multilabel-image-classification", "/image-multilabel-classification"],
        ),
        ("Detections", "", "", ["/object-detection"]),
        ("LabelledObjects", "", "pp-yoloe-s_human x", ["/pedestrian-attribute-recognition"]),
        ("LabelledObjects", "", "pp-yoloe-s_vehicle x", ["/vehicle-attribute-recognition"]),
        (
            "LabelledObjects",
            "",
            "mine",
            ["/pedestrian-attribute-recognition", "/vehicle-attribute-recognition"],
        ),
        ("Embedding", "", "", []),
        ("Objects", "boxes and image", "", ["/shitu-infer"]),
        ("Objects", "boxes", "", ["/face-recognition-infer"]),
    ],
)
def test_which_routes_a_service_has(answer: str, postprocess: str, models: str, paths: list[str]) -> None:
    regions, postprocess = (postprocess, "") if answer == "Objects" else ("", postprocess)
    is_served = Served(answer, postprocess, models, regions)
    assert [path for each in OPERATIONS if each.serves(is_served) for path in each.paths] == paths


def test_what_is_drawn() -> None:
    image = np.zeros((300, 400, 3), np.uint8)
    boxes = Drawing([DrawnObject((50, 60, 200, 250), "cup", 0.9)])
    labels = Drawing(labels=[Label(1, "cup", 0.9)])
    plain, boxed, labelled = (_drawn(each, image) for each in (Drawing(labels=[]), boxes, labels))
    assert len({plain, boxed, labelled}) == 3
    assert base64.b64decode(boxed).startswith(b"\xff\xd8\xff")
    with pytest.raises(ImageError, match="send visualize: false"):
        _drawn(boxes, np.zeros((1, 65_501, 3), np.uint8))


def test_the_document_describes_the_routes(tiny_server: Server) -> None:
    with httpx.Client(base_url=tiny_server.url, trust_env=False, timeout=60) as client:
        document = client.get("/openapi.json").json()
    asked = document["paths"][PATH]["post"]
    fields = asked["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert list(fields) == ["image", "topk", "visualize"]
    assert "422" in asked["responses"]
    assert document["paths"]["/health"]["get"]["summary"]


def test_who_leaves_is_let_go() -> None:
    """The request of a caller that goes away is taken out, as at the other routes."""
    service, app = fake()

    async def leave(url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        body = json.dumps({"image": base64.b64encode(b"slow").decode()}).encode()
        _, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        while not service.slow:
            await asyncio.sleep(0.01)
        writer.close()
        await writer.wait_closed()
        while not service.cancelled:
            await asyncio.sleep(0.01)

    with served(app) as url:
        asyncio.run(asyncio.wait_for(leave(url), 20))
    assert service.cancelled == 1
