"""Vectors in faiss, in the forms that PaddleClas writes: the one room that knows faiss.

Every vector has an id that it keeps for good. Flat and HNSW32 are wrapped in an ``IndexIDMap2`` for that,
as PaddleClas does. An IVF keeps ids in its lists; wrapped like the others, it confuses them when one is
removed (faiss's map counts on vectors moving up, and the lists do not move), so it stands by itself.

faiss cannot take a vector out of an HNSW graph, whose other vectors are reached over it. A removed slot
is therefore filled with the vector and the id of its nearest neighbour: nothing of the removed entry is
left in the file, whoever reads it gets true entries with true scores, and the graph keeps its ways. What
remains is an id that comes twice, which our search drops. When more than `COMPACT_SHARE` of the slots are
such tombstones, or the graph is small enough to be built in seconds, it is built anew.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from pdserve.index import faiss_check
from pdserve.index.errors import IndexFolderError
from pdserve.index.faiss_package import faiss
from pdserve.vision.types import Ids, Vectors

Type = Literal["Flat", "HNSW32", "IVF"]
Metric = Literal["IP", "L2"]
TYPES: tuple[Type, ...] = get_args(Type)
METRICS: tuple[Metric, ...] = get_args(Metric)

FLAT_UP_TO = 100_000
COMPACT_SHARE = 0.2
COMPACT_BELOW = 5_000
RETRAIN_FACTOR = 4
_CHUNK = 65_536
# faiss builds with 40 and searches with 16. Among 150,000 × 256 vectors in tight groups that finds the
# nearest for 90 in a hundred queries; built with 80, 98; searched with 64 and more, all.
_HNSW_EF_CONSTRUCTION = 80
_HNSW_EF_SEARCH = 128


@dataclass(frozen=True)
class Form:
    """``type``: one of TYPES or faiss's name of another; ``slots``: vectors that faiss holds."""

    type: str
    metric: str
    dimension: int
    slots: int

    @property
    def changeable(self) -> bool:
        return self.type in TYPES


def create(kind: Type, metric: Metric, dimension: int, count: int, sample: Vectors) -> Any:
    """An empty index that expects ``count`` vectors; an IVF's lists are trained on ``sample`` (n×d)."""
    f = faiss()
    number = f.METRIC_INNER_PRODUCT if metric == "IP" else f.METRIC_L2
    if kind == "IVF":
        return _create_ivf(number, dimension, count, sample)
    index = f.index_factory(dimension, kind, number)
    if kind == "HNSW32":
        index.hnsw.efConstruction = _HNSW_EF_CONSTRUCTION
        index.hnsw.efSearch = _HNSW_EF_SEARCH  # is kept in the file, so that other readers search as well
    codes = (f.downcast_index(index.storage) if kind == "HNSW32" else index).codes
    codes.resize(count * dimension * 4)  # room once: growing by doubling would take twice the memory
    codes.resize(0)
    return f.IndexIDMap2(index)


def _create_ivf(number: int, dimension: int, count: int, sample: Vectors) -> Any:
    f = faiss()
    # faiss's advice is 4 to 16 times the root of the count, with 39 vectors or more to train each list.
    lists = max(1, min(int(4 * math.sqrt(count)), len(sample) // 39))
    index = f.index_factory(dimension, f"IVF{lists},Flat", number)
    index.nprobe = max(min(lists, 16), lists // 32)  # is kept in the file, as above
    index.cp.min_points_per_centroid = 1  # else a remark on standard output for small galleries
    if len(sample):
        index.train(sample)
    else:
        index.train(np.eye(1, dimension, dtype=np.float32))
    return index


def sample_size(count: int) -> int:
    """How many vectors `create` wants to train an IVF for ``count``: 64 for each list."""
    return min(count, 64 * int(4 * math.sqrt(count)) + 1)


def read(path: Path) -> Any:
    """Read a ``vector.index``. Raises IndexFolderError, FileNotFoundError."""
    with path.open("rb") as file:
        try:
            return faiss_check.load(file)
        except faiss_check.BrokenIndexError as error:
            raise IndexFolderError(f"{path} {error}; build it anew.") from error
        except (RuntimeError, MemoryError) as error:
            file.seek(0)
            binary = file.read(2) == b"IB"
            why = "holds binary vectors, which pdserve does not search" if binary else "is no index of faiss"
            raise IndexFolderError(f"{path} {why}, or is truncated; build it anew.") from error


def write(index: Any, file: Any) -> None:
    """Write a ``vector.index`` to a binary file that is open. faiss 1.7.4 and newer read it."""
    f = faiss()
    f.write_index(index, f.PyCallbackIOWriter(file.write))


def form(index: Any) -> Form:
    """What an index is."""
    f = faiss()
    inner = _inner(index)
    metric = {f.METRIC_INNER_PRODUCT: "IP", f.METRIC_L2: "L2"}.get(inner.metric_type, str(inner.metric_type))
    kinds = (
        ("Flat", isinstance(inner, f.IndexFlat)),
        ("HNSW32", isinstance(inner, f.IndexHNSWFlat)),
        ("IVF", isinstance(inner, f.IndexIVFFlat)),
    )
    kind = next((name for name, fits in kinds if fits), type(inner).__name__)
    return Form(kind if metric in METRICS else f"{kind}/{metric}", metric, inner.d, index.ntotal)


def ids(index: Any) -> Ids:
    """The id in every slot; one comes more than once where others were removed from a graph."""
    f = faiss()
    if _is_map(index):
        found: Ids = f.vector_to_array(index.id_map)
        return found
    if isinstance(index, f.IndexIVF):
        lists = [some for some, _ in _lists(index)]
        return np.concatenate(lists) if lists else np.zeros(0, np.int64)
    return np.arange(index.ntotal, dtype=np.int64)


def extract(index: Any) -> tuple[Ids, Vectors]:
    """Ids and vectors (n×d, float32, as they are stored), each id once. Copies, except from a Flat.

    A Flat's vectors are a view of its memory, good until the index is changed.
    """
    f = faiss()
    inner = _inner(index)
    if isinstance(inner, f.IndexIVFFlat):
        pairs = list(_lists(inner))
        if not pairs:
            return np.zeros(0, np.int64), np.zeros((0, inner.d), np.float32)
        found = np.concatenate([some for some, _ in pairs])
        rows = np.concatenate([some for _, some in pairs])
        order = np.argsort(found, kind="stable")
        found, rows = found[order], rows[order]
        if _is_map(index):
            names = ids(index)
            if found[-1] >= len(names):
                raise IndexFolderError(
                    "This IVF index lost track of its ids, as faiss's map around one does when an entry is "
                    "removed; build it anew with `pdserve index build`."
                )
            found = names[found]
        return found, rows
    if not isinstance(inner, f.IndexFlat | f.IndexHNSWFlat):
        raise IndexFolderError(
            f"An index of the type {type(inner).__name__} does not keep the vectors themselves; "
            "build it anew with `pdserve index build`."
        )
    rows = _stored(inner, index)
    found, first = np.unique(ids(index), return_index=True)
    in_order = len(found) == len(rows) and bool((first[:-1] < first[1:]).all())
    return found, rows if in_order else rows[first]


def search(index: Any, queries: Vectors, k: int) -> tuple[Vectors, Ids]:
    """faiss's own search: scores and ids, n×k, the best first; -1 where there is nothing more."""
    scores, found = index.search(np.ascontiguousarray(queries, np.float32), k)
    return scores, found


def search_wider(index: Any) -> None:
    """Look at as many ways of a graph as we do in those we write; faiss's default is 16."""
    inner = _inner(index)
    if isinstance(inner, faiss().IndexHNSW):
        inner.hnsw.efSearch = max(inner.hnsw.efSearch, _HNSW_EF_SEARCH)


def owned(index: Any) -> Any:
    """The index in the form in which pdserve changes it: a map around Flat or HNSW, an IVF by itself."""
    f = faiss()
    inner = _inner(index)
    if isinstance(inner, f.IndexIVF):
        return _unwrapped(index, inner) if _is_map(index) else index
    if _is_map(index):
        return index
    # faiss wraps only what is empty, so an empty one is wrapped and the full one put in its place.
    around = f.IndexIDMap2(f.IndexFlat(inner.d, inner.metric_type))
    around.index = inner
    around.referenced_objects = [index]
    f.copy_array_to_vector(np.arange(inner.ntotal, dtype=np.int64), around.id_map)
    around.ntotal = inner.ntotal
    around.construct_rev_map()
    return around


def _unwrapped(around: Any, inner: Any) -> Any:
    names = ids(around)
    for some, _ in _lists(inner):
        some[:] = names[some]
    inner.referenced_objects = [around]
    return inner


def add(index: Any, new: Ids, rows: Vectors) -> None:
    """Add vectors (n×d) under their ids, which must be new."""
    for at in range(0, len(new), _CHUNK):
        some = np.ascontiguousarray(rows[at : at + _CHUNK], np.float32)
        index.add_with_ids(some, np.ascontiguousarray(new[at : at + _CHUNK]))


def remove(index: Any, gone: Ids) -> None:
    """Remove ids. From a graph as the head of this module says: at least one id must remain."""
    if isinstance(_inner(index), faiss().IndexHNSW):
        _retire(index, gone)
    else:
        index.remove_ids(np.ascontiguousarray(gone))


def wants_compacting(index: Any, gone: int) -> bool:
    """Whether a graph is to be built anew when ``gone`` of its ids go."""
    if not isinstance(_inner(index), faiss().IndexHNSW):
        return False
    slots = index.ntotal
    remaining = len(np.unique(ids(index))) - gone
    return remaining <= COMPACT_BELOW or slots - remaining > COMPACT_SHARE * slots


def _retire(index: Any, gone: Ids) -> None:
    f = faiss()
    inner, names = _inner(index), ids(index).copy()
    rows = _stored(inner, index)
    lost = np.flatnonzero(np.isin(names, gone))
    lives = np.ones(len(names), bool)
    lives[lost] = False
    for at in range(0, len(lost), 1024):
        some = lost[at : at + 1024]
        _, near = inner.search(np.ascontiguousarray(rows[some]), min(len(names), 64))
        good = (near >= 0) & lives[near]
        heir = near[np.arange(len(some)), good.argmax(axis=1)]
        for i in np.flatnonzero(~good.any(axis=1)):  # all that the graph found is going too
            heir[i] = _nearest(rows, rows[some[i]], lives)
        # Search first, then write: the next ones must still find their way.
        names[some] = names[heir]
        rows[some] = rows[heir]
    f.copy_array_to_vector(names, index.id_map)
    index.construct_rev_map()


def _nearest(rows: Vectors, row: Vectors, lives: Any) -> int:
    # Of unit vectors, the nearest by distance is the one with the largest inner product too.
    likeness = rows @ row
    likeness[~lives] = -np.inf
    return int(likeness.argmax())


def _inner(index: Any) -> Any:
    f = faiss()
    # What read_index and index_factory give is of its own class; what stands in a map is not yet.
    return f.downcast_index(index.index) if _is_map(index) else f.downcast_index(index)


def _is_map(index: Any) -> bool:
    return isinstance(index, faiss().IndexIDMap)


class _Memory:
    """An array of faiss's memory and the index that must live as long as it."""

    def __init__(self, rows: Vectors, owner: Any) -> None:
        self.__array_interface__ = rows.__array_interface__
        self._owner = owner


def _stored(inner: Any, owner: Any) -> Vectors:
    """A writable view of the vectors of a Flat or an HNSW graph, which belongs to ``owner``."""
    f = faiss()
    flat = f.downcast_index(inner.storage) if isinstance(inner, f.IndexHNSW) else inner
    if not flat.ntotal:
        return np.zeros((0, inner.d), np.float32)
    rows = f.rev_swig_ptr(flat.get_xb(), flat.ntotal * inner.d).reshape(-1, inner.d)
    return np.asarray(_Memory(rows, owner))


def _lists(index: Any) -> Iterator[tuple[Ids, Vectors]]:
    """Views of the ids and the vectors of each list that has any."""
    f = faiss()
    lists = index.invlists
    for i in range(index.nlist):
        if n := lists.list_size(i):
            codes = f.rev_swig_ptr(lists.get_codes(i), n * index.code_size)
            yield f.rev_swig_ptr(lists.get_ids(i), n), codes.view(np.float32).reshape(n, index.d)
