"""Writes Paddle inference models: a ProgramDesc (``.pdmodel``) and its parameters (``.pdiparams``).

Operators, their slots and attributes are those that Paddle 2's ``paddle.jit.save`` writes. Attributes
are spelt out even at their defaults, so that no reader's default (Paddle 2 and 3, OpenVINO,
paddle2onnx) decides what the model computes. Extents that depend on the batch are -1.
"""

import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdserve.formats.protos import message

MODEL_FILE = "inference.pdmodel"
PARAMS_FILE = "inference.pdiparams"

# The operators used here are the same from Paddle 2.0 on, which is also the oldest OpenVINO reads.
PADDLE_VERSION = 2_000_000

Attribute = bool | int | float | str | Sequence[int]


class ProgramBuilder:
    """One program with one block, written operator by operator.

    Every method takes and returns the names of variables; all are float32. ``feed`` comes before
    what uses it, ``fetch`` after what makes it.
    """

    def __init__(self) -> None:
        self._program = message("pdserve.program.ProgramDesc")()
        self._program.version.version = PADDLE_VERSION
        self._block = self._program.blocks.add(idx=0, parent_idx=-1)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._parameters: dict[str, NDArray[np.float32]] = {}
        self._names: Counter[str] = Counter()
        self._columns: Counter[str] = Counter()
        for name, kind in (("feed", "FEED_MINIBATCH"), ("fetch", "FETCH_LIST")):
            variable = self._block.vars.add(name=name, persistable=True)
            variable.type.type = _type_number(kind)

    def feed(self, name: str, shape: Sequence[int]) -> str:
        """Declare an input of this shape, the batch as -1."""
        self._variable(name, shape).need_check_feed = True
        self._operator("feed", {"X": "feed"}, {"Out": name}, {"col": self._column("feed")})
        return name

    def fetch(self, name: str) -> None:
        """Declare a variable to be an output; the order of calls is the order of outputs."""
        self._operator("fetch", {"X": name}, {"Out": "fetch"}, {"col": self._column("fetch")})

    def shape(self, name: str) -> tuple[int, ...]:
        """The extents of a variable, the batch as -1."""
        return self._shapes[name]

    def conv2d(
        self, x: str, weight: NDArray[Any], bias: NDArray[Any], *, stride: int = 1, groups: int = 1
    ) -> str:
        """Convolve N×C×H×W ``x`` with ``weight`` (out × in/groups × k × k), add ``bias`` (out).

        Padding is TensorFlow's 'SAME': the output has ceil(extent / stride) rows and columns, and an
        odd number of padded ones puts the odd one last. It is written in numbers, for ``x`` has a
        known height and width.
        """
        batch, channels, height, width = self.shape(x)
        outputs, _, kernel_height, kernel_width = weight.shape
        top, bottom = same_padding(height, kernel_height, stride)
        left, right = same_padding(width, kernel_width, stride)
        shape = (batch, outputs, -(-height // stride), -(-width // stride))
        # Paddle has another operator for convolutions that filter each channel alone.
        kind = "depthwise_conv2d" if groups == channels and groups > 1 else "conv2d"
        layer = self._layer("conv2d")
        y = self._apply(
            kind,
            {"Input": x, "Filter": self._parameter(f"{layer}.w_0", weight)},
            ("Output", f"{layer}.tmp_0", shape),
            {
                "data_format": "NCHW",
                "dilations": [1, 1],
                "groups": groups,
                "padding_algorithm": "EXPLICIT",
                "paddings": [top, bottom, left, right],
                "strides": [stride, stride],
            },
        )
        # Only the oneDNN kernel of conv2d has a bias input; an addition works everywhere.
        return self._add_bias(layer, y, bias, axis=1)

    def relu6(self, x: str) -> str:
        """Clamp to 0…6."""
        output = ("Out", f"{self._layer('relu6')}.tmp_0", self.shape(x))
        return self._apply("relu6", {"X": x}, output, {"threshold": 6.0})

    def add(self, x: str, y: str) -> str:
        """Add two variables of one shape."""
        output = ("Out", f"{self._layer('elementwise_add')}.tmp_0", self.shape(x))
        return self._apply("elementwise_add", {"X": x, "Y": y}, output, {"axis": -1})

    def global_average_pool(self, x: str) -> str:
        """Average N×C×H×W over height and width, to N×C."""
        batch, channels, _, _ = self.shape(x)
        pooled = self._apply(
            "pool2d",
            {"X": x},
            ("Out", f"{self._layer('pool2d')}.tmp_0", (batch, channels, 1, 1)),
            {
                "adaptive": True,
                "ceil_mode": False,
                "data_format": "NCHW",
                "exclusive": True,
                "global_pooling": False,
                "ksize": [1, 1],
                "padding_algorithm": "EXPLICIT",
                "paddings": [0, 0],
                "pooling_type": "avg",
                "strides": [1, 1],
                "use_cudnn": True,
            },
        )
        return self._apply(
            "flatten_contiguous_range",
            {"X": pooled},
            ("Out", f"{self._layer('flatten')}.tmp_0", (batch, channels)),
            {"start_axis": 1, "stop_axis": 3},
        )

    def linear(self, x: str, weight: NDArray[Any], bias: NDArray[Any]) -> str:
        """Multiply N×in ``x`` by ``weight`` (in × out, Paddle's order), add ``bias`` (out)."""
        layer = self._layer("linear")
        shape = (self.shape(x)[0], weight.shape[1])
        y = self._apply(
            "matmul_v2",
            {"X": x, "Y": self._parameter(f"{layer}.w_0", weight)},
            ("Out", f"{layer}.tmp_0", shape),
            {"trans_x": False, "trans_y": False},
        )
        return self._add_bias(layer, y, bias, axis=-1)

    def softmax(self, x: str) -> str:
        """Softmax over the last axis."""
        output = ("Out", f"{self._layer('softmax')}.tmp_0", self.shape(x))
        return self._apply("softmax", {"X": x}, output, {"axis": -1})

    def write(self, folder: Path) -> None:
        """Write ``inference.pdmodel`` and ``inference.pdiparams`` into an existing folder.

        Raises OSError where that fails.
        """
        with (folder / PARAMS_FILE).open("wb") as file:
            for name in sorted(self._parameters):
                file.write(parameter_bytes(self._parameters[name]))
        (folder / MODEL_FILE).write_bytes(self._program.SerializeToString(deterministic=True))

    def _add_bias(self, layer: str, x: str, bias: NDArray[Any], axis: int) -> str:
        inputs = {"X": x, "Y": self._parameter(f"{layer}.b_0", bias)}
        output = ("Out", f"{layer}.tmp_1", self.shape(x))
        return self._apply("elementwise_add", inputs, output, {"axis": axis})

    def _layer(self, kind: str) -> str:
        """The next free layer name, numbered by kind as Paddle does: conv2d_0, conv2d_1…"""
        self._names[kind] += 1
        return f"{kind}_{self._names[kind] - 1}"

    def _column(self, holder: str) -> int:
        self._columns[holder] += 1
        return self._columns[holder] - 1

    def _variable(self, name: str, shape: Sequence[int]) -> Any:
        variable = self._block.vars.add(name=name)
        variable.type.type = _type_number("DENSE_TENSOR")
        variable.type.dense_tensor.tensor.CopyFrom(_tensor_desc(shape))
        self._shapes[name] = tuple(shape)
        return variable

    def _parameter(self, name: str, value: NDArray[Any]) -> str:
        variable = self._variable(name, value.shape)
        variable.persistable = variable.is_parameter = variable.stop_gradient = True
        self._parameters[name] = np.ascontiguousarray(value, "<f4")
        return name

    def _apply(
        self,
        kind: str,
        inputs: Mapping[str, str],
        output: tuple[str, str, Sequence[int]],
        attributes: Mapping[str, Attribute],
    ) -> str:
        """Add an operator whose one output (slot, name, shape) is a new variable; return its name."""
        slot, name, shape = output
        self._variable(name, shape)
        self._operator(kind, inputs, {slot: name}, attributes)
        return name

    def _operator(
        self,
        kind: str,
        inputs: Mapping[str, str],
        outputs: Mapping[str, str],
        attributes: Mapping[str, Attribute],
    ) -> None:
        operator = self._block.ops.add(type=kind)
        for slot, name in inputs.items():
            operator.inputs.add(parameter=slot, arguments=[name])
        for slot, name in outputs.items():
            operator.outputs.add(parameter=slot, arguments=[name])
        common: Mapping[str, Attribute] = {"op_device": "", "op_namescope": "/", "op_role": 0}
        for key, value in {**attributes, **common}.items():
            _set_attribute(operator, key, value)


def same_padding(extent: int, kernel: int, stride: int) -> tuple[int, int]:
    """Rows (or columns) that TensorFlow's 'SAME' adds before and after ``extent`` of them."""
    total = max((-(-extent // stride) - 1) * stride + kernel - extent, 0)
    return total // 2, total - total // 2


def parameter_bytes(value: NDArray[np.float32]) -> bytes:
    """One tensor of a ``.pdiparams`` file, which is their sequence in the order of their names.

    Format of Paddle's ``save_combine``: uint32 version 0, uint64 LoD levels 0, uint32 tensor version
    0, int32 length of the TensorDesc message, the message, the elements; all little-endian.
    """
    desc: bytes = _tensor_desc(value.shape).SerializeToString()
    return struct.pack("<IQIi", 0, 0, 0, len(desc)) + desc + value.tobytes()


def _tensor_desc(shape: Sequence[int]) -> Any:
    fp32 = _type_number("FP32")
    return message("pdserve.program.VarType.TensorDesc")(data_type=fp32, dims=shape)


def _set_attribute(operator: Any, name: str, value: Attribute) -> None:
    attribute = operator.attrs.add(name=name, type=0)
    match value:
        case bool():  # before int, whose subclass it is
            kind, attribute.b = "BOOLEAN", value
        case int():
            kind, attribute.i = "INT", value
        case float():
            kind, attribute.f = "FLOAT", value
        case str():
            kind, attribute.s = "STRING", value
        case _:
            kind = "INTS"
            attribute.ints.extend(value)
    attribute.type = attribute.DESCRIPTOR.fields_by_name["type"].enum_type.values_by_name[kind].number


def _type_number(name: str) -> int:
    return int(message("pdserve.program.VarType").Type.Value(name))
