"""The Open Inference Protocol over gRPC; foreign clients are in tests/end_to_end."""

import json
import struct
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from pdserve.formats.protos import INFERENCE, message
from pdserve.services.grpc import inference_wire
from pdserve.services.grpc.inference_wire import read_infer
from pdserve.services.grpc.wire import MalformedMessageError
from pdserve.services.parsing import IN_A_THREAD, Bounds, TooMuchError
from pdserve.settings import ServerSettings
from tests.running import Server, start
from tests.tiny import SIZE, build_serving_model, expected, picture

COLORS = ((255, 0, 0), (0, 0, 255))
FILES = [picture(color) for color in COLORS]
SCORES = np.array([expected(color) for color in COLORS])
TENSOR = np.zeros((2, 3, SIZE, SIZE), np.float32)
TENSOR[0, 0] = TENSOR[1, 2] = 1
PIXELS = np.zeros((2, 30, 40, 3), np.uint8)
PIXELS[0, ..., 0] = PIXELS[1, ..., 2] = 255
REQUEST = "ModelInferRequest"
LIMITS = ServerSettings(name="x", max_images=4)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    build_serving_model(home / "models")
    with start(home, "--model", "tiny", "--max-images", "4") as server:
        yield server


@pytest.fixture(scope="module")
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.target, [("grpc.enable_http_proxy", 0)]) as channel:
        yield channel


def call(channel: grpc.Channel, method: str, answer: str = "", **fields: Any) -> Any:
    request = message(f"inference.{fields.pop('kind', f'{method}Request')}")(**fields)
    return channel.unary_unary(
        f"/{INFERENCE}/{method}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=message(f"inference.{answer or f'{method}Response'}").FromString,
    )(request, timeout=60)


def infer(channel: grpc.Channel, request: Any) -> Any:
    return channel.unary_unary(
        f"/{INFERENCE}/ModelInfer",
        request_serializer=type(request).SerializeToString,
        response_deserializer=message("inference.ModelInferResponse").FromString,
    )(request, timeout=60)


def asked(datatype: str = "BYTES", shape: tuple[int, ...] = (2,), model: str = "tiny", **more: Any) -> Any:
    request = message(f"inference.{REQUEST}")(model_name=model, **more)
    request.inputs.add(name="image", datatype=datatype, shape=shape)
    return request


def raw_files(*files: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(each)) + each for each in files)


def test_what_is_said_of_server_and_models(channel: grpc.Channel) -> None:
    assert call(channel, "ServerLive").live
    assert call(channel, "ServerReady").ready
    assert call(channel, "ServerMetadata").name == "pdserve"
    assert "binary_tensor_data" not in call(channel, "ServerMetadata").extensions
    for name, version in (("tiny", ""), ("imagenet", "1")):
        assert call(channel, "ModelReady", name=name, version=version).ready
        found = call(channel, "ModelMetadata", name=name, version=version)
        assert (found.name, list(found.versions)) == (name, ["1"])
        (given,) = found.inputs
        wanted = ("FP32", [-1, 3, SIZE, SIZE]) if name == "tiny" else ("BYTES", [-1])
        assert (given.datatype, list(given.shape)) == wanted
    config = call(channel, "ModelConfig", name="tiny").config
    assert (config.max_batch_size, config.input[0].data_type, config.input[0].format) == (4, 11, 2)
    assert list(config.input[0].dims) == [3, SIZE, SIZE]
    (stats,) = call(channel, "ModelStatistics", name="tiny").model_stats
    assert stats.name == "tiny"
    assert len(call(channel, "ModelStatistics").model_stats) == 3


@pytest.mark.parametrize("form", ["raw", "contents"])
@pytest.mark.parametrize("datatype", ["BYTES", "UINT8", "FP32"])
def test_every_input_gives_the_same(channel: grpc.Channel, datatype: str, form: str) -> None:
    arrays = {"UINT8": PIXELS, "FP32": TENSOR}
    array = arrays.get(datatype)
    request = asked(datatype, (2,) if array is None else array.shape, id="mine")
    if form == "raw":
        request.raw_input_contents.append(raw_files(*FILES) if array is None else array.tobytes())
    else:
        contents = request.inputs[0].contents
        if datatype == "BYTES":
            contents.bytes_contents.extend(FILES)
        elif datatype == "UINT8":
            contents.uint_contents.extend(PIXELS.ravel().tolist())
        else:
            contents.fp32_contents.extend(TENSOR.ravel().tolist())
    found = infer(channel, request)
    assert (found.model_name, found.model_version, found.id) == ("tiny", "1", "mine")
    (output,) = found.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("prediction", "FP32", [2, 3])
    # In the form of the request.
    if form == "raw":
        assert not output.HasField("contents")
        scores = np.frombuffer(found.raw_output_contents[0], "<f4")
    else:
        assert not found.raw_output_contents
        scores = np.array(output.contents.fp32_contents)
    assert scores.reshape(2, 3) == pytest.approx(SCORES, abs=1e-5)


def test_labels_classes_and_parameters(channel: grpc.Channel) -> None:
    request = asked(model="imagenet")
    request.raw_input_contents.append(raw_files(*FILES))
    request.parameters["top_k"].int64_param = 1
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    request.outputs.add(name="labels")
    request.outputs.add(name="prediction").parameters["classification"].int64_param = 1
    found = infer(channel, request)
    assert found.parameters["triton_final_response"].bool_param
    labels, classes = found.raw_output_contents
    assert [list(output.shape) for output in found.outputs] == [[2], [2, 1]]
    (size,) = struct.unpack_from("<I", labels)
    (first,) = json.loads(labels[4 : 4 + size])
    assert first["label"] == "red"
    assert classes == raw_files(f"{SCORES[0][0]:f}:0:red".encode(), f"{SCORES[1][2]:f}:2:blue".encode())


def test_statuses(channel: grpc.Channel) -> None:
    region = asked()
    region.inputs[0].parameters["shared_memory_region"].string_param = "r"
    slow = asked(shape=(1,))
    slow.raw_input_contents.append(raw_files(FILES[0]))
    slow.parameters["timeout"].int64_param = 1
    bad = asked(shape=(1,))
    bad.raw_input_contents.append(raw_files(b"hello"))
    for request, status, words in (
        (asked(model="none"), "INVALID_ARGUMENT", "has 0 values in bytes_contents"),
        (region, "UNIMPLEMENTED", "Shared memory is not offered"),
        (bad, "INVALID_ARGUMENT", "image[0]: The 5 bytes are no image"),
        (slow, "DEADLINE_EXCEEDED", "would come too late"),
        (asked(shape=(5,)), "RESOURCE_EXHAUSTED", "5 images, more than the limit of 4"),
        (message(f"inference.{REQUEST}")(), "INVALID_ARGUMENT", "The request has no inputs"),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            infer(channel, request)
        error: Any = raised.value
        assert (error.code().name, words in error.details()) == (status, True), error.details()
    empty = {"kind": "ServerLiveRequest", "answer": "ServerLiveResponse"}
    for method, fields, status in (
        ("ModelMetadata", {"name": "none"}, "NOT_FOUND"),
        ("ModelReady", {"name": "tiny", "version": "2"}, "NOT_FOUND"),
        ("SystemSharedMemoryStatus", empty, "UNIMPLEMENTED"),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            call(channel, method, **fields)  # type: ignore[arg-type]
        error = raised.value
        assert error.code().name == status


def test_a_stream_answers_in_order_and_outlives_an_error(channel: grpc.Channel) -> None:
    good, bad = asked(shape=(1,), id="a"), asked(shape=(1,))
    good.raw_input_contents.append(raw_files(FILES[1]))
    bad.raw_input_contents.append(raw_files(b"x" * 30))
    answers = list(
        channel.stream_stream(
            f"/{INFERENCE}/ModelStreamInfer",
            request_serializer=type(good).SerializeToString,
            response_deserializer=message("inference.ModelStreamInferResponse").FromString,
        )(iter((good, bad, good)), timeout=60)
    )
    assert [each.infer_response.id for each in answers] == ["a", "", "a"]
    assert answers[1].error_message.startswith("image[0]: The 30 bytes are no image")
    scores = np.frombuffer(answers[2].infer_response.raw_output_contents[0], "<f4")
    assert scores == pytest.approx(SCORES[1], abs=1e-5)


def read(request: Any, bounds: Bounds = IN_A_THREAD) -> Any:
    return read_infer(request.SerializeToString(), bounds, LIMITS)


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("INT64", "int64_contents", [0, -1, 2**63 - 1, -(2**63), 300]),
        ("INT8", "int_contents", [-128, 127, 0]),
        ("UINT64", "uint64_contents", [2**64 - 1, 0, 2**63]),
        ("UINT16", "uint_contents", [65535, 1]),
        ("BOOL", "bool_contents", [True, False]),
        ("FP64", "fp64_contents", [1e300, -0.5]),
    ],
)
def test_contents_of_each_type(
    datatype: str, field: str, values: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference_wire, "SLICE", 16)
    values = values * 5
    request = asked(datatype, (len(values),))
    getattr(request.inputs[0].contents, field).extend(values)
    (tensor,) = read(request).request.inputs
    assert tensor.data.tolist() == values


def test_messages_are_bounded_before_anything_is_made_of_them() -> None:
    many = asked()
    many.raw_input_contents.extend([b""] * 65)
    out_of_range = asked("UINT8", (1,))
    out_of_range.inputs[0].contents.uint_contents.append(256)
    ranks = asked("FP32", (1,) * 100_000)
    for request, words in (
        (many, "65 inputs, more than the limit of 64"),
        (out_of_range, "values that UINT8 does not have"),
        (ranks, "more dimensions than the limit of 8"),
        (asked("FP32", (2**31 - 1,) * 8), "has 0 values in fp32_contents"),
        (asked("FP16", (1,)), "has 0 values in raw_input_contents"),
        (asked("FP32", (-1,)), "extents must be above 0"),
    ):
        with pytest.raises(Exception, match=words):
            read(request)
    parameters = asked()
    for number in range(3_000):
        parameters.parameters[str(number)].int64_param = 1
    with pytest.raises(TooMuchError):
        read(parameters, Bounds(2_000, 0))
    # A long tensor in place is left to a thread.
    long = asked("UINT8", (20_000,))
    long.inputs[0].contents.uint_contents.extend([1] * 20_000)
    with pytest.raises(TooMuchError):
        read(long, Bounds(2_000, 0))
    assert read(long).request.inputs[0].shape == (20_000,)


@pytest.mark.parametrize(
    "data", [b"\xff", b"\x2a\x05\x2a\x03\x32\x02\x00", b"\x2a\x06\x2a\x04\x35\0\0\0", b"\x2a\x03\x1a\x01\x80"]
)
def test_what_is_no_message(data: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        read_infer(data, IN_A_THREAD, LIMITS)
