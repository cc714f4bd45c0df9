"""Programs: what an inference model feeds, fetches, runs and stores; read from ProgramDesc without Paddle.

ProgramDesc is a protobuf message (``*.pdmodel``, ``__model__``; Paddle 1 and 2). Paddle 3's form, PIR, is
read in ``pir.py`` into the same `Program`.

Names are those that Paddle's own predictor reports. Feeds have the same names in both formats; fetches
do not: a ProgramDesc fetches variables (``softmax_0.tmp_0``), whereas values have no names in PIR, so that
Paddle 3 calls them by their place, ``fetch_name_0``. Order, dtypes and shapes agree.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from pdserve.errors import ModelError
from pdserve.formats.protos import message

MAX_RANK = 32


@dataclass(frozen=True)
class TensorSpec:
    """``dtype`` is NumPy's name (and ``bfloat16``); ``shape`` has -1 where an extent is free."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    lod_level: int = 0


@dataclass(frozen=True)
class Signature:
    """Feeds and fetches in the order in which Paddle's predictor lists them."""

    feeds: tuple[TensorSpec, ...]
    fetches: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Program:
    """What there is to know of a program; ``parameters`` in the order of the parameter file, by name."""

    signature: Signature
    operators: frozenset[str]
    parameters: tuple[TensorSpec, ...]


def tensor_spec(name: Any, dtype: str, shape: Iterable[Any], lod_level: int = 0) -> TensorSpec:
    """Build a TensorSpec of what a file says. Raises ValueError for what cannot be served, or is no name."""
    if not isinstance(name, str) or not name or not name.isprintable():
        raise ValueError(f"a tensor has the name {name!r}")
    dims = tuple(shape)
    if len(dims) > MAX_RANK or any(type(d) is not int or d >= 2**31 for d in dims):
        raise ValueError(f"tensor {name!r} has the shape {dims[: MAX_RANK + 1]}")
    return TensorSpec(name, dtype, tuple(max(d, -1) for d in dims), lod_level)


# VarType.Type of Paddle's framework.proto -> NumPy's name, bytes of an element.
_DTYPES = {
    "BOOL": ("bool", 1),
    "INT8": ("int8", 1),
    "UINT8": ("uint8", 1),
    "INT16": ("int16", 2),
    "INT32": ("int32", 4),
    "INT64": ("int64", 8),
    "FP16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "FP32": ("float32", 4),
    "FP64": ("float64", 8),
    "COMPLEX64": ("complex64", 8),
    "COMPLEX128": ("complex128", 16),
}


def parse_program_desc(data: bytes, source: str) -> Program:
    """Parse a serialised ProgramDesc. Raises ModelError, naming ``source``, for anything else."""
    program = message("pdserve.program.ProgramDesc")()
    try:
        program.ParseFromString(data)
        if not program.IsInitialized() or not program.blocks:
            raise ValueError("required fields are missing")
        main = program.blocks[0]
        variables = {v.name: v for v in main.vars}
        kept = [v for v in main.vars if v.persistable and v.type.type == v.type.DENSE_TENSOR]
        return Program(
            Signature(_columns(main, "feed", variables), _columns(main, "fetch", variables)),
            frozenset(str(op.type) for block in program.blocks for op in block.ops) - {"feed", "fetch"},
            tuple(sorted((_spec(v) for v in kept), key=lambda p: p.name)),
        )
    except (DecodeError, ValueError) as error:
        raise ModelError(f"{source} is no readable ProgramDesc: {error}; export it again.") from error


def _columns(block: Any, kind: str, variables: dict[str, Any]) -> tuple[TensorSpec, ...]:
    """The variables that feed (fetch) operators name, by their column and not by their place in the block."""
    found: dict[int, TensorSpec] = {}
    for op in block.ops:
        if op.type != kind:
            continue
        slots, parameter = (op.outputs, "Out") if kind == "feed" else (op.inputs, "X")
        names = [name for slot in slots if slot.parameter == parameter for name in slot.arguments]
        columns = [attr.i for attr in op.attrs if attr.name == "col"]
        if len(names) != 1 or len(columns) != 1 or columns[0] in found or names[0] not in variables:
            raise ValueError(f"a {kind} operator is malformed")
        found[columns[0]] = _spec(variables[names[0]])
    return tuple(found[column] for column in sorted(found))


def _spec(variable: Any) -> TensorSpec:
    if not variable.type.HasField("dense_tensor"):
        raise ValueError(f"variable {variable.name!r} is no dense tensor")
    tensor = variable.type.dense_tensor.tensor
    dtype, _ = element(tensor)
    return tensor_spec(variable.name, dtype, tensor.dims, variable.type.dense_tensor.lod_level)


def element(desc: Any) -> tuple[str, int]:
    """NumPy's name of a TensorDesc's data type, and its bytes."""
    name = desc.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[desc.data_type].name
    if name not in _DTYPES:
        raise ValueError(f"a tensor has the data type {name}")
    return _DTYPES[name]
