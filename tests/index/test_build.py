"""Building an index of a gallery."""

import json
import pickle
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pdserve.errors import DiskError, EngineError, GalleryError
from pdserve.index import INDEX_TYPES, METRICS, faiss_index, store
from pdserve.index.edit import append, build
from pdserve.index.gallery import GalleryImage
from pdserve.index.search import load
from pdserve.index.verify import verify
from pdserve.vision.decode import decode
from pdserve.vision.types import Image8, Vectors
from tests.index.galleries import GridEmbedder, draw, write_gallery


def all_good(folder: Path) -> bool:
    return all(finding.good for finding in verify(folder))


@pytest.mark.parametrize("kind", [None, *INDEX_TYPES])
@pytest.mark.parametrize("metric", METRICS)
def test_every_image_finds_itself(tmp_path: Path, kind: Any, metric: Any) -> None:
    images, embedder, folder = write_gallery(tmp_path / "gallery"), GridEmbedder(), tmp_path / "index"
    made = build(images, folder, embedder, kind=kind, metric=metric)
    assert (made.version, made.count, made.added, made.present, made.skipped) == (1, 20, 20, 0, [])
    index = load(folder)
    assert (index.version, index.type, index.metric, index.count) == (1, kind or "Flat", metric, 20)
    found = index.search(embedder.embed([decode(image.read()) for image in images]), 1)
    assert [(m.image, m.label) for (m,) in found] == [(i.image, i.label) for i in images]
    assert all(m.similarity == pytest.approx(1, abs=1e-5) for (m,) in found)
    assert all_good(folder)


def test_the_files_are_those_of_paddleclas(tmp_path: Path) -> None:
    images, folder = write_gallery(tmp_path / "gallery"), tmp_path / "index"
    build(images, folder, GridEmbedder())
    entries = pickle.loads((folder / "id_map.pkl").read_bytes())
    assert entries == {i: f"{image.image}\t{image.label}" for i, image in enumerate(images)}
    described = json.loads((folder / "index.json").read_text("utf-8"))
    assert described["format"] == 1
    assert described["embedder"] == {"name": "grid", "fingerprint": GridEmbedder().fingerprint}


def test_batches_are_full_and_the_same_image_is_embedded_once(tmp_path: Path) -> None:
    images = write_gallery(tmp_path / "gallery")
    again = [GalleryImage(f"again/{i}.png", image.label, image.source) for i, image in enumerate(images)]
    embedder = GridEmbedder(batch_size=8)
    made = build([*images, *again], tmp_path / "index", embedder)
    assert embedder.batches == [8, 8, 4]
    assert (made.count, made.present) == (20, 20)


def test_one_picture_under_two_labels_is_said(tmp_path: Path) -> None:
    picture = draw(0, 0)
    two = [GalleryImage("a.png", "wrong", picture), GalleryImage("b.png", "right", picture)]
    same = GalleryImage("c.png", "right", picture)
    for change in (build, append):
        made = change([*two, same], tmp_path / "index", GridEmbedder())
        assert (made.count, made.present) == (1, 1 if change is build else 2)
        (skipped,) = made.skipped
        assert skipped.image == "a.png"
        assert skipped.reason.startswith("is the same picture as c.png, and an entry has one label: 'right'")
        assert "'wrong' does not" in skipped.reason
    found = load(tmp_path / "index").search(GridEmbedder().embed([decode(picture)]), 5)
    assert [match.label for match in found[0]] == ["right"]
    with pytest.raises(GalleryError, match=r"a.png: is the same picture as b.png.*'wrong' does not"):
        build(two, tmp_path / "strict", GridEmbedder(), strict=True)


def test_unreadable_images_are_skipped_and_said(tmp_path: Path) -> None:
    images = write_gallery(tmp_path / "gallery")
    (tmp_path / "gallery" / "tea" / "1.png").write_bytes(b"no image")
    (tmp_path / "gallery" / "cola" / "2.png").unlink()
    (tmp_path / "gallery" / "cola" / "3.png").write_bytes(draw(1, 3)[:100])
    made = build(images, tmp_path / "index", GridEmbedder())
    assert made.count == 17
    assert [each.image for each in made.skipped] == ["tea/1.png", "cola/2.png", "cola/3.png"]
    assert "no image" in made.skipped[0].reason
    with pytest.raises(GalleryError, match=r"tea/1.png: .*--strict"):
        build(images, tmp_path / "strict", GridEmbedder(), strict=True)
    assert store.read_manifest(tmp_path / "strict") is None


def test_an_image_in_which_the_embedder_finds_nothing(tmp_path: Path) -> None:
    class Blind(GridEmbedder):
        def embed(self, images: Sequence[Image8]) -> Vectors:
            rows = super().embed(images)
            rows[[image.mean() < 1 for image in images]] = 0
            return rows

    black = tmp_path / "black.ppm"
    black.write_bytes(b"P6 4 4 255\n" + bytes(48))
    made = build(
        [GalleryImage("black.ppm", "night", black), *write_gallery(tmp_path)], tmp_path / "index", Blind()
    )
    assert made.count == 20
    assert "its vector is zero" in made.skipped[0].reason
    assert all_good(tmp_path / "index")


def test_no_gallery_and_nothing_readable(tmp_path: Path) -> None:
    with pytest.raises(GalleryError, match="gallery is empty"):
        build([], tmp_path / "index", GridEmbedder())
    missing = [GalleryImage(f"{name}.png", "tea", tmp_path / f"{name}.png") for name in "ab"]
    with pytest.raises(GalleryError, match=r"None of the 2 images could be read \(a.png: "):
        build(missing, tmp_path / "index", GridEmbedder())


def test_an_embedder_that_breaks_its_promise(tmp_path: Path) -> None:
    class Long(GridEmbedder):
        def embed(self, images: Sequence[Image8]) -> Vectors:
            return 2 * super().embed(images)

    class Short(GridEmbedder):
        def embed(self, images: Sequence[Image8]) -> Vectors:
            return super().embed(images)[:, :-1]

    for broken in (Long(), Short()):
        with pytest.raises(EngineError):
            build(write_gallery(tmp_path / "gallery"), tmp_path / "index", broken)


def test_built_again_it_is_a_new_version_with_new_ids(tmp_path: Path) -> None:
    images, folder = write_gallery(tmp_path / "gallery"), tmp_path / "index"
    build(images, folder, GridEmbedder())
    made = build(images[:10], folder, GridEmbedder(dimension=8), kind="HNSW32")
    assert (made.version, made.count) == (2, 10)
    known = store.read_manifest(folder)
    assert known
    assert (known.previous, known.dimension, known.next_id) == (1, 8, 30)
    assert min(pickle.loads((folder / "id_map.pkl").read_bytes())) == 20


def test_built_in_the_place_of_a_broken_one(tmp_path: Path) -> None:
    images, folder = write_gallery(tmp_path / "gallery"), tmp_path / "index"
    build(images, folder, GridEmbedder())
    for path in folder.rglob("vector.index"):
        path.write_bytes(b"broken")
    assert build(images, folder, GridEmbedder()).version == 2
    assert all_good(folder)


def test_an_interrupted_build_goes_on_where_it_was(tmp_path: Path) -> None:
    class Interrupted(GridEmbedder):
        def embed(self, images: Sequence[Image8]) -> Vectors:
            if len(self.batches) == 3:
                raise KeyboardInterrupt
            return super().embed(images)

    images, folder = write_gallery(tmp_path / "gallery"), tmp_path / "index"
    build(images[:5], folder, GridEmbedder())
    with pytest.raises(KeyboardInterrupt):
        build(images, folder, Interrupted())
    assert load(folder).count == 5
    second = GridEmbedder()
    assert build(images, folder, second).count == 20
    assert sum(second.batches) == 20 - 3 * second.batch_size
    assert all_good(folder)


_SLOW_BUILD = """
import sys, time
from pathlib import Path
from pdserve.index.edit import build
from tests.index.galleries import GridEmbedder, write_gallery

class Slow(GridEmbedder):
    def embed(self, images):
        print(len(images), flush=True)
        time.sleep(0.05)
        return super().embed(images)

base = Path(sys.argv[1])
build(write_gallery(base / "gallery"), base / "index", Slow(batch_size=2))
"""


def test_a_killed_build_goes_on_where_it_was(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", _SLOW_BUILD, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert child.stdout
    for _ in range(4):
        assert child.stdout.readline()
    child.kill()
    child.wait(30)
    child.stdout.close()
    assert store.read_manifest(tmp_path / "index") is None
    embedder = GridEmbedder(batch_size=2)
    deadline = time.monotonic() + 10
    assert build(write_gallery(tmp_path / "gallery"), tmp_path / "index", embedder).count == 20
    assert time.monotonic() < deadline
    assert sum(embedder.batches) <= 14  # three batches or more were kept
    assert all_good(tmp_path / "index")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DiskError, match="Cannot write"):
        build(write_gallery(tmp_path / "gallery"), tmp_path / "file" / "index", GridEmbedder())


def test_vectors_are_the_embedders(tmp_path: Path) -> None:
    images, embedder = write_gallery(tmp_path / "gallery"), GridEmbedder()
    build(images, tmp_path / "index", embedder)
    ids, rows = faiss_index.extract(faiss_index.read(tmp_path / "index" / "vector.index"))
    assert ids.tolist() == list(range(20))
    np.testing.assert_array_equal(rows, embedder.embed([decode(image.read()) for image in images]))
