"""Vectors in faiss: every type and metric, changed and searched against NumPy's own answer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pdserve.errors import IndexFolderError
from pdserve.index import INDEX_TYPES, METRICS, faiss_index
from pdserve.vision.types import Vectors
from tests.index.galleries import clustered

COUNT, DIMENSION = 600, 24
BOTH = [(kind, metric) for kind in INDEX_TYPES for metric in METRICS]


def make(kind: Any, metric: Any, rows: Vectors, ids: Sequence[int] | None = None) -> Any:
    index = faiss_index.create(kind, metric, rows.shape[1], len(rows), rows)
    numbers = np.arange(len(rows), dtype=np.int64) if ids is None else np.asarray(ids, np.int64)
    faiss_index.add(index, numbers, rows)
    return index


def reread(index: Any, path: Path) -> Any:
    with path.open("wb") as file:
        faiss_index.write(index, file)
    return faiss_index.read(path)


@pytest.mark.parametrize(("kind", "metric"), BOTH)
def test_what_is_written_is_read_and_finds_the_same(tmp_path: Path, kind: Any, metric: Any) -> None:
    rows = clustered(COUNT, DIMENSION)
    index = make(kind, metric, rows, range(1000, 1000 + COUNT))
    again = reread(index, tmp_path / "vector.index")
    assert faiss_index.form(again) == faiss_index.Form(kind, metric, DIMENSION, COUNT)
    assert faiss_index.form(again).changeable
    scores, ids = faiss_index.search(again, rows[:50], 3)
    assert ids[:, 0].tolist() == list(range(1000, 1050))
    exact = rows[:50] @ rows.T
    for line in range(50):
        for score, i in zip(scores[line], ids[line], strict=True):
            expected = exact[line, i - 1000]
            assert score == pytest.approx(expected if metric == "IP" else 2 - 2 * expected, abs=1e-5)
    found, stored = faiss_index.extract(again)
    assert found.tolist() == list(range(1000, 1000 + COUNT))
    np.testing.assert_array_equal(stored, rows)


@pytest.mark.parametrize(("kind", "metric"), BOTH)
def test_removed_vectors_are_not_found_nor_in_the_file(tmp_path: Path, kind: Any, metric: Any) -> None:
    rows = clustered(COUNT, DIMENSION)
    index = make(kind, metric, rows)
    gone = np.arange(0, COUNT, 7)
    faiss_index.remove(index, gone)
    path = tmp_path / "vector.index"
    again = reread(index, path)
    left = np.setdiff1d(np.arange(COUNT), gone)
    assert np.unique(faiss_index.ids(again)).tolist() == left.tolist()
    found, stored = faiss_index.extract(again)
    assert found.tolist() == left.tolist()
    np.testing.assert_array_equal(stored, rows[left])
    scores, ids = faiss_index.search(again, rows[gone], 1)
    assert not np.isin(ids, gone).any()
    exact = (rows[gone] @ rows[left].T).max(axis=1)
    as_product = scores[:, 0] if metric == "IP" else 1 - scores[:, 0] / 2
    np.testing.assert_allclose(as_product, exact, atol=1e-5)
    data = path.read_bytes()
    assert not any(rows[i].tobytes() in data for i in gone)


@pytest.mark.parametrize(("kind", "metric"), BOTH)
def test_add_after_remove(kind: Any, metric: Any) -> None:
    rows, more = clustered(COUNT, DIMENSION), clustered(40, DIMENSION, seed=5)
    index = make(kind, metric, rows)
    faiss_index.remove(index, np.arange(100))
    faiss_index.add(index, np.arange(5000, 5040), more)
    _, ids = faiss_index.search(index, more, 1)
    assert ids[:, 0].tolist() == list(range(5000, 5040))
    found, _ = faiss_index.extract(index)
    assert found.tolist() == [*range(100, COUNT), *range(5000, 5040)]


def test_a_graph_passes_removed_slots_on_again_and_again() -> None:
    rows = clustered(COUNT, DIMENSION)
    index = make("HNSW32", "IP", rows)
    order = np.random.default_rng(0).permutation(COUNT)
    for at in range(0, 540, 60):
        faiss_index.remove(index, order[at : at + 60])
        left = np.sort(order[at + 60 :])
        found, stored = faiss_index.extract(index)
        assert found.tolist() == left.tolist()
        np.testing.assert_array_equal(stored, rows[left])
    assert faiss_index.form(index).slots == COUNT


def test_a_graph_whose_whole_neighbourhood_goes_finds_an_heir_elsewhere() -> None:
    rows = clustered(COUNT, DIMENSION)
    near = np.argsort(-(rows @ rows[0]))[:200]
    index = make("HNSW32", "IP", rows)
    faiss_index.remove(index, near)
    assert not np.isin(faiss_index.ids(index), near).any()


def test_when_a_graph_is_rebuilt() -> None:
    rows = clustered(6_000, 8)
    index = make("HNSW32", "IP", rows)
    assert not faiss_index.needs_rebuild(index, 100, 0, 6_000)
    assert faiss_index.needs_rebuild(index, 1_300, 0, 6_000)  # more than a fifth
    assert faiss_index.needs_rebuild(index, 5_999, 0, 6_000)
    assert faiss_index.needs_rebuild(make("HNSW32", "IP", rows[:4_000]), 1, 0, 4_000)  # small: at once
    assert not faiss_index.needs_rebuild(make("Flat", "IP", rows), 3_000, 0, 6_000)
    assert not faiss_index.needs_rebuild(make("IVF", "IP", rows), 3_000, 0, 6_000)
    assert faiss_index.needs_rebuild(make("IVF", "IP", rows), 3_000, 22_000, 6_000)  # has outgrown its lists
    assert not faiss_index.needs_rebuild(make("Flat", "IP", rows), 3_000, 22_000, 6_000)


@pytest.mark.parametrize("kind", ["Flat", "HNSW32"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_an_index_of_paddleclas_is_taken_over(tmp_path: Path, kind: Any, wrapped: bool) -> None:
    faiss = pytest.importorskip("faiss")
    rows = clustered(200, DIMENSION)
    theirs = faiss.index_factory(DIMENSION, kind, faiss.METRIC_INNER_PRODUCT)
    if wrapped:
        theirs = faiss.IndexIDMap2(theirs)
        theirs.add_with_ids(rows, np.arange(200) + 10)
    else:
        theirs.add(rows)
    start = 10 if wrapped else 0
    index = faiss_index.owned(reread(theirs, tmp_path / "vector.index"))
    assert faiss_index.form(index).type == kind
    faiss_index.add(index, np.array([900]), clustered(1, DIMENSION, seed=9))
    faiss_index.remove(index, np.array([start]))
    again = reread(index, tmp_path / "again.index")
    found, stored = faiss_index.extract(again)
    assert found.tolist() == [*range(start + 1, start + 200), 900]
    np.testing.assert_array_equal(stored[:-1], rows[1:])


def test_an_ivf_in_a_map_gets_its_own_ids(tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    rows = clustered(400, DIMENSION)
    inner = faiss.index_factory(DIMENSION, "IVF8,Flat", faiss.METRIC_INNER_PRODUCT)
    inner.cp.min_points_per_centroid = 1
    theirs = faiss.IndexIDMap2(inner)
    theirs.train(rows)
    theirs.add_with_ids(rows, np.arange(400) + 50)
    read = reread(theirs, tmp_path / "vector.index")
    found, stored = faiss_index.extract(read)
    assert found.tolist() == list(range(50, 450))
    np.testing.assert_array_equal(stored, rows)
    index = faiss_index.owned(read)
    del read
    faiss_index.remove(index, np.arange(50, 60))
    _, ids = faiss_index.search(index, rows[10:20], 1)
    assert ids[:, 0].tolist() == list(range(60, 70))


def test_an_ivf_whose_ids_faiss_confused_is_refused(tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    rows = clustered(400, DIMENSION)
    inner = faiss.index_factory(DIMENSION, "IVF8,Flat", faiss.METRIC_INNER_PRODUCT)
    inner.cp.min_points_per_centroid = 1
    theirs = faiss.IndexIDMap2(inner)
    theirs.train(rows)
    theirs.add_with_ids(rows, np.arange(400))
    theirs.remove_ids(np.arange(10))  # as PaddleClas removes
    with pytest.raises(IndexFolderError, match="lost track of its ids"):
        faiss_index.extract(reread(theirs, tmp_path / "vector.index"))


def test_other_types_can_be_searched_but_not_extracted(tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    rows = clustered(300, DIMENSION)
    theirs = faiss.index_factory(DIMENSION, "SQ8", faiss.METRIC_INNER_PRODUCT)
    theirs.train(rows)
    theirs.add(rows)
    index = reread(theirs, tmp_path / "vector.index")
    assert not faiss_index.form(index).changeable
    assert faiss_index.search(index, rows[:5], 1)[1][:, 0].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(IndexFolderError, match="does not keep the vectors"):
        faiss_index.extract(index)


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "whole").open("wb") as file:
        faiss_index.write(make("HNSW32", "IP", clustered(20, 4)), file)
    data = (tmp_path / "whole").read_bytes()
    path = tmp_path / "vector.index"
    for end in [*range(0, 200, 7), *range(200, len(data), 101), len(data) - 1]:
        path.write_bytes(data[:end])
        with pytest.raises(IndexFolderError, match="is no index of faiss"):
            faiss_index.read(path)


def test_binary_vectors_are_refused_by_name(tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    index = faiss.IndexBinaryFlat(64)
    index.add(np.zeros((3, 8), np.uint8))
    faiss.write_index_binary(index, str(tmp_path / "vector.index"))
    with pytest.raises(IndexFolderError, match="holds binary vectors"):
        faiss_index.read(tmp_path / "vector.index")


@pytest.mark.parametrize("count", [1, 2, 5, 38, 40])
def test_a_tiny_ivf(tmp_path: Path, count: int, capfd: pytest.CaptureFixture[str]) -> None:
    rows = clustered(count, DIMENSION)
    index = reread(make("IVF", "IP", rows), tmp_path / "vector.index")
    assert faiss_index.search(index, rows, 1)[1][:, 0].tolist() == list(range(count))
    out, err = capfd.readouterr()
    assert out == err == ""  # faiss would remark on few vectors


@pytest.mark.parametrize(("kind", "metric"), BOTH)
def test_an_empty_index(tmp_path: Path, kind: Any, metric: Any) -> None:
    nothing = np.zeros((0, DIMENSION), np.float32)
    index = reread(faiss_index.create(kind, metric, DIMENSION, 0, nothing), tmp_path / "vector.index")
    assert faiss_index.search(index, clustered(2, DIMENSION), 3)[1].tolist() == [[-1] * 3] * 2
    assert faiss_index.extract(index)[1].shape == (0, DIMENSION)
