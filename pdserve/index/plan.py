"""What a change is to do to an index, worked out before anything is done."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pdserve.index import faiss_index, id_map
from pdserve.index.embed import Digested
from pdserve.index.entries import Finder
from pdserve.index.id_map import IdMap
from pdserve.index.store import Snapshot

VECTOR = b"vector "
"""With the vector itself after it, this takes the place of the digest of an image that is not known."""

# Two engines differ in the last digits of a vector.
_SAME = 0.9999


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
    content = {each.image.image: each.digest for each in given} if by_path else {}
    paths: dict[str, list[int]] = {}
    for i, entry in base.id_map.items() if content else ():
        image = id_map.split(entry)[0]
        if image in content:
            paths.setdefault(image, []).append(i)
    kept: set[int] = set()
    for each in given:
        known = finder(each.digest)
        if known is None:
            plan.present += each.digest in plan.new
            plan.new[each.digest] = each
            continue
        plan.present += 1
        kept.add(known)
        image = id_map.split(base.id_map[known])[0]
        if content.get(image, each.digest) != each.digest:  # its path is another image's now
            image = each.image.image
        plan.labels[known] = id_map.join(image, each.image.label)
    for image, digest in content.items():
        stale = [i for i in paths.get(image, ()) if i not in kept] if digest in plan.new else []
        plan.gone += stale
        plan.replaced += bool(stale)
    plan.labels = {i: entry for i, entry in plan.labels.items() if base.id_map[i] != entry}


def is_vector(key: bytes) -> bool:
    """Whether this stands for the digest of an image that is not known; digests have 32 bytes."""
    return key.startswith(VECTOR) and len(key) != 32


def drop_same_vectors(base: Snapshot, plan: Plan) -> None:
    """Of entries without a known image, those are there already that have path, label and vector of one."""
    unknown = {key: each.image for key, each in plan.new.items() if is_vector(key)}
    if not unknown:
        return
    wanted = {id_map.join(image.image, image.label) for image in unknown.values()}
    ids_of: dict[str, list[int]] = {}
    for i, entry in base.id_map.items():
        if entry in wanted:
            ids_of.setdefault(entry, []).append(i)
    found, rows = faiss_index.extract(base.index)
    for key, image in unknown.items():
        vector = np.frombuffer(key[len(VECTOR) :], np.float32)
        same = ids_of.get(id_map.join(image.image, image.label), [])
        if any(rows[i] @ vector > _SAME for i in np.searchsorted(found, same)):
            del plan.new[key]
            plan.present += 1
