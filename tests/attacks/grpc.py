"""The same over gRPC."""

import base64
import contextlib
import socket
import struct
import time
from typing import Any

import grpc
import pytest

from pdserve.formats.protos import INFERENCE, pipeline
from pdserve.services.parsing import Bounds
from pdserve.services.pipeline_protocol import PipelineRequest, answer
from tests.attacks.attack import Target, attack
from tests.tiny import picture

HEALTH = "/grpc.health.v1.Health/Check"
LONGEST_S = 1.0


def parsed_by_protobuf(service: Any, intake: Any) -> Any:
    """The method as gRPC's own tools have it: the message is parsed before the handler runs."""
    response = pipeline.response_class()

    async def inference(request: Any, _: Any) -> Any:
        asked = PipelineRequest(request.name, request.key, [each.encode() for each in request.value])
        got = await answer(service, asked, intake.settings)
        return response(err_no=got.err_no, err_msg=got.err_msg, key=got.key, value=got.value)

    handler = grpc.unary_unary_rpc_method_handler(
        inference, pipeline.request_class().FromString, response.SerializeToString
    )
    return {"inference": handler}


def send(target: Target, message: bytes, method: str = pipeline.METHOD, **named: Any) -> grpc.RpcError:
    """Send bytes that are refused; how."""
    try:
        target.channel.unary_unary(method)(message, timeout=60, **named)
    except grpc.RpcError as error:
        return error
    raise AssertionError("it was answered")


@attack(without={"pdserve.services.grpc.pipeline:methods": parsed_by_protobuf})
def messages_that_are_no_protobuf(target: Target) -> None:
    """They are answered so, counted so, and leave no line in the log."""
    logged = len(target.log)
    for _ in range(100):
        assert send(target, b"\xff").code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert len(target.log) == logged
    numbers = target.http.get("/metrics").text
    assert any("inference" in line and "INVALID_ARGUMENT" in line for line in numbers.splitlines())
    target.good_rpc()


@attack(without={"pdserve.services.grpc.server:_COMPRESSION": 0b111})
def messages_that_are_small_only_while_compressed(target: Target) -> None:
    """None that is compressed is taken: 100 kB would become 100 MB before anybody could say no."""
    message = pipeline.request_class()(key=["a"], value=["A" * 100_000_000]).SerializeToString()
    with target.watch() as seen:
        error: Any = send(target, message, compression=grpc.Compression.Gzip)
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert seen.grown_mb < 50
    target.good_rpc()


@attack(without={"pdserve.services.parsing:IN_A_THREAD": Bounds(10**9, 10**9)})
def an_inference_of_a_million_parameters(target: Target) -> None:
    """They are counted while they are found, and refused."""
    message = b"\x22\x09\x0a\x01k\x12\x04\x1a\x02ab" * 1_000_000
    with target.watch() as seen:
        error: Any = send(target, message, f"/{INFERENCE}/ModelInfer")
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, error.details()
    assert seen.health_s < LONGEST_S
    target.good_rpc()


@attack(
    without={
        "pdserve.services.tensors:MAX_RANK": 10**9,
        "pdserve.services.grpc.wire:MAX_RANK": 10**9,
    }
)
def a_message_with_a_tensor_of_many_dimensions(target: Target) -> None:
    """Its dimensions are counted before they are multiplied."""
    request = pipeline.request_class()()
    request.tensors.add(name="x", elem_type=1, shape=[2**31 - 1] * 100_000)
    call = target.channel.unary_unary(
        pipeline.METHOD, response_deserializer=pipeline.response_class().FromString
    )
    with target.watch() as seen:
        got = call(request.SerializeToString(), timeout=60)
    assert got.err_no == 8000
    assert got.err_msg.endswith("maximum supported dimension for an ndarray is 32, found 100000")
    assert seen.health_s < LONGEST_S


@attack(without={"pdserve.services.grpc.intake:_MOMENT_S": 1e6})
def messages_that_stop_on_the_way(target: Target) -> None:
    """Of a hundred that are announced and stand still few are waited for; others are answered meanwhile."""
    streams = 100
    with contextlib.closing(_Http2(target.running.rpc_port)) as connection:
        for number in range(1, 2 * streams, 2):
            connection.begin(number, announced=200_000_000)
        ended = connection.ended(within_s=8, wanted=streams // 2)
        target.good_rpc()
    assert ended >= streams // 2, f"{ended} of {streams} were ended"


class _Http2:
    """A connection that speaks as much HTTP/2 (RFC 9113) as it takes to begin a call and leave it there."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=1)
        self._socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, b""))

    def begin(self, stream: int, announced: int) -> None:
        """Send a call's head, and the first bytes of its message."""
        fields = {":method": "POST", ":scheme": "http", ":path": pipeline.METHOD, ":authority": "x",
                  "content-type": "application/grpc", "te": "trailers"}  # fmt: skip
        head = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())
        data = b"\0" + struct.pack(">I", announced) + b"x" * 100
        self._socket.sendall(_frame(1, 4, stream, head) + _frame(0, 0, stream, data))

    def ended(self, within_s: float, wanted: int) -> int:
        """How many calls the server ends (END_STREAM), until as many as wanted or for so long."""
        until, data, count = time.monotonic() + within_s, b"", 0
        while time.monotonic() < until and count < wanted:
            with contextlib.suppress(TimeoutError):
                data += self._socket.recv(65536)
            while len(data) >= 9 and len(data) >= 9 + (size := int.from_bytes(data[:3], "big")):
                count += data[3] == 1 and data[4] & 1
                data = data[9 + size :]
        return count

    def close(self) -> None:
        self._socket.close()


def _frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return struct.pack(">I", len(content))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + content


def _text(text: str) -> bytes:
    return bytes((len(text),)) + text.encode()


MB = 1 << 20


@attack(full=True, options=("--max-body-bytes", str(MB)), undefended_options=(), without={})
def a_message_over_the_limit(target: Target) -> None:
    """It is refused by its announced size."""
    with target.watch() as seen, pytest.raises(grpc.RpcError) as refused:
        target.rpc(["image"], ["A" * (20 * MB)])
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert seen.grown_mb < 60
    target.good_rpc()


@attack(
    without={
        "pdserve.services.grpc.server:_options": lambda settings: [
            ("grpc.max_metadata_size", 1 << 26),
            ("grpc.absolute_max_metadata_size", 1 << 26),
        ]
    }
)
def metadata_over_the_limit(target: Target) -> None:
    """They are refused before the call is."""
    value = base64.b64encode(picture((255, 0, 0))).decode()
    with pytest.raises(grpc.RpcError) as refused:
        target.rpc(["image"], [value], metadata=(("x-filler", "a" * 300_000),))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    target.good_rpc()
