"""A plan carried out: the next version of an index, published."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pdserve.index import faiss_index, id_map
from pdserve.index.embedder import EmbedderId
from pdserve.index.entries import UNKNOWN, Entries
from pdserve.index.errors import IndexFolderError
from pdserve.index.gallery import Skipped
from pdserve.index.plan import Plan, is_vector
from pdserve.index.publish import Draft, publish
from pdserve.index.store import Snapshot
from pdserve.vision.types import Ids, Vectors

_CHUNK = 65_536

Gather = Callable[[Sequence[int]], Vectors]
"""Positions among the new entries -> their vectors, n×d."""


@dataclass(frozen=True)
class Change:
    """What a command did. ``version`` is in force now; without a change it is the one that was.

    ``present``: images that are entries already, or came twice; ``relabelled``: entries whose label
    changed; ``replaced``: entries whose image file has other content now; ``count``: entries now.
    """

    folder: Path
    version: int
    count: int
    added: int = 0
    present: int = 0
    relabelled: int = 0
    replaced: int = 0
    removed: int = 0
    compacted: bool = False
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        return bool(self.added or self.relabelled or self.replaced or self.removed)


def apply(
    base: Snapshot,
    plan: Plan,
    gather: Callable[[Sequence[bytes]], Vectors],
    *,
    embedder: EmbedderId | None,
    skipped: list[Skipped],
    what: str,
) -> Change:
    """Publish ``base`` with a plan carried out; nothing is published where there is nothing to do."""
    relabelled, added = len(plan.labels), len(plan.new) - plan.replaced
    if not (plan.labels or plan.gone or plan.new):
        return Change(base.folder, base.version, len(base.id_map), present=plan.present, skipped=skipped)
    if not base.form.changeable:
        raise IndexFolderError(
            f"The index {base.folder} is of faiss's type {base.form.type}, which can be searched but not "
            f"changed; build it anew with `pdserve index build --type {faiss_index.TYPES[0]}`."
        )
    digests = list(plan.new)

    def rows(some: Sequence[int]) -> Vectors:
        return gather([digests[i] for i in some])

    new = np.arange(base.next_id, base.next_id + len(digests), dtype=np.int64)
    gone = np.array(sorted(plan.gone), np.int64)
    labels = base.id_map | plan.labels
    for i in plan.gone:
        del labels[i]
    labels |= {
        i: id_map.join(each.image.image, each.image.label)
        for i, each in zip(new.tolist(), plan.new.values(), strict=True)
    }
    trained_on = base.manifest.trained_on if base.manifest else base.form.slots
    index, compacted = None, False
    if plan.gone or plan.new:
        index, compacted = _changed(base, gone, new, rows, trained_on)
    words = {"added": added, "relabelled": relabelled, "replaced": plan.replaced, "removed": plan.removed}
    made = publish(
        base.folder,
        Draft(
            index,
            labels,
            base.entries.without(gone).plus(
                Entries.of(new, [UNKNOWN if is_vector(digest) else digest for digest in digests])
            ),
            embedder,
            base.next_id + len(digests),
            len(labels) if compacted else trained_on,
            f"{what}: " + ", ".join(f"{n} {word}" for word, n in words.items() if n),
        ),
        base,
    )
    return Change(
        base.folder,
        made.version,
        made.count,
        added=added,
        present=plan.present,
        relabelled=relabelled,
        replaced=plan.replaced,
        removed=plan.removed,
        compacted=compacted,
        skipped=skipped,
    )


def _changed(base: Snapshot, gone: Ids, new: Ids, gather: Gather, trained_on: int) -> tuple[Any, bool]:
    """The index without ``gone`` and with ``new``, and whether it was built anew for that."""
    form = base.form
    kind: faiss_index.Type = next(each for each in faiss_index.TYPES if each == form.type)
    metric: faiss_index.Metric = next(each for each in faiss_index.METRICS if each == form.metric)
    remaining = len(base.id_map) - len(gone)
    outgrown = kind == "IVF" and remaining + len(new) > faiss_index.RETRAIN_FACTOR * max(trained_on, 1_000)
    if remaining == 0 or outgrown or (len(gone) and faiss_index.wants_compacting(base.index, len(gone))):
        found, rows = faiss_index.extract(base.index)
        kept = ~np.isin(found, gone)
        found, rows = found[kept], rows[kept]

        def both(some: Sequence[int]) -> Vectors:
            old = [i for i in some if i < len(found)]
            late = [i - len(found) for i in some if i >= len(found)]
            return np.concatenate([rows[old], gather(late)]) if late else rows[old]

        return fresh(kind, metric, form.dimension, np.concatenate([found, new]), both), True
    index = faiss_index.owned(base.index)
    if len(gone):
        faiss_index.remove(index, gone)
    for some in _chunks(len(new)):
        faiss_index.add(index, new[some.start : some.stop], gather(some))
    return index, False


def fresh(
    kind: faiss_index.Type, metric: faiss_index.Metric, dimension: int, ids: Ids, gather: Gather
) -> Any:
    """A new index in faiss; ``gather`` gives the vectors of positions in ``ids``."""
    sample = np.zeros((0, dimension), np.float32)
    if kind == "IVF" and len(ids):
        size = faiss_index.sample_size(len(ids))
        sample = gather(np.unique(np.linspace(0, len(ids) - 1, size, dtype=np.int64)).tolist())
    index = faiss_index.create(kind, metric, dimension, len(ids), sample)
    for some in _chunks(len(ids)):
        faiss_index.add(index, ids[some.start : some.stop], gather(some))
    return index


def _chunks(n: int) -> Iterator[range]:
    for at in range(0, n, _CHUNK):
        yield range(at, min(n, at + _CHUNK))
