"""Messages written and read without protobuf's library, against what that library writes and reads."""

import pytest

from pdserve.formats.protos import pipeline, wire
from pdserve.formats.protos.wire import Response, read_response, write_request


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 70_000])
def test_a_request_is_what_protobuf_reads(size: int) -> None:
    data = write_request("图像", "prediction", ["image_0", "image_1"], [b"a" * size, b"b"])
    read = pipeline.request_class().FromString(data)
    assert (read.name, read.method) == ("图像", "prediction")
    assert list(read.key) == ["image_0", "image_1"]
    assert list(read.value) == ["a" * size, "b"]
    assert pipeline.request_class()(
        name="图像", method="prediction", key=["image_0", "image_1"], value=["a" * size, "b"]
    ) == read  # fmt: skip


@pytest.mark.parametrize("number", [0, 1, 6000, 2**31 - 1, -1, -5000])
def test_a_response_of_protobuf_is_read(number: int) -> None:
    written = pipeline.response_class()(err_no=number, err_msg="坏", key=["label", "k"], value=["['猫']", ""])
    written.tensors.add(name="x", float_data=[1, 2], shape=[2])
    assert read_response(written.SerializeToString()) == Response(
        number, "坏", ["label", "k"], ["['猫']", ""]
    )


def test_fields_that_are_not_known_are_passed_over() -> None:
    data = b"\x48\x05" + b"\x51" + bytes(8) + b"\x5d" + bytes(4) + b"\x1a\x01k\x22\x01v"
    assert read_response(data) == Response(key=["k"], value=["v"])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x1a\x05abc", "ends 2 bytes too early"),
        (b"\x1a", "ends inside a number"),
        (b"\x08" + b"\xff" * 10, "ends inside a number"),
        (b"\x0b", "wire type 3"),
        (b"\x1a\x01\xff", "invalid start byte"),
        (b"\x22\x00" * 100_001, "more than 100,000 fields"),
    ],
)
def test_what_is_no_message_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_response(data)


def test_a_cut_response_is_refused_or_is_a_shorter_one() -> None:
    whole = pipeline.response_class()(err_no=5, key=["key"], value=["value"]).SerializeToString()
    for length in range(len(whole)):
        try:
            read = read_response(whole[:length])
        except ValueError:
            continue
        assert read == wire.Response(5 if length else 0, "", ["key"] if length > 2 else [])
