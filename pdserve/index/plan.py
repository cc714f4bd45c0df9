"""Plans a change of an index, and carries it out: which entries are added, relabelled and removed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from pdserve.errors import IndexFolderError
from pdserve.index import faiss_index, id_map
from pdserve.index.embed import EmbedderId, HashedImage
from pdserve.index.entries import UNKNOWN, Entries, Finder
from pdserve.index.faiss_index import Gather
from pdserve.index.gallery import GalleryImage, Skipped
from pdserve.index.id_map import IdMap
from pdserve.index.publish import Draft, publish
from pdserve.index.store import Snapshot
from pdserve.vision.types import Ids, Vectors

# Two engines differ in the last digits of a vector.
_SAME = 0.9999
_VECTOR = b"vector "

GatherDigests = Callable[[Sequence[bytes]], Vectors]
"""Digests of images -> their vectors (n×d)."""


@dataclass
class Plan:
    """``new`` entries by digest, entries that get other ``labels``, ids that are ``gone``; and counts.

    ``same_path``: new entries beside others of their path.
    """

    new: dict[bytes, HashedImage] = field(default_factory=dict)
    labels: IdMap = field(default_factory=dict)
    gone: list[int] = field(default_factory=list)
    present: int = 0
    replaced: int = 0
    same_path: int = 0
    removed: int = 0


@dataclass(frozen=True)
class Change:
    """What a command did. ``version`` is the current one; without a change it is the one before.

    ``present``: images that are entries already, or came twice; ``relabelled``: entries whose label
    changed; ``replaced``: paths whose entries were replaced, as asked for; ``same_path``: of those added, how
    many have the path of an entry of another image; ``count``: entries now; ``compacted``: the index was
    rebuilt.
    """

    folder: Path
    version: int
    count: int
    added: int = 0
    present: int = 0
    relabelled: int = 0
    replaced: int = 0
    same_path: int = 0
    removed: int = 0
    compacted: bool = False
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        return bool(self.added or self.relabelled or self.replaced or self.removed)


def add_images(
    base: Snapshot,
    given: Sequence[HashedImage],
    plan: Plan,
    *,
    by_path: bool,
    replace: bool = False,
    known: Mapping[bytes, int] = MappingProxyType({}),
) -> None:
    """Plan to add images to ``base``. An image is known by its content: it never takes another's place.

    ``by_path``: paths are of the same folder as those in ``base``, so that an image that is an entry under
    another path has moved; ``replace``: what else is an entry of that path goes. ``known``: digests whose
    entries are known otherwise.
    """
    finder = Finder(base.entries)
    content = {each.image.image: each.digest for each in given} if by_path else {}
    paths: dict[str, list[int]] = {}
    for i, entry in base.id_map.items() if content else ():
        image = id_map.split(entry)[0]
        if image in content:
            paths.setdefault(image, []).append(i)
    matched: set[int] = set()
    for each in given:
        found = finder(each.digest)
        found = known.get(each.digest) if found is None else found
        if found is None:
            plan.present += each.digest in plan.new
            plan.new[each.digest] = each
            continue
        plan.present += 1
        matched.add(found)
        image = id_map.split(base.id_map[found])[0]
        if content.get(image, each.digest) != each.digest:  # its path is another image's now
            image = each.image.image
        plan.labels[found] = id_map.join(image, each.image.label)
    for image, digest in content.items():
        others = [i for i in paths.get(image, ()) if i not in matched] if digest in plan.new else []
        if replace:
            plan.gone += others
            plan.replaced += bool(others)
        else:
            plan.same_path += bool(others)
    plan.labels = {i: entry for i, entry in plan.labels.items() if base.id_map[i] != entry}


def known_by_vector(base: Snapshot, given: Sequence[HashedImage], gather: GatherDigests) -> dict[bytes, int]:
    """Digest -> entry, for images whose entry has their path and their vector but no digest.

    So are all entries of an index of another program.
    """
    unknown = set(base.entries.ids[~base.entries.sha256.any(axis=1)].tolist())
    if not unknown or not base.form.changeable:
        return {}
    wanted = {each.image.image: each.digest for each in given}
    pairs: list[tuple[int, bytes]] = []
    for i, entry in base.id_map.items():
        if i in unknown and (digest := wanted.get(id_map.split(entry)[0])):
            pairs.append((i, digest))
    if not pairs:
        return {}
    found, rows = faiss_index.extract(base.index)
    places = np.searchsorted(found, [i for i, _ in pairs])
    same = (rows[places] * gather([digest for _, digest in pairs])).sum(axis=1) > _SAME
    return {digest: i for (i, digest), fits in zip(pairs, same, strict=True) if fits}


def label(ids: Ids, images: Iterable[GalleryImage]) -> IdMap:
    """The id map of images, one per id."""
    return {i: id_map.join(each.image, each.label) for i, each in zip(ids.tolist(), images, strict=True)}


def vector_key(vector: Vectors) -> bytes:
    """What stands for the digest of an image of which only the vector (d) is known."""
    return _VECTOR + vector.tobytes()


def _is_vector_key(key: bytes) -> bool:
    return key.startswith(_VECTOR) and len(key) != 32  # digests have 32 bytes


def drop_same_vectors(base: Snapshot, plan: Plan) -> None:
    """Drop new entries without a known image that have path, label and vector of one in ``base``."""
    unknown = {key: each.image for key, each in plan.new.items() if _is_vector_key(key)}
    if not unknown:
        return
    ids_of: dict[str, list[int]] = {id_map.join(image.image, image.label): [] for image in unknown.values()}
    for i, entry in base.id_map.items():
        if entry in ids_of:
            ids_of[entry].append(i)
    found, rows = faiss_index.extract(base.index)
    for key, image in unknown.items():
        vector = np.frombuffer(key[len(_VECTOR) :], np.float32)
        same = ids_of[id_map.join(image.image, image.label)]
        if any(rows[i] @ vector > _SAME for i in np.searchsorted(found, same)):
            del plan.new[key]
            plan.present += 1


def apply(
    base: Snapshot,
    plan: Plan,
    gather: GatherDigests,
    *,
    embedder: EmbedderId | None,
    skipped: list[Skipped],
    command: str,
) -> Change:
    """Carry out a plan and publish the result, unless there is nothing to do.

    Raises IndexFolderError for an index that cannot be changed, and as `publish`.
    """
    if not (plan.labels or plan.gone or plan.new):
        return Change(base.folder, base.version, len(base.id_map), present=plan.present, skipped=skipped)
    if not base.form.changeable:
        raise IndexFolderError(
            f"The index {base.folder} is of faiss's type {base.form.type}, which can be searched but not "
            "changed; rebuild it with `pdserve index build --type Flat`."
        )
    digests = list(plan.new)
    new = np.arange(base.next_id, base.next_id + len(digests), dtype=np.int64)
    gone = np.array(sorted(plan.gone), np.int64)
    labels = base.id_map | plan.labels
    for i in plan.gone:
        del labels[i]
    labels |= label(new, [each.image for each in plan.new.values()])
    trained_on = base.manifest.trained_on if base.manifest else base.form.slots
    index, compacted = None, False
    if plan.gone or plan.new:
        index, compacted = _changed_index(
            base, gone, new, lambda some: gather([digests[i] for i in some]), trained_on
        )
    counts = {
        "added": len(plan.new) - plan.replaced,
        "relabelled": len(plan.labels),
        "replaced": plan.replaced,
        "removed": plan.removed,
    }
    made = publish(
        base.folder,
        Draft(
            index,
            labels,
            base.entries.without(gone).plus(
                Entries.of(new, [UNKNOWN if _is_vector_key(digest) else digest for digest in digests])
            ),
            embedder,
            base.next_id + len(digests),
            len(labels) if compacted else trained_on,
            f"{command}: " + ", ".join(f"{n} {word}" for word, n in counts.items() if n),
        ),
        base,
    )
    return Change(
        base.folder,
        made.version,
        made.count,
        present=plan.present,
        same_path=plan.same_path,
        compacted=compacted,
        skipped=skipped,
        **counts,
    )


def _changed_index(base: Snapshot, gone: Ids, new: Ids, gather: Gather, trained_on: int) -> tuple[Any, bool]:
    """The index without ``gone`` and with ``new``, and whether it was rebuilt for that."""
    form = base.form
    if faiss_index.needs_rebuild(base.index, len(gone), len(new), trained_on):
        found, rows = faiss_index.extract(base.index)
        stays = ~np.isin(found, gone)
        found, rows = found[stays], rows[stays]

        def gather_both(some: Sequence[int]) -> Vectors:
            old = [i for i in some if i < len(found)]
            late = [i - len(found) for i in some if i >= len(found)]
            return np.concatenate([rows[old], gather(late)]) if late else rows[old]

        every = np.concatenate([found, new])
        return faiss_index.build(form.type, form.metric, form.dimension, every, gather_both), True
    index = faiss_index.owned(base.index)
    if len(gone):
        faiss_index.remove(index, gone)
    for some in faiss_index.chunks(len(new)):
        faiss_index.add(index, new[some.start : some.stop], gather(some))
    return index, False
