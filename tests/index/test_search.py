"""Loading and searching: bad files are told from good ones, whatever they hold."""

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pdserve.errors import IndexFolderError, OtherEmbedderError, UsageError
from pdserve.index import id_map, store
from pdserve.index.edit import append, build, remove
from pdserve.index.faiss_check import faiss
from pdserve.index.search import changed, load
from pdserve.machine import cores
from pdserve.models.home import Home
from tests.index.galleries import GridEmbedder, clustered, write_gallery
from tests.index.test_edit import foreign

EMBEDDER = GridEmbedder()


@pytest.fixture
def index(tmp_path: Path) -> Path:
    build(write_gallery(tmp_path / "gallery"), tmp_path / "index", EMBEDDER)
    return tmp_path / "index"


def test_matches_are_sorted_and_no_more_than_there_are(index: Path) -> None:
    loaded = load(index)
    (matches,) = loaded.search(clustered(1, 16), 100)
    assert len(matches) == len({m.id for m in matches}) == 20
    assert [m.similarity for m in matches] == sorted((m.similarity for m in matches), reverse=True)
    assert loaded.search(np.zeros((0, 16), np.float32), 3) == []


def test_l2_gives_the_same_similarities(tmp_path: Path) -> None:
    images = write_gallery(tmp_path / "gallery")
    build(images, tmp_path / "ip", EMBEDDER)
    build(images, tmp_path / "l2", EMBEDDER, metric="L2")
    queries = clustered(5, 16)
    for one, two in zip(
        load(tmp_path / "ip").search(queries, 4), load(tmp_path / "l2").search(queries, 4), strict=True
    ):
        assert [m.id for m in one] == [m.id for m in two]
        assert [m.similarity for m in one] == pytest.approx([m.similarity for m in two], abs=1e-5)


def test_a_query_of_another_dimension(index: Path) -> None:
    loaded = load(index)
    for shape in ((1, 8), (16,), (1, 1, 16)):
        with pytest.raises(IndexFolderError, match="vectors of 16 numbers"):
            loaded.search(np.zeros(shape, np.float32), 1)
    with pytest.raises(UsageError, match="top_k is 0"):
        loaded.search(clustered(1, 16), 0)


def test_an_index_of_paddleclas_and_an_embedder_of_another_dimension(tmp_path: Path) -> None:
    foreign(tmp_path)
    loaded = load(tmp_path)
    loaded.require(EMBEDDER)
    with pytest.raises(OtherEmbedderError, match=r"vectors of 16 numbers and grid .* makes 8"):
        loaded.require(GridEmbedder(dimension=8))


def write_map(folder: Path, change: Callable[[id_map.IdMap], object]) -> None:
    entries = id_map.read(folder / "id_map.pkl")
    change(entries)
    (folder / "id_map.pkl").write_bytes(id_map.dumps(entries))


def test_an_id_map_shorter_or_longer_than_the_index(tmp_path: Path) -> None:
    foreign(tmp_path)
    write_map(tmp_path, lambda entries: entries.pop(7))
    with pytest.raises(
        IndexFolderError, match=r"has 29 entries and vector.index 30: no label for the vector 7"
    ):
        load(tmp_path)
    foreign(tmp_path)
    write_map(tmp_path, lambda entries: entries.update({30: "a\tb"}))
    with pytest.raises(
        IndexFolderError, match=r"has 31 entries and vector.index 30: no vector for the entry 30"
    ):
        load(tmp_path)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(IndexFolderError, match="No such file"):
        load(tmp_path)
    foreign(tmp_path)
    (tmp_path / "id_map.pkl").unlink()
    with pytest.raises(IndexFolderError, match=r"No such file or directory \(id_map.pkl\)"):
        load(tmp_path)
    foreign(tmp_path)
    (tmp_path / "vector.index").write_bytes(b"")
    with pytest.raises(IndexFolderError, match="no index of faiss"):
        load(tmp_path)


@pytest.mark.parametrize("name", store.FILES)
def test_a_file_that_was_changed_after_it_was_published(index: Path, name: str) -> None:
    path = store.version_folder(index, 1) / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(IndexFolderError, match=f"{name} is not as it was published"):
        load(index)


def test_a_broken_manifest(index: Path) -> None:
    whole = (index / "index.json").read_text()
    for text in (
        whole[:-20],
        "[]",
        whole.replace('"format": 1', '"format": 2'),
        whole.replace('"version": 1', '"version": "1"'),
    ):
        (index / "index.json").write_text(text)
        with pytest.raises(IndexFolderError, match="manifest"):
            load(index)
    (index / "index.json").unlink()
    assert load(index).version == 0


def test_a_copy_of_the_plain_files_is_an_index(index: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in (*store.FILES, "index.json"):
        shutil.copy(index / name, copy / name)  # with new times
    assert load(copy).version == 1
    images = write_gallery(tmp_path / "gallery", each=6)
    assert append(images, copy, EMBEDDER).version == 2
    assert load(copy).count == 24


def test_changed(index: Path, tmp_path: Path) -> None:
    loaded = load(index)
    assert not changed(index, loaded)
    text = (index / "index.json").read_text()
    (index / "index.json").write_text(text)  # touched, but the same
    assert not changed(index, loaded)
    remove(index, ids=[3])
    assert changed(index, loaded)
    assert loaded.count == 20
    assert len(loaded.search(clustered(1, 16), 100)[0]) == 20
    assert load(index).version == 2


def test_changed_without_a_manifest(tmp_path: Path) -> None:
    foreign(tmp_path)
    loaded = load(tmp_path)
    assert not changed(tmp_path, loaded)
    foreign(tmp_path, count=31)
    assert changed(tmp_path, loaded)


def test_many_threads_search_one_index(index: Path) -> None:
    loaded, queries = load(index), clustered(64, 16)
    expected = loaded.search(queries, 5)
    wrong = []

    def ask() -> None:
        for _ in range(20):
            if loaded.search(queries, 5) != expected:
                wrong.append(1)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class Watched:
    """faiss's index, with a note of how many threads each search may take."""

    def __init__(self, index: Any) -> None:
        self._index, self.ntotal = index, index.ntotal
        self.threads: list[int] = []

    def search(self, queries: np.ndarray, k: int) -> Any:
        self.threads.append(faiss().omp_get_max_threads())
        return self._index.search(queries, k)


def test_a_search_takes_one_thread_unless_it_is_long(index: Path) -> None:
    """And leaves the number for what else faiss does as it was, here and in other threads."""
    loaded, queries = load(index), clustered(4, 16)
    watched = Watched(loaded._index)
    usual = faiss().omp_get_max_threads()
    faiss().omp_set_num_threads(3)
    try:
        replace(loaded, _index=watched).search(queries, 2)
        # As if there were so many; there being fewer slots, none is asked for twice.
        replace(loaded, _index=watched, count=1 << 26).search(queries, 2)
        replace(loaded, _index=watched, count=1 << 26, type="HNSW32").search(queries, 2)
        assert watched.threads == [1, min(3, cores()), 1]
        assert faiss().omp_get_max_threads() == 3
    finally:
        faiss().omp_set_num_threads(usual)


def test_found_by_name_data_set_and_folder(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    own = home.index("drinks") / "index"
    foreign(own)
    foreign(home.index("plain"))
    assert store.find("drinks", home) == own
    assert store.find(str(own), home) == own
    assert store.find(str(home.index("drinks")), home) == own
    assert store.find("plain", home) == home.index("plain")
    with pytest.raises(UsageError, match="There is no index at 'nothing'"):
        store.find("nothing", home)


def test_what_is_nowhere_gets_the_command_that_brings_it(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")

    def said(name: str) -> str:
        with pytest.raises(UsageError) as caught:
            store.find(name, home)
        return caught.value.message.rpartition("; ")[2]

    assert said("drink_dataset_v2.0") == (
        "type `pdserve fetch drink_dataset_v2.0`, or make one of your own with "
        "`pdserve index build --gallery DIR --out NAME`."
    )
    assert said("faces") == "make one with `pdserve index build --gallery DIR --out faces`."
    with pytest.raises(UsageError, match=r"--out faces --model ResNet50_face`\.$"):
        store.find("faces", home, "ResNet50_face")
    assert said("ResNet50_vd") == "make one with `pdserve index build --gallery DIR --out ResNet50_vd`."
    own = str(tmp_path / "my faces")
    assert said(own) == f"make one with `pdserve index build --gallery DIR --out '{own}'`."
    gallery = home.index("mine") / "gallery"  # a data set without an index
    gallery.mkdir(parents=True)
    assert said("mine") == f"make one with `pdserve index build --gallery {gallery} --out mine`."


def test_the_place_of_a_new_index(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    (home.index("drinks") / "gallery").mkdir(parents=True)
    assert store.find_or_new("drinks", home) == home.index("drinks") / "index"
    assert store.find_or_new("new", home) == home.index("new")
    assert store.find_or_new(str(tmp_path / "new"), home) == tmp_path / "new"
    assert store.find_or_new("./new", home) == Path("new")


def test_what_has_a_separator_is_a_path(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    foreign(home.index("plain"))
    foreign(home.index("sub/plain"))
    for name in ("./plain", "sub/plain", "../plain"):
        with pytest.raises(UsageError, match=r"no index at .*plain', which is a path; make one with"):
            store.find(name, home)
