"""What callers send: the pipeline protocol as JSON and as messages, /v1's JSON, multipart forms."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from pdserve.errors import PackageError, RequestError
from pdserve.formats.protos import message
from pdserve.services import pipeline_protocol
from pdserve.services.grpc.pipeline import _parse
from pdserve.services.http import forms, messages, pipeline_json
from pdserve.services.parsing import IN_A_THREAD
from pdserve.services.pipeline_protocol import PipelineRequest
from pdserve.services.tensors import Tensor
from pdserve.settings import ServerSettings
from tests.fuzz.guard import outcome
from tests.fuzz.mutation import mutated, mutated_json, mutated_message, numpy_files
from tests.fuzz.test_indexes import NUMPY_TOKENS
from tests.tiny import picture

IMAGE = base64.b64encode(picture((255, 0, 0), (2, 2))).decode()


def _numpy_file() -> bytes:
    out = io.BytesIO()
    np.save(out, np.arange(6, dtype=np.float32).reshape(2, 3))
    return out.getvalue()


NUMPY_FILE = _numpy_file()
_TENSOR = {"name": "x", "elem_type": 1, "shape": [2], "float_data": [1.5, 2], "lod": [0, 1]}
REQUESTS = [
    {
        "key": ["image", "pipeline.profile"],
        "value": [IMAGE, "1"],
        "logid": "5",
        "clientip": "",
        "method": "prediction",
    },
    {
        "key": [],
        "value": [],
        "name": "x",
        "tensors": [
            _TENSOR,
            {"name": "y", "elem_type": 13, "byte_data": base64.b64encode(NUMPY_FILE).decode()},
            {"name": "z", "elem_type": 12, "str_data": [IMAGE]},
        ],
    },
]
ODD = (_TENSOR, [2**31, 2**31], [-1, 5], "AAAA=A", "Å", {"elem_type": 77}, [2**62] * 40)


@given(mutated_json(REQUESTS, ODD))
def test_json_of_the_pipeline_protocol(body: bytes) -> None:
    request = outcome(lambda: pipeline_json.parse("x", body, LIMITS), RequestError)
    if request is not None:
        _take_apart(request)


def _take_apart(request: PipelineRequest) -> None:
    inputs = outcome(lambda: pipeline_protocol._inputs(request), PackageError)
    for value in (inputs or {}).values():
        outcome(lambda value=value: pipeline_protocol._image(value))  # type: ignore[misc]


def _messages() -> list[bytes]:
    tensor = message("baidu.paddle_serving.pipeline_serving.Tensor")
    request = message("baidu.paddle_serving.pipeline_serving.Request")
    one = request(key=["image"], value=[IMAGE], logid=3, name="x")
    two = request(name="x")
    two.tensors.append(tensor(name="y", elem_type=13, byte_data=NUMPY_FILE))
    two.tensors.append(tensor(name="x", elem_type=1, shape=[2, 1], float_data=[1, 2], lod=[0, 1]))
    two.tensors.append(tensor(name="z", elem_type=12, str_data=[IMAGE]))
    return [one.SerializeToString(), two.SerializeToString()]


MESSAGES = _messages()


@given(st.one_of(mutated(MESSAGES, NUMPY_TOKENS), mutated_message(MESSAGES)))
def test_message_of_the_pipeline_protocol(data: bytes) -> None:
    """It is read as protobuf reads it, which refuses beside that texts that are no UTF-8."""
    found = outcome(lambda: _parse(data, IN_A_THREAD, LIMITS), RequestError)
    wanted = _by_protobuf(data)
    if found is None:
        assert wanted is None or max(len(wanted.key), len(wanted.tensors)) > 16
        return
    _take_apart(found)
    if wanted is None:
        return
    assert (found.name, found.logid, found.key) == (wanted.name, wanted.logid, list(wanted.key))
    assert [bytes(value).decode() for value in found.value] == list(wanted.value)
    for mine, theirs in zip(found.tensors, wanted.tensors, strict=True):
        assert (mine.name, mine.elem_type, mine.rank) == (theirs.name, theirs.elem_type, len(theirs.shape))
        assert (list(mine.shape), mine.lod) == (list(theirs.shape[:32]), len(theirs.lod))
        assert dict(mine.numbers) == {name: len(getattr(theirs, name)) for name in mine.numbers}
        assert [bytes(text).decode() for text in mine.texts] == list(theirs.str_data)
        assert bytes(mine.data) == theirs.byte_data


def _by_protobuf(data: bytes) -> Any:
    request = message("baidu.paddle_serving.pipeline_serving.Request")()
    try:
        request.ParseFromString(data)
    except Exception:
        return None
    return request


@given(st.one_of(mutated([NUMPY_FILE], NUMPY_TOKENS, among=128), numpy_files(NUMPY_FILE[-24:])))
def test_tensor_of_bytes(data: bytes) -> None:
    tensor = Tensor("y", 13, data=data)
    outcome(lambda: pipeline_protocol._inputs(PipelineRequest("x", [], [], [tensor])), PackageError)


def _request(content_type: bytes) -> Request:
    return Request({"type": "http", "method": "POST", "headers": [(b"content-type", content_type)]})


LIMITS = ServerSettings(name="x", max_images=4, max_part_bytes=10_000)
BODIES = [{"images": [IMAGE, f"data:image/png;base64,{IMAGE}"]}, {"images": []}]


@given(mutated_json(BODIES, ("data:", "data:;base64,", "data:,x", "====", "AA\nAA", "é")))
def test_json_of_v1(body: bytes) -> None:
    request = _request(b"application/json; charset=utf-8")
    images = outcome(lambda: messages.read_images(request, body, LIMITS), RequestError)
    assert images is None or all(isinstance(image, (bytes, RequestError)) for image in images)


def _form(*parts: tuple[str, bytes]) -> bytes:
    return (
        b"".join(b"--b\r\n" + head.encode() + b"\r\n\r\n" + data + b"\r\n" for head, data in parts)
        + b"--b--\r\n"
    )


_DISPOSITION = "Content-Disposition: form-data; name="
FORMS = [
    _form(
        (f'{_DISPOSITION}"images"; filename="a.png"\r\nContent-Type: image/png', picture((1, 2, 3), (2, 2)))
    ),
    _form(
        (f'{_DISPOSITION}"images"; filename="a"', b"x"),
        (f'{_DISPOSITION}"top_k"', b"3"),
        (f'{_DISPOSITION}"images"', b"y"),
    ),
    _form(
        (f"{_DISPOSITION}images; filename*=UTF-8''%e9", b"x"),
        ('content-disposition: form-data; name="images"; filename="../../a"', b"z"),
    ),
]
FORM_TOKENS = (
    b"--b\r\n", b"--b--", b"\r\n\r\n", b"\r\n", b"\n", b"filename=", b'"', b'\\"', b";",
    b"name*=utf-8''%ff", b"Content-Disposition:", b"Content-Transfer-Encoding: base64\r\n",
    b": x\r\n" * 300, b"a" * 20000 + b": x\r\n", b"\0", b"\xff", b"--b\r\n" * 300,
)  # fmt: skip
TYPES = st.sampled_from(
    (
        b"multipart/form-data; boundary=b", b'multipart/form-data; boundary="b"', b"multipart/form-data",
        b"multipart/form-data; boundary=", b"multipart/form-data; boundary=" + b"b" * 300,
        b"multipart/form-data; boundary=b; charset=utf-16", b"multipart/form-data; charset=x; boundary=b",
        b"multipart/form-data; boundary=\xff", b"multipart/form-data; boundary=b; charset=undefined",
        b"multipart/form-data; boundary=b; charset=idna",
    )
)  # fmt: skip


@given(TYPES, mutated(FORMS, FORM_TOKENS))
def test_multipart_form(content_type: bytes, body: bytes) -> None:
    files = outcome(lambda: forms.read_form(content_type.decode("latin-1"), body, LIMITS), RequestError)
    if files is not None:
        assert all(isinstance(file, bytes) for file in files[0])


@pytest.mark.parametrize("name", ["embeddings", "gallery", "gallery-form", "query", "headers", "grpc-health"])
def test_doors(name: str) -> None:
    """Those parsers that have no test above, through all of the door."""
    from tests.fuzz.requests import run

    assert run(name, 0, first_seed=1) >= 500
