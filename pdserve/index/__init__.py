"""The index of a gallery: its vectors and labels, built, changed, searched and published.

::

    gallery ─► embed ─► edit ─► publish ─► store ─► search
    (images)  (vectors) (plan)  (switch)   (files)  (matches)

Importing this module loads neither NumPy nor faiss.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class IndexType:
    """A faiss index that pdserve builds, changes and searches.

    ``factory``: faiss's factory string, ``{lists}`` computed from the number of vectors. ``faiss_class``:
    what such an index is read as, one that stores whole vectors. ``parameters``: of its HNSW graph.
    ``exact``: the search compares a query with every vector. ``trained``: has lists that are trained on a
    sample, and rebuilt when the index outgrows it. ``gpu``: faiss-gpu has it.
    """

    factory: str
    help: str
    faiss_class: str
    parameters: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    exact: bool = False
    trained: bool = False
    gpu: bool = False


# faiss builds graphs with efConstruction 40 and searches with efSearch 16. Among 150,000 × 256 vectors in
# tight groups that finds the nearest for 90 in a hundred queries; built with 80, 98; searched with 64 and
# more, all.
GRAPH = {"efConstruction": 80, "efSearch": 128}
"""Parameters of the HNSW graphs that pdserve builds."""

INDEX_TYPES: Mapping[str, IndexType] = {
    "Flat": IndexType("Flat", "exact, compares all vectors", "IndexFlat", exact=True, gpu=True),
    "HNSW32": IndexType("HNSW32", "a graph, fast on the CPU", "IndexHNSWFlat", GRAPH),
    "IVF": IndexType("IVF{lists},Flat", "lists, fast on a GPU", "IndexIVFFlat", trained=True, gpu=True),
}
"""Type -> how it is built. A further one needs an entry here and nothing else."""

METRICS = ("IP", "L2")
"""Inner product, and squared L2 distance."""

FLAT_UP_TO = 100_000
"""Images up to which an index is Flat where no type is given, and HNSW32 above."""

CHECK_SAMPLE, NEAR_DUPLICATE, FALSE_ACCEPT = 2_000, 0.98, 0.01
"""Defaults of a quality check: most queries, similarity of near-duplicates, rate at the threshold."""


def is_exact(name: str) -> bool:
    """Whether searches of this type, which may be one that only faiss knows, find the nearest entries."""
    return name in INDEX_TYPES and INDEX_TYPES[name].exact
