"""The pipeline protocol: every exchange that was recorded of the published server, against this one.

``tests/data/pipeline_protocol_record.py`` says how they were recorded and what the fields mean. What
this server does otherwise, on purpose, is listed below with the reason.
"""

import ast
import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from pdserve.formats.protos import pipeline
from tests.data.pipeline_protocol_record import exchange_http, expand
from tests.running import Server
from tests.tiny import NAMES

CASES = json.loads((Path(__file__).parents[1] / "data" / "pipeline_protocol.json").read_text("utf-8"))

# Case -> what is answered here instead (HTTP status, or err_no), and why.
DIFFERENT: dict[str, tuple[int, str]] = {
    "truncated jpeg": (10000, "half a picture is refused, not classified"),
    "profile, a service that takes the key for an image": (0, "pipeline.profile is not an image"),
    "path: one segment, slash": (404, "exactly two path segments, none of them empty"),
    "path: no service": (404, "exactly two path segments, none of them empty"),
    "over 256 MiB": (413, "HTTP's own status for it; the published gateway says 429"),
    "Grpc-Timeout too short": (200, "the header of another protocol is not read"),
    "Grpc-Timeout nonsense": (200, "the header of another protocol is not read"),
    "X-HTTP-Method-Override GET with a form type": (200, "a POST is a POST"),
    "path: not UTF-8": (200, "a service name that is not UTF-8 is a wrong service name"),
    "path: bad percent": (200, "a service name with a stray % is a wrong service name"),
    "path: colon": (200, "a method may have a colon"),
}
# Over gRPC these end with a status of its own, which any client knows how to take; the published server
# answers OK with an err_no, or, with its queues that have no end, never refuses.
STATUSES: dict[str, str] = {
    "the model takes longer than timeout": "DEADLINE_EXCEEDED",
    "the queue is full": "RESOURCE_EXHAUSTED",  # not recorded
}
LARGE = ("70 MB body", "70 MB message", "over 256 MiB")


def chosen(door: str) -> list[Any]:
    """The recorded cases of a door; those with a time-out have tests of their own."""
    return [
        pytest.param(case, id=f"{case['service']}: {case['case']}")
        for case in CASES
        if case["door"] == door and case["service"] != "timeout" and case["case"] not in LARGE
    ]


def check_answer(got: dict[str, Any], recorded: dict[str, Any], case: dict[str, Any]) -> None:
    """Compare two answers field by field; labels and probabilities are this model's own."""
    assert got["err_no"] == recorded["err_no"]
    assert got["tensors"] == recorded["tensors"]
    assert list(got["key"]) == list(recorded["key"])
    if recorded["err_no"] == 0:
        mine, theirs = (dict(zip(side["key"], side["value"], strict=True)) for side in (got, recorded))
        assert len(ast.literal_eval(mine["label"])) == len(ast.literal_eval(theirs["label"]))
        assert set(ast.literal_eval(mine["label"])) <= set(NAMES)
        assert all(0 < p <= 1 for p in ast.literal_eval(mine["prob"]))
        assert got["err_msg"] == ""
    elif recorded["err_msg"].startswith("Log_id: "):
        assert got["err_msg"].split("  Raise_msg: ")[0] == recorded["err_msg"].split("  Raise_msg: ")[0]
    else:
        assert got["err_msg"].split(":")[0] == recorded["err_msg"].split(":")[0]


@pytest.mark.parametrize("case", chosen("http"))
def test_http_answers_as_recorded(case: dict[str, Any], tiny_server: Server) -> None:
    got = exchange_http(case["request"], tiny_server.http_port)
    recorded = case["response"]
    if case["case"] in DIFFERENT:
        wanted, _ = DIFFERENT[case["case"]]
        if wanted in (200, 404, 413):
            assert got["status"] == wanted != recorded["status"]
        else:
            assert json.loads(got["body"])["err_no"] == wanted != json.loads(recorded["body"])["err_no"]
        return
    assert got["status"] == recorded["status"]
    headers = {name.title(): value for name, value in got["headers"].items()}
    for name in ("Content-Type", "X-Content-Type-Options", "Allow"):
        assert headers.get(name) == recorded["headers"].get(name)
    if recorded["status"] == 400:
        body = json.loads(got["body"])
        assert list(body) == ["error", "code", "message", "details"]
        assert body["code"] == 3
        assert body["error"] == body["message"]
        assert body["details"] == []
    elif recorded["status"] in (404, 405):
        assert got["body"] == recorded["body"]
    else:
        body = json.loads(got["body"])
        assert list(body) == ["err_no", "err_msg", "key", "value", "tensors"]
        check_answer(body, json.loads(recorded["body"]), case)


@pytest.mark.parametrize("case", chosen("grpc"))
def test_grpc_answers_as_recorded(case: dict[str, Any], tiny_server: Server) -> None:
    request = json_format.ParseDict(expand(case["request"]["message"]), pipeline.request_class()())
    recorded = case["response"]
    with grpc.insecure_channel(tiny_server.target) as channel:
        call = channel.unary_unary(
            case["request"]["method"],
            request_serializer=pipeline.request_class().SerializeToString,
            response_deserializer=pipeline.response_class().FromString,
        )
        if recorded["code"] != "OK":
            with pytest.raises(grpc.RpcError) as failed:
                call(request)
            assert failed.value.code().name == recorded["code"]
            return
        response = call(request)
    got = {
        "err_no": response.err_no,
        "err_msg": response.err_msg,
        "key": list(response.key),
        "value": list(response.value),
        "tensors": list(response.tensors),
    }
    if case["case"] in DIFFERENT:
        assert got["err_no"] == DIFFERENT[case["case"]][0]
        return
    check_answer(got, recorded["message"], case)


def test_a_pickle_in_a_tensor_does_not_run(tiny_server: Server, tmp_path: Path) -> None:
    target = tmp_path / "ran"
    hostile = f"cpathlib\nPath\n(V{target}\ntR(dbctouch\n".encode()
    file = io.BytesIO()
    file.write(b"\x93NUMPY\x01\x00v\x00")
    file.write(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n")
    file.write(hostile)
    body = {
        "tensors": [
            {"name": "image", "elem_type": 13, "byte_data": base64.b64encode(file.getvalue()).decode()}
        ]
    }
    got = exchange_http(
        {"method": "POST", "path": "/imagenet/prediction", "json": body}, tiny_server.http_port
    )
    assert json.loads(got["body"])["err_no"] == 8000
    assert not target.exists()


@pytest.mark.parametrize("descr", ["<f4", "|V1000000"])
@pytest.mark.parametrize("shape", ["(99999999999,)", "(7,)", "(-2, -3)"])
def test_a_header_that_promises_more_than_there_is_takes_no_memory(
    tiny_server: Server, shape: str, descr: str
) -> None:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    data = base64.b64encode(b"\x93NUMPY\x01\x00v\x00" + header + bytes(24)).decode()
    body = {"tensors": [{"name": "image", "elem_type": 13, "byte_data": data}]}
    got = exchange_http(
        {"method": "POST", "path": "/imagenet/prediction", "json": body}, tiny_server.http_port
    )
    answer = json.loads(got["body"])
    assert (answer["err_no"], "no NumPy array file" in answer["err_msg"]) == (8000, True)


@pytest.mark.full
def test_large_bodies(tiny_server: Server) -> None:
    large = {case["case"]: case for case in CASES if case["door"] == "http" and case["case"] in LARGE}
    got = exchange_http(large["70 MB body"]["request"], tiny_server.http_port)
    assert json.loads(got["body"])["err_no"] == 0
    status, _ = DIFFERENT["over 256 MiB"]
    got = exchange_http(large["over 256 MiB"]["request"], tiny_server.http_port)
    assert got["status"] == status
    assert json.loads(got["body"])["code"] == 8


@pytest.mark.full
def test_large_messages(tiny_server: Server) -> None:
    large = {case["case"]: case for case in CASES if case["door"] == "grpc" and case["case"] in LARGE}
    with grpc.insecure_channel(tiny_server.target, [("grpc.max_send_message_length", -1)]) as channel:
        call = channel.unary_unary(
            pipeline.METHOD,
            request_serializer=pipeline.request_class().SerializeToString,
            response_deserializer=pipeline.response_class().FromString,
        )
        for case in large.values():
            request = pipeline.request_class()(**expand(case["request"]["message"]))  # ParseDict is slow
            recorded = case["response"]
            if recorded["code"] == "OK":
                assert call(request).err_no == recorded["message"]["err_no"]
                continue
            with pytest.raises(grpc.RpcError) as failed:
                call(request)
            assert failed.value.code().name == recorded["code"]
    assert set(large) == {"70 MB message", "over 256 MiB"}


def test_the_recorded_differences_are_still_recorded() -> None:
    assert set(DIFFERENT) <= {case["case"] for case in CASES}


@pytest.mark.full
def test_a_late_answer_is_6000(serving: Any) -> None:
    server = serving("--model", "tiny", "--timeout-ms", "1", "--max-queue-delay-ms", "500")
    body = {"key": ["image"], "value": [{"$image": "photo.jpg"}], "logid": 5}
    got = exchange_http({"method": "POST", "path": "/imagenet/prediction", "json": body}, server.http_port)
    answer = json.loads(got["body"])
    assert answer["err_no"] == 6000
    assert re.search("Log_id: 5  Raise_msg: .*too late", answer["err_msg"])


def rpc_status(server: Server, logid: int) -> tuple[str, str]:
    """The status of one image's call, and its details."""
    image = expand({"$image": "photo.jpg"})
    with grpc.insecure_channel(server.target) as channel:
        call = channel.unary_unary(
            pipeline.METHOD, request_serializer=pipeline.request_class().SerializeToString
        )
        with pytest.raises(grpc.RpcError) as failed:
            call(pipeline.request_class()(key=["image"], value=[image], logid=logid), timeout=60)
    return failed.value.code().name, failed.value.details()


@pytest.mark.full
def test_a_late_answer_over_grpc_is_a_status(serving: Any) -> None:
    recorded = [
        case["response"]["message"]["err_no"]
        for case in CASES
        if case["case"] in STATUSES and case["door"] == "grpc"
    ]
    server = serving("--model", "tiny", "--timeout-ms", "1", "--max-queue-delay-ms", "500")
    status, details = rpc_status(server, logid=5)
    assert status == STATUSES["the model takes longer than timeout"]
    assert details.startswith("Log_id: 5  Raise_msg: ")
    assert recorded == [6000]
