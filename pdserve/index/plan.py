"""What a change is to do to an index, worked out before anything is done."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pdserve.index import id_map, vectors
from pdserve.index.embedding import Digested
from pdserve.index.entries import Finder
from pdserve.index.folder import Snapshot
from pdserve.index.id_map import IdMap

VECTOR = b"vector "
"""With the vector itself after it, this takes the place of the digest of an image that is not known."""


@dataclass
class Plan:
    """``new`` entries by digest, entries that get other ``labels``, ids that are ``gone``; and counts."""

    new: dict[bytes, Digested] = field(default_factory=dict)
    labels: IdMap = field(default_factory=dict)
    gone: list[int] = field(default_factory=list)
    present: int = 0
    replaced: int = 0
    removed: int = 0


def add_images(base: Snapshot, given: Sequence[Digested], plan: Plan, *, by_path: bool) -> None:
    """Plan to add images to ``base``; with ``by_path``, an entry of the same path is replaced."""
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
            image = id_map.split(base.id_map[known])[0]
            plan.present += 1
            plan.labels[known] = id_map.join(image, each.image.label)
            continue
        if each.digest in plan.new:
            plan.present += 1
        plan.new[each.digest] = each
        stale = [i for i in paths.get(each.image.image, ()) if i not in gone]
        gone.update(stale)
        plan.gone += stale
        plan.replaced += bool(stale)
    plan.labels = {i: entry for i, entry in plan.labels.items() if i not in gone and base.id_map[i] != entry}


def is_vector(key: bytes) -> bool:
    """Whether this stands for the digest of an image that is not known; digests have 32 bytes."""
    return key.startswith(VECTOR) and len(key) != 32


def drop_same_vectors(base: Snapshot, plan: Plan) -> None:
    """Entries without a known image that base has with the same vector are there already."""
    unknown = [key for key in plan.new if is_vector(key)]
    if not unknown:
        return
    found, rows = vectors.extract(base.index)
    there = {VECTOR + rows[i].tobytes() for i in range(len(found))}
    for key in unknown:
        if key in there:
            del plan.new[key]
            plan.present += 1
