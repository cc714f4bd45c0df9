"""Long lists of numbers in JSON: found without a parser, read in slices, each some milliseconds of work."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from pdserve.errors import RequestError
from pdserve.services.parsing import SLICE
from pdserve.vision.types import Array

_OF_NUMBERS = b"0123456789+-.eE,[] \t\r\n"
_BLANKS = bytes.maketrans(b"[]", b"  ")
_BEFORE = 64  # bytes from the end of a key to the list


def numbers_between(body: bytes | bytearray, begin: int, end: int) -> tuple[int, int] | None:
    """Where the first list begins and ends that stands there, if it has numbers and lists of them alone."""
    first = body.find(b"[", begin, min(begin + _BEFORE, end))
    if first < 0:
        return None
    at = first
    while at < end:
        piece = bytes(body[at : min(at + SLICE, end)])
        if piece.translate(None, _OF_NUMBERS):
            at += len(piece) - len(piece.lstrip(_OF_NUMBERS))
            break
        at += len(piece)
    last = body.rfind(b"]", max(first, at - _BEFORE), at)
    if last < 0:
        return None
    opened = closed = 0
    for start in range(first, last + 1, SLICE):
        opened += body.count(b"[", start, min(start + SLICE, last + 1))
        closed += body.count(b"]", start, min(start + SLICE, last + 1))
    return (first, last + 1) if opened == closed else None


def read_numbers(raw: memoryview, dtype: "np.dtype[Any]", count: int) -> Array:
    """A list of numbers, or of lists of them, as (count,) of a type.

    Raises RequestError for what is no such list, has another number of them, or one that the type has not.
    """
    other = RequestError(f"A tensor has another number of values than its shape says, {count}.")
    if count > len(raw):
        raise other
    out = np.empty(count, dtype)
    at = filled = 0
    while at < len(raw):
        piece = bytes(raw[at : at + SLICE])
        whole = at + SLICE >= len(raw)
        if not whole:
            piece = piece[: piece.rfind(b",") + 1]
        at += len(piece)
        try:
            values = orjson.loads(b"[%b]" % piece[: None if whole else -1].translate(_BLANKS))
        except orjson.JSONDecodeError as error:
            raise RequestError("The body is no JSON: a list of numbers in it is not well-formed.") from error
        if not values or filled + len(values) > count:
            raise other
        out[filled : filled + len(values)] = as_numbers(values, dtype)
        filled += len(values)
    if filled != count:
        raise other
    return out


def as_numbers(values: Sequence[Any], dtype: "np.dtype[Any]") -> Array:
    """Values of JSON as an array. Raises RequestError for one that the type does not have."""
    kinds = set(map(type, values))
    if dtype.kind == "b":
        if kinds <= {bool, int} and all(value in (0, 1) for value in values):
            return np.array(values, dtype)
    elif dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if kinds == {int} and limits.min <= min(values) and max(values) <= limits.max:
            return np.array(values, dtype)
    elif kinds <= {int, float}:
        with np.errstate(over="ignore"):
            array = np.array(values, np.float64).astype(dtype)
        if np.isfinite(array).all():
            return array
    raise RequestError(f"A tensor of {dtype} has values that are none.")


def flattened(values: object, most: int) -> list[Any]:
    """Lists in lists as one, in order; ``most``: how deep they may be. Raises RequestError."""
    flat = values
    for _ in range(most):
        if not isinstance(flat, list):
            break
        nested = [isinstance(each, list) for each in flat]
        if not any(nested):
            return flat
        if not all(nested):
            break
        flat = [each for inner in flat for each in inner]
    raise RequestError(f"The data of a tensor must be a list, or lists in lists, at most {most} deep.")
