"""What changes an index: each makes the next version of it and says what it did."""

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pdserve.index import folder as folders
from pdserve.index import id_map, manifest, vectors
from pdserve.index.embedder import Embedder, EmbedderId, Vectors, identify, require_same
from pdserve.index.embedding import Digested, embed_gallery
from pdserve.index.entries import UNKNOWN, Entries, Finder, Ids
from pdserve.index.errors import GalleryError, IndexFolderError, NoSuchEntryError
from pdserve.index.folder import Snapshot
from pdserve.index.gallery import GalleryImage, Skipped, check
from pdserve.index.id_map import IdMap
from pdserve.index.publish import Draft, publish, writer, writer_of_broken
from pdserve.index.work import Work, opened
from pdserve.progress import SILENT, Progress

_CHUNK = 65_536


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


def build(
    images: Sequence[GalleryImage],
    folder: Path,
    embedder: Embedder,
    *,
    kind: vectors.Type | None = None,
    metric: vectors.Metric = "IP",
    strict: bool = False,
    progress: Progress = SILENT,
) -> Change:
    """Make an index of a gallery, in place of the one in ``folder`` if there is one.

    ``kind`` None: Flat up to `vectors.FLAT_UP_TO` images, HNSW32 for more. Killed, it leaves the old
    index in force, and what was embedded for the next run. Raises GalleryError for a gallery without a
    readable image, what `embed_gallery` and `publish` raise.
    """
    check(images)
    with opened(folder, embedder) as work:
        readable, skipped = embed_gallery(
            images, embedder, work, known=lambda digest: False, strict=strict, progress=progress
        )
        if not readable:
            raise GalleryError(
                f"None of the {len(images)} images could be read ({skipped[0].image}: {skipped[0].reason})."
                if skipped
                else "The gallery is empty; give at least one image."
            )
        unique = {each.digest: each.image for each in readable}  # the same image twice: the last label counts
        with writer_of_broken(folder, progress):
            base = _readable(folder)
            start = max(base.next_id if base else 0, _next_id(folder))
            chosen: vectors.Type = kind or ("Flat" if len(unique) <= vectors.FLAT_UP_TO else "HNSW32")
            digests = list(unique)
            new = np.arange(start, start + len(digests), dtype=np.int64)
            progress.note(folder.name, f"building {chosen} of {len(digests)} vectors")
            index = _fresh(chosen, metric, embedder.dimension, new, lambda some: work.gather([digests[i] for i in some]))
            made = publish(
                folder,
                Draft(
                    index,
                    {i: id_map.join(o.image, o.label) for i, o in zip(new.tolist(), unique.values(), strict=True)},
                    Entries.of(new, digests),
                    identify(embedder),
                    start + len(digests),
                    len(digests),
                    f"build: {len(digests)} entries",
                ),
                base,
            )
    return Change(
        folder,
        made.version,
        made.count,
        added=len(unique),
        present=len(readable) - len(unique),
        skipped=skipped,
    )


def append(
    images: Sequence[GalleryImage],
    folder: Path,
    embedder: Embedder,
    *,
    strict: bool = False,
    progress: Progress = SILENT,
    cancel: threading.Event | None = None,
) -> Change:
    """Add images to an index. Idempotent: an image is known by its content.

    One that is an entry already stays; with another label, it gets that. A path that is an entry already
    and whose file has other content now replaces that entry. An index whose embedder is not known
    (PaddleClas's) is taken to be ``embedder``'s from here on. Raises OtherEmbedderError, and as `build`.
    """
    check(images)
    if not images:
        raise GalleryError("There is nothing to append; give at least one image.")
    before = folders.read(folder)
    _require(before, embedder)
    finder = Finder(before.entries)
    with opened(folder, embedder) as work:
        readable, skipped = embed_gallery(
            images,
            embedder,
            work,
            known=lambda digest: finder(digest) is not None,
            strict=strict,
            progress=progress,
        )
        with writer(folder, progress, cancel):
            base = folders.read(folder)
            _require(base, embedder)
            plan = _plan(base, readable)
            if any(each.digest not in work.rows for each in plan.new.values()):
                # Another writer has removed meanwhile what was known when the images were read.
                again = [each.image for each in plan.new.values()]
                embed_gallery(again, embedder, work, known=lambda d: False, strict=strict, progress=progress)
                plan.new = {d: each for d, each in plan.new.items() if d in work.rows}
            return _apply(
                base,
                plan,
                lambda some: work.gather(some),
                embedder=identify(embedder),
                skipped=skipped,
                what="append",
            )


def remove(
    folder: Path,
    *,
    labels: Collection[str] = (),
    images: Collection[str] = (),
    ids: Collection[int] = (),
    progress: Progress = SILENT,
    cancel: threading.Event | None = None,
) -> Change:
    """Remove the entries with these labels, image paths or ids.

    Raises NoSuchEntryError that names the ones of which there is none; then nothing is removed.
    """
    with writer(folder, progress, cancel):
        base = folders.read(folder)
        wanted = {("label", each) for each in labels} | {("image", each) for each in images}
        met: set[tuple[str, Any]] = {("id", each) for each in ids if each in base.id_map}
        gone = [each for each in dict.fromkeys(ids) if each in base.id_map]
        for number, entry in base.id_map.items():
            image, label = id_map.split(entry)
            hits = wanted & {("label", label), ("image", image)}
            if hits:
                met |= hits
                gone.append(number)
        missing = sorted((wanted | {("id", each) for each in ids}) - met, key=str)
        if missing:
            named = ", ".join(f"{kind} {value!r}" for kind, value in missing[:5])
            raise NoSuchEntryError(
                f"The index {folder} has no {named}; `pdserve index info --entries` shows what it has."
            )
        plan = _Plan(gone=list(dict.fromkeys(gone)))
        return _apply(base, plan, _nothing, embedder=_embedder(base), skipped=[], what="remove")


def merge(
    folder: Path, others: Sequence[Path], *, progress: Progress = SILENT, cancel: threading.Event | None = None
) -> Change:
    """Add the entries of other indexes of the same embedder to the one in ``folder``.

    An image that is an entry already stays, and gets the other's label. Vectors are taken as they are.
    Raises OtherEmbedderError, IndexFolderError.
    """
    sources = [folders.read(other) for other in others]
    with writer(folder, progress, cancel):
        base = folders.read(folder)
        embedder = _embedder(base)
        plan = _Plan()
        rows: dict[bytes, tuple[int, int]] = {}
        extracted = []
        for number, source in enumerate(sources):
            theirs = _embedder(source)
            if theirs:
                require_same(embedder, theirs, (base.form.dimension, source.form.dimension), folder)
            elif source.form.dimension != base.form.dimension:
                raise IndexFolderError(
                    f"{source.folder} has vectors of {source.form.dimension} numbers and {folder} of "
                    f"{base.form.dimension}; only indexes of the same embedder can be merged."
                )
            embedder = embedder or theirs
            found, its = vectors.extract(source.index)
            extracted.append(its)
            at = {int(i): row for row, i in enumerate(found)}
            more = []
            for i, digest in zip(source.entries.ids.tolist(), source.entries.sha256, strict=True):
                image, label = id_map.split(source.id_map[i])
                # An image of which nothing is known but its path is told apart by its vector.
                key = digest.tobytes() if digest.any() else its[at[i]].tobytes()
                rows[key] = (number, at[i])
                more.append(Digested(GalleryImage(image, label, b""), key))
            _plan_more(base, more, plan, by_path=False)
        _drop_same_vectors(base, plan)

        def gather(keys: Sequence[bytes]) -> Vectors:
            return np.stack([extracted[n][row] for n, row in (rows[key] for key in keys)])

        return _apply(base, plan, gather, embedder=embedder, skipped=[], what="merge")


def _embedder(snapshot: Snapshot) -> EmbedderId | None:
    return snapshot.manifest.embedder if snapshot.manifest else None


def _require(snapshot: Snapshot, embedder: Embedder) -> None:
    require_same(
        _embedder(snapshot),
        identify(embedder),
        (snapshot.form.dimension, embedder.dimension),
        snapshot.folder,
    )


def _readable(folder: Path) -> Snapshot | None:
    """The version in force, None where there is none or it is broken: a new one can be built all the same."""
    try:
        return folders.read(folder)
    except IndexFolderError:
        return None


def _next_id(folder: Path) -> int:
    try:
        known = manifest.read(folder)
    except IndexFolderError:
        return 0
    return known.next_id if known else 0


@dataclass
class _Plan:
    """Entries to be added by digest, to be given another label, and ids to go; how many were there already."""

    new: dict[bytes, Digested] = field(default_factory=dict)
    labels: IdMap = field(default_factory=dict)
    gone: list[int] = field(default_factory=list)
    replaced: int = 0
    present: int = 0


def _plan(base: Snapshot, given: Sequence[Digested]) -> _Plan:
    plan = _Plan()
    _plan_more(base, given, plan, by_path=True)
    return plan


def _plan_more(base: Snapshot, given: Sequence[Digested], plan: _Plan, *, by_path: bool) -> None:
    finder = Finder(base.entries)
    wanted = {each.image.image for each in given} if by_path else set()
    paths: dict[str, list[int]] = {}
    for i, entry in base.id_map.items() if wanted else ():
        image = id_map.split(entry)[0]
        if image in wanted:
            paths.setdefault(image, []).append(i)
    gone = set(plan.gone)
    for each in given:
        known = finder(each.digest)
        if known is not None and known not in gone:
            image, label = id_map.split(plan.labels.get(known, base.id_map[known]))
            plan.present += 1
            plan.labels[known] = id_map.join(image, each.image.label)
            continue
        if each.digest in plan.new:
            plan.present += 1
        plan.new[each.digest] = each
        for stale in paths.get(each.image.image, ()):
            if stale not in gone:
                gone.add(stale)
                plan.gone.append(stale)
                plan.replaced += 1
    plan.labels = {i: entry for i, entry in plan.labels.items() if i not in gone and base.id_map[i] != entry}


def _drop_same_vectors(base: Snapshot, plan: _Plan) -> None:
    """Entries without a known image that base has with the same vector are there already."""
    unknown = [key for key in plan.new if len(key) != 32]
    if not unknown:
        return
    found, rows = vectors.extract(base.index)
    there = {rows[i].tobytes() for i in range(len(found))}
    for key in unknown:
        if key in there:
            del plan.new[key]
            plan.present += 1


def _nothing(digests: Sequence[bytes]) -> Vectors:
    raise AssertionError("there is nothing to gather")


def _apply(
    base: Snapshot,
    plan: _Plan,
    gather: Callable[[Sequence[bytes]], Vectors],
    *,
    embedder: EmbedderId | None,
    skipped: list[Skipped],
    what: str,
) -> Change:
    """Publish ``base`` with a plan carried out; nothing is published where there is nothing to do."""
    relabelled, removed = len(plan.labels), len(plan.gone) - plan.replaced
    added = len(plan.new) - plan.replaced
    if not (plan.labels or plan.gone or plan.new):
        return Change(base.folder, base.version, len(base.id_map), present=plan.present, skipped=skipped)
    if not base.form.changeable:
        raise IndexFolderError(
            f"The index {base.folder} is of faiss's type {base.form.type}, which can be searched but not "
            f"changed; build it anew with `pdserve index build --type {vectors.TYPES[0]}`."
        )
    digests = list(plan.new)
    new = np.arange(base.next_id, base.next_id + len(digests), dtype=np.int64)
    gone = np.array(sorted(plan.gone), np.int64)
    labels = {i: entry for i, entry in base.id_map.items() if i not in set(plan.gone)} if plan.gone else dict(base.id_map)
    labels |= plan.labels
    labels |= {
        i: id_map.join(each.image.image, each.image.label)
        for i, each in zip(new.tolist(), plan.new.values(), strict=True)
    }
    trained_on = base.manifest.trained_on if base.manifest else base.form.slots
    index, compacted = None, False
    if plan.gone or plan.new:
        index, compacted = _changed(base, gone, new, lambda some: gather([digests[i] for i in some]), trained_on)
    words = {"added": added, "relabelled": relabelled, "replaced": plan.replaced, "removed": removed}
    made = publish(
        base.folder,
        Draft(
            index,
            labels,
            # A digest is 32 bytes; the key of an entry whose image is not known is longer.
            base.entries.without(gone).plus(Entries.of(new, [d if len(d) == 32 else UNKNOWN for d in digests])),
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
        removed=removed,
        compacted=compacted,
        skipped=skipped,
    )


_Gather = Callable[[Sequence[int]], Vectors]
"""Positions among the new entries -> their vectors, n×d."""


def _changed(base: Snapshot, gone: Ids, new: Ids, gather: _Gather, trained_on: int) -> tuple[Any, bool]:
    """The index without ``gone`` and with ``new``, and whether it was built anew for that."""
    form = base.form
    kind: vectors.Type = next(each for each in vectors.TYPES if each == form.type)
    metric: vectors.Metric = next(each for each in vectors.METRICS if each == form.metric)
    remaining = len(base.id_map) - len(gone)
    outgrown = kind == "IVF" and remaining + len(new) > vectors.RETRAIN_FACTOR * max(trained_on, 1_000)
    if remaining == 0 or outgrown or (len(gone) and vectors.wants_compacting(base.index, len(gone))):
        found, rows = vectors.extract(base.index)
        kept = ~np.isin(found, gone)
        found, rows = found[kept], rows[kept]

        def both(some: Sequence[int]) -> Vectors:
            old = [i for i in some if i < len(found)]
            late = [i - len(found) for i in some if i >= len(found)]
            return np.concatenate([rows[old], gather(late)]) if late else rows[old]

        return _fresh(kind, metric, form.dimension, np.concatenate([found, new]), both), True
    index = vectors.owned(base.index)
    if len(gone):
        vectors.remove(index, gone)
    for some in _chunks(len(new)):
        vectors.add(index, new[some.start : some.stop], gather(some))
    return index, False


def _fresh(kind: vectors.Type, metric: vectors.Metric, dimension: int, ids: Ids, gather: _Gather) -> Any:
    """A new index of all these ids."""
    sample = np.zeros((0, dimension), np.float32)
    if kind == "IVF" and len(ids):
        size = vectors.sample_size(len(ids))
        sample = gather(np.unique(np.linspace(0, len(ids) - 1, size, dtype=np.int64)).tolist())
    index = vectors.create(kind, metric, dimension, len(ids), sample)
    for some in _chunks(len(ids)):
        vectors.add(index, ids[some.start : some.stop], gather(some))
    return index


def _chunks(n: int) -> Iterator[range]:
    for at in range(0, n, _CHUNK):
        yield range(at, min(n, at + _CHUNK))
