"""Do two forms of a model agree? Each task has its measure, a share from 0 to 1, over the same images.

- Classifier, ``top-1``: the share of images whose first label is the same; of models that answer by
  thresholds, with several labels or with attributes, the share whose labels are all the same.
- Embedder, ``recall@1``: the share of images whose nearest neighbour among the others is found, where the
  float model says which is nearest (recall@R as in Jégou, Douze, Schmid: Product quantization for nearest
  neighbor search, TPAMI 33, 2011, section V). The gallery is the float model's and the query the optimised
  one's, as when an index is searched that was built before. A neighbour that is less similar by no more
  than 0.01 is as good: pictures of one thing are often nearer to each other than that. Held against the
  limit is the lesser of this and the median cosine between the two vectors of an image, so that
  similarities keep their scale.
- Detector, ``boxes``: 2·m ÷ (a + b) for a and b boxes of which m are matched, one to one, by the
  intersection over union of at least 0.9, over all images.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pdserve.errors import UsageError
from pdserve.vision.boxes import Box, iou
from pdserve.vision.types import Floats

LEAST_IOU = 0.9
_AT_A_TIME = 1024  # rows of a table of similarities
_AS_NEAR = 0.01
_ROUNDING = 1e-6  # of a picture that is there twice


@dataclass(frozen=True)
class Agreement:
    """``value`` is held against the limit; ``figures`` are all there are, by name."""

    measure: str
    value: float
    images: int
    figures: Mapping[str, float]


def of_labels(
    floats: Sequence[Floats], others: Sequence[Floats], answer: Callable[[Floats], Hashable]
) -> Agreement:
    """Rows of scores of the same images; ``answer`` is what must be the same."""
    same = [answer(a) == answer(b) for a, b in zip(floats, others, strict=True)]
    furthest = max(float(np.abs(a - b).max()) for a, b in zip(floats, others, strict=True))
    share = float(np.mean(same))
    return Agreement("top-1", share, len(same), {"top_1": share, "max_score_difference": furthest})


def of_vectors(floats: Floats, others: Floats) -> Agreement:
    """Vectors of the same images, (n, dimension), of length 1. Raises UsageError for less than two images."""
    if len(floats) < 2:
        raise UsageError("An embedder is compared on at least 2 images; give more with --images.")
    cosines = np.einsum("ij,ij->i", floats, others)
    found = exactly = 0
    for at in range(0, len(floats), _AT_A_TIME):
        rows = np.arange(at, min(at + _AT_A_TIME, len(floats)))
        true, asked = floats[rows] @ floats.T, others[rows] @ floats.T
        for similarities in (true, asked):
            similarities[np.arange(len(rows)), rows] = -np.inf  # an image is not its own neighbour
        lost = true.max(axis=1) - true[np.arange(len(rows)), asked.argmax(axis=1)]
        found += int((lost <= _AS_NEAR).sum())
        exactly += int((lost <= _ROUNDING).sum())
    recall, median = found / len(floats), float(np.median(cosines))
    figures = {
        "recall_at_1": recall,
        "recall_at_1_exact": exactly / len(floats),
        "cosine_median": median,
        "cosine_min": float(cosines.min()),
    }
    return Agreement("recall@1", min(recall, median), len(floats), figures)


def of_boxes(floats: Sequence[Sequence[Box]], others: Sequence[Sequence[Box]]) -> Agreement:
    """Boxes of the same images. Raises UsageError where there are none in any."""
    pairs = [pair for a, b in zip(floats, others, strict=True) for pair in _matched(a, b)]
    counts = sum(map(len, floats)), sum(map(len, others))
    if not any(counts):
        raise UsageError("The detector finds nothing in these images; give --images with things in them.")
    share = 2 * len(pairs) / sum(counts)
    figures = {
        "boxes_float": counts[0],
        "boxes_optimized": counts[1],
        "boxes_matched": len(pairs),
        "max_score_difference": max((abs(a.score - b.score) for a, b in pairs), default=0.0),
    }
    return Agreement("boxes", share, len(floats), figures)


def _matched(ours: Sequence[Box], theirs: Sequence[Box]) -> list[tuple[Box, Box]]:
    """Pairs of boxes, those that overlap most first."""
    if not ours or not theirs:
        return []
    overlaps = np.nan_to_num(iou([_corners(b) for b in ours], [_corners(b) for b in theirs]))
    pairs = []
    while overlaps.max() >= LEAST_IOU:
        row, column = divmod(int(overlaps.argmax()), len(theirs))
        pairs.append((ours[row], theirs[column]))
        overlaps[row], overlaps[:, column] = 0, 0
    return pairs


def _corners(box: Box) -> tuple[float, float, float, float]:
    return box.x1, box.y1, box.x2, box.y2
