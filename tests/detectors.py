"""Small real detectors, written operator by operator, whose boxes and scores anyone can say.

``write_suppression`` makes a model of ``multiclass_nms3`` alone. ``write_detector`` makes one that reads
its boxes out of the picture: 8 of them, four numbers each in the 32 pixels of the red channel of a 8×4
image, and the scores of each for 4 classes in a row of green. ``paint`` makes the picture.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pdserve.formats.protos import message
from pdserve.vision.preprocess import IMAGENET_MEAN, IMAGENET_STD

HEIGHT, WIDTH = 4, 8
BOXES, CLASSES = 8, 4

# What makes a feed of the picture's own numbers, 0…255.
AS_IT_IS = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}

NMS = {
    "score_threshold": 0.1,
    "nms_top_k": 100,
    "keep_top_k": 100,
    "nms_threshold": 0.5,
    "normalized": True,
    "nms_eta": 1.0,
    "background_label": -1,
}


class Program:
    """One block; variables are float32 unless said."""

    def __init__(self) -> None:
        self.desc = message("pdserve.program.ProgramDesc")()
        self.desc.version.version = 2_000_000
        self.block = self.desc.blocks.add(idx=0, parent_idx=-1)
        self.columns = {"feed": 0, "fetch": 0}
        for name, kind in (("feed", 9), ("fetch", 10)):
            self.block.vars.add(name=name, persistable=True).type.type = kind

    def variable(self, name: str, shape: Sequence[int], dtype: str = "FP32") -> str:
        types = message("pdserve.program.VarType").Type
        variable = self.block.vars.add(name=name)
        variable.type.type = types.Value("DENSE_TENSOR")
        variable.type.dense_tensor.tensor.data_type = types.Value(dtype)
        variable.type.dense_tensor.tensor.dims.extend(shape)
        return name

    def operator(self, kind: str, inputs: dict[str, Any], outputs: dict[str, Any], **attributes: Any) -> None:
        op = self.block.ops.add(type=kind)
        for slots, given in ((op.inputs, inputs), (op.outputs, outputs)):
            for slot, names in given.items():
                slots.add(parameter=slot, arguments=[names] if isinstance(names, str) else names)
        for name, value in attributes.items():
            attribute = op.attrs.add(name=name, type=0)
            if isinstance(value, bool):
                attribute.type, attribute.b = 6, value
            elif isinstance(value, int):
                attribute.type, attribute.i = 0, value
            elif isinstance(value, float):
                attribute.type, attribute.f = 1, value
            else:
                attribute.type = 3
                attribute.ints.extend(value)

    def feed(self, name: str, shape: Sequence[int]) -> str:
        self.operator("feed", {"X": "feed"}, {"Out": self.variable(name, shape)}, col=self.columns["feed"])
        self.columns["feed"] += 1
        return name

    def fetch(self, *names: str) -> None:
        for name in names:
            self.operator("fetch", {"X": name}, {"Out": "fetch"}, col=self.columns["fetch"])
            self.columns["fetch"] += 1

    def scale(
        self,
        x: str,
        out: str,
        factor: float,
        dtype: str = "FP32",
        shape: Sequence[int] = (-1,),
        bias: float = 0.0,
    ) -> str:
        self.variable(out, shape, dtype)
        self.operator("scale", {"X": x}, {"Out": out}, scale=factor, bias=bias, bias_after_scale=True)
        return out

    def cast(self, x: str, out: str, before: str, after: str, shape: Sequence[int]) -> str:
        types = message("pdserve.program.VarType").Type
        self.variable(out, shape, after)
        self.operator(
            "cast", {"X": x}, {"Out": out}, in_dtype=types.Value(before), out_dtype=types.Value(after)
        )
        return out

    def nms(self, boxes: str, scores: str, **attributes: Any) -> tuple[str, str, str]:
        """Rows, index, counts."""
        out = self.variable("rows", (-1, 6)), self.variable("index", (-1, 1), "INT32")
        out = (*out, self.variable("counts", (-1,), "INT32"))
        self.operator(
            "multiclass_nms3",
            {"BBoxes": boxes, "Scores": scores, "RoisNum": []},
            dict(zip(("Out", "Index", "NmsRoisNum"), out, strict=True)),
            **NMS | attributes,
        )
        return out

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        (folder / "inference.pdmodel").write_bytes(self.desc.SerializeToString(deterministic=True))
        return folder


def write_suppression(
    folder: Path,
    boxes: Sequence[int],
    scores: Sequence[int],
    after: Callable[[Program, str, str, str], None] | None = None,
    **attributes: Any,
) -> Path:
    """Feeds ``boxes`` and ``scores`` (halved first); fetches rows, index and counts, or as ``after`` does."""
    program = Program()
    program.feed("boxes", boxes)
    program.feed("scores", scores)
    # As a network's last operator would stand there.
    found = program.nms("boxes", program.scale("scores", "halves", 0.5, shape=scores), **attributes)
    if after:
        after(program, *found)
    else:
        program.fetch(*found)
    return program.write(folder)


def write_detector(
    folder: Path,
    *,
    batch: int = -1,
    scale_factor: bool = True,
    im_shape: bool = False,
    counts: bool = True,
    suppression: bool = True,
    image: str = "image",
    normalized: bool = False,
) -> Path:
    """A detector on 8×4 pixels; its boxes are divided by ``scale_factor`` where it has that feed.

    ``normalized``: it undoes ImageNet's normalisation first, which a service does.
    """
    program = Program()
    if im_shape:
        program.feed("im_shape", (batch, 2))
    program.feed(image, (batch, 3, HEIGHT, WIDTH))
    numbers = _channel(program, image, 0, (batch, BOXES, 4))
    if normalized:
        factor, bias = 255 * IMAGENET_STD[0], 255 * IMAGENET_MEAN[0]
        numbers = program.scale(numbers, "reds", factor, shape=(batch, BOXES, 4), bias=bias)
    if scale_factor:
        numbers = divided(program, numbers, program.feed("scale_factor", (batch, 2)), batch)
    shape = (batch, CLASSES, BOXES)
    factor, bias = (IMAGENET_STD[1], IMAGENET_MEAN[1]) if normalized else (1 / 255, 0.0)
    scores = program.scale(_channel(program, image, 1, shape), "scores", factor, shape=shape, bias=bias)
    if not suppression:
        program.fetch(program.scale(numbers, "boxes", 1.0, shape=(batch, BOXES, 4)), scores)
        return program.write(folder)
    rows, _, number = program.nms(numbers, scores)
    program.fetch(program.scale(rows, "rows_out", 1.0, shape=(-1, 6)))
    if counts:
        program.fetch(program.scale(number, "counts_out", 1.0, "INT32"))
    return program.write(folder)


def paint(boxes: npt.ArrayLike, scores: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """The 8×4 RGB picture of up to 8 boxes (K, 4), and scores (C, K) in 255ths."""
    corners, values = np.asarray(boxes, np.uint8).reshape(-1, 4), np.asarray(scores, np.uint8)
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture.reshape(-1, 3)[: corners.size, 0] = corners.ravel()
    if values.size:
        picture[: values.shape[0], : values.shape[1], 1] = values
    return picture


def _channel(program: Program, image: str, channel: int, shape: Sequence[int]) -> str:
    part = program.variable(f"channel_{channel}", (shape[0], 1, HEIGHT, WIDTH))
    program.operator(
        "slice",
        {"Input": image},
        {"Out": part},
        axes=[1],
        starts=[channel],
        ends=[channel + 1],
        decrease_axis=[],
        infer_flags=[1],
    )
    return reshaped(program, part, shape)


def reshaped(program: Program, x: str, shape: Sequence[int]) -> str:
    out = program.variable(f"{x}_reshaped", shape)
    hint = program.variable(f"{x}_before", (0,))
    program.operator("reshape2", {"X": x}, {"Out": out, "XShape": hint}, shape=[0, *shape[1:]])
    return out


def divided(program: Program, numbers: str, scale_factor: str, batch: int) -> str:
    high, wide = (program.variable(name, (batch, 1)) for name in ("high", "wide"))
    program.operator("split", {"X": scale_factor}, {"Out": [high, wide]}, axis=1, num=2, sections=[])
    four = program.variable("four", (batch, 4))
    program.operator("concat", {"X": [wide, high, wide, high]}, {"Out": four}, axis=1)
    divided = program.variable("divided", (batch, BOXES, 4))
    program.operator(
        "elementwise_div",
        {"X": numbers, "Y": reshaped(program, four, (batch, 1, 4))},
        {"Out": divided},
        axis=-1,
    )
    return divided
