"""Programs that are killed, or kill their own children, while they change an index. Run as a module.

``python -m tests.index.killed steps BASE WORK CHANGE`` carries out one change of the index BASE again and
again, killed before its first, second, … step on the disk, and looks each time at what is left. It forks,
and must not search meanwhile: faiss's threads do not survive a fork.

``python -m tests.index.killed writer INDEX`` changes INDEX until somebody ends it.
"""

import hashlib
import io
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

# What a change loads when it comes to it; else each child would load it again, which is most of its time.
import cv2  # noqa: F401
import filelock  # noqa: F401
from PIL import Image

import pdserve.vision.decoder  # noqa: F401
from pdserve.index import faiss_index, forms, id_map, id_map_yaml, store
from pdserve.index.edit import append, remove
from pdserve.index.gallery import GalleryImage
from pdserve.index.publish import rollback, writer
from tests.index.galleries import GridEmbedder, draw, write_gallery

EVENTS = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir")


def steps(base: Path, work: Path, what: str) -> int:
    """Returns how many steps the change has."""
    images = _decoded_here(write_gallery(work / "gallery"), base)
    first = GalleryImage(images[0].image, "other", images[0].source)
    changes: dict[str, Callable[[Path], object]] = {
        "append": lambda folder: append(images, folder, GridEmbedder()),
        "remove": lambda folder: remove(folder, ids=[0, 5]),
        "relabel": lambda folder: append([first], folder, GridEmbedder()),
        "rollback": rollback,
    }
    change = changes[what]
    old = store.read(base).id_map
    after, folder = work / "after", work / "killed"
    shutil.copytree(base, after)
    assert _forked(lambda: change(after)) == 0
    new = store.read(after).id_map
    assert old != new
    seen, point, code = set(), 0, 9
    while code:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base, folder)
        code = _forked(lambda: change(folder), point, folder)
        found = store.read(folder).id_map
        assert found in (old, new), point
        seen.add(found == new)
        _look_at_plain_names(folder, old, new)
        with writer(folder):
            assert _plain(folder) == (found.keys(), found), point
        assert _forked(lambda: remove(folder, ids=[3])) == 0
        assert store.read(folder).id_map == {i: e for i, e in found.items() if i != 3}, point
        point += 1
    assert seen == {False, True}
    return point - 1


def _decoded_here(images: Sequence[GalleryImage], base: Path) -> list[GalleryImage]:
    """Images that are no entries of ``base`` as JPEG, for which no child starts a process."""
    known = {row.tobytes() for row in store.read(base).entries.sha256}

    def jpeg(image: GalleryImage) -> GalleryImage:
        out = io.BytesIO()
        Image.open(io.BytesIO(image.read())).save(out, "JPEG")
        return GalleryImage(image.image, image.label, out.getvalue())

    return [i if hashlib.sha256(i.read()).digest() in known else jpeg(i) for i in images]


def _plain(folder: Path) -> tuple[set[int], id_map.IdMap]:
    ids = set(faiss_index.ids(faiss_index.read(folder / store.VECTORS)).tolist())
    form = forms.present(folder)[0]
    return ids, form.read(folder / form.file)


def _look_at_plain_names(folder: Path, old: id_map.IdMap, new: id_map.IdMap) -> None:
    """Whoever reads them now has a label for every vector, of one version or the other."""
    ids, labels = _plain(folder)
    assert ids in (old.keys(), new.keys())
    assert ids <= labels.keys()
    assert all(labels[i] in (old.get(i), new.get(i)) for i in ids)
    theirs = folder / forms.FORMS["paddlex"].file
    if theirs.is_file():  # PaddleX wants a vector for every label, too
        assert ids == id_map_yaml.read(theirs).keys()


def _forked(work: Callable[[], object], point: int | None = None, folder: Path | None = None) -> int:
    """Run in a child that dies before its step number ``point`` in ``folder``; return its exit code."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    left = -1 if point is None else point

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in EVENTS and str(folder) in str(arguments[0]):
            if left == 0:
                os._exit(9)
            left -= 1

    try:
        if point is not None:
            sys.addaudithook(watch)
        work()
    except BaseException:
        os._exit(1)
    os._exit(0)


def write_on(folder: Path) -> None:
    embedder = GridEmbedder()
    print("ready", flush=True)
    for n in range(10_000):
        append([GalleryImage(f"more/{n}.png", f"label {n}", draw(50, n))], folder, embedder)
        if n % 3 == 2:
            remove(folder, images=[f"more/{n - 1}.png"])


if __name__ == "__main__":
    os.fsync = os.fstat  # type: ignore[assignment]  # who is killed loses nothing that is written
    if sys.argv[1] == "steps":
        print(steps(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]))
    else:
        write_on(Path(sys.argv[2]))
