"""Reads messages of the pipeline protocol and of health checks from protobuf's wire format.

As https://protobuf.dev/programming-guides/encoding/ has it. Protobuf's own parser makes objects of all that
a message holds before anybody can count it: 256 MB of empty tensors would take gigabytes, and many seconds
in which nothing else runs. Here the entries are counted while they are found, a long text is a view of the
message, and numbers of tensors are counted and not read.
"""

import hashlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from pdserve.errors import RequestError
from pdserve.services.parsing import SLICE, Bounds, TooMuchError
from pdserve.services.tensors import MAX_RANK, Tensor

VARINT, _FIXED64, BYTES, _GROUP, _GROUP_END, _FIXED32 = range(6)
_DEEPEST = 100  # groups in groups, as protobuf bounds them
_LONGEST_TEXT = 4096  # that is read as a text, and not left as bytes
_TOO_LONG = re.compile(rb"[\x80-\xff]{10}")  # varints have ten bytes at most, the last below 128
# Fields of a Tensor with numbers: name, and bytes of each, 0 for varints.
_NUMBERS = {
    1: ("int64_data", 0),
    2: ("float_data", 4),
    3: ("int_data", 0),
    4: ("float64_data", 8),
    5: ("uint32_data", 0),
    6: ("bool_data", 0),
    7: ("complex64_data", 4),
    8: ("complex128_data", 8),
}
_SHAPE, _LOD = 21, 22


class MalformedMessageError(RequestError):
    """The bytes are no message."""

    def __init__(self, why: str) -> None:
        super().__init__(f"The message is no protobuf of this method: {why}.")


@dataclass
class WireRequest:
    """A Request. Values are views of the message: the bytes of texts, which may not be UTF-8."""

    key: list[str] = field(default_factory=list)
    value: list[memoryview] = field(default_factory=list)
    tensors: list[memoryview] = field(default_factory=list)
    name: str = ""
    logid: int = 0


def read_request(message: bytes, bounds: Bounds) -> WireRequest:
    """The Request in a message. Raises MalformedMessageError, TooMuchError."""
    found, reader = WireRequest(), Reader(bounds)
    for number, wire, content in reader.fields(memoryview(message)):
        if number == 6 and wire == VARINT and isinstance(content, int):
            found.logid = signed(content, 64)
        elif wire == BYTES and isinstance(content, memoryview):
            if number == 1:
                found.key.append(text_of(content))
            elif number == 2:
                found.value.append(content)
            elif number == 3:
                found.tensors.append(content)
            elif number == 4:
                found.name = text_of(content)
            elif number in (5, 7):
                text_of(content)
    return found


def read_service(message: bytes) -> str:
    """The field ``service`` of a HealthCheckRequest. Raises MalformedMessageError, TooMuchError."""
    name = ""
    for number, wire, content in Reader(Bounds(16, 0)).fields(memoryview(message)):
        if number == 1 and wire == BYTES and isinstance(content, memoryview):
            name = text_of(content)
    return name


def read_tensors(contents: list[memoryview], bounds: Bounds) -> list[Tensor]:
    """Tensor messages. Raises MalformedMessageError, TooMuchError for the fields of all of them together."""
    reader = Reader(bounds)
    return [_tensor(reader, content) for content in contents]


def _tensor(reader: "Reader", data: memoryview) -> Tensor:
    name, elem_type, byte_data = "", 0, memoryview(b"")
    texts: list[memoryview] = []
    shape: list[int] = []
    counts = dict.fromkeys((*_NUMBERS, _SHAPE, _LOD), 0)
    for number, wire, content in reader.fields(data):
        size = _NUMBERS[number][1] if number in _NUMBERS else 0
        if isinstance(content, int):
            if wire == VARINT and number == 20:
                elem_type = signed(content, 32)
            elif number in counts and wire == {0: VARINT, 4: _FIXED32, 8: _FIXED64}[size]:
                counts[number] += 1
                if number == _SHAPE and len(shape) < MAX_RANK:
                    shape.append(signed(content, 32))
        elif number in counts:
            if size and len(content) % size:
                raise MalformedMessageError("packed numbers end in the middle of one")
            counts[number] += len(content) // size if size else count_varints(content)
            if number == _SHAPE:
                shape += _first(content, MAX_RANK - len(shape))
        elif number == 9:
            texts.append(content)
        elif number == 10:
            byte_data = content
        elif number == 23:
            name = text_of(content)
    numbers = {title: counts[number] for number, (title, _) in _NUMBERS.items()}
    return Tensor(name, elem_type, shape, counts[_SHAPE], counts[_LOD], numbers, texts, byte_data)


def count_varints(packed: memoryview) -> int:
    """How many varints there are. Raises MalformedMessageError."""
    if packed and packed[-1] >= 128:
        raise MalformedMessageError("packed numbers end in the middle of one")
    for at in range(0, len(packed), SLICE):
        if _TOO_LONG.search(packed[at : at + SLICE + 9]):
            raise MalformedMessageError("a number has more than ten bytes")
    return int(np.count_nonzero(np.frombuffer(packed, np.uint8) < 128))


def _first(packed: memoryview, most: int) -> list[int]:
    """The first of packed varints, as int32."""
    found: list[int] = []
    at = 0
    while at < len(packed) and len(found) < most:
        value, at = read_varint(packed, at)
        found.append(signed(value, 32))
    return found


def text_of(content: memoryview) -> str:
    """A text; what is too long for a name stands as its digest, and is never shown."""
    if len(content) > _LONGEST_TEXT:
        return hashlib.blake2b(content, digest_size=16).hexdigest()
    try:
        return str(content, "utf-8")
    except UnicodeDecodeError as error:
        raise MalformedMessageError("a text is not UTF-8") from error


def signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def read_varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of up to 64 bits, and where it ends. Raises IndexError at the end of the data."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise MalformedMessageError("a number has more than ten bytes")


class Reader:
    """Finds fields, and counts them: all messages that it reads share its bounds."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._left = bounds.values

    def fields(self, data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
        """Number, wire type and content of each field: a number, or bytes. Groups are passed over.

        Numbers of fixed size are given as 0: nobody here reads them.
        """
        at, end = 0, len(data)
        groups: list[int] = []
        try:
            while at < end:
                tag, at = read_varint(data, at)
                number, wire = tag >> 3, tag & 7
                if not number or tag >= 1 << 32:
                    raise MalformedMessageError(f"{number} is no number of a field")
                self._left -= 1
                if self._left < 0:
                    raise TooMuchError(self._bounds)
                content: int | memoryview = 0
                if wire == VARINT:
                    content, at = read_varint(data, at)
                elif wire == BYTES:
                    size, at = read_varint(data, at)
                    content = data[at : at + size]
                    at += size
                elif wire in (_FIXED64, _FIXED32):
                    at += 8 if wire == _FIXED64 else 4
                elif wire == _GROUP and len(groups) < _DEEPEST:
                    groups.append(number)
                    continue
                elif wire == _GROUP_END and groups and groups.pop() == number:
                    continue
                else:
                    raise MalformedMessageError(f"the wire type {wire} does not belong there")
                if at > end:
                    break
                if not groups:
                    yield number, wire, content
        except (IndexError, struct.error):
            at = end + 1
        if at > end or groups:
            raise MalformedMessageError("it ends in the middle of a field")
