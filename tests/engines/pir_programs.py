"""Small programs of Paddle 3, written operator by operator: ``multiclass_nms3`` and what may follow it."""

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.detectors import NMS

_TYPES = {"float32": "0.t_f32", "int32": "0.t_i32", "int64": "0.t_i64"}


class PirProgram:
    """One block; a value is its number."""

    def __init__(self) -> None:
        self.ops: list[Any] = []
        self.values: dict[int, tuple[str, Sequence[int]]] = {}
        self.fetched = 0

    def operator(
        self,
        kind: str,
        inputs: Sequence[int],
        outputs: Sequence[tuple[str, Sequence[int]]],
        **attributes: Any,
    ) -> list[int]:
        made = []
        for output in outputs:
            made.append(len(self.values) + 1)
            self.values[made[-1]] = output
        self.ops.append(
            {
                "#": f"1.{kind}",
                "A": [{"AT": _attribute(value), "N": name} for name, value in attributes.items()],
                "I": [{"%": value} for value in inputs],
                "O": [{"%": value, "TT": _tensor(*self.values[value])} for value in made],
                "OA": [
                    {"AT": {"#": "0.a_array", "D": [_attribute(False)] * len(made)}, "N": "stop_gradient"}
                ],
            }
        )
        return made

    def feed(self, name: str, shape: Sequence[int]) -> int:
        given = {"shape": ("1.a_intarray", list(shape)), "dtype": ("1.a_dtype", "float32")}
        place = ("1.a_place", [0, 0, ""])
        return self.operator("data", [], [("float32", shape)], name=name, **given, place=place)[0]

    def scale(self, value: int, factor: float, bias: float = 0.0) -> int:
        given = {"dtype": ("1.a_dtype", "float32"), "place": ("1.a_place", [1, 0, ""])}
        number = ("0.a_f64", factor)
        shape = ("1.a_intarray", [1])
        (by,) = self.operator("full", [], [("float32", [1])], shape=shape, value=number, **given)
        return self.operator("scale", [value, by], [self.values[value]], bias=bias, bias_after_scale=True)[0]

    def cast(self, value: int, dtype: str) -> int:
        shape = self.values[value][1]
        return self.operator("cast", [value], [(dtype, shape)], dtype=("1.a_dtype", dtype))[0]

    def same(self, kind: str, value: int) -> int:
        """An operator of one input and one output of its form: ``relu``, ``assign``."""
        return self.operator(kind, [value], [self.values[value]])[0]

    def nms(self, boxes: int, scores: int, **attributes: Any) -> tuple[int, int, int]:
        """Rows, index, counts."""
        outputs = [("float32", [-1, 6]), ("int32", [-1, 1]), ("int32", [-1])]
        found = self.operator("multiclass_nms3", [boxes, scores, 0], outputs, **NMS | attributes)
        return found[0], found[1], found[2]

    def fetch(self, *values: int) -> None:
        for value in values:
            name = f"fetch_name_{self.fetched}"
            self.operator("fetch", [value], [self.values[value]], name=name, col=self.fetched)
            self.ops[-1]["OA"].insert(
                0, {"AT": {"#": "0.a_array", "D": [_attribute(True)]}, "N": "persistable"}
            )
            self.fetched += 1

    def plus_parameter(self, value: int) -> int:
        """Add a parameter of one zero; ``write`` saves it. Paddle refuses a program without any."""
        made = len(self.values) + 1
        self.values[made] = ("float32", [1])
        parameter = {
            "#": "p",
            "A": [0, 1, 1, "zero"],
            "DA": [],
            "O": {"%": made, "TT": _tensor("float32", [1])},
            "OA": [1, 1, 0],
            "QA": [],
        }
        self.ops.insert(0, parameter)
        return self.operator("add", [value, made], [self.values[value]])[0]

    def document(self) -> Any:
        block = {"#": "block_0", "args": [], "ops": self.ops}
        regions = [{"#": "region_0", "blocks": [block]}]
        return {
            "base_code": {"magic": "pir", "trainable": True, "version": 4},
            "program": {"regions": regions},
        }

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        (folder / "inference.json").write_text(json.dumps(self.document(), separators=(",", ":")))
        if any(op["#"] == "p" for op in self.ops):
            # One tensor of save_combine: versions, a TensorDesc (float32, [1]), the value.
            head = struct.pack("<IQIi", 0, 0, 0, 4) + b"\x08\x05\x10\x01"
            (folder / "inference.pdiparams").write_bytes(head + struct.pack("<f", 0))
        return folder


def write_suppression(
    folder: Path,
    boxes: Sequence[int],
    scores: Sequence[int],
    after: Callable[[PirProgram, int, int, int], None] | None = None,
    **attributes: Any,
) -> Path:
    """Feeds ``boxes`` and ``scores`` (halved first); fetches rows, index and counts, or as ``after`` does."""
    program = PirProgram()
    given = program.feed("boxes", boxes)
    halves = program.scale(program.feed("scores", scores), 0.5)
    found = program.nms(given, program.plus_parameter(halves), **attributes)
    if after:
        after(program, *found)
    else:
        program.fetch(*found)
    return program.write(folder)


def _attribute(value: Any) -> Any:
    if isinstance(value, tuple):
        kind, content = value
        return {"#": kind, "D": content}
    kinds = {bool: "bool", int: "i32", float: "f32", str: "str"}
    return {"#": f"0.a_{kinds[type(value)]}", "D": value}


def _tensor(dtype: str, shape: Sequence[int]) -> Any:
    return {"#": "0.t_dtensor", "D": [{"#": _TYPES[dtype]}, list(shape), "NCHW", [], 0]}
