"""Rewrites operators of a Paddle 3 program (PIR) that p2o lacks, or converts to something else.

A table, ``_REWRITES``: an operator -> the operators that compute the same and that p2o 0.1.2 knows. What is
in it and yet has a form that is not known here is left to p2o, which refuses it by name.
"""

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pdserve.formats.pir import attribute, dense_tensor, op_type

_Results = Mapping[int, Any]  # result -> the operator that it is of


class _Operators:
    """The operators that take the place of one: ``made``, in their order.

    A result is its number; ``unused`` is the first that no operator has yet.
    """

    def __init__(self, replaced: Any, unused: int) -> None:
        self.made: list[Any] = []
        self.unused = unused
        self._replaced = replaced
        self._result = replaced["O"][0]

    def operand(self, place: int = 0) -> int:
        """An input of the operator that is replaced."""
        return int(self._replaced["I"][place]["%"])

    def full(self, value: float) -> int:
        """A constant of float32 with one element."""
        number = {"#": "0.a_f64", "D": value}
        shape = {"#": "1.a_intarray", "D": [1]}
        return self._constant("full", "float32", 1, {"shape": shape, "value": number})

    def integers(self, values: Sequence[int]) -> int:
        """A constant of int64 with one dimension."""
        array = {"#": "0.a_array", "D": [{"#": "0.a_i64", "D": value} for value in values]}
        return self._constant("full_int_array", "int64", len(values), {"value": array})

    def _constant(self, kind: str, dtype: str, length: int, attributes: Mapping[str, Any]) -> int:
        given = {
            **attributes,
            "dtype": {"#": "1.a_dtype", "D": dtype},
            "place": {"#": "1.a_place", "D": [1, 0, ""]},
        }
        return self.add(kind, [], given, [length], dtype)

    def add(
        self,
        kind: str,
        inputs: Sequence[int],
        attributes: Mapping[str, Any] | None = None,
        shape: Sequence[int] | None = None,
        dtype: str | None = None,
    ) -> int:
        """An operator with one result, of the replaced one's form where no other is given."""
        tensor = copy.deepcopy(self._result["TT"])
        if shape is not None:
            tensor["D"][1] = list(shape)
        if dtype is not None:
            tensor["D"][0] = {"#": f"0.t_{_ELEMENTS[dtype]}"}
        self._append(kind, inputs, attributes, [{"%": self.unused, "TT": tensor}])
        self.unused += 1
        return self.unused - 1

    def last(self, kind: str, inputs: Sequence[int], attributes: Mapping[str, Any] | None = None) -> None:
        """The operator whose result is the replaced one's first."""
        self._append(kind, inputs, attributes, [self._result])

    def scale(self, value: int, factor: float) -> int:
        """``value`` times ``factor``."""
        return self.add("scale", [value, self.full(factor)], _SCALE)

    def _append(
        self, kind: str, inputs: Sequence[int], attributes: Mapping[str, Any] | None, results: list[Any]
    ) -> None:
        self.made.append(
            {
                "#": f"1.{kind}",
                "A": [{"AT": value, "N": name} for name, value in (attributes or {}).items()],
                "I": [{"%": value} for value in inputs],
                "O": results,
                "OA": [],
            }
        )


_ELEMENTS = {"float32": "f32", "int64": "i64", "bool": "bool"}
_SCALE = {"bias": {"#": "0.a_f32", "D": 0.0}, "bias_after_scale": {"#": "0.a_bool", "D": True}}


def rewritten(program: bytes) -> bytes | None:
    """A program of which p2o makes what Paddle computes; None where the program is one as it stands.

    Raises LookupError, ValueError or TypeError for an operator that is not written as Paddle writes it.
    """
    document = json.loads(program)
    blocks = list(_blocks(document["program"]))
    results = {
        result["%"]: op
        for block in blocks
        for op in block["ops"]
        for result in (op["O"] if isinstance(op["O"], list) else [op["O"]])
    }
    unused = max(results, default=0) + 1
    changed = False
    for block in blocks:
        ops: list[Any] = []
        for op in block["ops"]:
            if rewrite := _REWRITES.get(op_type(op)):
                new = _Operators(op, unused)
                rewrite(op, new, results)
                unused = new.unused
                changed |= bool(new.made)
                ops += new.made or [op]
            else:
                ops.append(op)
        block["ops"] = ops
    return json.dumps(document, separators=(",", ":")).encode() if changed else None


def _blocks(program: Any) -> Iterator[Any]:
    regions = list(program["regions"])
    while regions:  # no recursion: the depth is the file's to choose
        for block in regions.pop()["blocks"]:
            yield block
            for op in block["ops"]:
                regions.extend(op.get("regions", ()))


def _is_float32(op: Any) -> bool:
    return dense_tensor(op["O"][0])[0] == "float32"


def _dropout(op: Any, new: _Operators, results: _Results) -> None:
    """``dropout`` of the mode ``downgrade_in_infer``, PaddleClas's usual one, multiplies by 1 - p.

    p2o leaves it out, also with ``--strict``, and all numbers after it are wrong. In the other mode nothing
    is computed.
    """
    if attribute(op, "mode") != "downgrade_in_infer" or attribute(op, "is_test") is not True:
        return
    given = results[new.operand(2)]
    if op_type(given) != "full":
        raise ValueError("the probability of a dropout is computed")
    # The second result is the mask, which only training uses.
    new.last("scale", [new.operand(), new.full(1 - attribute(given, "value"))], _SCALE)


def _relu6(op: Any, new: _Operators, _: _Results) -> None:
    """MobileNetV2 and its relatives."""
    if _is_float32(op):
        new.last("clip", [new.operand(), new.full(0.0), new.full(6.0)])


# e^x as a power of e^8: that number, as float32 and as float16 have it, lies so near that the result is right
# to 1e-7 at x = 100 (e itself, as float32 has it: 3e-6). An eighth of x is exact.
_EXPONENT = 8.0
_BASE = 2980.9579870417283


def _exp(op: Any, new: _Operators, _: _Results) -> None:
    """Detectors that predict the logarithm of a box's size: YOLOX, BlazeFace."""
    if _is_float32(op):
        eighth = new.scale(new.operand(), 1 / _EXPONENT)
        new.last("elementwise_pow", [new.full(_BASE), eighth])


def _rsqrt(op: Any, new: _Operators, _: _Results) -> None:
    """Normalisations that are written out, as in PaddleX's own RT-DETR."""
    if _is_float32(op):
        root = new.add("sqrt", [new.operand()])
        new.last("divide", [new.full(1.0), root])


def _reciprocal(op: Any, new: _Operators, _: _Results) -> None:
    if _is_float32(op):
        new.last("divide", [new.full(1.0), new.operand()])


def _square(_op: Any, new: _Operators, _: _Results) -> None:
    new.last("multiply", [new.operand(), new.operand()])


def _maximum(_op: Any, new: _Operators, _: _Results) -> None:
    """Element by element; of a number and no number, the first."""
    x, y = new.operand(), new.operand(1)
    new.last("where", [new.add("less_than", [x, y], dtype="bool"), y, x])


def _minimum(_op: Any, new: _Operators, _: _Results) -> None:
    x, y = new.operand(), new.operand(1)
    new.last("where", [new.add("less_than", [y, x], dtype="bool"), y, x])


def _p_norm(op: Any, new: _Operators, results: _Results) -> None:
    """The length of vectors, by which heads of embedders divide."""
    if attribute(op, "porder") != 2 or attribute(op, "asvector") or not _is_float32(op):
        return
    x = new.operand()
    shape = _shape(results, x)
    if not shape:
        return
    squares = new.add("multiply", [x, x], shape=shape)
    summed = new.add(
        "sum",
        [squares, new.integers([attribute(op, "axis")])],
        {
            "dtype": {"#": "1.a_dtype", "D": "float32"},
            "keepdim": {"#": "0.a_bool", "D": attribute(op, "keepdim")},
        },
    )
    new.last("sqrt", [summed])


def _full_batch_size_like(op: Any, new: _Operators, results: _Results) -> None:
    """A number over a tensor, ``1 / x``: Paddle writes the number in the tensor's shape."""
    shape = dense_tensor(op["O"][0])[1]
    if shape == _shape(results, new.operand()) and _is_float32(op):
        kept = {entry["N"]: entry["AT"] for entry in op["A"] if entry["N"] in ("dtype", "place")}
        new.last("full_like", [new.operand(), new.full(attribute(op, "value"))], kept)


def _pool2d(op: Any, new: _Operators, results: _Results) -> None:
    """An adaptive one whose windows are all of one size and do not overlap: a pool with that size.

    p2o knows those of one window.
    """
    if not attribute(op, "adaptive") or attribute(op, "data_format") != "NCHW":
        return
    size, made = _shape(results, new.operand())[2:], dense_tensor(op["O"][0])[1][2:]
    if made == [1, 1] or len(size) != len(made) or min(size + made) < 1:
        return
    if any(a % b for a, b in zip(size, made, strict=True)):
        return
    window = [a // b for a, b in zip(size, made, strict=True)]
    attributes = {entry["N"]: entry["AT"] for entry in op["A"]}
    attributes["adaptive"] = {"#": "0.a_bool", "D": False}
    strides = [{"#": "0.a_i64", "D": extent} for extent in window]
    attributes["strides"] = {"#": "0.a_array", "D": strides}
    new.last("pool2d", [new.operand(), new.integers(window)], attributes)


def _conv2d_transpose(op: Any, new: _Operators, results: _Results) -> None:
    """Without a result size that is empty, as Paddle writes none: p2o makes an empty attribute of it.

    The depthwise one is another name for the same.
    """
    sizes = [value["%"] for value in op["I"][2:] if value["%"] in results]
    empty = all(
        op_type(results[size]) == "full_int_array" and not attribute(results[size], "value") for size in sizes
    )
    if (sizes and empty) or op_type(op) != "conv2d_transpose":
        inputs = [value["%"] for value in (op["I"][:2] if empty else op["I"])]
        new.last("conv2d_transpose", inputs, {entry["N"]: entry["AT"] for entry in op["A"]})


def _prelu(op: Any, new: _Operators, results: _Results) -> None:
    """One slope for each channel, as in MobileFaceNet.

    p2o writes the slopes in one dimension, which ONNX means to be the last one of what they are applied to.
    """
    if attribute(op, "mode") != "channel" or attribute(op, "data_format") != "NCHW":
        return
    slopes, size = new.operand(1), dense_tensor(op["O"][0])[1]
    shape = [*_shape(results, slopes), *[1] * (len(size) - 2)]
    if len(shape) == len(size) - 1:
        reshaped = new.add("reshape", [slopes, new.integers(shape)], shape=shape)
        new.last("prelu", [new.operand(), reshaped], {entry["N"]: entry["AT"] for entry in op["A"]})


def _shape(results: _Results, value: int) -> list[int]:
    """Empty for what no operator makes: the input of a block."""
    if value not in results:
        return []
    made = results[value]["O"]
    made = made if isinstance(made, list) else [made]
    return dense_tensor(next(result for result in made if result["%"] == value))[1]


# Each appends the operators that take an operator's place, or none to leave it.
_REWRITES: Mapping[str, Callable[[Any, _Operators, _Results], None]] = {
    "dropout": _dropout,
    "relu6": _relu6,
    "exp": _exp,
    "rsqrt": _rsqrt,
    "reciprocal": _reciprocal,
    "square": _square,
    "maximum": _maximum,
    "minimum": _minimum,
    "p_norm": _p_norm,
    "full_batch_size_like": _full_batch_size_like,
    "pool2d": _pool2d,
    "prelu": _prelu,
    "conv2d_transpose": _conv2d_transpose,
    "depthwise_conv2d_transpose": _conv2d_transpose,
}
OPERATORS = frozenset(_REWRITES)
