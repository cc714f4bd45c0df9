"""Imports faiss, and reads a ``vector.index`` that may be broken or hostile.

A file of a hundred bytes can say that it holds a terabyte, and faiss allocates the memory before it looks
for the bytes; it can name another file, which faiss opens for writing; and a graph with links out of range
sends the search there. Newer releases of faiss check more of this than older ones, none all of it.
"""

import functools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, BinaryIO

import numpy as np

from pdserve.errors import EngineMissingError
from pdserve.vision.types import Array

# "ilod": inverted lists on disk, kept in another file (faiss, invlists/OnDiskInvertedLists.cpp).
_ON_DISK_LISTS = b"ilod"
_LONGEST_QUEUE = 1 << 20
# Warning filters and faiss's limits belong to the process.
_lock = Lock()


@functools.cache
def faiss() -> Any:
    """Import faiss when it is first needed. Raises EngineMissingError with the pip command."""
    with _lock, warnings.catch_warnings():
        # SWIG's own types, made when the module first loads; Python 3.12 and newer warn about them.
        warnings.filterwarnings(
            "ignore", r"builtin type \w+ has no __module__ attribute", category=DeprecationWarning
        )
        try:
            import faiss as module
        except ImportError as error:
            raise EngineMissingError(
                f"An index needs faiss, which does not load ({error}): `pip install faiss-cpu`."
            ) from error
    return module


class BrokenIndexError(Exception):
    """What is wrong with the file, as the end of a sentence that begins with its path."""


def load(file: BinaryIO) -> Any:
    """Read an index from an open file. Raises BrokenIndexError, faiss's own RuntimeError, MemoryError."""
    f = faiss()

    def read(size: int) -> bytes:
        data = file.read(size)
        if data == _ON_DISK_LISTS:
            raise BrokenIndexError("keeps its vectors in another file")
        return data

    with _lock, _limits(os.fstat(file.fileno()).st_size):
        index = f.read_index(f.PyCallbackIOReader(read))
    _check(index)
    return index


@contextmanager
def _limits(size: int) -> Iterator[None]:
    """No vector may be longer than the file, nor any list of parts (faiss 1.14 and newer)."""
    f = faiss()
    names = ("deserialization_vector_byte_limit", "deserialization_loop_limit")
    limits = [name for name in names if hasattr(f, f"set_{name}")]
    before = [getattr(f, f"get_{name}")() for name in limits]
    for name in limits:
        getattr(f, f"set_{name}")(size + 1)
    try:
        yield
    finally:
        for name, value in zip(limits, before, strict=True):
            getattr(f, f"set_{name}")(value)


def _check(index: Any) -> Any:
    """Check an index and return it as its own class, not its base class. Raises BrokenIndexError."""
    f = faiss()
    index = f.downcast_index(index) if index is not None else None
    if index is None:  # faiss writes "null" for a part that is not there
        raise BrokenIndexError("holds no index")
    _require(index.d > 0 and index.ntotal >= 0, "has no dimension")
    _require(index.is_trained, "was never trained")
    if isinstance(index, f.IndexIDMap):
        inner = _check(index.index)
        _require(index.ntotal == inner.ntotal == index.id_map.size(), "has more ids than vectors, or fewer")
        _require((index.d, index.metric_type) == (inner.d, inner.metric_type), "contradicts itself")
    elif isinstance(index, f.IndexFlat):
        fits = index.code_size == 4 * index.d and index.codes.size() == index.ntotal * index.code_size
        _require(fits, "has more numbers than its vectors, or fewer")
    elif isinstance(index, f.IndexHNSW):
        storage = _check(index.storage)
        _require((index.d, index.ntotal) == (storage.d, storage.ntotal), "contradicts itself")
        _check_graph(index.hnsw, index.ntotal)
    elif isinstance(index, f.IndexIVF):
        quantizer = _check(index.quantizer)
        _require((index.d, index.nlist) == (quantizer.d, quantizer.ntotal), "contradicts itself")
        _require(0 < index.nprobe <= _LONGEST_QUEUE, "is searched in none of its lists, or in too many")
        lists = index.invlists
        fits = (lists.nlist, lists.code_size) == (index.nlist, index.code_size)
        if isinstance(index, f.IndexIVFFlat):
            fits = fits and index.code_size == 4 * index.d
        _require(fits, "contradicts itself")
        held = sum(lists.list_size(i) for i in range(index.nlist))
        _require(held == index.ntotal, "has more vectors in its lists than it says, or fewer")
    return index


def _require(fits: bool, problem: str) -> None:
    if not fits:
        raise BrokenIndexError(problem)


def _check_graph(hnsw: Any, count: int) -> None:
    """Check that every link of the graph leads to one of its vectors, and on each level to one of that level.

    ``levels`` says on how many levels a vector is, ``offsets`` where its links begin in ``neighbors``,
    ``cum_nneighbor_per_level`` where among them those of a level begin.
    """
    levels, offsets, starts, links = (
        _view(vector) for vector in (hnsw.levels, hnsw.offsets, hnsw.cum_nneighbor_per_level, hnsw.neighbors)
    )
    _require(0 < hnsw.efSearch <= _LONGEST_QUEUE, "has a graph with a search depth out of range")
    broken = "has a graph that is broken"
    _require(len(levels) == count and len(offsets) == count + 1 and len(starts) > 0 and not starts[0], broken)
    if not count:
        return
    rising = bool((np.diff(starts) >= 0).all())
    _require(rising and 0 < levels.min() <= levels.max() < len(starts), broken)
    ends = np.concatenate([[0], np.cumsum(starts[levels], dtype=np.uint64)])
    _require(np.array_equal(offsets, ends) and offsets[-1] == len(links), broken)
    _require(len(links) == 0 or -1 <= links.min() <= links.max() < count, broken)
    _require(0 <= hnsw.entry_point < count and levels[hnsw.entry_point] == hnsw.max_level + 1, broken)
    for level in range(1, int(levels.max())):
        there = np.flatnonzero(levels > level)
        places = offsets[there, None].astype(np.int64) + np.arange(starts[level], starts[level + 1])
        near = links[places]
        _require(bool((levels[near[near >= 0]] > level).all()), broken)


def _view(vector: Any) -> Array:
    """An array over faiss's own memory: a large graph has a quarter of a gigabyte."""
    if not vector.size():
        return np.zeros(0, np.int64)
    array: Array = faiss().rev_swig_ptr(vector.data(), vector.size())
    return array
