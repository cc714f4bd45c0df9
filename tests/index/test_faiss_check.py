"""vector.index files that lie to faiss about lengths, places and files."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pdserve.errors import IndexFolderError
from pdserve.index import INDEX_TYPES, faiss_index
from tests.index.galleries import clustered

faiss = pytest.importorskip("faiss")

COUNT, DIMENSION = 60, 4


def index_of(kind: Any) -> Any:
    rows = clustered(COUNT, DIMENSION)
    index = faiss_index.create(kind, "IP", DIMENSION, COUNT, rows)
    faiss_index.add(index, np.arange(COUNT), rows)
    return index


def file_of(path: Path, index: Any) -> bytes:
    with path.open("wb") as file:
        faiss_index.write(index, file)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vector.index"


@pytest.mark.skipif(
    not hasattr(faiss, "set_deserialization_vector_byte_limit"), reason="faiss is too old to be told a limit"
)
@pytest.mark.parametrize("kind", INDEX_TYPES)
def test_a_length_that_is_not_the_files_takes_no_memory(path: Path, kind: Any) -> None:
    resource = pytest.importorskip("resource")
    data = file_of(path, index_of(kind))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for at in range(4, min(len(data) - 8, 250)):
        path.write_bytes(data[:at] + struct.pack("<Q", 1 << 27) + data[at + 8 :])
        try:
            faiss_index.read(path)
        except IndexFolderError:
            refused += 1
    assert refused > 20
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # kilobytes; on macOS, bytes
    assert grown < 100_000


def test_the_limits_are_faiss_own_again(path: Path) -> None:
    if not hasattr(faiss, "get_deserialization_vector_byte_limit"):
        pytest.skip("faiss is too old to be told a limit")
    before = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
    file_of(path, index_of("IVF"))
    faiss_index.read(path)
    path.write_bytes(b"IxMp")
    with pytest.raises(IndexFolderError):
        faiss_index.read(path)
    assert before == (faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit())


def test_no_other_file_is_opened(path: Path, tmp_path: Path) -> None:
    """Lists on disk are read, and mapped to be written, from wherever the file says."""
    data = file_of(path, index_of("IVF"))
    other = tmp_path / "other"
    other.write_bytes(bytes(4096))
    path.write_bytes(data.replace(b"ilar", b"ilod"))
    with pytest.raises(IndexFolderError, match="keeps its vectors in another file"):
        faiss_index.read(path)


def test_no_index_at_all(path: Path) -> None:
    path.write_bytes(b"null" + bytes(60))
    with pytest.raises(IndexFolderError, match=r"holds no index; rebuild it|is no index of faiss"):
        faiss_index.read(path)


def _entry_level(index: Any) -> None:
    index.hnsw.max_level = 5


def _entry(index: Any) -> None:
    index.hnsw.entry_point = COUNT


def _queue(index: Any) -> None:
    index.hnsw.efSearch = 1 << 30


def _way_out(index: Any) -> None:
    ways = faiss.vector_to_array(index.hnsw.neighbors)
    ways[3] = COUNT
    _put(ways, index.hnsw.neighbors)


def _way_to_a_lower_level(index: Any) -> None:
    levels = faiss.vector_to_array(index.hnsw.levels)
    offsets = faiss.vector_to_array(index.hnsw.offsets)
    ways = faiss.vector_to_array(index.hnsw.neighbors)
    high, low = int(np.flatnonzero(levels > 1)[0]), int(np.flatnonzero(levels == 1)[0])
    ways[int(offsets[high]) + 64] = low  # the first of the ways on level 1
    _put(ways, index.hnsw.neighbors)


def _levels(index: Any) -> None:
    levels = faiss.vector_to_array(index.hnsw.levels)
    levels[5] += 1
    faiss.copy_array_to_vector(levels, index.hnsw.levels)


def _put(array: Any, vector: Any) -> None:
    faiss.rev_swig_ptr(vector.data(), vector.size())[:] = array


@pytest.mark.parametrize(
    "spoil",
    [_entry_level, _entry, _queue, _way_out, _way_to_a_lower_level, _levels],
    ids=lambda spoil: spoil.__name__,
)
def test_a_graph_whose_ways_lead_nowhere(path: Path, spoil: Callable[[Any], None]) -> None:
    index = index_of("HNSW32")
    file_of(path, index)
    faiss_index.read(path)
    spoil(faiss.downcast_index(index.index))
    file_of(path, index)
    with pytest.raises(IndexFolderError, match="rebuild it"):
        faiss_index.read(path)


@pytest.mark.parametrize("probes", [0, 1 << 40])
def test_lists_that_are_searched_not_at_all_or_for_ever(path: Path, probes: int) -> None:
    index = index_of("IVF")
    index.nprobe = probes
    file_of(path, index)
    with pytest.raises(IndexFolderError, match="in none of its lists"):
        faiss_index.read(path)


def test_a_map_of_other_ids_than_vectors(path: Path) -> None:
    data = file_of(path, index_of("Flat"))
    ids = struct.pack("<Q", COUNT) + np.arange(COUNT, dtype="<i8").tobytes()
    assert ids in data
    path.write_bytes(data.replace(ids, struct.pack("<Q", COUNT - 1) + ids[8:-8]))
    with pytest.raises(IndexFolderError, match=r"rebuild it"):
        faiss_index.read(path)
