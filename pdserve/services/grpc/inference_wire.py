"""Reads requests of the Open Inference Protocol from protobuf's wire format; see wire.py for why.

Numbers of tensors are taken as they stand in the message, or decoded in slices, once their count is known to
be the one that the shape says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pdserve.errors import RequestError
from pdserve.services.grpc.wire import (
    BYTES,
    VARINT,
    MalformedMessageError,
    Reader,
    count_varints,
    read_varint,
    signed,
    text_of,
)
from pdserve.services.inference.requests import (
    InferRequest,
    check_no_shared_memory,
    check_tensors,
    request_parameters,
    wanted_output,
)
from pdserve.services.inference.tensors import BYTES as TEXTS
from pdserve.services.inference.tensors import (
    DATATYPES,
    MAX_RANK,
    InputTensor,
    element_count,
    from_array,
    from_raw,
    image_file,
    shown,
)
from pdserve.services.parsing import IN_A_THREAD, SLICE, Bounds, TooMuchError
from pdserve.settings import ServerSettings
from pdserve.vision.types import Array

# Varints that are decoded on the event loop.
_MANY = 16 * 1024
# The field of InferTensorContents for each type of data; FP16 has none.
CONTENTS: Mapping[str, tuple[int, str]] = {
    "BOOL": (1, "bool_contents"),
    "INT8": (2, "int_contents"),
    "INT16": (2, "int_contents"),
    "INT32": (2, "int_contents"),
    "INT64": (3, "int64_contents"),
    "UINT8": (4, "uint_contents"),
    "UINT16": (4, "uint_contents"),
    "UINT32": (4, "uint_contents"),
    "UINT64": (5, "uint64_contents"),
    "FP32": (6, "fp32_contents"),
    "FP64": (7, "fp64_contents"),
    TEXTS: (8, "bytes_contents"),
}


@dataclass
class _Tensor:
    name: str = ""
    datatype: str = ""
    shape: list[int] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    numbers: dict[int, memoryview] = field(default_factory=dict)
    texts: list[memoryview] = field(default_factory=list)


@dataclass(frozen=True)
class ReadRequest:
    """A request. ``raw``: its tensors came as bytes; ``final``: it asks which answer is the last."""

    request: InferRequest
    raw: bool
    final: bool


def read_infer(message: bytes, bounds: Bounds, limits: ServerSettings) -> ReadRequest:
    """A ModelInferRequest. Raises MalformedMessageError, TooMuchError, RequestError, BodyTooLargeError."""
    reader = Reader(bounds)
    texts = {1: "", 2: "", 3: ""}
    parameters: dict[str, Any] = {}
    inputs: list[memoryview] = []
    outputs: list[memoryview] = []
    raw: list[memoryview] = []
    for number, wire, content in reader.fields(memoryview(message)):
        if wire != BYTES or not isinstance(content, memoryview):
            continue
        if number in texts:
            texts[number] = text_of(content)
        elif number == 4:
            _add_parameter(reader, content, parameters)
        elif number in (5, 6, 7):
            {5: inputs, 6: outputs, 7: raw}[number].append(content)
    check_tensors("inputs", max(len(inputs), len(raw)))
    check_tensors("outputs", len(outputs))
    if not inputs:
        raise RequestError("The request has no inputs.")
    described = [_tensor(reader, each, _INPUT_PARAMETERS) for each in inputs]
    if raw and len(raw) != len(inputs):
        raise RequestError(
            f"The request has {len(inputs)} inputs and raw_input_contents of {len(raw)}; give the bytes of "
            "each."
        )
    tensors = [
        _raw(each, contents, limits) if raw else _listed(each, limits, bounds)
        for each, contents in zip(described, raw or inputs, strict=True)
    ]
    asked_for = [_tensor(reader, each, _OUTPUT_PARAMETERS) for each in outputs]
    wanted = [wanted_output(each.name, each.parameters) for each in asked_for]
    asked = request_parameters(parameters)
    request = InferRequest(
        texts[1], tensors, wanted, texts[2], texts[3], asked.top_k, asked.timeout_s, binary=False
    )
    return ReadRequest(request, bool(raw), parameters.get("triton_enable_empty_final_response") is True)


@dataclass
class Small:
    """A request without tensors: texts and flags by the numbers of their fields, the keys of parameters."""

    texts: dict[int, str] = field(default_factory=dict)
    flags: dict[int, bool] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)


def read_small(message: bytes) -> Small:
    """A request whose texts are its fields 1 and 2, and whose parameters are field 3. Raises as above."""
    found, reader = Small(), Reader(Bounds(256, 0))
    for number, wire, content in reader.fields(memoryview(message)):
        if wire == VARINT:
            found.flags[number] = bool(content)
        elif wire == BYTES and isinstance(content, memoryview):
            if number <= 2:
                found.texts[number] = text_of(content)
            elif number == 3:
                parameters: dict[str, Any] = {}
                _add_parameter(reader, content, parameters)
                found.keys += parameters
    return found


_INPUT_PARAMETERS, _OUTPUT_PARAMETERS = 4, 2


def _tensor(reader: Reader, data: memoryview, parameters: int) -> _Tensor:
    """An InferInputTensor, or an InferRequestedOutputTensor; ``parameters``: the field that has them."""
    found = _Tensor()
    for number, wire, content in reader.fields(data):
        if number == 3 and wire == VARINT and isinstance(content, int):
            found.shape.append(signed(content, 64))
        elif wire != BYTES or not isinstance(content, memoryview):
            continue
        elif number == 1:
            found.name = text_of(content)
        elif number == parameters:
            _add_parameter(reader, content, found.parameters)
        elif number == 2:
            found.datatype = text_of(content)
        elif number == 3:
            found.shape += _shape(content)
        elif number == 5:
            _read_contents(reader, content, found)
        if len(found.shape) > MAX_RANK:
            raise RequestError(
                f"The input {shown(found.name)} has more dimensions than the limit of {MAX_RANK}."
            )
    return found


def _shape(packed: memoryview) -> list[int]:
    found: list[int] = []
    at = 0
    while at < len(packed) and len(found) <= MAX_RANK:
        try:
            value, at = read_varint(packed, at)
        except IndexError:
            raise MalformedMessageError("packed numbers end in the middle of one") from None
        found.append(signed(value, 64))
    return found


def _add_parameter(reader: Reader, entry: memoryview, into: dict[str, Any]) -> None:
    """Read an entry of a map from texts to InferParameter."""
    key, value = "", memoryview(b"")
    for number, wire, content in reader.fields(entry):
        if wire == BYTES and isinstance(content, memoryview):
            if number == 1:
                key = text_of(content)
            elif number == 2:
                value = content
    found: Any = None
    for number, wire, content in reader.fields(value):
        if number == 1 and wire == VARINT:
            found = bool(content)
        elif number in (2, 5) and isinstance(content, int):
            found = signed(content, 64) if number == 2 else content
        elif number == 3 and isinstance(content, memoryview):
            found = text_of(content)
        elif number == 4:
            found = 0.0  # no parameter that means something here has fractions
    into[key] = found


def _read_contents(reader: Reader, data: memoryview, into: _Tensor) -> None:
    for number, wire, content in reader.fields(data):
        if wire != BYTES or not isinstance(content, memoryview):
            raise MalformedMessageError("the numbers of a tensor are not packed")
        if number == 8:
            into.texts.append(content)
        elif number in into.numbers:
            raise MalformedMessageError("the numbers of a tensor are in several pieces")
        else:
            into.numbers[number] = content


def _raw(tensor: _Tensor, contents: memoryview, limits: ServerSettings) -> InputTensor:
    check_no_shared_memory(tensor.parameters)
    return from_raw(tensor.name, tensor.datatype, tuple(tensor.shape), contents, limits.max_images)


def _listed(tensor: _Tensor, limits: ServerSettings, bounds: Bounds) -> InputTensor:
    """A tensor whose numbers or texts are in its contents."""
    check_no_shared_memory(tensor.parameters)
    name, datatype, shape = tensor.name, tensor.datatype, tuple(tensor.shape)
    count = element_count(name, datatype, shape, limits.max_images)
    number, title = CONTENTS.get(datatype, (0, "raw_input_contents"))
    packed = tensor.numbers.get(number, memoryview(b""))
    if datatype == TEXTS:
        found = len(tensor.texts)
    elif number in (6, 7):
        found = len(packed) // (4 if number == 6 else 8)
    else:
        found = count_varints(packed)
    if found != count or (number in (6, 7) and len(packed) % (4 if number == 6 else 8)):
        raise RequestError(
            f"The input {shown(name)} has {found} values in {title}; the shape {list(shape)} has {count}."
        )
    if datatype == TEXTS:
        return InputTensor(name, datatype, shape, [image_file(each) for each in tensor.texts])
    if number in (6, 7):
        dtype = DATATYPES[datatype]
        return from_array(name, datatype, shape, np.frombuffer(packed, dtype.newbyteorder("<")).astype(dtype))
    if count > _MANY and bounds != IN_A_THREAD:
        raise TooMuchError(bounds)
    return from_array(name, datatype, shape, _varints(name, datatype, packed, count))


def _varints(name: str, datatype: str, packed: memoryview, count: int) -> Array:
    """Packed varints as an array, slice by slice. Raises RequestError for one that the type does not have."""
    dtype = DATATYPES[datatype]
    out = np.empty(count, dtype)
    at = filled = 0
    while at < len(packed):
        data = np.frombuffer(packed[at : at + SLICE], np.uint8)
        ends = np.flatnonzero(data < 128)
        lengths = np.diff(ends, prepend=-1)
        starts = ends - lengths + 1
        values = np.zeros(len(ends), np.uint64)
        for place in range(int(lengths.max(initial=0))):
            some = lengths > place
            values[some] |= (data[starts[some] + place] & 127).astype(np.uint64) << np.uint64(7 * place)
        out[filled : filled + len(ends)] = _of_type(name, datatype, values)
        filled += len(ends)
        at += int(ends[-1]) + 1
    return out


def _of_type(name: str, datatype: str, values: Array) -> Array:
    dtype = DATATYPES[datatype]
    numbers = values.view(np.int64) if dtype.kind == "i" else values
    if dtype.kind == "b":
        return numbers.astype(np.bool_)
    limits = np.iinfo(dtype)
    if len(numbers) and not limits.min <= int(numbers.min()) <= int(numbers.max()) <= limits.max:
        raise RequestError(f"The input {shown(name)} has values that {datatype} does not have.")
    return numbers.astype(dtype)


def encode_contents(datatype: str, data: Any) -> tuple[str, Sequence[Any]] | None:
    """The field of an answer's contents, and what goes into it; None for a type of data that has none."""
    if datatype not in CONTENTS:
        return None
    return CONTENTS[datatype][1], data if datatype == TEXTS else data.reshape(-1).tolist()
