"""The mirror's data set, as PaddleClas would leave it: needs its archive (see conftest.py)."""

import json
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pdserve.index import INDEX_TYPES, faiss_index, id_map, store
from pdserve.index.edit import append, merge, remove
from pdserve.index.label_list import read_list
from pdserve.index.search import load
from pdserve.index.verify import verify
from tests.index.galleries import GridEmbedder
from tests.index.test_quality import write_index

pytestmark = [pytest.mark.full, pytest.mark.mirror]


@pytest.fixture(scope="session")
def fetched(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("mirror")
    with tarfile.open(mirror / "dygraph" / "rec" / "data" / "drink_dataset_v1.0.tar") as archive:
        archive.extractall(target, filter="data")
    return target / "drink_dataset_v1.0"


@pytest.fixture
def drinks(fetched: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fetched, tmp_path / "drinks"))


def test_it_is_read_as_it_is(drinks: Path) -> None:
    index = load(drinks / "index")
    assert (index.version, index.type, index.metric, index.dimension, index.count) == (
        0,
        "HNSW32",
        "IP",
        512,
        48,
    )
    assert not [finding for finding in verify(drinks / "index") if finding.good is False]
    labels = drinks / "gallery" / "drink_label.txt"
    images = read_list(labels, drinks / "gallery")
    snapshot = store.read(drinks / "index")
    assert list(snapshot.id_map.values()) == [id_map.join(i.image, i.label) for i in images]
    _, rows = faiss_index.extract(snapshot.index)
    assert [m[0].id for m in index.search(rows, 1)] == list(range(48))


def test_the_golden_nearest_entries_are_entries(drinks: Path) -> None:
    golden = json.loads(
        (Path(__file__).parents[1] / "data" / "golden" / "recognition.json").read_text("utf-8")
    )
    entries = set(store.read(drinks / "index").id_map.values())
    assert {entry for image in golden.values() for entry, _ in image["nearest"]} <= entries


def test_our_id_map_is_theirs_to_the_byte(drinks: Path) -> None:
    theirs = (drinks / "index" / "id_map.pkl").read_bytes()
    assert id_map.dumps(id_map.read(drinks / "index" / "id_map.pkl")) == theirs


def test_its_vectors_in_other_types_find_the_same(drinks: Path, tmp_path: Path) -> None:
    _, rows = faiss_index.extract(store.read(drinks / "index").index)
    queries = rows[::5] + 0.02 * np.random.default_rng(0).standard_normal((10, 512), dtype=np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    expected = [[m.id for m in matches] for matches in load(drinks / "index").search(queries, 3)]
    for kind in INDEX_TYPES:
        write_index(tmp_path / kind, rows, ["x"] * 48, kind)
        assert [[m.id for m in matches] for matches in load(tmp_path / kind).search(queries, 3)] == expected


def test_removing_from_it_and_giving_it_back(drinks: Path, fetched: Path) -> None:
    from pdserve.index.publish import rollback

    assert remove(drinks / "index", labels=["可口可乐"]).count == 42
    assert merge(drinks / "index", [fetched / "index"]).count == 48
    rollback(drinks / "index")
    assert load(drinks / "index").count == 42


def test_its_gallery_appended_with_another_embedder_of_its_dimension(drinks: Path) -> None:
    images = read_list(drinks / "gallery" / "drink_label.txt", drinks / "gallery")
    made = append(images, drinks / "index", GridEmbedder(dimension=512), replace=True)
    assert (made.count, made.replaced) == (48, 48)
    again = pickle.loads((drinks / "index" / "id_map.pkl").read_bytes())
    assert sorted(again.values()) == sorted(id_map.join(i.image, i.label) for i in images)
