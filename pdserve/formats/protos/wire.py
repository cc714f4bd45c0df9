"""Protobuf's wire format without its library: fields found in bytes, the pipeline protocol's messages.

As https://protobuf.dev/programming-guides/encoding/ has it.
"""

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

Span: TypeAlias = tuple[int, int]
"""Where bytes begin and end."""
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
_MOST_FIELDS = 100_000  # of an answer, which has a few: each takes some microseconds


def fields(data: bytes | mmap.mmap, span: Span) -> Iterator[tuple[int, int | Span]]:
    """The fields of a message: number, and the varint or where the bytes are. Raises ValueError."""
    at, end = span
    while at < end:
        key, at = _varint(data, at, end)
        wire = key & 7
        if wire == _VARINT:
            number, at = _varint(data, at, end)
            yield key >> 3, number
            continue
        length = {_EIGHT: 8, _FOUR: 4}.get(wire, 0)
        if wire == _BYTES:
            length, at = _varint(data, at, end)
        elif not length:
            raise ValueError(f"a field has the wire type {wire}")
        if at + length > end:
            raise ValueError(f"it ends {at + length - end} bytes too early")
        yield key >> 3, (at, at + length)
        at += length


def _varint(data: bytes | mmap.mmap, at: int, end: int) -> tuple[int, int]:
    number = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
    raise ValueError("it ends inside a number")


def write_request(name: str, method: str, key: Sequence[str], value: Sequence[bytes]) -> bytes:
    """A Request of pipeline.proto; each value is the bytes of a UTF-8 text."""
    parts = [(1, each.encode()) for each in key] + [(2, each) for each in value]
    parts += [(number, text.encode()) for number, text in ((4, name), (5, method)) if text]
    return b"".join(
        piece for number, data in parts for piece in (bytes((number << 3 | _BYTES,)), _length(data), data)
    )


def _length(data: bytes) -> bytes:
    left, out = len(data), bytearray()
    while left > 0x7F:
        out.append(left & 0x7F | 0x80)
        left >>= 7
    out.append(left)
    return bytes(out)


@dataclass
class Response:
    """A Response of pipeline.proto, without its tensors."""

    err_no: int = 0
    err_msg: str = ""
    key: list[str] = field(default_factory=list)
    value: list[str] = field(default_factory=list)


def read_response(data: bytes) -> Response:
    """The Response in a message. Raises ValueError for what is none, or has very many fields."""
    found = Response()
    for count, (number, content) in enumerate(fields(data, (0, len(data)))):
        if count >= _MOST_FIELDS:
            raise ValueError(f"it has more than {_MOST_FIELDS:,} fields")
        if isinstance(content, int):
            if number == 1:
                low = content & 0xFFFFFFFF
                found.err_no = low - (1 << 32) if low >> 31 else low
        elif number == 2:
            found.err_msg = data[slice(*content)].decode()
        elif number in (3, 4):
            (found.key if number == 3 else found.value).append(data[slice(*content)].decode())
    return found
