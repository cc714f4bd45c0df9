"""Searches one version of an index, on the CPU or a GPU."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pdserve.errors import IndexFolderError, UsageError
from pdserve.files import Signature, signature
from pdserve.index import INDEX_TYPES, METRICS, faiss_index, id_map, is_exact, store
from pdserve.index.embed import EmbedderId, GalleryEmbedder, require_same
from pdserve.index.faiss_check import faiss
from pdserve.index.forms import FORMS
from pdserve.index.id_map import IdMap
from pdserve.index.store import Snapshot
from pdserve.machine import cores
from pdserve.vision.types import Vectors

log = logging.getLogger("pdserve")

# Queries × vectors compared × dimension, up to which one thread searches: half a second. Of an index that
# does not compare all of its vectors, a query is about as much work as these.
_ONE_THREAD = 1 << 31
_COMPARED = 1 << 15


MAX_TOP_K = 10_000
"""Entries that one query may ask for: each is an object, and a line of an answer."""


@dataclass(frozen=True)
class Match:
    """An entry that was found.

    ``similarity``: the inner product of two unit vectors, 1 for the same image. It is faiss's own score
    where the metric is inner product; where it is L2, faiss's is the squared distance d², and the
    similarity is 1 - d²/2, which for unit vectors is the same number, so that one threshold serves both.
    """

    label: str
    image: str
    similarity: float
    id: int


@dataclass(frozen=True)
class LoadedIndex:
    """One version of an index in memory. Never changes; may be searched from several threads.

    ``version`` is 0 for an index without manifest, whose ``embedder`` is not known (None).
    """

    folder: Path
    version: int
    type: str
    metric: str
    dimension: int
    count: int
    embedder: EmbedderId | None
    _index: Any
    _id_map: IdMap
    _signatures: tuple[Signature | None, ...]

    def search(self, queries: Vectors, top_k: int) -> list[list[Match]]:
        """The ``top_k`` entries nearest to each query, the most similar first; fewer if there are fewer.

        An IVF looks at the lists nearest to a query and may find fewer, too.
        ``queries``: n×dimension float32, rows L2-normalised. Raises IndexFolderError for another
        dimension, UsageError for ``top_k`` below 1 or above `MAX_TOP_K`.
        """
        queries = np.asarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            raise IndexFolderError(
                f"The index {self.folder} has vectors of {self.dimension} numbers and the queries are an "
                f"array of {queries.shape}; search with the embedder that it was built with."
            )
        if not 1 <= top_k <= MAX_TOP_K:
            raise UsageError(f"top_k is {top_k}; it must be a number from 1 to {MAX_TOP_K}.")
        wanted = min(top_k, self.count)
        if not wanted or not len(queries):
            return [[] for _ in queries]
        # In a graph from which entries were removed, an id may come more than once.
        slots, k = self._index.ntotal, wanted
        while True:
            with self._threads(len(queries)):
                scores, ids = faiss_index.search(self._index, queries, k)
            answers = [self._matches(*row, wanted) for row in zip(scores, ids, strict=True)]
            if k >= slots or slots == self.count or all(len(answer) == wanted for answer in answers):
                return answers
            k = min(slots, k * 2)

    @contextmanager
    def _threads(self, queries: int) -> Iterator[None]:
        """Let faiss search in the calling thread alone, unless there is work for a good while.

        faiss shares queries out to threads, and never a single one. When they have done, they wait in a loop
        for more: of a search of 0.02 ms that made 9 ms of CPU time, taken from the engine. OpenMP has the
        number for each calling thread, so that no other one, and no other library, sees it changed.
        """
        f = faiss()
        usual = f.omp_get_max_threads()
        several = min(usual, cores())
        compared = self.count if is_exact(self.type) else min(self.count, _COMPARED)
        f.omp_set_num_threads(1 if queries * compared * self.dimension <= _ONE_THREAD else several)
        try:
            yield
        finally:
            f.omp_set_num_threads(usual)

    def _matches(self, scores: Any, ids: Any, wanted: int) -> list[Match]:
        found: dict[int, Match] = {}
        for score, i in zip(scores.tolist(), ids.tolist(), strict=True):
            if i >= 0 and i not in found and len(found) < wanted:
                image, label = id_map.split(self._id_map[i])
                found[i] = Match(label, image, score if self.metric == "IP" else 1 - score / 2, i)
        return list(found.values())

    def require(self, embedder: GalleryEmbedder) -> None:
        """Raise OtherEmbedderError unless this is the embedder that the index was built with.

        Where the index does not say which that was, the dimension is compared and the log says so.
        """
        require_same(
            self.embedder, EmbedderId.of(embedder), (self.dimension, embedder.dimension), self.folder
        )
        if self.embedder is None:
            log.info(
                "index %s does not say which embedder made it; %s, which has its dimension, is taken for it",
                self.folder,
                embedder.name,
            )

    def on_gpu(self, number: int) -> "LoadedIndex":
        """The same version, searched on GPU ``number``; logs why where that is not possible."""
        if not faiss_index.has_gpu(number):
            log.info("the index stays on the CPU: faiss is not built for CUDA (`pip install faiss-gpu`)")
            return self
        if self.type not in INDEX_TYPES or not INDEX_TYPES[self.type].gpu:
            log.info("the index stays on the CPU: faiss has no %s for a GPU", self.type)
            return self
        log.info("the index is on gpu:%d", number)
        return replace(self, _index=faiss_index.GpuIndex(self._index, number))


def load(folder: Path) -> LoadedIndex:
    """Load the current version. Raises IndexFolderError, EngineMissingError."""
    found = signatures(folder)  # before reading, so that what is published meanwhile shows as changed
    return of(store.read(folder), found)


def of(snapshot: Snapshot, found: tuple[Signature | None, ...] = ()) -> LoadedIndex:
    """Make a version that was read ready for searches. Raises IndexFolderError."""
    form = snapshot.form
    if form.metric not in METRICS:
        raise IndexFolderError(
            f"The index {snapshot.folder} has the metric {form.metric} of faiss; pdserve knows "
            f"{' and '.join(METRICS)}."
        )
    faiss_index.search_wider(snapshot.index)
    return LoadedIndex(
        snapshot.folder,
        snapshot.version,
        form.type,
        form.metric,
        form.dimension,
        len(snapshot.id_map),
        snapshot.embedder,
        snapshot.index,
        snapshot.id_map,
        found,
    )


def changed(folder: Path, loaded: LoadedIndex) -> bool:
    """Whether another version than ``loaded`` is current now. Costs a `stat` call for each file.

    Raises IndexFolderError for a manifest that cannot be read, and for files that another program wrote over
    those of the version.
    """
    if signatures(folder) == loaded._signatures:
        return False
    known = store.read_manifest(folder)
    if known and known.version == loaded.version:
        store.check_plain(folder, known)
        return False
    return True


def signatures(folder: Path) -> tuple[Signature | None, ...]:
    """What changes when a file of an index is written or replaced."""
    labels = (form.file for form in FORMS.values())
    return tuple(signature(folder / name) for name in (store.MANIFEST, store.VECTORS, *labels))
