"""Reads what an ONNX file feeds and fetches, without its weights, and whether it is whole.

ONNX is a protobuf message (onnx/onnx.proto). Of it, by field number::

    ModelProto      7 graph, 8 opset_import
    OperatorSetId   1 domain ("" for ONNX's own), 2 version
    GraphProto      11 input, 12 output
    ValueInfo       1 name, 2 type
    Type            1 tensor: 1 element type, 2 shape: 1 dimension: 1 value (else the extent is free)

The fields are walked in the mapped file, as protobuf's own parser would copy the weights: hundreds of MB.
"""

import mmap
from dataclasses import dataclass
from pathlib import Path

from pdserve.errors import ModelError
from pdserve.files import read_errors
from pdserve.formats.program import Signature, TensorSpec, tensor_spec
from pdserve.formats.protos.wire import Span, fields

# TensorProto.DataType -> NumPy's name.
_DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    14: "complex64",
    15: "complex128",
    16: "bfloat16",
}


@dataclass(frozen=True)
class OnnxFile:
    """``opset``: version of ONNX's own operators; ``signature``: feeds and fetches in the file's order."""

    opset: int
    signature: Signature


def read_onnx(path: Path) -> OnnxFile:
    """Read an ONNX file's opset, feeds and fetches. Raises ModelError for a file that is none, or is cut."""
    try:
        with (
            read_errors(ModelError, path),
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            return _model(data)
    except (ValueError, LookupError) as error:  # mmap's too, of an empty file
        raise ModelError(f"{path} is no whole ONNX file: {error}.") from error


def _model(data: mmap.mmap) -> OnnxFile:
    opset = 0
    feeds: list[TensorSpec] = []
    fetches: list[TensorSpec] = []
    for field, value in fields(data, (0, len(data))):
        if field == 8 and isinstance(value, tuple):
            imported = dict(fields(data, value))
            domain, version = imported.get(1, (0, 0)), imported.get(2, 0)
            if isinstance(domain, tuple) and isinstance(version, int) and domain[0] == domain[1]:
                opset = version
        elif field == 7 and isinstance(value, tuple):
            for part, span in fields(data, value):
                if part in (11, 12):
                    (feeds if part == 11 else fetches).append(_spec(data, span))
    if not opset or not fetches:
        raise ValueError("it has no operators or no outputs")
    return OnnxFile(opset, Signature(tuple(feeds), tuple(fetches)))


def _spec(data: mmap.mmap, span: int | Span) -> TensorSpec:
    info = dict(fields(data, _message(span)))
    start, end = _message(info[1])
    tensor = dict(fields(data, _message(dict(fields(data, _message(info[2])))[1])))
    dims = []
    if 2 in tensor:
        for field, dimension in fields(data, _message(tensor[2])):
            if field == 1:
                extent = dict(fields(data, _message(dimension))).get(1, -1)
                dims.append(extent if isinstance(extent, int) and extent < 2**31 else -1)
    element = tensor[1]
    if not isinstance(element, int) or element not in _DTYPES:
        raise ValueError(f"a tensor has the data type {element}")
    return tensor_spec(data[start:end].decode(), _DTYPES[element], dims)


def _message(value: int | Span) -> Span:
    if isinstance(value, int):
        raise ValueError("a number stands where a message should")
    return value
