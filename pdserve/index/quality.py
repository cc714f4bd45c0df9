"""How good is a gallery, and from which score on is an answer to be believed?

Each entry is taken out and looked for among the others (leave one out), exactly, by inner product. The
nearest of the same label is what the entry should find. The nearest of another label is what a thing
would find that is not in the gallery at all: as if its whole label were taken out. The shares of those two
scores above a threshold are the true-accept and the false-accept rate.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pdserve.index import faiss_index, id_map, search
from pdserve.index import store as folders
from pdserve.index.errors import GalleryError
from pdserve.index.store import Snapshot
from pdserve.progress import SILENT, Progress
from pdserve.vision.types import Ids, Vectors

TASK = "checking"
NEIGHBOURS = 5
_CELLS = 16_000_000  # similarities at once: 64 MB
_LISTED = 1_000


@dataclass(frozen=True)
class Confusion:
    """``count`` images of ``label`` are nearest to one of ``taken_for``."""

    label: str
    taken_for: str
    count: int


@dataclass(frozen=True)
class Pair:
    """Two entries that are nearly one. Different labels for one picture contradict each other."""

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
    """Score from which an answer counts, and the shares of false and of true answers it lets through.

    ``goal`` is the false-accept rate that was asked for; ``reached`` is false where no score up to 1 does.
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
    """``queries`` of ``count`` entries were looked for; ``alone`` of them are the only one of their label.

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
    same: npt.NDArray[np.float32]
    other: npt.NDArray[np.float32]


def check(
    folder: Path,
    *,
    sample: int = 2_000,
    duplicate: float = 0.98,
    false_accept: float = 0.01,
    progress: Progress = SILENT,
) -> Report:
    """Examine the index in ``folder``, with ``sample`` of its entries as queries where it has more.

    ``duplicate``: similarity from which two entries are near-duplicates. ``false_accept``: the rate that
    the suggested threshold is to keep. Raises IndexFolderError, GalleryError for fewer than two entries.
    """
    snapshot = folders.read(folder)
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

    rows: npt.NDArray[np.int64]
    scores: Vectors
    same: npt.NDArray[np.float32]
    other: npt.NDArray[np.float32]


def _nearest(
    rows: Vectors, of_label: npt.NDArray[np.int64], chosen: npt.NDArray[np.int64], progress: Progress
) -> _Nearest:
    k = min(10, len(rows) - 1)
    parts: list[tuple[npt.NDArray[np.int64], Vectors, Vectors, Vectors]] = []
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
    near: _Nearest, chosen: npt.NDArray[np.int64], texts: Sequence[tuple[str, str]], limit: float
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
    chosen: npt.NDArray[np.int64],
    texts: Sequence[tuple[str, str]],
    of_label: npt.NDArray[np.int64],
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
    snapshot: Snapshot, ids: Ids, rows: Vectors, chosen: npt.NDArray[np.int64], near: _Nearest
) -> IndexRecall | None:
    """None for a Flat, whose search is exact."""
    if snapshot.form.type == "Flat":
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
