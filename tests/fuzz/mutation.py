"""Good samples, altered: bytes, the text and the tree of JSON, protobuf messages field by field."""

import copy
import json
import struct
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

_NUMBERS = (
    0,
    1,
    2,
    127,
    128,
    255,
    2**15,
    2**16 - 1,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**64 - 1,
)
_EDITS = ("bit", "byte", "number", "cut", "delete", "repeat", "splice", "token")


@st.composite
def mutated(
    draw: DrawFn,
    seeds: Sequence[bytes],
    tokens: Sequence[bytes] = (),
    most: int = 4,
    among: int | None = None,
) -> bytes:
    """One of the seeds after up to ``most`` edits; most of the edits are in the first ``among`` bytes."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, most))):
        end = len(data)
        if among is not None and draw(st.integers(0, 3)):
            end = min(end, among)
        _edit(draw, data, draw(st.integers(0, end)), seeds, tokens)
    return bytes(data)


def _edit(draw: DrawFn, data: bytearray, at: int, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    match draw(st.sampled_from(_EDITS)):
        case "bit" if at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        case "byte":
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        case "number":
            size = draw(st.sampled_from((1, 2, 4, 8)))
            number = draw(st.sampled_from(_NUMBERS)) % (1 << 8 * size)
            data[at : at + size] = number.to_bytes(size, draw(st.sampled_from(("little", "big"))))
        case "cut":
            del data[at:]
        case "delete":
            del data[at : at + draw(st.integers(1, 64))]
        case "repeat":
            some = bytes(data[at : at + draw(st.integers(1, 64))])
            data[at:at] = some * draw(st.sampled_from((1, 2, 10, 300)))
        case "splice":
            other = draw(st.sampled_from(seeds))
            start = draw(st.integers(0, len(other)))
            data[at:] = other[start:]
        case "token":
            data[at:at] = draw(st.sampled_from(tokens) if tokens else st.binary(max_size=8))


# What JSON and YAML can say where something else is expected.
ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    -1,
    0,
    1,
    2**31,
    2**63,
    -(2**63) - 1,
    10**400,
    0.5,
    -0.0,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "0",
    "x" * 3000,
    "../../etc/passwd",
    "/etc/passwd",
    "a\nb\0c",
    "\ud800",
    "\u202e饮料",
    [],
    {},
    [[]],
    [None],
    {"": None},
)


@st.composite
def mutated_tree(draw: DrawFn, seeds: Sequence[Any], odd: Sequence[Any] = (), most: int = 3) -> Any:
    """A tree of lists and dicts after up to ``most`` edits of its nodes."""
    tree = [copy.deepcopy(draw(st.sampled_from(seeds)))]  # in a list, so that the root can go too
    values = (*ODD, *odd)
    for _ in range(draw(st.integers(1, most))):
        nodes = _nodes(tree)
        if not nodes:
            break
        holder, key = draw(st.sampled_from(nodes))
        value = copy.deepcopy(draw(st.sampled_from(values)))
        match draw(st.sampled_from(("replace", "delete", "copy", "wrap", "rename", "repeat"))):
            case "replace":
                holder[key] = value
            case "delete" if holder is not tree:
                del holder[key]
            case "copy":
                other, name = draw(st.sampled_from(nodes))
                holder[key] = copy.deepcopy(other[name])
            case "wrap":
                holder[key] = draw(st.sampled_from(([holder[key]], {"x": holder[key]}, [holder[key], value])))
            case "rename" if isinstance(holder, dict):
                holder[draw(st.sampled_from(("", "x", "name", "op", "é")))] = holder.pop(key)
            case "repeat" if isinstance(holder, list) and holder is not tree:
                holder[key:key] = [holder[key]] * draw(st.sampled_from((1, 2, 50)))
    return tree[0]


def _nodes(tree: Any) -> list[tuple[Any, Any]]:
    """Each place in the tree, as what holds it and where in that."""
    found: list[tuple[Any, Any]] = []
    left = [tree]
    while left:
        holder = left.pop()
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
            found.append((holder, key))
            if isinstance(holder[key], (dict, list)):
                left.append(holder[key])
    return found


JSON_TOKENS = (
    b"[" * 3000,
    b'{"a":' * 3000,
    b"9" * 5000,
    b"-1e999",
    b"NaN",
    b"Infinity",
    b"\\ud800",
    b"\\u0000",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\0",
    b'"',
    b",",
    b"null",
    b"{}",
)


def mutated_json(seeds: Sequence[Any], odd: Sequence[Any] = ()) -> SearchStrategy[bytes]:
    """JSON whose tree, or whose text, is altered."""
    texts = [json.dumps(seed).encode() for seed in seeds]
    return st.one_of(
        mutated_tree(seeds, odd).map(lambda tree: json.dumps(tree).encode()), mutated(texts, JSON_TOKENS)
    )


Field = list[Any]
"""[number, wire type, value]; the value of a message in a field is a list of Fields."""


@st.composite
def mutated_message(draw: DrawFn, seeds: Sequence[bytes], most: int = 3) -> bytes:
    """A protobuf message after edits of its fields; lengths are put right again."""
    root: Field = [0, 2, _fields(draw(st.sampled_from(seeds)))]
    for _ in range(draw(st.integers(1, most))):
        places = _places(root)
        if not places:
            break
        fields, at = draw(st.sampled_from(places))
        field = fields[at]
        match draw(st.sampled_from(("number", "value", "delete", "repeat", "move", "nest", "bytes"))):
            case "number":
                field[0] = draw(st.integers(1, 40))
            case "value":
                kind = draw(st.sampled_from((0, 1, 2, 5)))
                fields[at] = [field[0], kind, _value(draw, kind)]
            case "delete":
                del fields[at]
            case "repeat":
                fields[at:at] = [field] * draw(st.sampled_from((1, 2, 300)))
            case "move":
                other, index = draw(st.sampled_from(places))
                fields[at] = copy.deepcopy(other[index])
            case "nest":
                for _ in range(draw(st.sampled_from((1, 3, 200)))):
                    field = [draw(st.integers(1, 20)), 2, [field]]
                fields[at] = field
            case "bytes":
                fields[at] = [
                    field[0],
                    2,
                    draw(st.sampled_from((b"", b"\xff\xfe", b"x" * 5000, b"a\n\0", b".."))),
                ]
    return _encoded(root[2])


def _value(draw: DrawFn, kind: int) -> Any:
    if kind == 2:
        return draw(st.binary(max_size=12))
    return draw(st.sampled_from(_NUMBERS)) % (1 << {0: 64, 1: 64, 5: 32}[kind])


def _places(root: Field) -> list[tuple[list[Field], int]]:
    found = []
    left = [root]
    while left:
        fields = left.pop()[2]
        for at, field in enumerate(fields):
            found.append((fields, at))
            if isinstance(field[2], list):
                left.append(field)
    return found


def _fields(data: bytes) -> list[Field]:
    """The fields of a message. Raises ValueError for what is none."""
    fields: list[Field] = []
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        value: Any
        if kind == 0:
            value, at = _varint(data, at)
        elif kind == 2:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise ValueError("cut short")
            value, at = _content(data[at : at + size]), at + size
        elif kind in (1, 5) and at + (8 if kind == 1 else 4) <= len(data):
            width = 8 if kind == 1 else 4
            value, at = int.from_bytes(data[at : at + width], "little"), at + width
        else:
            raise ValueError("no wire type")
        if not number:
            raise ValueError("no field")
        fields.append([number, kind, value])
    return fields


def _content(data: bytes) -> Any:
    """Bytes, or the fields that they are: which of them cannot be seen, but text is rarely a message."""
    try:
        return _fields(data) if data and not data.isalnum() else data
    except ValueError:
        return data


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("no number")
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value & (2**64 - 1), at


def _encoded(fields: Sequence[Field]) -> bytes:
    out = bytearray()
    for number, kind, value in fields:
        out += _as_varint(number << 3 | kind)
        if kind == 0:
            out += _as_varint(value)
        elif kind == 2:
            content = _encoded(value) if isinstance(value, list) else value
            out += _as_varint(len(content)) + content
        else:
            out += struct.pack("<Q" if kind == 1 else "<I", value)
    return bytes(out)


def _as_varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


_DESCRIPTIONS = (
    "'<f4'",
    "'<i8'",
    "'|O'",
    "'|V0'",
    "'<U999999999'",
    "[('id', '<i8'), ('sha256', '|u1', (32,))]",
)
_DESCRIPTIONS += ("[('a', '<f4', (999999999,))]", "'x'", "[('a', 'b'), ('a', 'b')]", "None", "'<M8[s]'", "[]")
_SHAPES = (
    "(2, 3)",
    "(3,)",
    "()",
    "(0,)",
    "(99999999999,)",
    "(-1,)",
    "(2**70,)",
    "(0, 99999999999999)",
    "(True,)",
)
_SHAPES += ("[3]", "((3,),)", "(9" + "9" * 30 + ",)", "(1.5,)", "(" + "1," * 70 + ")")


@st.composite
def numpy_files(draw: DrawFn, body: bytes) -> bytes:
    """Files of NumPy's format whose headers say other types and shapes than the body has."""
    version = draw(st.sampled_from((1, 1, 1, 2, 3, 9)))
    order = draw(st.sampled_from(("False", "True", "3")))
    descr, shape = draw(st.sampled_from(_DESCRIPTIONS)), draw(st.sampled_from(_SHAPES))
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    header = header.ljust(118) + b"\n"
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes((version, 0)) + length + header + body
