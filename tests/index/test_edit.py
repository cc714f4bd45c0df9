"""Appending and removing, on every type."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pdserve.errors import GalleryError, IndexFolderError, NoSuchEntryError, OtherEmbedderError
from pdserve.index import INDEX_TYPES, METRICS, faiss_index, id_map, store
from pdserve.index.edit import append, build, remove
from pdserve.index.gallery import GalleryImage
from pdserve.index.search import load
from pdserve.index.verify import verify
from pdserve.vision.decode import decode
from tests.index.galleries import GridEmbedder, clustered, draw, write_gallery
from tests.index.test_build import all_good

EMBEDDER = GridEmbedder()


def contents(folder: Path) -> set[tuple[str, str]]:
    return {id_map.split(entry) for entry in store.read(folder).id_map.values()}


def pairs(images: list[GalleryImage]) -> set[tuple[str, str]]:
    return {(image.image, image.label) for image in images}


def first(folder: Path, picture: bytes) -> tuple[str, str]:
    match = load(folder).search(EMBEDDER.embed([decode(picture)]), 1)[0][0]
    return match.image, match.label


@pytest.mark.parametrize("kind", INDEX_TYPES)
@pytest.mark.parametrize("metric", METRICS)
def test_append_and_remove_on_every_type(tmp_path: Path, kind: Any, metric: Any) -> None:
    images, folder = write_gallery(tmp_path / "gallery"), tmp_path / "index"
    build(images[:12], folder, EMBEDDER, kind=kind, metric=metric)
    made = append(images, folder, EMBEDDER)
    assert (made.version, made.count, made.added, made.present) == (2, 20, 8, 12)
    assert contents(folder) == pairs(images)
    made = remove(folder, labels=["cola"], images=["tea/0.png"], ids=[19])
    assert (made.version, made.count, made.removed) == (3, 13, 7)
    left = [i for n, i in enumerate(images) if i.label != "cola" and n not in (0, 19)]
    assert contents(folder) == pairs(left)
    for image in images:
        assert (first(folder, image.read()) == (image.image, image.label)) == (image in left)
    assert load(folder).type == kind
    assert all_good(folder)


@pytest.mark.parametrize("kind", INDEX_TYPES)
def test_all_removed_and_filled_again(tmp_path: Path, kind: Any) -> None:
    images, folder = write_gallery(tmp_path / "gallery", each=2), tmp_path / "index"
    build(images, folder, EMBEDDER, kind=kind)
    assert remove(folder, labels=[image.label for image in images]).count == 0
    assert load(folder).search(EMBEDDER.embed([decode(draw(0, 0))]), 3) == [[]]
    assert append(images, folder, EMBEDDER).added == 8
    assert first(folder, images[3].read()) == (images[3].image, images[3].label)
    assert all_good(folder)


def test_append_twice_is_append_once(tmp_path: Path) -> None:
    images, folder = write_gallery(tmp_path / "gallery"), tmp_path / "index"
    build(images[:3], folder, EMBEDDER)
    append(images, folder, EMBEDDER)
    before = (folder / "index.json").read_bytes()
    embedder = GridEmbedder()
    again = append(images, folder, embedder)
    assert (again.changed, again.version, again.present) == (False, 2, 20)
    assert embedder.batches == []
    assert (folder / "index.json").read_bytes() == before


def test_the_same_image_under_another_name_is_one_entry(tmp_path: Path) -> None:
    images, folder = write_gallery(tmp_path / "gallery"), tmp_path / "index"
    build(images, folder, EMBEDDER)
    copy = GalleryImage("elsewhere/copy.png", images[0].label, images[0].source)
    assert not append([copy, copy], folder, EMBEDDER).changed
    twins = [GalleryImage(f"new/{n}.png", "new", draw(7, 0)) for n in range(3)]
    made = append(twins, folder, EMBEDDER)
    assert (made.added, made.present) == (1, 2)


def test_a_changed_label_replaces_and_the_vectors_stay(tmp_path: Path) -> None:
    images, folder = write_gallery(tmp_path / "gallery"), tmp_path / "index"
    build(images, folder, EMBEDDER)
    before = (folder / "vector.index").read_bytes()
    made = append([GalleryImage("tea/0.png", "green tea", images[0].source)], folder, EMBEDDER)
    assert (made.relabelled, made.added, made.count) == (1, 0, 20)
    assert first(folder, images[0].read()) == ("tea/0.png", "green tea")
    assert (folder / "vector.index").read_bytes() == before
    assert all_good(folder)


def test_other_images_under_the_same_paths_drop_nothing(tmp_path: Path) -> None:
    """A second folder, of another day, has a tea/0.png as well."""
    images, folder = write_gallery(tmp_path / "gallery"), tmp_path / "index"
    build(images, folder, EMBEDDER)
    new = [GalleryImage(image.image, image.label, draw(9, n)) for n, image in enumerate(images[:6])]
    made = append(new, folder, EMBEDDER)
    assert (made.added, made.same_path, made.replaced, made.count) == (6, 6, 0, 26)
    assert first(folder, images[0].read()) == first(folder, draw(9, 0)) == ("tea/0.png", "tea")
    index = load(folder)
    for picture in (image.read() for image in (*images, *new)):
        assert index.search(EMBEDDER.embed([decode(picture)]), 1)[0][0].similarity > 0.99999
    assert not append(new, folder, EMBEDDER).changed
    assert remove(folder, images=["tea/0.png"]).removed == 2
    assert all_good(folder)


def test_a_changed_image_replaces_the_entry_of_its_path_when_asked(tmp_path: Path) -> None:
    images, folder = write_gallery(tmp_path / "gallery"), tmp_path / "index"
    build(images, folder, EMBEDDER)
    new = GalleryImage("tea/0.png", "tea", draw(9, 9))
    made = append([new], folder, EMBEDDER, replace=True)
    assert (made.replaced, made.added, made.same_path, made.count) == (1, 0, 0, 20)
    assert first(folder, draw(9, 9)) == ("tea/0.png", "tea")
    assert first(folder, draw(0, 0)) != ("tea/0.png", "tea")
    assert all_good(folder)


def test_an_image_that_moved_while_another_took_its_path(tmp_path: Path) -> None:
    images, folder = write_gallery(tmp_path / "gallery"), tmp_path / "index"
    build(images, folder, EMBEDDER)
    moved = [GalleryImage("tea/old.png", "tea", draw(0, 0)), GalleryImage("tea/0.png", "tea", draw(9, 9))]
    made = append(moved, folder, EMBEDDER)
    assert (made.count, made.added, made.replaced) == (21, 1, 0)
    assert first(folder, draw(0, 0)) == ("tea/old.png", "tea")
    assert first(folder, draw(9, 9)) == ("tea/0.png", "tea")
    assert not append(moved, folder, EMBEDDER).changed


def test_ids_are_never_given_twice(tmp_path: Path) -> None:
    images, folder = write_gallery(tmp_path / "gallery"), tmp_path / "index"
    build(images[:10], folder, EMBEDDER)
    remove(folder, ids=[9, 8])
    append(images[8:12], folder, EMBEDDER)
    assert sorted(store.read(folder).id_map) == [*range(8), 10, 11, 12, 13]
    for number in range(14):
        if number in store.read(folder).id_map:
            remove(folder, ids=[number])
    append(images[:1], folder, EMBEDDER)
    assert list(store.read(folder).id_map) == [14]


def test_what_is_not_there_may_be_passed_over(tmp_path: Path) -> None:
    images, folder = write_gallery(tmp_path / "gallery"), tmp_path / "index"
    build(images[:3], folder, EMBEDDER)
    assert remove(folder, ids=[1, 99], missing_ok=True).removed == 1
    assert remove(folder, ids=[1, 99], missing_ok=True).removed == 0
    assert sorted(store.read(folder).id_map) == [0, 2]


def test_what_is_not_there_cannot_be_removed(tmp_path: Path) -> None:
    images, folder = write_gallery(tmp_path / "gallery"), tmp_path / "index"
    build(images, folder, EMBEDDER)
    with pytest.raises(NoSuchEntryError, match=r"no id 99, image 'x.png', label 'beer'"):
        remove(folder, labels=["beer", "tea"], images=["x.png"], ids=[99, 0])
    assert load(folder).version == 1


def test_another_embedder_is_refused_by_name(tmp_path: Path) -> None:
    images, folder = write_gallery(tmp_path / "gallery"), tmp_path / "index"
    build(images, folder, EMBEDDER)
    with pytest.raises(
        OtherEmbedderError, match=r"built with grid \(.*cannot be used with other \(.*give --embedder grid "
    ):
        append(images, folder, GridEmbedder(name="other"))
    with pytest.raises(OtherEmbedderError, match="built with grid") as caught:
        load(folder).require(GridEmbedder(dimension=8))
    assert (
        "its files are others now: give those that the index was built with, or reb" in caught.value.message
    )
    assert "--embedder" not in caught.value.message
    load(folder).require(GridEmbedder())


def test_nothing_to_append_and_labels_that_cannot_be(tmp_path: Path) -> None:
    images, folder = write_gallery(tmp_path / "gallery"), tmp_path / "index"
    build(images, folder, EMBEDDER)
    with pytest.raises(GalleryError, match="nothing to append"):
        append([], folder, EMBEDDER)
    with pytest.raises(GalleryError, match="tab or a line break"):
        append([GalleryImage("a.png", "two\nlines", draw(0, 0))], folder, EMBEDDER)
    with pytest.raises(IndexFolderError, match="cannot be read"):
        append(images, tmp_path / "nowhere", EMBEDDER)


def foreign(
    folder: Path, kind: str = "HNSW32", count: int = 30, wrapped: bool = False
) -> np.ndarray[Any, Any]:
    """An index as PaddleClas leaves it: no manifest, ids as NumPy integers."""
    import pickle

    faiss = pytest.importorskip("faiss")
    rows = clustered(count, EMBEDDER.dimension)
    index = faiss.index_factory(EMBEDDER.dimension, kind, faiss.METRIC_INNER_PRODUCT)
    if wrapped:
        index = faiss.IndexIDMap2(index)
        index.add_with_ids(rows, np.arange(count))
    else:
        index.add(rows)
    folder.mkdir(parents=True, exist_ok=True)
    faiss.write_index(index, str(folder / "vector.index"))
    entries = {i: f"theirs/{i}.jpg\ttheirs" for i in np.arange(count)}
    (folder / "id_map.pkl").write_bytes(pickle.dumps(entries))
    return rows


@pytest.mark.parametrize("kind", ["Flat", "HNSW32"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_an_index_of_paddleclas_is_searched_appended_to_and_rolled_back(
    tmp_path: Path, kind: str, wrapped: bool
) -> None:
    from pdserve.index.publish import rollback

    folder = tmp_path / "index"
    rows = foreign(folder, kind, wrapped=wrapped)
    index = load(folder)
    assert (index.version, index.embedder, index.count) == (0, None, 30)
    assert index.search(rows[4:5], 1)[0][0].image == "theirs/4.jpg"
    images = write_gallery(tmp_path / "gallery")
    made = append(images, folder, EMBEDDER)
    assert (made.version, made.count) == (1, 50)
    known = store.read_manifest(folder)
    assert known
    assert known.embedder is None  # which nobody knows of the thirty
    assert first(folder, images[3].read()) == (images[3].image, images[3].label)
    assert remove(folder, labels=["theirs"]).count == 20
    assert rollback(folder).count == 50
    remove(folder, ids=store.read(folder).id_map)
    append(images, folder, EMBEDDER)
    with pytest.raises(OtherEmbedderError):
        append(images, folder, GridEmbedder(name="other"))


def test_the_paths_of_an_index_of_paddleclas_are_replaced_when_asked(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    foreign(folder)
    new = [GalleryImage(f"theirs/{i}.jpg", "theirs", draw(3, i)) for i in range(30)]
    made = append(new, folder, EMBEDDER, replace=True)
    assert (made.count, made.replaced, made.added) == (30, 30, 0)
    assert not append(new, folder, EMBEDDER).changed
    assert all_good(folder)


def test_an_image_of_paddleclas_is_known_by_its_path_and_vector(tmp_path: Path) -> None:
    """Its own gallery, appended to an index without digests, is there already."""
    import pickle

    images, folder = write_gallery(tmp_path / "gallery"), tmp_path / "index"
    build(images, folder, EMBEDDER)
    for name in ("index.json", "entries.npy"):
        (folder / name).unlink()
    entries = {i: f"{image.image}\t{image.label}" for i, image in enumerate(images)}
    (folder / "id_map.pkl").write_bytes(pickle.dumps(entries))
    changed = [GalleryImage(i.image, i.label, i.source) for i in images[:18]]
    changed += [GalleryImage(images[18].image, "lemonade", images[18].source)]
    changed += [GalleryImage(images[19].image, images[19].label, draw(9, 9))]
    made = append(changed, folder, EMBEDDER)
    assert (made.present, made.relabelled, made.added, made.same_path, made.count) == (19, 1, 1, 1, 21)


def paddleclas_appends(folder: Path, rows: np.ndarray[Any, Any], label: str) -> None:
    """What PaddleClas's build_gallery.py does, its check of the count included, in its order."""
    import pickle

    faiss = pytest.importorskip("faiss")
    index = faiss.read_index(str(folder / "vector.index"))
    ids = pickle.loads((folder / "id_map.pkl").read_bytes())
    assert index.ntotal == len(ids)
    start = max(ids.keys()) + 1
    new = np.arange(len(rows)) + start
    index.add_with_ids(rows, new)
    ids |= {i: f"theirs/{i}.jpg {label}" for i in new}
    faiss.write_index(index, str(folder / "vector.index"))
    (folder / "id_map.pkl").write_bytes(pickle.dumps(ids))
    assert {ids[i].split()[1] for i in index.search(rows, 1)[1].ravel().tolist()} == {label}


@pytest.mark.full
def test_a_big_graph_keeps_tombstones_and_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    rows = foreign(folder, count=6_000, wrapped=True)
    assert not remove(folder, ids=range(0, 600, 2)).compacted
    theirs = Path(shutil.copytree(folder, tmp_path / "theirs"))
    paddleclas_appends(theirs, clustered(5, EMBEDDER.dimension, seed=9), "new")
    (theirs / "index.json").unlink()
    assert load(theirs).count == 5_705
    assert remove(theirs, labels=["new"]).count == 5_700
    assert all(finding.good is not False for finding in verify(theirs))
    known = store.read_manifest(folder)
    assert known
    assert (known.count, known.slots) == (5_700, 6_000)
    index = load(folder)
    found = index.search(rows[:600:2], 20)
    assert all(len({m.id for m in matches}) == 20 for matches in found)
    assert not {m.id for matches in found for m in matches} & set(range(0, 600, 2))
    made = remove(folder, ids=range(1_000, 2_000))
    assert made.compacted
    assert (known := store.read_manifest(folder))
    assert (known.count, known.slots) == (4_700, 4_700)


@pytest.mark.full
def test_an_ivf_is_trained_anew_when_it_has_outgrown_its_lists(tmp_path: Path) -> None:
    from pdserve.index.edit import merge

    images = write_gallery(tmp_path / "gallery")
    build(images, tmp_path / "small", EMBEDDER, kind="IVF")
    foreign(tmp_path / "big", count=4_500)
    assert merge(tmp_path / "small", [tmp_path / "big"]).compacted
    known = store.read_manifest(tmp_path / "small")
    assert known
    assert known.trained_on == 4_520
    assert faiss_index.read(tmp_path / "small" / "vector.index").nlist > 100
