"""Tensors of the Open Inference Protocol: its types of data, and arrays and texts to bytes and back."""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from pdserve.errors import BodyTooLargeError, RequestError
from pdserve.services.base64_text import strict
from pdserve.services.parsing import Buffer, View, copied
from pdserve.vision.types import Array

BYTES = "BYTES"

DATATYPES: Mapping[str, "np.dtype[Any]"] = {
    name: np.dtype(dtype)
    for name, dtype in (
        ("BOOL", np.bool_), ("UINT8", np.uint8), ("UINT16", np.uint16), ("UINT32", np.uint32),
        ("UINT64", np.uint64), ("INT8", np.int8), ("INT16", np.int16), ("INT32", np.int32),
        ("INT64", np.int64), ("FP16", np.float16), ("FP32", np.float32), ("FP64", np.float64),
    )
}  # fmt: skip
"""NumPy's type of the protocol's; beside them there is BYTES, texts of any length."""
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}

MAX_TENSORS = 64
"""Inputs of a request, and outputs that it asks for."""
MAX_RANK = 8
_LONGEST_NAME = 100  # of what a caller sent, in a message
# Of an element: nothing that begins so with characters of base64 is an image file.
_BASE64_HEAD = 24

Data: TypeAlias = Array | Sequence[Any]
"""An array, or an element for each text: bytes, or the error of one that could not be read."""


@dataclass(frozen=True, eq=False)
class InputTensor:
    """A tensor of a request; ``data``: of BYTES its elements, in order, of others an array of ``shape``."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Data


@dataclass(frozen=True, eq=False)
class OutputTensor:
    """A tensor of an answer; ``binary``: it is wanted as bytes behind the JSON."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Data
    binary: bool = False

    def raw(self) -> bytes:
        """Its bytes: numbers in little-endian order, or each text behind its length in four bytes."""
        if self.datatype == BYTES:
            return b"".join(struct.pack("<I", len(text)) + text for text in self.data)
        return np.ascontiguousarray(self.data).tobytes()


def output(name: str, array: Array, binary: bool = False) -> OutputTensor:
    """An array as a tensor. Raises RequestError for a type of data that the protocol does not have."""
    datatype = _NAMES.get(array.dtype)
    if datatype is None:
        raise RequestError(f"The output {name!r} is {array.dtype}, which the protocol has no type for.")
    return OutputTensor(name, datatype, array.shape, array, binary)


def datatype_of(dtype: str) -> str:
    """The protocol's name of a NumPy type; its own name in capitals where the protocol has none."""
    try:
        return _NAMES.get(np.dtype(dtype)) or dtype.upper()
    except TypeError:  # bfloat16
        return "BF16" if dtype == "bfloat16" else dtype.upper()


def shown(name: str) -> str:
    """A caller's name of something, for a message."""
    return repr(name[:_LONGEST_NAME])


def element_count(name: str, datatype: str, shape: Sequence[int], most: int) -> int:
    """How many elements a tensor has. ``most``: of BYTES, each of which may be an image.

    Raises RequestError for no shape of a tensor, BodyTooLargeError for too many elements of BYTES.
    """
    if datatype != BYTES and datatype not in DATATYPES:
        known = ", ".join((*DATATYPES, BYTES))
        raise RequestError(
            f"The input {shown(name)} has the datatype {shown(datatype)}; it must be one of {known}."
        )
    if len(shape) > MAX_RANK:
        raise RequestError(
            f"The input {shown(name)} has {len(shape)} dimensions, more than the limit of {MAX_RANK}."
        )
    if not shape or any(not 0 < extent < 2**31 for extent in shape):
        raise RequestError(f"The input {shown(name)} has the shape {list(shape)}; extents must be above 0.")
    count = math.prod(shape)
    if datatype == BYTES and count > most:
        raise BodyTooLargeError(
            f"The input {shown(name)} has {count} images, more than the limit of {most}; "
            "send several requests."
        )
    return count


def from_raw(name: str, datatype: str, shape: tuple[int, ...], raw: View, most: int) -> InputTensor:
    """A tensor of the bytes that stand for it. Raises RequestError, BodyTooLargeError."""
    count = element_count(name, datatype, shape, most)
    view = memoryview(raw)
    if datatype == BYTES:
        return InputTensor(name, datatype, shape, _elements(name, view, count))
    dtype = DATATYPES[datatype]
    if len(view) != count * dtype.itemsize:
        raise RequestError(
            f"The input {shown(name)} has {len(view)} bytes; {list(shape)} of {datatype} are "
            f"{count * dtype.itemsize}."
        )
    array = np.frombuffer(view, dtype.newbyteorder("<"))
    if datatype != "UINT8":  # pixels are copied once, into image files
        # Engines want aligned memory, and the message may be anywhere in it.
        array = array.astype(dtype)
    return InputTensor(name, datatype, shape, array.reshape(shape))


def from_array(name: str, datatype: str, shape: tuple[int, ...], array: Array) -> InputTensor:
    """A tensor of its numbers in one row. Raises RequestError where there are not so many."""
    if len(array) != math.prod(shape):
        raise RequestError(
            f"The input {shown(name)} has {len(array)} numbers; the shape {list(shape)} has "
            f"{math.prod(shape)}."
        )
    return InputTensor(name, datatype, shape, array.reshape(shape))


def _elements(name: str, view: memoryview, count: int) -> list[Buffer]:
    """Texts, each behind its length in four bytes, little-endian."""
    found: list[Buffer] = []
    at = 0
    while len(found) < count and at + 4 <= len(view):
        (size,) = struct.unpack_from("<I", view, at)
        if at + 4 + size > len(view):
            break
        found.append(image_file(view[at + 4 : at + 4 + size]))
        at += 4 + size
    if len(found) != count or at != len(view):
        raise RequestError(
            f"The bytes of the input {shown(name)} are not {count} elements, each behind its length in four "
            "bytes."
        )
    return found


def image_file(element: View) -> Buffer:
    """An element of BYTES: an image file as it is, or what it is the base64 of."""
    if len(element) >= _BASE64_HEAD and strict(bytes(element[:_BASE64_HEAD])) is not None:
        decoded = strict(element)
        if decoded is not None:
            return decoded
    return copied(element)
