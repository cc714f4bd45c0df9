import base64
import json
from email.message import Message
from email.parser import BytesParser

import pytest

from pdserve.errors import UsageError
from pdserve.formats.protos import pipeline
from pdserve.tools.bench import targets
from pdserve.tools.bench.grpc import messages
from pdserve.tools.bench.http import posts
from pdserve.tools.bench.targets import batches

A, B, C = b"\xff\xd8 a", b"--b\r\n\r\n", b"c"


def test_images_in_turn() -> None:
    assert batches([A, B, C], 1) == [[A], [B], [C]]
    assert batches([A, B, C], 2) == [[A, B], [C, A], [B, C]]
    assert batches([A, B, C], 3) == [[A, B, C]]
    assert batches([A, B], 4) == [[A, B, A, B]]
    with pytest.raises(UsageError, match="--images"):
        batches([], 1)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "MAX_BYTES", 10)
    assert batches([b"12345"] * 9, 1) == [[b"12345"]] * 2
    assert batches([b"1234567890123"], 1) == [[b"1234567890123"]]


def test_v1() -> None:
    first, second = posts("v1", batches([A, B], 1), "recognition")
    assert (first.path, first.media_type, first.body) == ("/v1/recognition", "application/octet-stream", A)
    assert second.body == B
    with pytest.raises(UsageError, match="--batch"):
        posts("v1", batches([A], 2), "classification")


def test_json() -> None:
    (post,) = posts("json", batches([A, B], 2), "classification")
    assert (post.path, post.media_type) == ("/v1/classification", "application/json")
    assert [base64.b64decode(text) for text in json.loads(post.body)["images"]] == [A, B]


def test_form() -> None:
    (post,) = posts("form", batches([A, B], 2), "classification")
    head = f"Content-Type: {post.media_type}\r\n\r\n".encode()
    form: Message = BytesParser().parsebytes(head + post.body)
    parts = [part for part in form.walk() if not part.is_multipart()]
    assert [part.get_param("name", header="content-disposition") for part in parts] == ["images", "images"]
    assert [part.get_payload(decode=True) for part in parts] == [A, B]


def test_the_pipeline_protocol_as_the_guides_clients_send_it() -> None:
    (one,) = posts("pipeline", batches([A], 1), "classification")
    assert one.path == "/imagenet/prediction"
    assert json.loads(one.body) == {"key": ["image"], "value": [base64.b64encode(A).decode()]}
    (two,) = posts("pipeline", batches([A, B], 2), "recognition", "shitu")
    assert two.path == "/shitu/prediction"
    assert json.loads(two.body)["key"] == ["image_0", "image_1"]
    (raw,) = messages(batches([A], 1))
    request = pipeline.request_class().FromString(raw)
    assert [field.name for field, _ in request.ListFields()] == ["key", "value"]
    assert (list(request.key), list(request.value)) == (["image"], [base64.b64encode(A).decode()])
