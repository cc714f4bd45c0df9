"""Long lists of numbers in JSON: what is cut out of a body, and what is read of them."""

import json
from typing import Any

import numpy as np
import pytest

from pdserve.errors import BodyTooLargeError, RequestError
from pdserve.services.http import json_body, json_numbers
from pdserve.services.http.json_body import read_json
from pdserve.services.http.json_numbers import as_numbers, flattened, read_numbers
from pdserve.services.parsing import Bounds

BOUNDS = Bounds(200, 10_000)
NUMBERS = np.random.default_rng(0).normal(size=(3, 50, 40)).astype(np.float32)
FP32 = np.dtype(np.float32)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("slice_bytes", [1000, 256 * 1024])
@pytest.mark.parametrize("indent", [None, 1])
def test_long_lists_are_left_in_the_body_and_read_in_slices(
    nested: bool, slice_bytes: int, indent: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_numbers, "SLICE", slice_bytes)
    data = NUMBERS.tolist() if nested else NUMBERS.ravel().tolist()
    content = {"a": [{"data": data, "shape": [1, 2]}, {"data": [1, 2]}, {"x": "y"}], "data": data}
    read = read_json(json.dumps(content, indent=indent).encode(), BOUNDS, numbers=True)
    first, second, _ = read.content["a"]
    assert (first["shape"], second["data"], read.numbers(second["data"])) == ([1, 2], [1, 2], None)
    for each in (first["data"], read.content["data"]):
        raw = read.numbers(each)
        assert raw is not None
        assert np.array_equal(read_numbers(raw, FP32, NUMBERS.size), NUMBERS.ravel())


def test_without_being_asked_for_they_count_as_values() -> None:
    with pytest.raises(BodyTooLargeError):
        read_json(json.dumps(NUMBERS.tolist()).encode(), BOUNDS)


@pytest.mark.parametrize(
    "data",
    [
        "[%s, null]", "[%s, true]", "[[%s]", "[%s, {}]", "[%s, [[[]]], x]",
    ],
)  # fmt: skip
def test_what_is_no_list_of_numbers_is_bounded_as_ever(data: str) -> None:
    long = ",".join(["1"] * 30_000)
    with pytest.raises((BodyTooLargeError, ValueError)):
        read_json(b'{"data": %b}' % (data % long).encode(), BOUNDS, numbers=True)


@pytest.mark.parametrize(
    "raw", [b"[1,2", b"[1,,2,3]", b"[1 2,3]", b"[1,2,3,]", b"[,1,2]", b"[1][2,3]", b"[01,2,3]", b"[--1,2,3]"]
)
def test_a_list_that_is_no_json(raw: bytes) -> None:
    with pytest.raises(RequestError):
        read_numbers(memoryview(raw), FP32, 3)


@pytest.mark.parametrize("count", [0, 2, 4, 10**12])
def test_other_numbers_than_the_shape_says_take_no_memory(count: int) -> None:
    with pytest.raises(RequestError, match=f"another number of values than its shape says, {count}"):
        read_numbers(memoryview(b"[1,2,3]"), FP32, count)


def test_nothing_is_left_uninitialised_where_a_slice_has_no_comma(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_numbers, "SLICE", 4)
    with pytest.raises(RequestError):
        read_numbers(memoryview(b"[123456,2,3]"), FP32, 3)


@pytest.mark.parametrize(
    ("dtype", "values", "good"),
    [
        ("bool", [True, False, 1], True),
        ("bool", [2], False),
        ("uint8", [0, 255], True),
        ("uint8", [256], False),
        ("uint8", [-1], False),
        ("int8", [1.0], False),
        ("int64", [2**63 - 1, -(2**63)], True),
        ("uint64", [2**64 - 1], True),
        ("uint64", [-1], False),
        ("float32", [1, 2.5], True),
        ("float32", [1e39], False),
        ("float32", ["1"], False),
        ("float32", [None], False),
        ("float16", [65504.0], True),
        ("float16", [1e5], False),
    ],
)
def test_values_that_a_type_has(dtype: str, values: list[Any], good: bool) -> None:
    if good:
        assert as_numbers(values, np.dtype(dtype)).tolist() == values
    else:
        with pytest.raises(RequestError):
            as_numbers(values, np.dtype(dtype))


def test_lists_in_lists() -> None:
    assert flattened([[[1], [2]], [[3], [4]]], 8) == [1, 2, 3, 4]
    assert flattened(["a"], 8) == ["a"]
    for wrong in (None, 1, [[1], 2], [[[[1]]]], {"a": 1}):
        with pytest.raises(RequestError, match="at most 3 deep"):
            flattened(wrong, 3)


def test_texts_and_lists_of_numbers_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_body, "LONG", 10)
    body = b'{"t": "[1,2,3,4,5,6,7,8,9,10,11]", "n": [1,2,3,4,5,6,7,8,9,10,11,12]}'
    read = read_json(body, BOUNDS, numbers=True)
    assert read.numbers(read.content["t"]) is None
    raw = read.numbers(read.content["n"])
    assert raw is not None
    assert bytes(raw) == b"[1,2,3,4,5,6,7,8,9,10,11,12]"
