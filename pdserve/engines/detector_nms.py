"""Runs Paddle's operator ``multiclass_nms3``, which ends detectors, for an engine that cannot.

The program is cut at the two tensors that feed the operator, boxes and scores: a ProgramDesc here, one of
Paddle 3 in ``pir_nms.py``. The engine runs what is before the cut; ``vision.boxes.multiclass_nms`` does the
rest, with the operator's own attributes. Parameters stay as they are, since none belong to what is cut off.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pdserve.errors import UnsupportedModelError
from pdserve.formats.program import element
from pdserve.formats.protos import message
from pdserve.vision.boxes import Suppressed, Suppression, multiclass_nms
from pdserve.vision.types import Array

OPERATOR = "multiclass_nms3"

# The operator's outputs, and where they are among ours.
SLOTS = {"Out": "rows", "Index": "index", "NmsRoisNum": "counts"}

# Attributes, and the field of an OpDesc.Attr that holds each.
_ATTRIBUTES = {
    "score_threshold": "f",
    "nms_top_k": "i",
    "keep_top_k": "i",
    "nms_threshold": "f",
    "normalized": "b",
    "nms_eta": "f",
    "background_label": "i",
}


@dataclass(frozen=True)
class NmsOutput:
    """A fetch that the operator's output ``slot`` becomes, cast to each of ``dtypes`` in turn."""

    slot: str
    dtypes: tuple[np.dtype[Any], ...]


@dataclass(frozen=True)
class Cut:
    """A program (in its own format, serialised) up to the operator, and what is computed after it.

    ``fetches``: what ``program`` fetches now, by name: ``boxes`` and ``scores``, and those fetches of the
    whole program that do not depend on the operator. ``outputs``: those that do.
    """

    program: bytes
    fetches: tuple[str, ...]
    boxes: str
    scores: str
    settings: Suppression
    outputs: Mapping[str, NmsOutput]


def cut(program: bytes) -> Cut:
    """Cut a ProgramDesc that has the operator once.

    Raises UnsupportedModelError for a use of it that is not supported here, and for operators after it that
    do more than pass its outputs on.
    """
    desc = message("pdserve.program.ProgramDesc").FromString(program)
    main = desc.blocks[0]
    variables = {v.name: v for v in main.vars}
    places = [i for i, op in enumerate(main.ops) if op.type == OPERATOR]
    if len(places) != 1 or any(op.type == OPERATOR for block in desc.blocks[1:] for op in block.ops):
        raise refusal("it is there more than once, or under a condition")
    place = places[0]
    boxes, scores = _inputs(main.ops[place], variables)
    settings = _settings(main.ops[place])
    outputs, gone = _follow(main, place, variables)
    for i in sorted(gone, reverse=True):
        del main.ops[i]
    fetches = _fetch(main, (boxes, scores))
    return Cut(desc.SerializeToString(), fetches, boxes, scores, settings, outputs)


def complete(cut: Cut, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """What the cut program fetched, by name -> what the whole one would have fetched."""
    found = multiclass_nms(tensors[cut.boxes], tensors[cut.scores], cut.settings)
    return {name: tensors[name] for name in cut.fetches} | {
        name: _output(found, output) for name, output in cut.outputs.items()
    }


def _output(found: Suppressed, output: NmsOutput) -> Array:
    array: Array = getattr(found, SLOTS[output.slot])
    for dtype in output.dtypes:
        array = array.astype(dtype)
    copied: Array = array.copy()  # two fetches may have one source, and each is the caller's
    return copied


def _inputs(op: Any, variables: Mapping[str, Any]) -> tuple[str, str]:
    slots = {slot.parameter: list(slot.arguments) for slot in op.inputs}
    if slots.get("RoisNum"):
        raise refusal("its boxes come in lists of different lengths (RoisNum)")
    names = []
    for slot in ("BBoxes", "Scores"):
        (name,) = slots.get(slot) or ("",)
        if name not in variables or not variables[name].type.HasField("dense_tensor"):
            raise refusal(f"it has no {slot}")
        tensor = variables[name].type.dense_tensor.tensor
        dims = list(tensor.dims)
        if len(dims) != 3 or (slot == "BBoxes" and dims[2] != 4) or element(tensor)[0] != "float32":
            raise refusal(f"its {slot} are {element(tensor)[0]} of shape {dims}")
        names.append(name)
    return names[0], names[1]


def _settings(op: Any) -> Suppression:
    attributes = {a.name: a for a in op.attrs}
    values = {}
    for name, field in _ATTRIBUTES.items():
        if name not in attributes or not attributes[name].HasField(field):
            raise refusal(f"its attribute {name} is not given")
        values[name] = getattr(attributes[name], field)
    return Suppression(**values)


def _follow(main: Any, place: int, variables: Mapping[str, Any]) -> tuple[dict[str, NmsOutput], set[int]]:
    """Follow the operator's outputs to the fetches: these by name, and the operators on the way."""
    outputs: dict[str, NmsOutput] = {}
    gone = {place}
    known = {
        name: NmsOutput(slot.parameter, ())
        for slot in main.ops[place].outputs
        if slot.parameter in SLOTS
        for name in slot.arguments
    }
    for i in range(place + 1, len(main.ops)):
        op = main.ops[i]
        used = [name for slot in op.inputs for name in slot.arguments if name in known]
        if not used:
            continue
        gone.add(i)
        source = known[used[0]]
        if op.type == "fetch":
            outputs[used[0]] = source
        elif _passes_on(op):
            (out,) = (name for slot in op.outputs for name in slot.arguments)
            dtype = np.dtype(element(variables[out].type.dense_tensor.tensor)[0])
            known[out] = NmsOutput(
                source.slot, (*source.dtypes, dtype) if op.type == "cast" else source.dtypes
            )
        else:
            raise refusal(f"{op.type} works on what it returns")
    return outputs, gone


def _passes_on(op: Any) -> bool:
    if op.type == "scale":  # exporters end every model with a scale by 1
        values = {a.name: a.f for a in op.attrs}
        tensors = [name for slot in op.inputs if slot.parameter != "X" for name in slot.arguments]
        return not tensors and values.get("scale") == 1 and values.get("bias") == 0
    return op.type in ("assign", "cast")


def _fetch(main: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    """Add fetch operators for these to those there are, and number all; returns all names."""
    fetching = [op for op in main.ops if op.type == "fetch"]
    fetched = [name for op in fetching for slot in op.inputs for name in slot.arguments]
    for name in dict.fromkeys(names):
        if name in fetched:
            continue
        op = main.ops.add(type="fetch")
        op.inputs.add(parameter="X", arguments=[name])
        op.outputs.add(parameter="Out", arguments=["fetch"])
        op.attrs.add(name="col", type=0)
        fetching.append(op)
        fetched.append(name)
    for column, op in enumerate(fetching):
        for attribute in op.attrs:
            if attribute.name == "col":
                attribute.i = column
    return tuple(fetched)


def refusal(why: str) -> UnsupportedModelError:
    """The error for a use of the operator that is not supported."""
    return UnsupportedModelError(f"{OPERATOR} is not run outside Paddle in this model: {why}.")
