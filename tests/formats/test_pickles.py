"""Pickles of plain data are read, others are refused; see also the tests of id maps and of checkpoints."""

import collections
import io
import os
import pickle
from typing import Any

import pytest

from pdserve.formats.pickles import BadPickleError, Unpickler

PLAIN = {"text": "黑咖啡", "numbers": [0, 255, 256, -1, 1 << 60], "none": None, "pair": (True, [], {}, ())}


def load(data: bytes) -> Any:
    return Unpickler().load(io.BytesIO(data))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_is_read(protocol: int) -> None:
    assert load(pickle.dumps(PLAIN, protocol)) == PLAIN


def test_several_pickles_in_one_file() -> None:
    file = io.BytesIO(pickle.dumps([1], 2) + pickle.dumps("two", 4) + b"rest")
    assert [Unpickler().load(file), Unpickler().load(file), file.read()] == [[1], "two", b"rest"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (os.system, r"refers to '(nt|posix)\.system', and nothing was run"),
        (collections.OrderedDict(), r"refers to 'collections\.OrderedDict'"),
        ({1: "x"}, "maps int to str"),
        (b"x" * 300, "opcode b'B'"),
        (1.5, "opcode b'G'"),
        ({"x"}, "opcode"),
    ],
)
def test_other_data_is_refused_by_name(value: object, message: str) -> None:
    with pytest.raises(BadPickleError, match=message):
        load(pickle.dumps(value, 4))


@pytest.mark.parametrize(
    "data",
    [b"\x80\x04N" + b"\x85" * 1_000_000 + b".", b"\x80\x04(" + b"}" * 1_000_000 + b"t.", b"]" * 1_000_000],
)
def test_a_byte_does_not_become_many(data: bytes) -> None:
    with pytest.raises(BadPickleError, match="more containers than data"):
        load(data)


def test_the_limit_of_opcodes() -> None:
    class Limited(Unpickler):
        max_opcodes = 3

    assert Limited().load(io.BytesIO(b"\x80\x04N.")) is None
    with pytest.raises(BadPickleError, match="more than 3 opcodes"):
        Limited().load(io.BytesIO(b"\x80\x04NN."))
