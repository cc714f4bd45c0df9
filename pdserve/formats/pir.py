"""Parser of Paddle 3's program files: PIR as JSON.

The layout, as Paddle 3.3 writes it (its keys are one or two letters)::

    {"base_code": {"magic": "pir", "version": 4},
     "program": {"regions": [{"blocks": [{"ops": [OP…]}]}]}}
    OP         {"#": "1.conv2d", "I": operands, "O": [RESULT…], "A": [{"N": name, "AT": {"D": value}}…]}
    parameter  {"#": "p", "O": RESULT, "A": [distributed, parameter, clip, name], "OA": [persistable, …]}
    RESULT     {"%": id, "TT": {"#": "0.t_dtensor", "D": [{"#": "0.t_f32"}, dims, layout, lod, offset]}}

The number before the point is the dialect. An operator may contain regions (``if``, ``while``).
"""

import json
from collections.abc import Iterator
from typing import Any

from pdserve.errors import ModelError
from pdserve.formats.program import Program, Signature, TensorSpec, tensor_spec

_DTYPES = {
    "bool": "bool",
    "i8": "int8",
    "ui8": "uint8",
    "i16": "int16",
    "i32": "int32",
    "i64": "int64",
    "f16": "float16",
    "bf16": "bfloat16",
    "f32": "float32",
    "f64": "float64",
    "c64": "complex64",
    "c128": "complex128",
}

_PARAMETERS = {"p", "parameter"}
_FEEDS = {"data", "feed"}


def parse_pir(data: bytes, source: str) -> Program:
    """Parse the file's bytes. Raises ModelError, naming ``source``, for anything that is no program."""
    try:
        document = json.loads(data)
        if document["base_code"]["magic"] != "pir":
            raise ValueError("it says that it is something else")
        # A deeper block may use any operator, but feeds, fetches and parameters are the first's.
        main = list(document["program"]["regions"][0]["blocks"][0]["ops"])
        fetches = [(attribute(op, "col"), _result(op)) for op in main if op_type(op) == "fetch"]
        parameters = [_parameter(op) for op in main if op_type(op) in _PARAMETERS and _persistable(op)]
        return Program(
            Signature(
                tuple(_result(op) for op in main if op_type(op) in _FEEDS),
                tuple(spec for _, spec in sorted(fetches, key=lambda item: int(item[0]))),
            ),
            frozenset(_types(document["program"])) - _PARAMETERS - _FEEDS - {"fetch"},
            tuple(sorted(parameters, key=lambda p: p.name)),
        )
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ModelError(
            f"{source} is no readable PIR program: {type(error).__name__}, {error}; export it again."
        ) from error


def op_type(op: Any) -> str:
    """An operator's name without its dialect. Raises LookupError, ValueError, TypeError."""
    name = op["#"]
    if not isinstance(name, str) or not name:
        raise ValueError(f"an operator has the type {name!r}")
    return name.split(".", 1)[-1]


def _types(program: Any) -> Iterator[str]:
    regions = list(program["regions"])
    while regions:  # no recursion: the depth is the file's to choose
        for block in regions.pop()["blocks"]:
            for op in block["ops"]:
                yield op_type(op)
                regions.extend(op.get("regions", ()))


def attribute(op: Any, name: str) -> Any:
    """Value of an operator's attribute. Raises ValueError where it has none, LookupError, TypeError."""
    for attribute in op["A"]:
        if attribute["N"] == name:
            return attribute["AT"]["D"]
    raise ValueError(f"operator {op_type(op)!r} has no {name!r}")


def _result(op: Any) -> TensorSpec:
    dtype, dims, lod_level = dense_tensor(op["O"][0])
    return tensor_spec(attribute(op, "name"), dtype, dims, lod_level)


def _parameter(op: Any) -> TensorSpec:
    if op["#"] == "p":
        name, result = op["A"][3], op["O"]
    else:  # before the short form
        name, result = attribute(op, "parameter_name"), op["O"][0]
    dtype, dims, _ = dense_tensor(result)
    return tensor_spec(name, dtype, dims)


def _persistable(op: Any) -> bool:
    flags = op.get("OA") or [1]
    return bool(flags[0])


def dense_tensor(result: Any) -> tuple[str, list[Any], int]:
    """NumPy's name of a result's data type, its dimensions and number of LoD levels. Raises ValueError."""
    kind, content = result["TT"]["#"], result["TT"]["D"]
    if kind.split(".", 1)[-1] != "t_dtensor":
        raise ValueError(f"a tensor is of the kind {kind!r}")
    element = content[0]["#"].split(".", 1)[-1].removeprefix("t_")
    if element not in _DTYPES:
        raise ValueError(f"a tensor has the data type {element!r}")
    return _DTYPES[element], list(content[1]), len(content[3])
