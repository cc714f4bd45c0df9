"""Cuts a program of Paddle 3 (PIR) before its operator ``multiclass_nms3``; see ``detector_nms.py``.

An engine of ONNX could run the operator, as p2o writes it: but for one image at a time, and with ONNX's own
NonMaxSuppression, which has no limit of candidates (nms_top_k), no whole pixels (normalized) and no eta.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pdserve.engines.detector_nms import OPERATOR, SLOTS, Cut, NmsOutput, refusal
from pdserve.errors import UnsupportedModelError
from pdserve.formats.pir import attribute, dense_tensor, op_type
from pdserve.vision.boxes import Suppression

# Attributes, which are fields of Suppression.
_SETTINGS = (
    "score_threshold",
    "nms_top_k",
    "keep_top_k",
    "nms_threshold",
    "normalized",
    "nms_eta",
    "background_label",
)


def cut(program: bytes) -> Cut:
    """Cut a program that has the operator once.

    Raises UnsupportedModelError for a use of it that is not supported here, and for operators after it that
    do more than pass its outputs on.
    """
    document = json.loads(program)
    try:
        return _cut(document)
    except UnsupportedModelError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise refusal(
            f"it is written in a way that is not known ({type(error).__name__}, {error})"
        ) from error


def _cut(document: Any) -> Cut:
    ops = document["program"]["regions"][0]["blocks"][0]["ops"]
    places = [i for i, op in enumerate(ops) if op_type(op) == OPERATOR]
    nested = any(op_type(inner) == OPERATOR for op in ops for inner in _nested(op))
    if len(places) != 1 or nested:
        raise refusal("it is there more than once, or under a condition")
    results = {result["%"]: (op, result) for op in ops for result in _results(op)}
    boxes, scores = _inputs(ops[places[0]], results)
    settings = Suppression(**{name: _setting(ops[places[0]], name) for name in _SETTINGS})
    outputs, gone = _follow(ops, places[0], results)
    kept = [op for i, op in enumerate(ops) if i not in gone]
    fetching = [op for op in kept if op_type(op) == "fetch"]
    fetched = [str(attribute(op, "name")) for op in fetching]
    template = next(op for op in ops if op_type(op) == "fetch")
    new = max(results) + 1
    names: list[str] = []
    for what, source in (("boxes", boxes), ("scores", scores)):
        name = f"nms_{what}"
        while name in (*fetched, *outputs, *names):
            name += "_"
        names.append(name)
        kept.append(_fetch(template, name, len(fetching) + len(names) - 1, source, new + len(names)))
    for column, op in enumerate(fetching):
        _set(op, "col", column)
    document["program"]["regions"][0]["blocks"][0]["ops"] = kept
    serialised = json.dumps(document, separators=(",", ":")).encode()
    return Cut(serialised, (*fetched, *names), names[0], names[1], settings, outputs)


def _inputs(op: Any, results: Mapping[int, Any]) -> tuple[Any, Any]:
    """The results, as the file has them, that are the boxes and the scores."""
    operands = [operand["%"] for operand in op["I"]]
    if any(operands[2:]):  # 0: not given
        raise refusal("its boxes come in lists of different lengths (RoisNum)")
    found = [results[operand][1] for operand in operands[:2]]
    for name, result in zip(("BBoxes", "Scores"), found, strict=True):
        dtype, dims, _ = dense_tensor(result)
        if len(dims) != 3 or (name == "BBoxes" and dims[2] != 4) or dtype != "float32":
            raise refusal(f"its {name} are {dtype} of shape {dims}")
    return found[0], found[1]


def _setting(op: Any, name: str) -> Any:
    try:
        value = attribute(op, name)
    except ValueError:
        value = None
    if not isinstance(value, (bool, int, float)):
        raise refusal(f"its attribute {name} is not given")
    return value


def _follow(ops: list[Any], place: int, results: Mapping[int, Any]) -> tuple[dict[str, NmsOutput], set[int]]:
    """Follow the operator's outputs to the fetches: these by name, and the operators on the way."""
    outputs: dict[str, NmsOutput] = {}
    gone = {place}
    known = {
        result["%"]: NmsOutput(slot, ()) for slot, result in zip(SLOTS, _results(ops[place]), strict=False)
    }
    for i in range(place + 1, len(ops)):
        op = ops[i]
        if any(operand["%"] in known for inner in _nested(op) for operand in inner.get("I", ())):
            raise refusal(f"{op_type(op)} works on what it returns")
        used = [operand["%"] for operand in op.get("I", ()) if operand["%"] in known]
        if not used:
            continue
        gone.add(i)
        source = known[used[0]]
        if op_type(op) == "fetch":
            outputs[str(attribute(op, "name"))] = source
        elif _passes_on(op, results):
            (out,) = _results(op)
            dtype = np.dtype(dense_tensor(out)[0])
            cast = op_type(op) == "cast"
            known[out["%"]] = NmsOutput(source.slot, (*source.dtypes, dtype) if cast else source.dtypes)
        else:
            raise refusal(f"{op_type(op)} works on what it returns")
    return outputs, gone


def _passes_on(op: Any, results: Mapping[int, Any]) -> bool:
    if op_type(op) == "scale":  # exporters end every model with a scale by 1
        factor = results[op["I"][1]["%"]][0]
        return op_type(factor) == "full" and attribute(factor, "value") == 1 and attribute(op, "bias") == 0
    return op_type(op) in ("assign", "cast")


def _fetch(template: Any, name: str, column: int, source: Any, new: int) -> Any:
    """A fetch operator for a result, in the form of one that there is."""
    op = json.loads(json.dumps(template))
    _set(op, "name", name)
    _set(op, "col", column)
    op["I"] = [{"%": source["%"]}]
    op["O"] = [{"%": new, "TT": source["TT"]}]
    return op


def _set(op: Any, name: str, value: Any) -> None:
    next(entry for entry in op["A"] if entry["N"] == name)["AT"]["D"] = value


def _results(op: Any) -> list[Any]:
    found = op["O"]
    return found if isinstance(found, list) else [found]


def _nested(op: Any) -> Iterator[Any]:
    """The operators in an operator's regions, at any depth."""
    regions = list(op.get("regions", ()))
    while regions:
        for block in regions.pop()["blocks"]:
            for inner in block["ops"]:
                yield inner
                regions.extend(inner.get("regions", ()))
