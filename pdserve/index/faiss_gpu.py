"""An index on a GPU, where faiss is built for it (faiss-gpu) and has the type: Flat and IVF."""

import logging
import threading
from dataclasses import replace
from typing import Any

from pdserve.index.faiss_package import faiss
from pdserve.index.search import LoadedIndex
from pdserve.vision.types import Vectors

log = logging.getLogger("pdserve")

# What faiss has for CUDA; an HNSW graph is walked on the CPU.
TYPES = ("Flat", "IVF")


class _OnGpu:
    """faiss's GPU index, asked by one thread at a time: it shares its scratch memory among calls."""

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


def is_available(number: int) -> bool:
    """Whether faiss is built for CUDA and sees this GPU."""
    f = faiss()
    return hasattr(f, "StandardGpuResources") and f.get_num_gpus() > number


def moved(loaded: LoadedIndex, number: int) -> LoadedIndex:
    """The same version, searched on GPU ``number``; as it was where that cannot be, which the log tells."""
    if not is_available(number):
        log.info("the index stays on the CPU: faiss is not built for CUDA (`pip install faiss-gpu`)")
        return loaded
    if loaded.type not in TYPES:
        log.info("the index stays on the CPU: faiss has no %s for a GPU", loaded.type)
        return loaded
    log.info("the index is on gpu:%d", number)
    return replace(loaded, _index=_OnGpu(loaded._index, number))
