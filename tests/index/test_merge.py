"""Indexes of one embedder made one."""

from pathlib import Path
from typing import Any

import pytest

from pdserve.errors import IndexFolderError, OtherEmbedderError
from pdserve.index import INDEX_TYPES
from pdserve.index.edit import build, merge, remove
from pdserve.index.gallery import GalleryImage
from pdserve.index.search import load
from tests.index.galleries import GridEmbedder, write_gallery
from tests.index.test_build import all_good
from tests.index.test_edit import contents, first, foreign, pairs

EMBEDDER = GridEmbedder()


@pytest.mark.parametrize("kind", INDEX_TYPES)
@pytest.mark.parametrize("other", INDEX_TYPES)
def test_every_type_takes_every_other(tmp_path: Path, kind: Any, other: Any) -> None:
    images = write_gallery(tmp_path / "gallery")
    build(images[:12], tmp_path / "one", EMBEDDER, kind=kind)
    build(images[8:], tmp_path / "two", EMBEDDER, kind=other, metric="L2")
    made = merge(tmp_path / "one", [tmp_path / "two"])
    assert (made.count, made.added, made.present) == (20, 8, 4)
    assert contents(tmp_path / "one") == pairs(images)
    assert contents(tmp_path / "two") == pairs(images[8:])
    assert all(first(tmp_path / "one", i.read()) == (i.image, i.label) for i in images)
    assert load(tmp_path / "one").type == kind
    assert all_good(tmp_path / "one")
    assert not merge(tmp_path / "one", [tmp_path / "two"]).changed


def test_the_labels_of_the_other_count_and_equal_paths_stay_apart(tmp_path: Path) -> None:
    images = write_gallery(tmp_path / "gallery")
    build(images[:5], tmp_path / "one", EMBEDDER)
    renamed = [GalleryImage(image.image, "green tea", image.source) for image in images[:2]]
    same_path = GalleryImage("tea/4.png", "cola", images[6].source)
    build([*renamed, same_path], tmp_path / "two", EMBEDDER)
    made = merge(tmp_path / "one", [tmp_path / "two"])
    assert (made.relabelled, made.added, made.count) == (2, 1, 6)
    assert first(tmp_path / "one", images[4].read()) == ("tea/4.png", "tea")
    assert first(tmp_path / "one", images[6].read()) == ("tea/4.png", "cola")


def test_indexes_of_paddleclas(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    foreign(tmp_path / "theirs")
    foreign(tmp_path / "same")
    assert not merge(tmp_path / "theirs", [tmp_path / "same"]).changed
    images = write_gallery(tmp_path / "gallery")
    build(images, tmp_path / "ours", EMBEDDER)
    build(images, tmp_path / "empty", EMBEDDER)
    remove(tmp_path / "empty", ids=range(20))
    assert merge(tmp_path / "empty", [tmp_path / "ours"]).count == 20
    assert load(tmp_path / "empty").embedder == load(tmp_path / "ours").embedder is not None
    assert merge(tmp_path / "ours", [tmp_path / "theirs", tmp_path / "same"]).count == 50
    assert "ours no longer says which embedder made it" in caplog.text
    assert not merge(tmp_path / "ours", [tmp_path / "theirs"]).changed
    made = merge(tmp_path / "theirs", [tmp_path / "ours"])
    assert made.count == 50
    # Of thirty of them nobody knows it.
    assert load(tmp_path / "ours").embedder is load(tmp_path / "theirs").embedder is None


def test_one_picture_under_the_labels_of_two_indexes_is_said(tmp_path: Path) -> None:
    images = write_gallery(tmp_path / "gallery")
    for name, label in (("one", "cola"), ("two", "tea")):
        build([GalleryImage(f"{name}.png", label, images[0].source)], tmp_path / name, EMBEDDER)
    build(images[5:], tmp_path / "base", EMBEDDER)
    made = merge(tmp_path / "base", [tmp_path / "one", tmp_path / "two"])
    assert (made.added, [each.image for each in made.skipped]) == (1, ["one.png"])
    assert first(tmp_path / "base", images[0].read()) == ("two.png", "tea")


def test_other_embedders_and_dimensions_are_refused(tmp_path: Path) -> None:
    images = write_gallery(tmp_path / "gallery")
    build(images, tmp_path / "one", EMBEDDER)
    build(images, tmp_path / "two", GridEmbedder(name="other"))
    with pytest.raises(OtherEmbedderError, match=r"built with grid .* other"):
        merge(tmp_path / "one", [tmp_path / "two"])
    build(images, tmp_path / "three", GridEmbedder(dimension=8))
    foreign(tmp_path / "theirs")
    with pytest.raises(IndexFolderError, match=r"16 numbers and .* of\s+8"):
        merge(tmp_path / "three", [tmp_path / "theirs"])
    assert load(tmp_path / "one").version == 1
