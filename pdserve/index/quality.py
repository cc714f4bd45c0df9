"""Measures the quality of a gallery, and suggests a score threshold.

Each entry is left out and searched for among the others, exactly, by inner product. The nearest of the
same label is what the entry should find. The nearest of another label is what an object would find that is
not in the gallery at all: as if its whole label were left out. The shares of those two scores above a
threshold are the true-accept and the false-accept rate.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pdserve.errors import GalleryError, UsageError
from pdserve.files import disk_errors
from pdserve.index import (
    CHECK_SAMPLE,
    FALSE_ACCEPT,
    NEAR_DUPLICATE,
    faiss_index,
    id_map,
    is_exact,
    search,
    store,
)
from pdserve.index.store import Snapshot
from pdserve.progress import SILENT, Progress
from pdserve.vision.types import Floats, Ids, Indices, Vectors

Doubles = npt.NDArray[np.float64]

TASK = "checking"
NEIGHBOURS = 5
_CELLS = 16_000_000  # similarities at once: 64 MB
_LISTED = 1_000
_BINS = 60


@dataclass(frozen=True)
class Confusion:
    """``count`` images of ``label`` are nearest to one of ``taken_for``."""

    label: str
    taken_for: str
    count: int


@dataclass(frozen=True)
class Pair:
    """Two entries whose vectors are nearly the same. Different labels contradict each other."""

    similarity: float
    images: tuple[str, str]
    labels: tuple[str, str]


@dataclass(frozen=True)
class Mislabel:
    """None of an entry's nearest ``neighbours`` has its label, and ``votes`` of them have another one."""

    image: str
    label: str
    looks_like: str
    votes: int
    neighbours: int


@dataclass(frozen=True)
class Threshold:
    """A minimum score, and the shares of false and of true answers that reach it.

    ``goal`` is the false-accept rate that was requested; ``reached`` is false where no score up to 1 does.
    """

    score: float
    false_accept_rate: float
    true_accept_rate: float | None
    goal: float
    reached: bool


@dataclass(frozen=True)
class IndexRecall:
    """Shares of the exact nearest entry, and of the ten nearest, that the index's own search finds."""

    at_1: float
    at_10: float
    queries: int


@dataclass(frozen=True)
class Report:
    """``queries`` of ``count`` entries were searched for; ``alone`` of them are the only one of their label.

    ``recall_at_1``: the share of the others whose nearest entry has their label, None if there are none.
    ``same`` and ``other`` (float32): each query's best score among its label and among the others.
    """

    version: int
    type: str
    count: int
    labels: int
    queries: int
    alone: int
    recall_at_1: float | None
    confusions: Sequence[Confusion]
    near_duplicates: Sequence[Pair]
    mislabels: Sequence[Mislabel]
    index_recall: IndexRecall | None
    threshold: Threshold | None
    same: Floats
    other: Floats


def check(
    folder: Path,
    *,
    sample: int = CHECK_SAMPLE,
    duplicate: float = NEAR_DUPLICATE,
    false_accept: float = FALSE_ACCEPT,
    progress: Progress = SILENT,
) -> Report:
    """Examine the index in ``folder``, with ``sample`` of its entries as queries where it has more.

    ``duplicate``: similarity from which two entries are near-duplicates. ``false_accept``: the rate that
    the suggested threshold is to keep. Raises IndexFolderError, GalleryError for fewer than two entries.
    """
    snapshot = store.read(folder)
    if len(snapshot.id_map) < 2:
        raise GalleryError(
            f"The index {folder} has {len(snapshot.id_map)} entries; two are needed to compare them."
        )
    ids, rows = faiss_index.extract(snapshot.index)
    texts = [id_map.split(snapshot.id_map[i]) for i in ids.tolist()]
    names, of_label = np.unique([label for _, label in texts], return_inverse=True)
    chosen = np.arange(len(ids))
    if len(ids) > sample:
        chosen = np.sort(np.random.default_rng(0).choice(len(ids), sample, replace=False))
    near = _nearest(rows, of_label, chosen, progress)
    alone = np.bincount(of_label)[of_label[chosen]] == 1
    first = near.rows[:, 0]
    right = of_label[first] == of_label[chosen]
    counted = Counter(
        (int(a), int(b))
        for a, b in zip(of_label[chosen][~right & ~alone], of_label[first][~right & ~alone], strict=True)
    )
    confusions = [Confusion(str(names[a]), str(names[b]), n) for (a, b), n in counted.most_common(_LISTED)]
    return Report(
        version=snapshot.version,
        type=snapshot.form.type,
        count=len(ids),
        labels=len(names),
        queries=len(chosen),
        alone=int(alone.sum()),
        recall_at_1=float(right[~alone].mean()) if (~alone).any() else None,
        confusions=confusions,
        near_duplicates=_duplicates(near, chosen, texts, duplicate),
        mislabels=_mislabels(near, chosen, texts, of_label, alone),
        index_recall=_index_recall(snapshot, ids, rows, chosen, near),
        threshold=_threshold(near, alone, false_accept),
        same=near.same[~alone],
        other=near.other[np.isfinite(near.other)],
    )


@dataclass(frozen=True)
class _Nearest:
    """Per query, itself left out: rows and scores of the ten nearest; best of its label and of others."""

    rows: Indices
    scores: Vectors
    same: Floats
    other: Floats


def _nearest(rows: Vectors, of_label: Indices, chosen: Indices, progress: Progress) -> _Nearest:
    k = min(10, len(rows) - 1)
    parts: list[tuple[Indices, Vectors, Vectors, Vectors]] = []
    progress.start(TASK, len(chosen), 0)
    step = max(1, _CELLS // len(rows))
    for at in range(0, len(chosen), step):
        some = chosen[at : at + step]
        scores = rows[some] @ rows.T
        lines = np.arange(len(some))
        scores[lines, some] = -np.inf
        top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(scores, top, 1), axis=1, kind="stable")
        top = np.take_along_axis(top, order, 1)
        own = of_label[some][:, None] == of_label[None, :]
        parts.append(
            (
                top,
                np.take_along_axis(scores, top, 1),
                np.where(own, scores, -np.inf).max(axis=1),
                np.where(own, -np.inf, scores).max(axis=1),
            )
        )
        progress.advance(TASK, len(some))
    progress.done(TASK)
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return _Nearest(columns[0], columns[1], columns[2].astype(np.float32), columns[3].astype(np.float32))


def _duplicates(
    near: _Nearest, chosen: Indices, texts: Sequence[tuple[str, str]], limit: float
) -> list[Pair]:
    found: dict[tuple[int, int], float] = {}
    for line, column in np.argwhere(near.scores >= limit).tolist():
        a, b = int(chosen[line]), int(near.rows[line, column])
        found[min(a, b), max(a, b)] = float(near.scores[line, column])
    pairs = [
        Pair(score, (texts[a][0], texts[b][0]), (texts[a][1], texts[b][1])) for (a, b), score in found.items()
    ]
    # Those that contradict each other first.
    pairs.sort(key=lambda pair: (pair.labels[0] == pair.labels[1], -pair.similarity, pair.images))
    return pairs[:_LISTED]


def _mislabels(
    near: _Nearest,
    chosen: Indices,
    texts: Sequence[tuple[str, str]],
    of_label: Indices,
    alone: npt.NDArray[np.bool_],
) -> list[Mislabel]:
    k = min(NEIGHBOURS, near.rows.shape[1])
    found = []
    for line in np.flatnonzero(~alone & (near.other > near.same)).tolist() if k >= 3 else ():
        labels = of_label[near.rows[line, :k]].tolist()
        own = int(of_label[chosen[line]])
        other, votes = Counter(labels).most_common(1)[0]
        if own not in labels and votes > k / 2:
            image, label = texts[chosen[line]]
            looks_like = texts[near.rows[line, labels.index(other)]][1]
            found.append(
                (float(near.same[line] - near.other[line]), Mislabel(image, label, looks_like, votes, k))
            )
    return [each for _, each in sorted(found, key=lambda pair: pair[0])[:_LISTED]]


def _index_recall(
    snapshot: Snapshot, ids: Ids, rows: Vectors, chosen: Indices, near: _Nearest
) -> IndexRecall | None:
    """None for an index whose search is exact."""
    if is_exact(snapshot.form.type):
        return None
    k = near.rows.shape[1]
    found = search.of(snapshot).search(rows[chosen], k + 1)
    first = tenth = 0.0
    for line, matches in enumerate(found):
        others = [m for m in matches if m.id != ids[chosen[line]]][:k]
        # Equal scores are equally near, whichever of them comes first.
        first += bool(others) and others[0].similarity >= near.scores[line, 0] - 1e-5
        tenth += len({m.id for m in others} & set(ids[near.rows[line]].tolist())) / k
    return IndexRecall(first / len(found), tenth / len(found), len(found))


def _threshold(near: _Nearest, alone: npt.NDArray[np.bool_], goal: float) -> Threshold | None:
    other = np.sort(near.other[np.isfinite(near.other)])[::-1]
    if not len(other):
        return None
    allowed = int(goal * len(other))
    # Just above the best score that may no longer pass, to four digits.
    score = min(1.0, math.floor(float(other[allowed]) * 1e4 + 1) / 1e4) if allowed < len(other) else 0.0
    false = float((other >= score).mean())
    known = ~alone
    true = (near.same >= score) & (near.same > near.other)
    return Threshold(score, false, float(true[known].mean()) if known.any() else None, goal, false <= goal)


def histogram(report: Report) -> tuple[Doubles, Doubles, Doubles]:
    """Bin edges (61), and the shares (60 each) of the scores of the same label and of others in them."""
    both = np.concatenate([report.same, report.other])
    low = min(0.0, float(np.floor(both.min() * 10) / 10)) if len(both) else 0.0
    edges = np.linspace(low, 1.0, _BINS + 1)
    same, other = (
        np.histogram(np.clip(scores, low, 1.0), edges)[0] / max(1, len(scores))
        for scores in (report.same, report.other)
    )
    return edges, same, other


def check_picture() -> None:
    """Raise UsageError where `draw` could not: to be called before a gallery is checked."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError('--picture needs matplotlib: `pip install "pdserve[plot]"`.') from error


def draw(report: Report, path: Path) -> None:
    """Write both score distributions and the threshold as a PNG of 900×480 pixels. Raises DiskError."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    edges, same, other = histogram(report)
    figure = Figure(figsize=(9, 4.8), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.stairs(
        other, edges, fill=True, alpha=0.6, color="C1", label=f"of another label ({len(report.other)})"
    )
    axes.stairs(
        same, edges, fill=True, alpha=0.6, color="C0", label=f"of the same label ({len(report.same)})"
    )
    if report.threshold:
        score = report.threshold.score
        axes.axvline(score, color="black", label=f"suggested threshold {score:.4f}")
    axes.set_title(f"{report.queries} of {report.count} images, each left out", loc="left", fontsize="medium")
    axes.set_xlabel("similarity of the nearest image")
    axes.set_ylabel("share of images")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", frameon=False)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png")
