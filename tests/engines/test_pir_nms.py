"""Detectors of Paddle 3, cut before their suppression, give what Paddle gives for the whole program."""

import json
from pathlib import Path

import numpy as np
import pytest

from pdserve.engines import PROBE_DETECTOR, Device, Engine, load, pir_nms
from pdserve.errors import UnsupportedModelError
from pdserve.formats.pir import parse_pir
from pdserve.vision.boxes import Suppression
from tests.detectors import NMS
from tests.engines.models import needs, serving_model
from tests.engines.pir_programs import PirProgram, write_suppression
from tests.engines.test_detector_nms import random_feeds

CPU = Device()


def opened(folder: Path, engine: str = "openvino") -> Engine:
    return load(serving_model(folder), engine=engine, device=CPU)


@needs("paddle")
@pytest.mark.parametrize(
    ("images", "classes", "count", "attributes"),
    [
        (1, 1, 400, {"nms_threshold": 0.6, "score_threshold": 0.025}),
        (1, 80, 120, {"keep_top_k": 30}),
        (3, 4, 60, {"keep_top_k": 10, "nms_top_k": 20}),
        (3, 4, 60, {"keep_top_k": -1, "nms_top_k": -1, "normalized": False}),
        (2, 3, 60, {"background_label": 0, "nms_threshold": 0.0}),
        (2, 3, 60, {"nms_eta": 0.9, "nms_threshold": 0.8, "score_threshold": 0.0}),
        (2, 3, 60, {"score_threshold": 2.0}),  # none at all
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
        assert list(found) == list(expected) == ["prediction", "best", "fetch_name_2"]
        for name, array in found.items():
            assert (array.dtype, array.shape) == (expected[name].dtype, expected[name].shape), name
            np.testing.assert_array_equal(array, expected[name])
    ours.close()
    paddles.close()


def test_what_passes_outputs_on_is_honoured(tmp_path: Path) -> None:
    """A scale by 1, an assign, two casts, one output fetched twice, a tensor before the cut."""

    def after(program: PirProgram, rows: int, index: int, counts: int) -> None:
        again = program.cast(program.cast(rows, "int32"), "float32")
        same = program.same("assign", index)
        program.fetch(again, 4, same, program.scale(rows, 1.0), program.cast(counts, "int64"), rows)

    engine = opened(write_suppression(tmp_path / "m", (-1, 3, 4), (-1, 1, 3), after))
    boxes = np.array([[[0, 0, 4.5, 4.5], [0, 0, 4.5, 4.25], [8, 0, 9, 1]]], np.float32)
    feeds = {"boxes": boxes, "scores": np.array([[[0.5, 1, 0.75]]], np.float32)}
    again, halves, same, scaled, wide, rows = engine.run(feeds).values()
    assert rows.tolist() == [[0, 0.5, 0, 0, 4.5, 4.25], [0, 0.375, 8, 0, 9, 1]]
    assert again.tolist() == [[0, 0, 0, 0, 4, 4], [0, 0, 8, 0, 9, 1]]
    assert (again.dtype, wide.dtype, wide.tolist()) == (np.float32, np.int64, [2])
    assert same.tolist() == [[1], [2]]
    assert halves.tolist() == [[[0.25, 0.5, 0.375]]]
    rows += 1
    assert scaled[0, 1] == 0.5  # nobody else's memory
    engine.close()


def _relu(program: PirProgram, rows: int, index: int, counts: int) -> None:
    program.fetch(program.same("relu", rows), counts)


def _doubled(program: PirProgram, rows: int, index: int, counts: int) -> None:
    program.fetch(program.scale(rows, 2.0))


def _shifted(program: PirProgram, rows: int, index: int, counts: int) -> None:
    program.fetch(program.scale(rows, 1.0, bias=1.0))


def _twice(program: PirProgram, rows: int, index: int, counts: int) -> None:
    program.fetch(rows, program.nms(1, 4)[0])


def _with_rois(program: PirProgram, rows: int, index: int, counts: int) -> None:
    program.fetch(rows, counts)
    next(op for op in program.ops if op["#"] == "1.multiclass_nms3")["I"][2] = {"%": 1}


def _without_attribute(program: PirProgram, rows: int, index: int, counts: int) -> None:
    program.fetch(rows, counts)
    op = next(op for op in program.ops if op["#"] == "1.multiclass_nms3")
    op["A"] = [entry for entry in op["A"] if entry["N"] != "keep_top_k"]


def _of_another_form(program: PirProgram, rows: int, index: int, counts: int) -> None:
    program.fetch(rows, counts)
    next(op for op in program.ops if op["#"] == "1.multiclass_nms3")["I"] = None


ODD = {
    "relu works on what it returns": _relu,
    "scale works on what it returns": _doubled,
    "scale works on what it": _shifted,
    "more than once": _twice,
    "RoisNum": _with_rois,
    "its attribute keep_top_k is not given": _without_attribute,
    "in a way that is not known": _of_another_form,
}


@pytest.mark.parametrize("why", ODD)
def test_other_uses_are_refused(tmp_path: Path, why: str) -> None:
    folder = write_suppression(tmp_path / "m", (-1, 6, 4), (-1, 1, 6), ODD[why])
    with pytest.raises(UnsupportedModelError) as caught:
        opened(folder)
    assert why in caught.value.message
    assert "OpenVINO cannot run m exactly: multiclass_nms3" in caught.value.message
    assert '--engine paddle: `pip install "pdserve[paddle]"`' in caught.value.message


def test_under_a_condition_it_is_refused() -> None:
    program = PirProgram()
    boxes, scores = program.feed("boxes", (-1, 6, 4)), program.feed("scores", (-1, 1, 6))
    program.fetch(*program.nms(boxes, scores))
    inner = PirProgram()
    inner.nms(boxes, scores)
    program.ops[0]["regions"] = [{"blocks": [{"ops": inner.ops}]}]
    with pytest.raises(UnsupportedModelError, match="under a condition"):
        pir_nms.cut(json.dumps(program.document()).encode())


def test_a_cut_program() -> None:
    whole = (PROBE_DETECTOR / "inference.json").read_bytes()
    cut = pir_nms.cut(whole)
    assert cut.fetches == (cut.boxes, cut.scores) == ("nms_boxes", "nms_scores")
    assert set(cut.outputs) == {"fetch_name_0", "fetch_name_1"}
    assert cut.settings == Suppression(
        score_threshold=0.5, nms_top_k=40, keep_top_k=6, nms_threshold=0.5, normalized=False
    )
    before, after = parse_pir(whole, "whole"), parse_pir(cut.program, "cut")
    assert before.operators - after.operators == {"multiclass_nms3"}
    assert (before.parameters, before.signature.feeds) == (after.parameters, after.signature.feeds)
    boxes, scores = after.signature.fetches
    assert (boxes.name, boxes.dtype, boxes.shape) == ("nms_boxes", "float32", (-1, 64, 4))
    assert (scores.name, scores.dtype, scores.shape) == ("nms_scores", "float32", (-1, 3, 64))


def test_names_that_are_taken_are_not_given_again() -> None:
    program = PirProgram()
    boxes, scores = program.feed("boxes", (-1, 6, 4)), program.feed("scores", (-1, 1, 6))
    program.fetch(*program.nms(boxes, scores), boxes)
    names = ("nms_scores", "a", "b", "nms_boxes")
    for op, name in zip(program.ops[-4:], names, strict=True):
        op["A"][0]["AT"]["D"] = name
    cut = pir_nms.cut(json.dumps(program.document()).encode())
    assert cut.fetches == ("nms_boxes", "nms_boxes_", "nms_scores_")
    assert set(cut.outputs) == set(names[:3])
    assert NMS["keep_top_k"] == cut.settings.keep_top_k
