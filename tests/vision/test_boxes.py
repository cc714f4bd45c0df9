"""Overlap, suppression and cropping, against their definitions and the published service."""

import json
import math

import numpy as np
import pytest

from pdserve.errors import SettingsError
from pdserve.vision import boxes
from pdserve.vision.boxes import Box, Suppression
from tests.conftest import GOLDEN

RECOGNITION = json.loads((GOLDEN / "recognition.json").read_text("utf-8"))


def plain_iou(a, b, more):
    """One pair, by the definition."""
    if b[0] > a[2] or b[2] < a[0] or b[1] > a[3] or b[3] < a[1]:
        return 0.0
    shared = (min(a[2], b[2]) - max(a[0], b[0]) + more) * (min(a[3], b[3]) - max(a[1], b[1]) + more)
    areas = [(x2 - x1 + more) * (y2 - y1 + more) for x1, y1, x2, y2 in (a, b)]
    return shared / (sum(areas) - shared)


def plain_multiclass_nms(all_boxes, all_scores, s):
    """The operator's documented behaviour, one box at a time: rows, index and counts as lists."""
    rows, index, counts = [], [], []
    for image, (corners, scores) in enumerate(zip(all_boxes.tolist(), all_scores.tolist(), strict=True)):
        kept = []
        for label, values in enumerate(scores):
            if label == s.background_label:
                continue
            order = sorted(
                (i for i, v in enumerate(values) if v > s.score_threshold), key=lambda i: -values[i]
            )
            order = order if s.nms_top_k < 0 else order[: s.nms_top_k]
            chosen, threshold = [], s.nms_threshold
            for i in order:
                more = 0 if s.normalized else 1
                if all(plain_iou(corners[i], corners[j], more) <= threshold for j in chosen):
                    chosen.append(i)
                    threshold *= s.nms_eta if threshold > 0.5 else 1
            kept += [(label, i) for i in chosen]
        if 0 <= s.keep_top_k < len(kept):
            kept = sorted(kept, key=lambda k: -scores[k[0]][k[1]])[: s.keep_top_k]
            kept.sort(key=lambda k: k[0])
        rows += [[label, scores[label][i], *corners[i]] for label, i in kept]
        index += [[image * len(corners) + i] for _, i in kept]
        counts.append(len(kept))
    return rows, index, counts


def test_iou_of_points_and_of_pixels():
    ours = [[0, 0, 10, 10]]
    theirs = [[0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [11, 0, 20, 10], [2, 2, 4, 4]]
    found = boxes.iou(ours, theirs)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[1, 50 / 150, 0, 0, 4 / 100]], rtol=1e-6)
    pixels = boxes.iou(ours, theirs, whole_pixels=True)
    np.testing.assert_allclose(pixels, [[1, 66 / 176, 11 / 231, 0, 9 / 121]], rtol=1e-6)
    assert boxes.iou([], theirs).shape == (0, 5)


def test_iou_of_boxes_turned_inside_out():
    assert boxes.iou([[5, 5, 3, 8]], [[0, 0, 10, 10]]).item() <= 0
    assert math.isnan(boxes.iou([[5, 5, 5, 5]], [[5, 5, 5, 5]]).item())


def test_nms_keeps_the_best_of_those_that_overlap():
    corners = [[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10], [0, 0, 10, 9]]
    assert boxes.nms(corners, [0.5, 0.9, 0.3, 0.8], 0.5).tolist() == [1, 2]
    assert boxes.nms(corners, [0.5, 0.9, 0.3, 0.8], 0.5, keep=1).tolist() == [1]
    assert boxes.nms(corners, [0.5, 0.9, 0.3, 0.8], 1.0).tolist() == [1, 3, 0, 2]
    assert boxes.nms(corners, [0.5, 0.9, 0.3, 0.8], 0.5, top_k=2).tolist() == [1]
    assert boxes.nms(np.empty((0, 4)), [], 0.5).tolist() == []


def test_nms_takes_the_first_of_equal_scores_and_an_overlap_at_the_threshold():
    corners = [[0, 0, 10, 10], [0, 0, 10, 5]]  # IoU 0.5
    assert boxes.nms(corners, [0.7, 0.7], 0.5).tolist() == [0, 1]
    assert boxes.nms(corners, [0.7, 0.7], 0.49).tolist() == [0]


def test_an_eta_lowers_the_threshold_box_by_box():
    corners = [[0, 0, 10, 10], [50, 0, 60, 10], [0, 0, 10, 6]]  # the last overlaps the first by 0.6
    assert boxes.nms(corners, [0.9, 0.8, 0.7], 0.7).tolist() == [0, 1, 2]
    assert boxes.nms(corners, [0.9, 0.8, 0.7], 0.7, eta=0.9).tolist() == [0, 1]  # 0.7 × 0.9 × 0.9 < 0.6


@pytest.mark.parametrize("seed", range(30))
def test_multiclass_nms_against_the_definition(seed):
    random = np.random.default_rng(seed)
    images, classes, count = random.integers(1, 4), random.choice([1, 3, 20]), random.choice([1, 7, 60])
    corners = random.uniform(0, 20, (images, count, 4))
    corners[..., 2:] = corners[..., :2] + random.exponential(6, (images, count, 2))
    scores = random.uniform(0, 1, (images, classes, count))
    if seed % 2:
        scores = np.round(scores, 1)  # ties
    settings = Suppression(
        score_threshold=random.choice([0.05, 0.5]),
        nms_top_k=int(random.choice([-1, 0, 5, 40])),
        keep_top_k=int(random.choice([-1, 0, 3, 50])),
        nms_threshold=random.choice([0.0, 0.3, 0.6, 0.9]),
        normalized=bool(random.integers(2)),
        nms_eta=random.choice([1.0, 0.9]),
        background_label=int(random.choice([-1, 0])),
    )
    corners, scores = corners.astype(np.float32), scores.astype(np.float32)
    found = boxes.multiclass_nms(corners, scores, settings)
    rows, index, counts = plain_multiclass_nms(corners, scores, settings)
    assert (found.rows.dtype, found.index.dtype, found.counts.dtype) == (np.float32, np.int32, np.int32)
    assert found.rows.shape == (len(rows), 6)
    np.testing.assert_array_equal(found.rows, np.array(rows).reshape(-1, 6))
    np.testing.assert_array_equal(found.index, np.array(index).reshape(-1, 1))
    assert found.counts.tolist() == counts


def test_multiclass_nms_of_nothing():
    found = boxes.multiclass_nms(
        np.zeros((2, 5, 4), np.float32), np.zeros((2, 3, 5), np.float32), Suppression()
    )
    assert (found.rows.shape, found.index.shape, found.counts.tolist()) == ((0, 6), (0, 1), [0, 0])


def test_a_score_at_the_threshold_does_not_count():
    corners = np.array([[[0, 0, 4, 4], [9, 9, 12, 12]]], np.float32)
    scores = np.array([[[0.3, 0.30000004]]], np.float32)
    assert boxes.multiclass_nms(corners, scores, Suppression(score_threshold=0.3)).index.tolist() == [[1]]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Suppression(nms_top_k=-2), "nms_top_k is -2"),
        (Suppression(keep_top_k=-5), "keep_top_k is -5"),
        (Suppression(nms_threshold=math.nan), "nms_threshold is nan"),
        (Suppression(nms_eta=0), "nms_eta is 0"),
        (Suppression(nms_eta=1.5), "nms_eta is 1.5"),
    ],
)
def test_settings_that_mean_nothing(settings, said):
    with pytest.raises(SettingsError, match=said):
        boxes.check(settings)
    boxes.check(Suppression())


def test_suppress_results_counts_pixels_and_goes_by_similarity():
    corners = [[0, 0, 9, 9], [9, 0, 19, 9], [50, 50, 60, 60]]  # the first two share a column: 10 / 200
    assert boxes.suppress_results(corners, [0.6, 0.8, 0.7], 0.05) == [1, 2, 0]
    assert boxes.suppress_results(corners, [0.6, 0.8, 0.7], 0.04) == [1, 2]
    assert boxes.suppress_results([], [], 0.05) == []


def test_suppress_results_takes_the_last_of_equal_scores():
    assert boxes.suppress_results([[0, 0, 9, 9]] * 3, [0.7, 0.7, 0.6], 0.05) == [1]


def test_suppress_results_gives_the_published_service_s_results():
    assert len(RECOGNITION) == 23
    for entry in RECOGNITION.values():
        corners = [boxes.crop_corners(Box(*box["bbox"], box["score"])) for box in entry["boxes"]]
        near = [score for _, score in entry["nearest"]]
        labels = [name.split("\t")[1] for name, _ in entry["nearest"]]
        over = [i for i, score in enumerate(near) if score > 0.5]
        kept = boxes.suppress_results([corners[i] for i in over], [near[i] for i in over], 0.05)
        found = [(list(corners[over[i]]), labels[over[i]]) for i in kept]
        assert found == [(r["bbox"], r["rec_docs"]) for r in entry["result"]]
        scores = [near[over[i]] for i in kept]
        assert scores == pytest.approx([r["rec_scores"] for r in entry["result"]], abs=1e-6)


def test_clamp_moves_corners_in_and_drops_what_has_no_pixel():
    def box(*corners):
        return Box(*map(float, corners), 0.5)

    assert boxes.clamp([box(-5, -5.5, 99, 12.5)], 20, 10) == [box(0, 0, 20, 10)]
    outside = [box(-9, 0, -1, 5), box(20, 0, 30, 5), box(0, 10, 5, 20), box(3, -8, 9, -2)]
    thin = [box(3.2, 0, 3.9, 5), box(0, 7, 5, 7), box(6, 0, 2, 5)]
    broken = [box(math.nan, 0, 5, 5), box(0, 0, math.inf, 5)]
    assert boxes.clamp(outside + thin + broken, 20, 10) == []
    assert boxes.clamp([box(3.9, 0, 4.1, 1.2)], 20, 10) == [box(3.9, 0, 4.1, 1.2)]  # has the pixel 3, 0


def test_crop_truncates_the_corners():
    image = np.arange(10 * 20 * 3, dtype=np.uint8).reshape(10, 20, 3)
    part = boxes.crop(image, Box(2.9, 1.1, 5.99, 4.5, 0.5))
    np.testing.assert_array_equal(part, image[1:4, 2:5])
    assert part.base is not None
    assert boxes.crop(image, Box(0, 0, 20, 10, 1)).shape == (10, 20, 3)
