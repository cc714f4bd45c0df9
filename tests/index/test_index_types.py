"""The table INDEX_TYPES: every entry passes the same life, and a new one needs nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest

from pdserve.errors import UsageError
from pdserve.index import INDEX_TYPES, METRICS, store
from pdserve.index.edit import append, build, merge, remove
from pdserve.index.publish import rollback
from pdserve.index.quality import check
from pdserve.index.search import load
from pdserve.vision.decode import decode
from tests.index.galleries import GridEmbedder, write_gallery
from tests.index.test_build import all_good

EMBEDDER = GridEmbedder()


@pytest.fixture
def graph_of_16(monkeypatch: pytest.MonkeyPatch) -> str:
    """A further type of index: an entry in the table."""
    monkeypatch.setitem(INDEX_TYPES, "HNSW16", replace(INDEX_TYPES["HNSW32"], factory="HNSW16"))
    return "HNSW16"


def life(folder: Path, kind: str, metric: str) -> None:
    images = write_gallery(folder / "gallery")
    index = folder / "index"
    assert build(images[:12], index, EMBEDDER, kind=kind, metric=metric).added == 12
    assert append(images[10:], index, EMBEDDER).count == 20
    assert remove(index, ids=[0, 13]).removed == 2
    loaded = load(index)
    assert (loaded.type, loaded.metric, loaded.count) == (kind, metric, 18)
    (matches,) = loaded.search(EMBEDDER.embed([decode(images[5].read())]), 3)
    assert matches[0].image == images[5].image
    assert matches[0].similarity == pytest.approx(1, abs=1e-5)
    build(images[:2], folder / "other", EMBEDDER, kind=kind)
    assert merge(index, [folder / "other"]).count == 19
    assert all_good(index)
    assert check(index).count == 19
    assert rollback(index).count == 18
    assert store.read(index).form.type == kind


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", INDEX_TYPES)
def test_every_type(tmp_path: Path, kind: str, metric: str) -> None:
    life(tmp_path, kind, metric)


def test_a_new_type_is_one_entry(tmp_path: Path, graph_of_16: str) -> None:
    life(tmp_path, graph_of_16, "IP")
    build(write_gallery(tmp_path / "gallery"), tmp_path / "usual", EMBEDDER, kind="HNSW32")
    assert load(tmp_path / "usual").type == "HNSW32"


def test_an_unknown_type_or_metric_is_refused_before_images_are_read(tmp_path: Path) -> None:
    images = write_gallery(tmp_path / "gallery")
    with pytest.raises(UsageError, match="'PQ' is no type of index; choose one of Flat, HNSW32, IVF"):
        build(images, tmp_path / "index", EMBEDDER, kind="PQ")
    with pytest.raises(UsageError, match="'cosine' is no metric of an index; choose one of IP, L2"):
        build(images, tmp_path / "index", EMBEDDER, metric="cosine")
    assert not (tmp_path / "index").exists()
