"""The HTTP clients before Paddle Serving's own gateway, which has the pipeline protocol's route alone."""

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from pdserve.clients import AsyncHttpClient, HttpClient
from pdserve.clients.discovery import find_service
from pdserve.errors import ClientError
from tests.services.watching import served

ASKED: list[str] = []


async def gateway(scope: Any, receive: Any, send: Any) -> None:
    """Answers as protocol.md has it: a name and a method in any path of two segments, JSON, HTTP 200."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    ASKED.append(scope["path"])
    if scope["path"].count("/") != 2:
        status, content = 404, {"code": 5, "message": "Not Found", "details": []}
    else:
        status, content = _answer(scope["path"], body)
    text = json.dumps(content).encode()
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": text})


def _answer(path: str, body: bytes) -> tuple[int, dict[str, Any]]:
    try:
        images = [base64.b64decode(value) for value in json.loads(body)["value"]]
    except (ValueError, UnicodeDecodeError):
        return 400, {"error": "invalid", "code": 3, "message": "invalid", "details": []}
    answer: dict[str, Any] = {"err_no": 0, "err_msg": "", "key": [], "value": [], "tensors": []}
    if path == "/recognition/prediction":
        found = [{"bbox": [0, 0, 4, 5], "rec_docs": "cola", "rec_scores": 0.75}]
        return 200, answer | {"key": ["result"], "value": [str(found)]}
    if b"bad" in images:
        return 200, answer | {"err_no": 8000, "err_msg": "no image"}
    labels = [image.decode() for image in images]
    return 200, answer | {"key": ["label", "prob"], "value": [str(labels), str([0.5] * len(labels))]}


@pytest.fixture
def url() -> Iterator[str]:
    ASKED.clear()
    with served(gateway) as address:
        yield address


def test_it_is_asked_in_its_own_way(url: str) -> None:
    with HttpClient(url) as client:
        assert [label.label for label in client.predict(b"cat")] == ["cat"]
        assert [answer[0].label for answer in client.predict_batch([b"a", b"b"])] == ["a", "b"]  # type: ignore[index]
        assert client.predict(b"dog")[0].score == 0.5
    # The first request tells that this is no pdserve; the others go where they are answered.
    assert ASKED[0] == "/v1/classification"
    assert ASKED[1:] == ["/imagenet/prediction"] * 3


def test_objects(url: str) -> None:
    with HttpClient(url, service="recognition") as client:
        (found,) = client.recognize(b"shelf")
    assert (found.bbox, found.label, found.score) == ((0, 0, 4, 5), "cola", 0.75)


def test_its_errors_are_raised(url: str) -> None:
    with HttpClient(url) as client, pytest.raises(ClientError, match="answers error 8000: no image"):
        client.predict(b"bad")


def test_async(url: str) -> None:
    async def ask() -> str:
        async with AsyncHttpClient(url) as client:
            return (await client.predict(b"cat"))[0].label

    assert asyncio.run(ask()) == "cat"


def test_which_service_it_is_the_port_tells(url: str) -> None:
    assert find_service(url, rpc=False) == "classification"
    assert find_service("http://127.0.0.1:18081", rpc=False) == "recognition"  # where nobody answers
