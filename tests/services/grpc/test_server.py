"""The gRPC door: statuses, deadlines, limits."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from pdserve.errors import SettingsError
from pdserve.formats.protos import pipeline
from pdserve.services.budget import Entrance
from pdserve.services.grpc.server import build_server
from pdserve.settings import ServerSettings
from tests.services.listeners import Listeners, RecordingService, listeners
from tests.services.watching import until

LATE, FULL, SLOW, BAD, BROKEN, ENGINE = (
    "bGF0ZQ==", "ZnVsbA==", "c2xvdw==", "YmFk", "YnJva2Vu", "bm8gZW5naW5l",
)  # fmt: skip


@pytest.fixture(scope="module")
def opened() -> Iterator[Listeners]:
    with listeners(max_body_bytes=1_000_000, max_header_bytes=4096, header_timeout_s=0.3) as opened:
        yield opened


def request(*values: str, **fields: Any) -> Any:
    return pipeline.request_class()(key=[f"{i}" for i in range(len(values))], value=values, **fields)


@pytest.fixture
def call(opened: Listeners) -> Iterator[Any]:
    with grpc.insecure_channel(opened.target, [("grpc.max_send_message_length", -1)]) as channel:
        yield channel.unary_unary(
            pipeline.METHOD,
            request_serializer=pipeline.request_class().SerializeToString,
            response_deserializer=pipeline.response_class().FromString,
        )


def failure(call: Any, *arguments: Any, **options: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **{"timeout": 20} | options)
    return caught.value


def test_an_answer(call: Any):
    response = call(request("eA==", "eHg="), timeout=20)
    assert (response.err_no, list(response.key), list(response.value)) == (0, ["label"], ["[1, 2]"])


def test_a_full_queue_is_a_status(call: Any):
    error = failure(call, request(FULL, logid=7))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details() == "Log_id: 7  Raise_msg: 9 images wait already; ask again in a moment."
    trailing = dict(error.trailing_metadata())
    assert int(trailing[pipeline.RETRY_AFTER_METADATA]) >= 1
    assert trailing["x-request-id"]  # what others had set is still there


def test_a_passed_deadline_is_a_status(call: Any):
    error = failure(call, request(LATE, logid=8))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert error.details() == "Log_id: 8  Raise_msg: The time was up."
    assert pipeline.RETRY_AFTER_METADATA not in dict(error.trailing_metadata())


def test_over_http_both_stay_an_err_no(opened: Listeners):
    import httpx

    for value, err_no, words in ((FULL, 10000, "wait already"), (LATE, 6000, "time was up")):
        body = {"key": ["image"], "value": [value], "logid": 9}
        response = httpx.post(f"{opened.url}/imagenet/prediction", json=body, trust_env=False)
        assert (response.status_code, response.json()["err_no"]) == (200, err_no)
        assert words in response.json()["err_msg"]


@pytest.mark.parametrize("value", [BAD, BROKEN, ENGINE, "A"])
def test_other_failures_are_answers(call: Any, value: str):
    response = call(request(value, logid=3), timeout=20)
    assert response.err_no == 10000
    assert response.err_msg.startswith("Log_id: 3  Raise_msg: ")
    assert "/home/somebody" not in response.err_msg


def test_the_timings_come_with_a_failure_too(call: Any):
    asked = pipeline.request_class()(key=["a", "pipeline.profile"], value=[BAD, "1"])
    response = call(asked, timeout=20)
    assert (response.err_no, list(response.key)) == (10000, ["pipeline.profile"])


def test_the_callers_deadline_goes_to_the_service(call: Any, opened: Listeners):
    asked = opened.service.asked
    call(request("eA=="))
    assert asked[-1] == (None, None)
    call(request("eA=="), timeout=15)
    assert asked[-1][1] is not None
    assert 0 < asked[-1][1] < 16  # which gRPC rounds


@pytest.mark.parametrize(
    ("top_k", "expected"), [("3", 3), ("0", None), ("-1", None), ("x", None), ("9" * 3000, None), ("", None)]
)
def test_top_k(call: Any, opened: Listeners, top_k: str, expected: int | None):
    metadata = ((pipeline.RESULTS_METADATA, "1"), (pipeline.TOP_K_METADATA, top_k))
    response = call(request("eA=="), metadata=metadata, timeout=20)
    assert (response.err_no, list(response.key)) == (0, ["label", "results"])
    assert opened.service.asked[-1][0] == expected


def test_a_cancelled_call_cancels_its_work(call: Any, opened: Listeners):
    before = opened.service.cancelled, len(opened.service.asked)
    running = call.future(request(SLOW))
    until(lambda: len(opened.service.asked) > before[1])
    running.cancel()
    until(lambda: opened.service.cancelled == before[0] + 1)


def test_a_call_past_its_deadline_cancels_its_work(call: Any, opened: Listeners):
    before = opened.service.cancelled
    assert failure(call, request(SLOW), timeout=0.2).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: opened.service.cancelled == before + 1)


def test_a_channel_that_closes_cancels_its_work(opened: Listeners):
    before = opened.service.cancelled, len(opened.service.asked)
    channel = grpc.insecure_channel(opened.target, [("grpc.use_local_subchannel_pool", 1)])
    call = channel.unary_unary(pipeline.METHOD, request_serializer=pipeline.request_class().SerializeToString)
    running = call.future(request(SLOW))
    until(lambda: len(opened.service.asked) > before[1])
    channel.close()
    until(lambda: opened.service.cancelled == before[0] + 1)
    assert running.done()


def test_a_message_over_the_limit(call: Any):
    error = failure(call, request("A" * 1_000_001))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert pipeline.RETRY_AFTER_METADATA not in dict(error.trailing_metadata() or ())


def test_compressed_messages_are_not_taken(call: Any, opened: Listeners):
    """250 kB of one may be 250 MB, which gRPC does not know before it has them."""
    asked = len(opened.service.asked)
    for size in (100_000, 50_000_000):
        error = failure(call, request("A" * size), compression=grpc.Compression.Gzip)
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert len(opened.service.asked) == asked
    assert call(request("A" * 100_000), timeout=20).err_no == 0


@pytest.mark.parametrize(
    "message", [b"\xff", b"\x1a\x05ab", b"\x0a\x01\xff", b"\x0f", b"\x08" + b"\x80" * 10]
)
@pytest.mark.parametrize("method", [pipeline.METHOD, "/grpc.health.v1.Health/Check"])
def test_what_is_no_message(opened: Listeners, method: str, message: bytes, caplog: pytest.LogCaptureFixture):
    with grpc.insecure_channel(opened.target) as channel:
        error = failure(channel.unary_unary(method), message)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().startswith("The message is no protobuf of this method: ")
    assert not caplog.records


def test_a_call_without_a_message(opened: Listeners):
    with grpc.insecure_channel(opened.target) as channel:
        error = failure(channel.stream_unary(pipeline.METHOD), iter(()))
    assert (error.code(), error.details()) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "The call has no message.",
    )


def test_metadata_over_the_limit(call: Any):
    error = failure(call, request("eA=="), metadata=(("x-filler", "a" * 5000),))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert call(request("eA=="), metadata=(("x-filler", "a" * 3000),), timeout=20).err_no == 0


@pytest.mark.parametrize("sent", [b"", b"PRI * HTTP/2.0\r\n", b"GET / HTTP/1.1\r\n\r\n"])
def test_a_connection_that_does_not_begin_is_closed(opened: Listeners, sent: bytes):
    host, _, port = opened.target.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(sent)
        while connection.recv(4096):
            pass


def test_an_idle_connection_is_closed():
    with listeners(keep_alive_s=0.5) as opened:
        host, _, port = opened.target.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")  # settings, none
            while connection.recv(4096):
                pass


def test_many_calls_on_one_connection(call: Any):
    with ThreadPoolExecutor(32) as pool:
        answers = pool.map(lambda _: call(request("eA=="), timeout=60).err_no, range(600))
        assert set(answers) == {0}


def test_a_port_that_is_taken():
    import asyncio

    async def build() -> None:
        build_server(RecordingService(), Entrance(settings), port)

    settings = ServerSettings(name="imagenet", rpc_port=0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"Cannot listen on 127.0.0.1:{port}: .*in use; .*--rpc-port"):
            asyncio.run(build())
