"""Detectors cut before their suppression give what Paddle gives for the whole program."""

from pathlib import Path

import numpy as np
import pytest

from pdserve.engines import Device, Engine, detector_nms, load
from pdserve.errors import UnsupportedModelError
from pdserve.vision.boxes import Suppression
from tests.detectors import write_suppression
from tests.engines.models import DETECTOR, needs, serving_model

CPU = Device()


def opened(folder: Path, engine: str = "openvino") -> Engine:
    return load(serving_model(folder), engine=engine, device=CPU)


def random_feeds(seed: int, images: int, classes: int, count: int, ties: bool) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    boxes = random.uniform(0, 20, (images, count, 4))
    boxes[..., 2:] = boxes[..., :2] + random.exponential(6, (images, count, 2))
    boxes[:, ::9, 2] = boxes[:, ::9, 0] - 3  # inside out
    boxes[:, ::13] = boxes[:, ::13, [0, 1, 0, 1]]  # points
    scores = random.uniform(0, 2, (images, classes, count))
    if ties:
        boxes, scores = np.round(boxes), np.round(scores, 1)
    return {"boxes": boxes.astype(np.float32), "scores": scores.astype(np.float32)}


@needs("openvino")
@needs("paddle")
@pytest.mark.parametrize(
    ("images", "classes", "count", "attributes"),
    [
        (1, 1, 1, {}),
        (1, 1, 400, {"nms_threshold": 0.6, "score_threshold": 0.025}),
        (1, 80, 120, {"keep_top_k": 30}),
        (3, 4, 60, {"keep_top_k": 10, "nms_top_k": 20}),
        (3, 4, 60, {"keep_top_k": -1, "nms_top_k": -1, "normalized": False}),
        (2, 3, 60, {"background_label": 0, "nms_threshold": 0.0}),
        (2, 3, 60, {"nms_eta": 0.9, "nms_threshold": 0.8, "score_threshold": 0.0}),
        (2, 3, 60, {"score_threshold": 0.97}),  # few: likely none in one image
        (2, 3, 60, {"score_threshold": 2.0}),  # none at all
        (2, 3, 60, {"keep_top_k": 0}),
    ],
)
def test_all_outputs_are_paddles_own(
    tmp_path: Path, images: int, classes: int, count: int, attributes: dict[str, object]
) -> None:
    folder = write_suppression(tmp_path / "m", (-1, count, 4), (-1, classes, count), **attributes)
    ours, paddles = opened(folder), opened(folder, "paddle")
    for ties in (False, True):
        feeds = random_feeds(count, images, classes, count, ties)
        found, expected = ours.run(feeds), paddles.run(feeds)
        assert list(found) == list(expected) == ["rows", "index", "counts"]
        for name, array in found.items():
            assert (array.dtype, array.shape) == (expected[name].dtype, expected[name].shape), name
            np.testing.assert_array_equal(array, expected[name])
    ours.close()
    paddles.close()


@needs("openvino")
def test_zero_boxes(tmp_path: Path) -> None:
    engine = opened(write_suppression(tmp_path / "m", (-1, 6, 4), (-1, 1, 6)))
    found = engine.run({"boxes": np.ones((2, 6, 4), np.float32), "scores": np.zeros((2, 1, 6), np.float32)})
    assert {name: (str(a.dtype), a.shape) for name, a in found.items()} == {
        "rows": ("float32", (0, 6)),
        "index": ("int32", (0, 1)),
        "counts": ("int32", (2,)),
    }
    assert found["counts"].tolist() == [0, 0]
    engine.close()


@needs("openvino")
def test_what_passes_outputs_on_is_honoured(tmp_path: Path) -> None:
    """A scale by 1, an assign, two casts, one output fetched twice, the tensors in between."""

    def after(program, rows, index, counts):
        program.variable("same", (-1, 1), "INT32")
        program.operator("assign", {"X": index}, {"Out": "same"})
        wide = program.cast(counts, "wide", "INT32", "INT64", (-1,))
        program.cast(rows, "whole", "FP32", "INT32", (-1, 6))
        again = program.cast("whole", "again", "INT32", "FP32", (-1, 6))
        scaled = program.scale(rows, "scaled", 1.0, shape=(-1, 6))
        program.fetch(again, "halves", "same", scaled, wide, rows)

    engine = opened(write_suppression(tmp_path / "m", (-1, 3, 4), (-1, 1, 3), after))
    assert [v.alias for v in engine.fetches] == ["again", "halves", "same", "scaled", "wide", "rows"]
    boxes = np.array([[[0, 0, 4.5, 4.5], [0, 0, 4.5, 4.25], [8, 0, 9, 1]]], np.float32)
    found = engine.run({"boxes": boxes, "scores": np.array([[[0.5, 1, 0.75]]], np.float32)})
    assert found["rows"].tolist() == [[0, 0.5, 0, 0, 4.5, 4.25], [0, 0.375, 8, 0, 9, 1]]
    assert found["again"].tolist() == [[0, 0, 0, 0, 4, 4], [0, 0, 8, 0, 9, 1]]
    assert (found["again"].dtype, found["wide"].dtype) == (np.float32, np.int64)
    assert found["wide"].tolist() == [2]
    assert found["same"].tolist() == [[1], [2]]
    assert found["halves"].tolist() == [[[0.25, 0.5, 0.375]]]
    found["rows"] += 1
    assert found["scaled"][0, 1] == 0.5  # nobody else's memory
    engine.close()


def _relu(program, rows, index, counts):
    program.variable("relu", (-1, 6))
    program.operator("relu", {"X": rows}, {"Out": "relu"})
    program.fetch("relu", counts)


def _twice(program, rows, index, counts):
    program.fetch(rows)
    program.block.ops.append(next(op for op in program.block.ops if op.type == "multiclass_nms3"))


def _with_rois(program, rows, index, counts):
    program.fetch(rows, counts)
    (op,) = (op for op in program.block.ops if op.type == "multiclass_nms3")
    next(slot for slot in op.inputs if slot.parameter == "RoisNum").arguments.append("boxes")


def _without_attribute(program, rows, index, counts):
    program.fetch(rows, counts)
    (op,) = (op for op in program.block.ops if op.type == "multiclass_nms3")
    op.attrs.remove(next(a for a in op.attrs if a.name == "keep_top_k"))


ODD = {
    "relu works on what it returns": _relu,
    "scale works on what it returns": lambda p, rows, index, counts: p.fetch(p.scale(rows, "twice", 2.0)),
    "more than once": _twice,
    "RoisNum": _with_rois,
    "its attribute keep_top_k is not given": _without_attribute,
}


@needs("openvino")
@pytest.mark.parametrize("why", ODD)
def test_other_uses_are_refused(tmp_path: Path, why: str) -> None:
    folder = write_suppression(tmp_path / "m", (-1, 6, 4), (-1, 1, 6), ODD[why])
    with pytest.raises(UnsupportedModelError) as caught:
        opened(folder)
    assert why in caught.value.message
    assert "OpenVINO cannot run m exactly: multiclass_nms3" in caught.value.message
    assert '--engine paddle: `pip install "pdserve[paddle]"`' in caught.value.message


@needs("openvino")
@pytest.mark.parametrize(
    ("boxes", "scores", "said"), [((-1, 6, 8), (-1, 1, 6), "[-1, 6, 8]"), ((6, 1, 4), (6, 1), "[6, 1]")]
)
def test_other_shapes_are_refused(
    tmp_path: Path, boxes: tuple[int, ...], scores: tuple[int, ...], said: str
) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        opened(write_suppression(tmp_path / "m", boxes, scores))
    assert said in caught.value.message


def test_a_cut_program() -> None:
    cut = detector_nms.cut((DETECTOR / "inference.pdmodel").read_bytes())
    assert cut.fetches == (cut.boxes, cut.scores) == ("boxes", "scale_0.tmp_0")
    assert set(cut.outputs) == {"multiclass_nms3_0.tmp_0", "multiclass_nms3_0.tmp_2"}
    assert cut.settings == Suppression(
        score_threshold=np.float32(0.1),
        nms_top_k=6,
        keep_top_k=3,
        nms_threshold=0.5,
        normalized=False,
        nms_eta=1.0,
        background_label=-1,
    )
