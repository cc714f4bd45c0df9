"""Boxes: intersection over union (IoU), non-maximum suppression (NMS), cropping.

A box is x1, y1, x2, y2 in pixels, x to the right and y down. Its corners are points (``whole_pixels``
False) or whole pixels, both of which belong to it (True: a box from 3 to 5 is three wide; Paddle calls
this ``normalized=False``).

NMS is that of Paddle's operator ``multiclass_nms3`` on a CPU, in float32 and in the same order of steps, so
that scores that tie and overlaps at the very threshold give the same. ``cv2.dnn.NMSBoxes`` does not: it
drops empty boxes that lie apart, and rounds overlaps otherwise.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pdserve.errors import SettingsError
from pdserve.vision.types import Floats, Image8, Indices

_AT_A_TIME = 64  # the fastest on a thousand boxes of which a hundred stay


@dataclass(frozen=True)
class Box:
    """A box in an image, corners in its pixels; ``class_id``: the detector's number of what is in it."""

    x1: float
    y1: float
    x2: float
    y2: float
    score: float
    class_id: int = 0


@dataclass(frozen=True)
class Suppression:
    """The attributes of ``multiclass_nms3``, by their names there.

    A box counts for a class where its score is over ``score_threshold``. Per class the best ``nms_top_k``
    are looked at, and one that overlaps a better one by more than ``nms_threshold`` (IoU) is dropped;
    after each one kept the threshold, while over 0.5, is multiplied by ``nms_eta``. Of what all classes
    but ``background_label`` kept, the best ``keep_top_k`` stay. -1 is no limit, and no such class.
    ``normalized`` False: corners are whole pixels. The defaults are those of PP-ShiTu's detector.
    """

    score_threshold: float = 0.025
    nms_top_k: int = 1000
    keep_top_k: int = 100
    nms_threshold: float = 0.6
    normalized: bool = True
    nms_eta: float = 1.0
    background_label: int = -1


@dataclass(frozen=True)
class Suppressed:
    """The outputs of ``multiclass_nms3`` for N images, those of all images one after the other.

    ``rows``: (K, 6) float32, class, score, x1, y1, x2, y2; per image by class, then by falling score.
    ``index``: (K, 1) int32, image × M + the box's place among the image's M. ``counts``: (N,) int32, rows
    of each image.
    """

    rows: Floats
    index: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int32]


def iou(ours: npt.ArrayLike, theirs: npt.ArrayLike, *, whole_pixels: bool = False) -> Floats:
    """Intersection over union: boxes (A, 4) and (B, 4) -> (A, B) float32.

    A box with x2 < x1 or y2 < y1 has no area; two without any area have the overlap NaN or 0.
    """
    a = np.asarray(ours, np.float32).reshape(-1, 4).T[:, :, None]
    b = np.asarray(theirs, np.float32).reshape(-1, 4).T[:, None, :]
    return _overlaps(a, _areas(a, whole_pixels), b, _areas(b, whole_pixels), whole_pixels)


def nms(
    boxes: npt.ArrayLike,
    scores: npt.ArrayLike,
    threshold: float,
    *,
    whole_pixels: bool = False,
    top_k: int = -1,
    keep: int = -1,
    eta: float = 1.0,
) -> Indices:
    """Keep the best of boxes that overlap.

    ``boxes`` (M, 4), ``scores`` (M,) -> the places of those kept, best first; of equal scores the first in
    the array comes first. Only the ``top_k`` best are looked at, at most ``keep`` kept; -1: all.
    ``threshold``, ``eta``: as ``nms_threshold`` and ``nms_eta`` of Suppression.
    """
    values = np.asarray(scores, np.float32)
    order = np.argsort(-values, kind="stable")
    if top_k >= 0:
        order = order[:top_k]
    sides = np.ascontiguousarray(np.asarray(boxes, np.float32).reshape(-1, 4)[order].T)
    chosen: Indices = order[_greedy(sides, threshold, whole_pixels, keep, eta)]
    return chosen


def multiclass_nms(boxes: Floats, scores: Floats, settings: Suppression) -> Suppressed:
    """What ``multiclass_nms3`` returns for boxes (N, M, 4) and scores (N, C, M), both float32."""
    found = [_suppress(b, s, settings) for b, s in zip(boxes, scores, strict=True)]
    rows = [
        np.column_stack((labels, s[labels, places], b[places]))
        for b, s, (labels, places) in zip(boxes, scores, found, strict=True)
    ]
    index = [i * boxes.shape[1] + places for i, (_, places) in enumerate(found)]
    return Suppressed(
        np.concatenate([np.empty((0, 6)), *rows]).astype(np.float32),
        np.concatenate([np.empty(0), *index]).astype(np.int32)[:, None],
        np.array([len(places) for places in index], np.int32),
    )


def suppress_results(boxes: npt.ArrayLike, scores: npt.ArrayLike, threshold: float) -> list[int]:
    """NMS across recognised boxes: of overlapping ones keep the most similar, as the published service does.

    ``boxes`` (M, 4), whole pixels as from ``crop_corners``; ``scores`` (M,), similarities. Returns the
    places of those that stay, best first; of equal scores the last one comes first, as there.
    """
    values = np.asarray(scores, np.float32)[::-1]
    corners = np.asarray(boxes, np.float32).reshape(-1, 4)[::-1]
    return [len(values) - 1 - int(i) for i in nms(corners, values, threshold, whole_pixels=True)]


def clamp(boxes: Sequence[Box], width: int, height: int) -> list[Box]:
    """Move corners that lie outside into an image of this size; drop boxes that then have no pixel."""
    inside = []
    for box in boxes:
        corners = (box.x1, box.y1, box.x2, box.y2)
        if all(map(math.isfinite, corners)):
            sides = (width, height, width, height)
            x1, y1, x2, y2 = (min(max(at, 0.0), float(side)) for at, side in zip(corners, sides, strict=True))
            if int(x2) > int(x1) and int(y2) > int(y1):
                inside.append(replace(box, x1=x1, y1=y1, x2=x2, y2=y2))
    return inside


def crop_corners(box: Box) -> tuple[int, int, int, int]:
    """The whole pixels of a box, as the published service cuts them: corners truncated, x2 and y2 outside."""
    return int(box.x1), int(box.y1), int(box.x2), int(box.y2)


def crop(image: Image8, box: Box) -> Image8:
    """The part of an H×W×3 image in a clamped box, a view."""
    x1, y1, x2, y2 = crop_corners(box)
    return image[y1:y2, x1:x2]


def check(settings: Suppression) -> None:
    """Raises SettingsError for limits that mean nothing."""
    for name in ("nms_top_k", "keep_top_k"):
        if getattr(settings, name) < -1:
            raise SettingsError(f"{name} is {getattr(settings, name)}; it must be -1 (no limit) or more.")
    if not settings.nms_threshold >= 0:
        raise SettingsError(f"nms_threshold is {settings.nms_threshold}; it must be 0 or more.")
    if not 0 < settings.nms_eta <= 1:
        raise SettingsError(f"nms_eta is {settings.nms_eta}; it must be over 0 and up to 1.")


def suppression_of(nms: Mapping[str, Any]) -> Suppression:
    """What a section ``NMS`` of PaddleDetection says; its defaults where it says nothing.

    Other keys (``name``, ``return_index``) say how the model was built. Raises SettingsError.
    """
    known = {each.name: type(each.default) for each in fields(Suppression)}
    given = {key: value for key, value in nms.items() if key in known and value is not None}
    for key, value in given.items():
        kinds = (int, float) if known[key] is float else (known[key],)
        if not isinstance(value, kinds) or isinstance(value, bool) != (known[key] is bool):
            raise SettingsError(f"NMS.{key} is {value!r}; it must be a {known[key].__name__}.")
    found = Suppression(**given)
    check(found)
    return found


def _suppress(boxes: Floats, scores: Floats, settings: Suppression) -> tuple[Indices, Indices]:
    """One image, (M, 4) and (C, M) -> the classes and places of the boxes kept, in the operator's order."""
    labels, places = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    over = scores > np.float32(settings.score_threshold)
    for label in np.flatnonzero(over.any(axis=1)):
        if label == settings.background_label:
            continue
        candidates = np.flatnonzero(over[label])
        kept = nms(
            boxes[candidates],
            scores[label, candidates],
            settings.nms_threshold,
            whole_pixels=not settings.normalized,
            top_k=settings.nms_top_k,
            keep=settings.keep_top_k,  # a class cannot have more than all have together
            eta=settings.nms_eta,
        )
        labels.append(np.full(len(kept), label))
        places.append(candidates[kept])
    label_of, place_of = np.concatenate(labels), np.concatenate(places)
    if 0 <= settings.keep_top_k < len(place_of):
        best = np.argsort(-scores[label_of, place_of], kind="stable")[: settings.keep_top_k]
        best = best[np.argsort(label_of[best], kind="stable")]
        label_of, place_of = label_of[best], place_of[best]
    return label_of, place_of


def _greedy(sides: Floats, threshold: float, whole_pixels: bool, keep: int, eta: float) -> list[int]:
    """(4, M) x1, y1, x2, y2 of boxes, best first -> the places of those kept.

    A few at a time are compared with those kept so far, and what is left of them with each other: few calls,
    and nothing is computed for the boxes behind the last one kept.
    """
    limit, factor = np.float32(threshold), np.float32(eta)
    areas = _areas(sides, whole_pixels)
    kept: list[int] = []
    for first in range(0, sides.shape[1], _AT_A_TIME):
        if len(kept) == keep:
            break
        some = np.arange(first, min(first + _AT_A_TIME, sides.shape[1]))
        worst = np.zeros(len(some), np.float32)  # overlap with any box kept so far
        if kept:
            worst = _pairs(sides, areas, np.array(kept), some, whole_pixels).max(axis=0, initial=0)
            # Not `> limit` to drop: an overlap of NaN is dropped, as Paddle does. The limit only falls and
            # the worst only rises, so what is not free now never will be.
            free = worst <= limit
            some, worst = some[free], worst[free]
        overlaps = _pairs(sides, areas, some, some, whole_pixels)
        for i, place in enumerate(some.tolist()):
            if worst[i] <= limit and len(kept) != keep:
                kept.append(place)
                np.maximum(worst, overlaps[i], out=worst)
                if factor < 1 and limit > 0.5:
                    limit *= factor
    return kept


def _pairs(sides: Floats, areas: Floats, ours: Indices, theirs: Indices, whole_pixels: bool) -> Floats:
    """IoU of two choices, A and B, among boxes (4, M) -> (A, B)."""
    return _overlaps(
        sides[:, ours, None], areas[ours, None], sides[:, None, theirs], areas[theirs], whole_pixels
    )


def _areas(sides: Floats, whole_pixels: bool) -> Floats:
    """(4, …) -> (…)."""
    x1, y1, x2, y2 = sides
    more = np.float32(whole_pixels)
    areas: Floats = np.where((x2 < x1) | (y2 < y1), np.float32(0), (x2 - x1 + more) * (y2 - y1 + more))
    return areas


def _overlaps(a: Floats, areas_a: Floats, b: Floats, areas_b: Floats, whole_pixels: bool) -> Floats:
    """IoU of boxes whose sides (4, …) broadcast."""
    more = np.float32(whole_pixels)
    with np.errstate(divide="ignore", invalid="ignore"):
        shared = np.minimum(a[2], b[2])
        shared -= np.maximum(a[0], b[0])
        shared += more
        high = np.minimum(a[3], b[3])
        high -= np.maximum(a[1], b[1])
        high += more
        shared *= high
        both: Floats = areas_a + areas_b
        both -= shared
        shared /= both
    apart: Any = (b[0] > a[2]) | (b[2] < a[0]) | (b[1] > a[3]) | (b[3] < a[1])
    shared[apart] = 0
    overlaps: Floats = shared
    return overlaps
