"""The /v1 route, health, limits and OpenAPI of a real server."""

import base64
import json
import socket
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.running import Server
from tests.services.http.described import check_response
from tests.services.watching import until
from tests.tiny import NAMES, expected, picture

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
OTHER_FIELD = b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\nb\r\n--x--\r\n"
GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "images"


@pytest.fixture
def client(tiny_server: Server) -> Any:
    with httpx.Client(base_url=tiny_server.url, trust_env=False, timeout=60) as client:
        yield client


def best(result: dict[str, Any]) -> str:
    return str(result["labels"][0]["label"])


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header says this size; there are no pixels behind it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + body + b"\0\0\0\0IEND\xaeB`\x82"


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", "text/plain", None])
def test_the_body_is_an_image_file(client: httpx.Client, kind: str | None) -> None:
    headers = {"Content-Type": kind} if kind else {}
    response = client.post("/v1/classification", content=picture(GREEN), headers=headers)
    assert response.status_code == 200
    (result,) = response.json()["results"]
    scores = {label["class_id"]: label["score"] for label in result["labels"]}
    for class_id, score in enumerate(expected(GREEN)):
        assert scores[class_id] == pytest.approx(score, abs=1e-5)
    assert [label["label"] for label in result["labels"]] == ["green", "red", "blue"]


def test_top_k(client: httpx.Client) -> None:
    response = client.post("/v1/classification?top_k=1", content=picture(BLUE))
    assert [label["label"] for label in response.json()["results"][0]["labels"]] == ["blue"]
    response = client.post("/v1/classification?top_k=99", content=picture(BLUE))
    assert len(response.json()["results"][0]["labels"]) == len(NAMES)


@pytest.mark.parametrize("top_k", ["0", "-1", "x", "1.5", ""])
def test_a_wrong_top_k(client: httpx.Client, top_k: str) -> None:
    response = client.post("/v1/classification", params={"top_k": top_k}, content=picture(BLUE))
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "bad_request"
    assert "top_k" in response.json()["error"]["message"]


def test_a_form_of_several(client: httpx.Client) -> None:
    files = [("images", (f"{i}.png", picture(color))) for i, color in enumerate((RED, BLUE, GREEN))]
    response = client.post("/v1/classification", files=files)
    assert response.status_code == 200
    assert [best(r) for r in response.json()["results"]] == ["red", "blue", "green"]


def test_json_of_several(client: httpx.Client) -> None:
    text = base64.b64encode(picture(RED)).decode()
    images = [
        text,
        f"data:image/png;base64,{text}",
        "\n".join(text[i : i + 76] for i in range(0, len(text), 76)),
    ]
    response = client.post("/v1/classification", json={"images": images})
    assert [best(r) for r in response.json()["results"]] == ["red"] * 3


def test_a_bad_image_among_good_ones_stays_in_its_place(client: httpx.Client) -> None:
    good = base64.b64encode(picture(RED)).decode()
    bad = base64.b64encode(b"hello").decode()
    response = client.post("/v1/classification", json={"images": [good, bad, "***", good]})
    assert response.status_code == 200
    first, second, third, fourth = response.json()["results"]
    assert best(first) == best(fourth) == "red"
    assert second["error"]["code"] == third["error"]["code"] == "bad_image"


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "bad_image"),
        (b"hello", 400, "bad_image"),
        ((GOLDEN / "photo.jpg").read_bytes()[:20000], 400, "bad_image"),
        ((GOLDEN / "small.png").read_bytes()[:1000], 400, "bad_image"),
        (huge_png(10000, 10000), 413, "image_too_large"),
        (huge_png(2**31 - 1, 2**31 - 1), 413, "image_too_large"),
    ],
    ids=["empty", "no image", "truncated JPEG", "truncated PNG", "100 megapixels", "absurd"],
)
def test_bad_images(client: httpx.Client, content: bytes, status: int, code: str) -> None:
    response = client.post("/v1/classification", content=content)
    assert response.status_code == status
    body = response.json()
    error = body["results"][0]["error"] if "results" in body else body["error"]
    assert error["code"] == code
    assert error["message"]
    assert best(client.post("/v1/classification", content=picture(RED)).json()["results"][0]) == "red"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"images": "x"}',
        b'{"images": [1]}',
        b'{"images": []}',
        b"{}",
        b"null",
        b"[" * 100_000,
    ],
)
def test_malformed_json(client: httpx.Client, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    response = client.post("/v1/classification", content=body, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "bad_request"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=x", b"x"),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\nb\r\n--x--\r\n",
        ),
        ("multipart/form-data; boundary=x", b"--x--\r\n"),
    ],
)
def test_malformed_forms(client: httpx.Client, kind: str, body: bytes) -> None:
    response = client.post("/v1/classification", content=body, headers={"Content-Type": kind})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "bad_request"


def test_more_images_than_the_limit(client: httpx.Client) -> None:
    text = base64.b64encode(picture(RED)).decode()
    response = client.post("/v1/classification", json={"images": [text] * 5})
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"
    files = [("images", (f"{i}.png", picture(RED))) for i in range(6)]
    assert client.post("/v1/classification", files=files).status_code in (400, 413)


def test_a_body_over_the_limit(serving: Any) -> None:
    server = serving("--model", "tiny", "--max-body-bytes", "10000")
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        for path in ("/v1/classification", "/imagenet/prediction"):
            assert client.post(path, content=b"x" * 10001).status_code == 413
            assert client.post(path, content=iter([b"x" * 6000, b"x" * 6000])).status_code == 413
        assert client.post("/v1/classification", content=picture(RED)).status_code == 200


def test_a_pixel_limit_as_a_setting(serving: Any) -> None:
    server = serving("--model", "tiny", PDSERVE_MAX_PIXELS="1000")
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        assert client.post("/v1/classification", content=picture(RED, (20, 50))).status_code == 200
        response = client.post("/v1/classification", content=picture(RED, (20, 51)))
        assert response.status_code == 413
        assert "1000" in response.json()["results"][0]["error"]["message"]


def test_health(client: httpx.Client) -> None:
    assert client.get("/v2/health/live").status_code == 200
    ready = client.get("/v2/health/ready")
    assert (ready.status_code, ready.json()) == (200, {"ready": True})


def test_openapi_describes_the_routes(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    health = {"/v2", "/v2/health/live", "/v2/health/ready", "/health"}
    models = {path for path in paths if path.startswith(("/v2/models/", "/v2/repository/"))}
    assert {"/v2/models/{model}", "/v2/models/{model}/infer", "/v2/repository/index"} <= models
    own = {"/v1/classification", "/{name}/{method}", "/image-classification"}
    assert set(paths) == {*own, *health, *models}
    bodies = paths["/v1/classification"]["post"]["requestBody"]["content"]
    assert {"image/*", "multipart/form-data", "application/json"} <= set(bodies)
    assert client.get("/docs").status_code == 200


def test_answers_are_as_openapi_describes_them(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    for path in ("/v2", "/v2/health/live", "/v2/health/ready"):
        check_response(document, path, client.get(path))
    good, bad = (base64.b64encode(data).decode() for data in (picture(RED), b"hello"))
    for images in ([good], [good, bad], [bad], [], [good] * 5):
        response = client.post("/v1/classification", json={"images": images})
        check_response(document, "/v1/classification", response)
    for value in (good, bad, 1):
        response = client.post("/imagenet/prediction", json={"key": ["image"], "value": [value]})
        check_response(document, "/{name}/{method}", response)


def test_unknown_routes_and_verbs_of_v1(client: httpx.Client) -> None:
    assert client.get("/v1/classification").status_code == 405
    for response in (client.post("/v1/nothing", content=b"x"), client.get("/v1/a/b")):
        assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")


def test_a_client_that_goes_away_harms_nobody(tiny_server: Server, client: httpx.Client) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", tiny_server.http_port)) as half:
            half.sendall(b"POST /v1/classification HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
    time.sleep(0.1)
    assert client.post("/v1/classification", content=picture(RED)).status_code == 200
    assert "Traceback" not in tiny_server.log


def test_requests_in_parallel_get_their_own_answers(tiny_server: Server) -> None:
    def ask(i: int) -> bool:
        color = (RED, GREEN, BLUE)[i % 3]
        with httpx.Client(base_url=tiny_server.url, trust_env=False, timeout=60) as client:
            results = client.post("/v1/classification", content=picture(color)).json()["results"]
        return best(results[0]) == NAMES[i % 3]

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(96)))


def test_errors_tell_nothing_of_the_machine(client: httpx.Client) -> None:
    bodies = [
        client.post("/v1/classification", content=b"x").text,
        client.post("/imagenet/prediction", json={"key": ["a"], "value": ["x"]}).text,
        client.post("/imagenet/prediction", content=b"{").text,
    ]
    for body in bodies:
        assert "Traceback" not in body
        assert "/site-packages" not in json.dumps(body)


def test_a_full_queue_answers_at_once(serving: Any) -> None:
    # The delay holds the first request in the queue, which has room for one image: a batch takes two.
    options = ("--max-batch-size", "2", "--max-queue-size", "1", "--max-queue-delay-ms", "4000")
    server = serving("--model", "tiny", *options)
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=server.url, trust_env=False) as client:
        first = pool.submit(
            httpx.post, f"{server.url}/v1/classification", content=picture(RED), trust_env=False, timeout=60
        )
        until(lambda: 'pdserve_queue_images{model="tiny"} 1.0' in client.get("/metrics").text)
        response = client.post("/v1/classification", content=picture(RED))
        assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")
        assert int(response.headers["Retry-After"]) >= 1
        body = {"key": ["image"], "value": [base64.b64encode(picture(RED)).decode()], "logid": 3}
        answer = client.post("/imagenet/prediction", json=body).json()
        assert answer["err_no"] == 10000
        assert "wait already" in answer["err_msg"]
        assert client.get("/v2/health/ready").status_code == 200
        assert not first.done()  # nobody waited for the queue to move
        assert first.result().status_code == 200
    assert "Traceback" not in server.log


def test_a_late_answer_is_504(serving: Any) -> None:
    server = serving("--model", "tiny", "--timeout-ms", "1", "--max-queue-delay-ms", "500")
    response = httpx.post(f"{server.url}/v1/classification", content=picture(RED), trust_env=False)
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline")


@pytest.mark.parametrize("name", ['; filename="a.png"', "; filename*=UTF-8''%e7%8c%ab.png"])
def test_a_file_in_a_form_is_known_by_its_file_name(client: httpx.Client, name: str) -> None:
    head = f'--x\r\nContent-Disposition: form-data; name="images"{name}\r\nContent-Type: image/png\r\n\r\n'
    response = client.post(
        "/v1/classification",
        content=head.encode() + picture(RED) + b"\r\n--x--\r\n",
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )
    assert response.status_code == 200
    assert best(response.json()["results"][0]) == "red"


@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "text/plain", "application/x-json", None]
)
def test_json_that_is_called_something_else(client: httpx.Client, kind: str | None) -> None:
    """As `curl -d @request.json` sends it."""
    body = b' \n{"images": ["aGVsbG8="]}'
    response = client.post("/v1/classification", content=body, headers={"Content-Type": kind} if kind else {})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "bad_request"
    assert f"its Content-Type is {kind or 'missing'}," in error["message"]
    assert "`Content-Type: application/json`" in error["message"]


def test_what_is_not_there_says_what_is(client: httpx.Client) -> None:
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/recognition"), ("POST", "/v1/" + "x" * 999)):
        response = client.request(method, path)
        assert response.status_code == 404
        error = response.json()["error"]
        assert error["code"] == "not_found"
        assert error["message"].startswith(f"There is nothing at {path[:100]}; ")
        assert "POST to /v1/classification, and /docs" in error["message"]
    response = client.get("/v1/classification")
    assert (response.status_code, response.headers["Allow"]) == (405, "POST")
    assert response.json()["error"] == {
        "code": "method_not_allowed",
        "message": "/v1/classification takes POST, and no GET.",
    }
    assert client.put("/v2/health/live").json()["error"]["message"].endswith("takes GET, HEAD, and no PUT.")
    # Paddle Serving's own words, where it has routes.
    for method, path in (("GET", "/imagenet/prediction"), ("POST", "/"), ("GET", "/nothing")):
        assert client.request(method, path).text in ("Method Not Allowed\n", "Not Found\n")
