"""Publishing: readers see one version and the whole of it, whoever is killed, whoever else writes."""

import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pdserve.errors import DiskError, IndexFolderError
from pdserve.index import faiss_index, id_map, store
from pdserve.index.edit import append, build, remove
from pdserve.index.export import export
from pdserve.index.gallery import GalleryImage
from pdserve.index.publish import rollback, writer
from pdserve.index.search import LoadedIndex, changed, load
from pdserve.index.verify import verify
from tests.index.galleries import GridEmbedder, clustered, draw, write_gallery
from tests.index.test_build import all_good
from tests.index.test_edit import contents, foreign, pairs

EMBEDDER = GridEmbedder()
ROOT = Path(__file__).parents[2]
KILLED = (sys.executable, "-m", "tests.index.killed")


@pytest.fixture
def images(tmp_path: Path) -> list[GalleryImage]:
    return write_gallery(tmp_path / "gallery")


@pytest.fixture
def index(tmp_path: Path, images: list[GalleryImage]) -> Path:
    build(images[:12], tmp_path / "index", EMBEDDER)
    return tmp_path / "index"


def plain(folder: Path) -> tuple[set[int], id_map.IdMap]:
    """What a program sees that opens the plain names, vectors first."""
    return set(faiss_index.ids(faiss_index.read(folder / "vector.index")).tolist()), id_map.read(
        folder / "id_map.pkl"
    )


def versions(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / ".versions").iterdir())


def test_rollback_and_back_again(index: Path, images: list[GalleryImage]) -> None:
    append(images, index, EMBEDDER)
    made = rollback(index)
    assert (made.version, made.change, made.previous) == (3, "rollback to version 1", 2)
    assert contents(index) == pairs(images[:12])
    assert plain(index)[1] == store.read(index).id_map
    assert rollback(index).version == 4
    assert contents(index) == pairs(images)
    assert versions(index) == [3, 4]
    assert all_good(index)


def test_ids_go_on_after_a_rollback(index: Path, images: list[GalleryImage]) -> None:
    append(images[12:14], index, EMBEDDER)
    rollback(index)
    append(images[14:15], index, EMBEDDER)
    assert max(store.read(index).id_map) == 14  # 12 and 13 are spent


def test_nothing_to_roll_back_to(index: Path, tmp_path: Path) -> None:
    with pytest.raises(IndexFolderError, match="keeps no version before"):
        rollback(index)
    foreign(tmp_path / "theirs")
    with pytest.raises(IndexFolderError, match="keeps no version before"):
        rollback(tmp_path / "theirs")


def test_rollback_mends_a_broken_version(index: Path, images: list[GalleryImage]) -> None:
    append(images, index, EMBEDDER)
    (store.version_folder(index, 2) / "vector.index").write_bytes(b"broken")
    with pytest.raises(IndexFolderError, match="rollback"):
        load(index)
    rollback(index)
    assert contents(index) == pairs(images[:12])
    assert all_good(index)


def test_rollback_to_an_index_of_paddleclas(tmp_path: Path, images: list[GalleryImage]) -> None:
    foreign(tmp_path)
    before = (tmp_path / "vector.index").read_bytes()
    append(images, tmp_path, EMBEDDER)
    rollback(tmp_path)
    assert (tmp_path / "vector.index").read_bytes() == before
    assert load(tmp_path).embedder is None


def test_only_two_versions_are_kept(index: Path, images: list[GalleryImage]) -> None:
    for image in images[12:]:
        append([image], index, EMBEDDER)
    assert versions(index) == [8, 9]


def test_another_program_that_changed_the_files_is_noticed(index: Path, images: list[GalleryImage]) -> None:
    entries = id_map.read(index / "id_map.pkl")
    entries[0] = "theirs/0.png\ttheirs"
    path = index / "id_map.pkl"
    path.unlink()
    path.write_bytes(id_map.dumps(entries))
    with pytest.raises(IndexFolderError, match=r"id_map.pkl is not as it was published.*delete index.json"):
        append(images, index, EMBEDDER)
    (index / "index.json").unlink()
    assert append(images, index, EMBEDDER).version == 2
    assert ("theirs/0.png", "theirs") in {id_map.split(e) for e in rollback_entries(index)}


def rollback_entries(folder: Path) -> list[str]:
    rollback(folder)
    return list(store.read(folder).id_map.values())


def test_an_append_of_paddleclas_to_our_index_is_accepted_when_asked(
    index: Path, images: list[GalleryImage]
) -> None:
    """As its build_gallery does it: in place, with NumPy's integers as ids."""
    faiss = pytest.importorskip("faiss")
    theirs = faiss.read_index(str(index / "vector.index"))
    entries = pickle.loads((index / "id_map.pkl").read_bytes())
    ids = np.arange(3) + max(entries) + 1
    theirs.add_with_ids(clustered(3, 16), ids)
    entries |= dict.fromkeys(list(ids), "theirs/0.png\ttheirs")
    faiss.write_index(theirs, str(index / "vector.index"))
    (index / "id_map.pkl").write_bytes(pickle.dumps(entries))
    for _ in range(2):
        with pytest.raises(IndexFolderError, match=r"vector.index is not as it was published"):
            load(index)
    kept = Path(shutil.copytree(index, index.with_name("kept")))
    (index / "index.json").unlink()
    assert load(index).count == 15
    assert append(images, index, EMBEDDER).count == 3 + 20
    assert not [finding for finding in verify(index) if finding.good is False]
    # What was written there did not reach the version, which a new build keeps for a rollback.
    build(images[:3], kept, EMBEDDER)
    rollback(kept)
    assert contents(kept) == pairs(images[:12])
    assert all_good(kept)


def test_files_overwritten_in_place_are_noticed_once_and_the_version_stays(
    index: Path, images: list[GalleryImage]
) -> None:
    loaded = load(index)
    assert not changed(index, loaded)
    (index / "vector.index").write_bytes(b"half of a n")
    with pytest.raises(IndexFolderError, match=r"vector.index is not as it was published"):
        changed(index, loaded)
    assert store.read(index, plain=False).id_map == id_map.read(index / "id_map.pkl")
    append_of_another = [each.what for each in verify(index) if each.good is False]
    assert append_of_another == ["vector.index"]


def test_files_that_were_only_touched_are_the_same(index: Path, images: list[GalleryImage]) -> None:
    for name in store.FILES:
        os.utime(index / name, ns=(1, 1))
    assert append(images, index, EMBEDDER).version == 2


@pytest.mark.skipif(
    getattr(os, "geteuid", lambda: 0)() == 0, reason="the superuser, or Windows, may write all"
)
def test_a_folder_that_may_not_be_written(index: Path, images: list[GalleryImage]) -> None:
    append(images[12:13], index, EMBEDDER)
    index.chmod(0o500)
    try:
        for change in (
            lambda: append(images, index, EMBEDDER),
            lambda: remove(index, ids=[0]),
            lambda: rollback(index),
        ):
            with pytest.raises(DiskError, match="Cannot write"):
                change()
        assert load(index).version == 2
    finally:
        index.chmod(0o700)


@pytest.mark.full
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("what", ["append", "remove", "relabel", "rollback"])
@pytest.mark.parametrize("kind", ["ours", "theirs", "paddlex"])
def test_killed_before_every_step(tmp_path: Path, images: list[GalleryImage], what: str, kind: str) -> None:
    base, work = tmp_path / "base", tmp_path / "work"
    work.mkdir()
    if kind != "ours":
        if what == "relabel":
            pytest.skip("an index of another program does not know its images")
        if kind == "theirs":
            foreign(base)
        else:
            foreign(tmp_path / "theirs")
            export(tmp_path / "theirs", base, kind)
        if what == "rollback":
            remove(base, ids=[7])
    else:
        build(images[:12], base, EMBEDDER)
        append(images[12:14], base, EMBEDDER)
    done = subprocess.run(
        [*KILLED, "steps", str(base), str(work), what],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


@pytest.mark.full
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forty_kills_against_a_model_of_what_was_acknowledged(tmp_path: Path) -> None:
    """A thousand: ``python -m tests.index.kills FOLDER 1000``."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.index.kills", str(tmp_path), "40", "3"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("40 killed\n")
    assert ", acknowledged: " in done.stdout
    assert ", not: " in done.stdout


@pytest.mark.full
def test_a_writer_killed_at_any_time_harms_nothing(index: Path, images: list[GalleryImage]) -> None:
    for delay in (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 4, 8):
        if delay > 0.5 and load(index).version > 1:
            break  # on a busy machine the first kills all come before anything is published
        child = subprocess.Popen([*KILLED, "writer", str(index)], cwd=ROOT, stdout=subprocess.PIPE)
        assert child.stdout
        assert child.stdout.readline().strip() == b"ready"
        time.sleep(delay)
        child.kill()
        child.wait(30)
        child.stdout.close()
        assert pairs(images[:12]) <= contents(index)
        assert load(index).count == len(contents(index))
        ids, labels = plain(index)
        assert ids <= labels.keys()
    assert load(index).version > 1
    append(images, index, EMBEDDER)
    assert all_good(index)
    assert len(versions(index)) == 2


@pytest.mark.full
def test_two_writers_at_once_lose_nothing(index: Path) -> None:
    def write(number: int) -> None:
        embedder = GridEmbedder()
        for n in range(15):
            append(
                [GalleryImage(f"{number}/{n}.png", f"writer {number}", draw(20 + number, n))], index, embedder
            )

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [image for image, _ in contents(index)]
    assert len(found) == 12 + 45
    assert load(index).version == 1 + 45
    assert all_good(index)


@pytest.mark.full
def test_readers_during_two_hundred_publishes_see_whole_versions(index: Path) -> None:
    """Each answer lists all that is in the version it names, no more and no less."""
    published = {1: contents(index)}
    stop = threading.Event()
    seen: list[tuple[int, frozenset[tuple[str, str]]]] = []
    errors: list[BaseException] = []
    query = clustered(1, 16)

    def ask(loaded: LoadedIndex) -> None:
        (matches,) = loaded.search(query, 1_000)
        seen.append((loaded.version, frozenset((m.image, m.label) for m in matches)))

    def read() -> None:
        try:
            loaded = load(index)
            while not stop.is_set():
                ask(loaded)
                time.sleep(0.002)
                if changed(index, loaded):
                    loaded = load(index)
                    ask(loaded)
        except BaseException as error:
            errors.append(error)

    def read_plain_names() -> None:
        """As PaddleClas does. Entries are removed here, so that labels of those may be missing."""
        try:
            while not stop.is_set():
                time.sleep(0.002)
                ids = set(faiss_index.ids(faiss_index.read(index / "vector.index")).tolist())
                labels = id_map.read(index / "id_map.pkl")
                for i in ids & labels.keys():
                    image, label = id_map.split(labels[i])
                    assert not image.startswith("more") or label == f"label {image[5:-4]}"
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)] + [threading.Thread(target=read_plain_names)]
    for thread in threads:
        thread.start()
    try:
        for n in range(150):
            made = append([GalleryImage(f"more/{n}.png", f"label {n}", draw(60, n))], index, EMBEDDER)
            published[made.version] = contents(index)
            if n % 3 == 2:
                made = remove(index, images=[f"more/{n - 1}.png"])
                published[made.version] = contents(index)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors, errors[0]
    assert len(published) == 201
    assert len({version for version, _ in seen}) > 20
    assert all(published[version] == found for version, found in seen)
    assert load(index).version == 201


@pytest.mark.full
def test_programs_that_read_the_plain_names_have_a_label_for_every_id_while_entries_are_added(
    index: Path,
) -> None:
    stop = threading.Event()
    missing: list[set[int]] = []
    rounds = []

    def read() -> None:
        while not stop.is_set():
            time.sleep(0.001)
            ids, labels = plain(index)
            rounds.append(1)
            if not ids <= labels.keys():
                missing.append(ids - labels.keys())

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for n in range(40):
        append([GalleryImage(f"more/{n}.png", "more", draw(70, n))], index, EMBEDDER)
    stop.set()
    for thread in threads:
        thread.join()
    assert rounds
    assert not missing


def test_a_disk_without_hard_links(tmp_path: Path, index: Path, images: list[GalleryImage]) -> None:
    """Copies with other inodes, as after a move to such a disk, work the same."""
    copy = tmp_path / "copy"
    shutil.copytree(index, copy)
    assert append(images, copy, EMBEDDER).version == 2
    assert rollback(copy).version == 3
    assert contents(copy) == pairs(images[:12])
    assert all_good(copy)


def test_the_lock_is_waited_for(index: Path) -> None:
    done = threading.Event()

    def change() -> None:
        remove(index, ids=[0])
        done.set()

    with writer(index):
        thread = threading.Thread(target=change)
        thread.start()
        assert not done.wait(0.3)
    thread.join(10)
    assert done.is_set()
    known = store.read_manifest(index)
    assert known
    assert known.version == 2
