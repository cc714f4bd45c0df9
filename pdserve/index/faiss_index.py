"""Vectors in a faiss index of one of `INDEX_TYPES`, in the form that PaddleClas writes.

Every vector has an id that it keeps for good. Flat and HNSW32 are wrapped in an ``IndexIDMap2`` for that,
as PaddleClas does. An IVF keeps ids in its lists; wrapped like the others, it confuses them when one is
removed (faiss's map expects vectors to move up, and the lists do not move), so it is not wrapped.

faiss cannot take a vector out of an HNSW graph, whose other vectors are reached over it. A removed slot
is therefore filled with the vector of its nearest neighbour, under an id that stands for that entry once
more (see id_map.py): nothing of the removed entry is left in the file, any reader gets true entries with
true scores, the graph keeps its links, and PaddleClas, which counts, finds as many labels as vectors. Our
search drops what comes twice. When more than `COMPACT_SHARE` of the slots are such tombstones, or the graph
is small enough to be built in seconds, it is rebuilt.
"""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pdserve.errors import IndexFolderError, UsageError
from pdserve.index import GRAPH, INDEX_TYPES, METRICS, IndexType, id_map
from pdserve.index.faiss_check import BrokenIndexError, faiss, load
from pdserve.vision.types import Ids, Vectors

COMPACT_SHARE = 0.2
COMPACT_BELOW = 5_000
RETRAIN_FACTOR = 4
CHUNK = 65_536
"""Vectors that are copied at once."""

Gather = Callable[[Sequence[int]], Vectors]
"""Places in a list of ids -> their vectors (n×d)."""


@dataclass(frozen=True)
class Form:
    """``type``: one of `INDEX_TYPES` or faiss's name of another; ``slots``: vectors that faiss holds."""

    type: str
    metric: str
    dimension: int
    slots: int

    @property
    def changeable(self) -> bool:
        """Whether entries can be added and removed, and vectors read."""
        return self.type in INDEX_TYPES


def index_type(name: str) -> IndexType:
    """An entry of `INDEX_TYPES`. Raises UsageError."""
    try:
        return INDEX_TYPES[name]
    except KeyError:
        raise UsageError(f"{name!r} is no type of index; choose one of {', '.join(INDEX_TYPES)}.") from None


def build(name: str, metric: str, dimension: int, ids: Ids, gather: Gather) -> Any:
    """A new index of the type ``name``; ``gather`` gives the vectors of places in ``ids``."""
    sample = np.zeros((0, dimension), np.float32)
    if index_type(name).trained and len(ids):
        size = min(len(ids), 64 * _lists_for(len(ids)) + 1)
        sample = gather(np.unique(np.linspace(0, len(ids) - 1, size, dtype=np.int64)).tolist())
    index = create(name, metric, dimension, len(ids), sample)
    for some in chunks(len(ids)):
        add(index, ids[some.start : some.stop], gather(some))
    return index


def chunks(n: int) -> Iterator[range]:
    """0 to ``n`` in ranges of `CHUNK`."""
    for at in range(0, n, CHUNK):
        yield range(at, min(n, at + CHUNK))


def create(name: str, metric: str, dimension: int, count: int, sample: Vectors) -> Any:
    """An empty index that expects ``count`` vectors; lists are trained on ``sample`` (n×d)."""
    f, kind = faiss(), index_type(name)
    number = f.METRIC_INNER_PRODUCT if metric == "IP" else f.METRIC_L2
    # faiss recommends 39 vectors or more to train each list.
    lists = max(1, min(_lists_for(count), len(sample) // 39))
    index = f.index_factory(dimension, kind.factory.format(lists=lists), number)
    if kind.trained:
        # The number of lists to search is kept in the file, so that other readers search as well.
        index.nprobe = max(min(lists, 16), lists // 32)
        index.cp.min_points_per_centroid = 1  # else a warning on standard output for small galleries
        index.train(sample if len(sample) else np.eye(1, dimension, dtype=np.float32))
        return index
    for parameter, value in kind.parameters.items():
        setattr(index.hnsw, parameter, value)  # efSearch is kept in the file, as above
    codes = _flat(index).codes
    codes.resize(count * dimension * 4)  # allocated once: growing by doubling would take twice the memory
    codes.resize(0)
    return f.IndexIDMap2(index)


def _lists_for(count: int) -> int:
    """How many lists an IVF of ``count`` vectors has: faiss recommends 4 to 16 times the root."""
    return int(4 * math.sqrt(count))


def read(path: Path) -> Any:
    """Read a ``vector.index``. Raises IndexFolderError, FileNotFoundError."""
    with path.open("rb") as file:
        try:
            return load(file)
        except BrokenIndexError as error:
            raise IndexFolderError(f"{path} {error}; rebuild it.") from error
        except (RuntimeError, MemoryError) as error:
            file.seek(0)
            binary = file.read(2) == b"IB"
            why = "holds binary vectors, which pdserve does not search" if binary else "is no index of faiss"
            raise IndexFolderError(f"{path} {why}, or is truncated; rebuild it.") from error


def write(index: Any, file: Any) -> None:
    """Write a ``vector.index`` to an open binary file. faiss 1.7.4 and newer read it."""
    f = faiss()
    f.write_index(index, f.PyCallbackIOWriter(file.write))


def form(index: Any) -> Form:
    """Type, metric, dimension and size of an index."""
    f = faiss()
    inner = _inner(index)
    metric = {f.METRIC_INNER_PRODUCT: "IP", f.METRIC_L2: "L2"}.get(inner.metric_type, str(inner.metric_type))
    kinds = [name for name, kind in INDEX_TYPES.items() if isinstance(inner, getattr(f, kind.faiss_class))]
    name = kinds[0] if kinds else type(inner).__name__
    if isinstance(inner, f.IndexHNSW) and (links := f"HNSW{inner.hnsw.nb_neighbors(1)}") in kinds:
        name = links
    return Form(name if metric in METRICS else f"{name}/{metric}", metric, inner.d, index.ntotal)


def ids(index: Any) -> Ids:
    """The id in every slot; one comes more than once where others were removed from a graph."""
    return id_map.originals(_stored_ids(index))


def copies(index: Any) -> list[int]:
    """The ids that stand for an entry once more, as they are in the file."""
    stored = _stored_ids(index)
    found: list[int] = stored[stored < id_map.COPIES_BELOW].tolist()
    return found


def _stored_ids(index: Any) -> Ids:
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
                    "removed; rebuild it with `pdserve index build`."
                )
            found = names[found]
        return found, rows
    if not isinstance(inner, f.IndexFlat | f.IndexHNSWFlat):
        raise IndexFolderError(
            f"An index of the type {type(inner).__name__} does not keep the vectors themselves; "
            "rebuild it with `pdserve index build`."
        )
    rows = _stored(inner, index)
    found, first = np.unique(ids(index), return_index=True)
    in_order = len(found) == len(rows) and bool((first[:-1] < first[1:]).all())
    return found, rows if in_order else rows[first]


def search(index: Any, queries: Vectors, k: int) -> tuple[Vectors, Ids]:
    """faiss's own search: scores and ids, n×k, the best first; -1 where there is nothing more."""
    scores, found = index.search(np.ascontiguousarray(queries, np.float32), k)
    return scores, id_map.originals(found)


def search_wider(index: Any) -> None:
    """Search a graph as deep as those that pdserve writes; faiss's default is 16."""
    inner = _inner(index)
    if isinstance(inner, faiss().IndexHNSW):
        inner.hnsw.efSearch = max(inner.hnsw.efSearch, GRAPH["efSearch"])


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
    for some in chunks(len(new)):
        part = slice(some.start, some.stop)
        index.add_with_ids(np.ascontiguousarray(rows[part], np.float32), np.ascontiguousarray(new[part]))


def remove(index: Any, gone: Ids) -> None:
    """Remove ids; from a graph, of which one must remain, as described at the top of this module."""
    if isinstance(_inner(index), faiss().IndexHNSW):
        _fill_slots(index, gone)
    else:
        index.remove_ids(np.ascontiguousarray(gone))


def needs_rebuild(index: Any, gone: int, new: int, trained_on: int) -> bool:
    """Whether to build another index rather than to remove ``gone`` ids and add ``new`` ones.

    So where none would remain, where an index has outgrown the ``trained_on`` vectors of its lists, and
    where a graph has too many tombstones.
    """
    graph = isinstance(_inner(index), faiss().IndexHNSW)
    there = ids(index)
    remaining = (len(np.unique(there)) if graph else index.ntotal) - gone
    if index_type(form(index).type).trained and remaining + new > RETRAIN_FACTOR * max(trained_on, 1_000):
        return True
    if graph and gone and not id_map.may_repeat(there):
        return True
    if gone and graph:
        return remaining <= COMPACT_BELOW or index.ntotal - remaining > COMPACT_SHARE * index.ntotal
    return remaining == 0


def _fill_slots(index: Any, gone: Ids) -> None:
    """Overwrite removed slots of a graph with the nearest vectors that stay."""
    f = faiss()
    inner, names = _inner(index), ids(index).copy()
    rows = _stored(inner, index)
    lost = np.flatnonzero(np.isin(names, gone))
    stays = np.ones(len(names), bool)
    stays[lost] = False
    for at in range(0, len(lost), 1024):
        some = lost[at : at + 1024]
        _, near = inner.search(np.ascontiguousarray(rows[some]), min(len(names), 64))
        good = (near >= 0) & stays[near]
        successor = near[np.arange(len(some)), good.argmax(axis=1)]
        for i in np.flatnonzero(~good.any(axis=1)):  # all that the graph found is going too
            successor[i] = _nearest(rows, rows[some[i]], stays)
        # Search first, then write: the next ones must still find their way.
        names[some] = names[successor]
        rows[some] = rows[successor]
    f.copy_array_to_vector(id_map.unique(names), index.id_map)
    index.construct_rev_map()


def _nearest(rows: Vectors, row: Vectors, stays: Any) -> int:
    # Of unit vectors, the nearest by distance is the one with the largest inner product too.
    likeness = rows @ row
    likeness[~stays] = -np.inf
    return int(likeness.argmax())


def _inner(index: Any) -> Any:
    f = faiss()
    # What read_index and index_factory give is of its own class; what stands in a map is not yet.
    return f.downcast_index(index.index) if _is_map(index) else f.downcast_index(index)


def _is_map(index: Any) -> bool:
    return isinstance(index, faiss().IndexIDMap)


def _flat(inner: Any) -> Any:
    """The Flat that stores the vectors: an HNSW graph's storage, or the index itself."""
    f = faiss()
    return f.downcast_index(inner.storage) if isinstance(inner, f.IndexHNSW) else inner


class _Memory:
    """An array of faiss's memory and the index that must live as long as it."""

    def __init__(self, rows: Vectors, owner: Any) -> None:
        self.__array_interface__ = rows.__array_interface__
        self._owner = owner


def _stored(inner: Any, owner: Any) -> Vectors:
    """A writable view of the vectors of a Flat or an HNSW graph, which belongs to ``owner``."""
    flat = _flat(inner)
    if not flat.ntotal:
        return np.zeros((0, inner.d), np.float32)
    rows = faiss().rev_swig_ptr(flat.get_xb(), flat.ntotal * inner.d).reshape(-1, inner.d)
    return np.asarray(_Memory(rows, owner))


def _lists(index: Any) -> Iterator[tuple[Ids, Vectors]]:
    """Views of the ids and the vectors of each list that has any."""
    f = faiss()
    lists = index.invlists
    for i in range(index.nlist):
        if n := lists.list_size(i):
            codes = f.rev_swig_ptr(lists.get_codes(i), n * index.code_size)
            yield f.rev_swig_ptr(lists.get_ids(i), n), codes.view(np.float32).reshape(n, index.d)


class GpuIndex:
    """A copy of an index on a GPU, searched by one thread at a time: calls share its scratch memory."""

    def __init__(self, index: Any, number: int) -> None:
        f = faiss()
        self._resources = f.StandardGpuResources()
        self._index = f.index_cpu_to_gpu(self._resources, number, index)
        self._lock = threading.Lock()
        self.ntotal = int(self._index.ntotal)

    def search(self, queries: Vectors, k: int) -> Any:
        """See faiss: scores and ids, n×k."""
        with self._lock:
            return self._index.search(queries, k)


def has_gpu(number: int) -> bool:
    """Whether faiss is built for CUDA and sees this GPU."""
    f = faiss()
    return hasattr(f, "StandardGpuResources") and f.get_num_gpus() > number
