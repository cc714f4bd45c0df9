"""Rewrites operators of a Paddle 3 program (PIR) that p2o lacks, or converts to something else.

``dropout`` of the mode ``downgrade_in_infer``, PaddleClas's usual one, multiplies by 1 - p when a network is
not trained. p2o 0.1.2 leaves it out, also with ``--strict``, and all numbers after it are wrong. It becomes
``scale``, which p2o converts. ``relu6``, which MobileNetV2 and its relatives use, becomes ``clip``.
"""

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pdserve.formats.pir import attribute, dense_tensor, op_type

Results = Mapping[int, Any]  # result -> the operator that it is of


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
            made = _REWRITES[op_type(op)](op, results, unused) if op_type(op) in _REWRITES else None
            ops += [op] if made is None else made
            unused += len(made or ())
            changed |= made is not None
        block["ops"] = ops
    return json.dumps(document, separators=(",", ":")).encode() if changed else None


def _blocks(program: Any) -> Iterator[Any]:
    regions = list(program["regions"])
    while regions:  # no recursion: the depth is the file's to choose
        for block in regions.pop()["blocks"]:
            yield block
            for op in block["ops"]:
                regions.extend(op.get("regions", ()))


def _dropout(op: Any, results: Results, unused: int) -> list[Any] | None:
    """``dropout(x, seed, p)`` -> ``scale(x, 1 - p)``; None for the mode in which nothing is computed."""
    if attribute(op, "mode") != "downgrade_in_infer" or attribute(op, "is_test") is not True:
        return None
    x, _, p = op["I"]
    given = results[p["%"]]
    if op_type(given) != "full":
        raise ValueError("the probability of a dropout is computed")
    factor = copy.deepcopy(given)
    next(entry for entry in factor["A"] if entry["N"] == "value")["AT"]["D"] = 1 - attribute(given, "value")
    factor["O"][0]["%"] = unused
    scale = {
        "#": f"{op['#'].partition('.')[0]}.scale",
        "A": [
            {"AT": {"#": "0.a_f32", "D": 0.0}, "N": "bias"},
            {"AT": {"#": "0.a_bool", "D": True}, "N": "bias_after_scale"},
        ],
        "I": [x, {"%": unused}],
        "O": op["O"][:1],  # the second is the mask, which only training uses
        "OA": [],
    }
    return [factor, scale]


def _relu6(op: Any, results: Results, unused: int) -> list[Any] | None:
    """``relu6(x)`` -> ``clip(x, 0, 6)``; None for another type than float32, of which the bounds are here."""
    if dense_tensor(op["O"][0])[0] != "float32":
        return None
    clip = op | {
        "#": f"{op['#'].partition('.')[0]}.clip",
        "A": [],
        "I": [*op["I"], {"%": unused}, {"%": unused + 1}],
    }
    return [_full(unused, 0.0), _full(unused + 1, 6.0), clip]


def _full(result: int, value: float) -> Any:
    """A constant of float32 with one element."""
    attributes = {
        "shape": {"#": "1.a_intarray", "D": [1]},
        "value": {"#": "0.a_f64", "D": value},
        "dtype": {"#": "1.a_dtype", "D": "float32"},
        "place": {"#": "1.a_place", "D": [1, 0, ""]},
    }
    tensor = {"#": "0.t_dtensor", "D": [{"#": "0.t_f32"}, [1], "NCHW", [], 0]}
    return {
        "#": "1.full",
        "A": [{"AT": given, "N": name} for name, given in attributes.items()],
        "I": [],
        "O": [{"%": result, "TT": tensor}],
        "OA": [],
    }


# Each: (operator, results, the first of results that are not used yet, one for each operator that it makes)
# -> operators in its place, or None to leave it.
_REWRITES: Mapping[str, Callable[[Any, Results, int], list[Any] | None]] = {
    "dropout": _dropout,
    "relu6": _relu6,
}
OPERATORS = frozenset(_REWRITES)
