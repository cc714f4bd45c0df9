"""What a check says of a gallery whose faults are known."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pdserve.errors import GalleryError
from pdserve.index import faiss_index, id_map, store
from pdserve.index.edit import build
from pdserve.index.gallery import GalleryImage
from pdserve.index.quality import check, draw, histogram
from pdserve.vision.types import Vectors
from tests.extras import import_or_skip
from tests.index.galleries import GridEmbedder, clustered, write_gallery


def write_index(folder: Path, rows: Vectors, labels: Sequence[str], kind: str = "Flat") -> None:
    """An index without manifest of vectors that are given."""
    folder.mkdir(exist_ok=True)
    index = faiss_index.create(kind, "IP", rows.shape[1], len(rows), rows)
    faiss_index.add(index, np.arange(len(rows)), rows)
    with (folder / store.VECTORS).open("wb") as file:
        faiss_index.write(index, file)
    entries = {i: id_map.join(f"{label}/{i}.jpg", label) for i, label in enumerate(labels)}
    (folder / store.ID_MAP).write_bytes(id_map.dumps(entries))


def turned(degrees: Sequence[float]) -> Vectors:
    """Unit vectors in a plane, by their angle: their similarity is the cosine of the difference."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_recall_and_confusions_by_hand(tmp_path: Path) -> None:
    # Two of a near each other, one among b; two of b; c is alone.
    write_index(tmp_path, turned([0, 2, 91, 90, 93, 200]), ["a", "a", "a", "b", "b", "c"])
    report = check(tmp_path)
    assert (report.count, report.labels, report.queries, report.alone) == (6, 3, 6, 1)
    # a(91) is nearest to b(90), b(90) to a(91), b(93) to a(91); the two other a find each other.
    assert report.recall_at_1 == pytest.approx(2 / 5)
    assert [(c.label, c.taken_for, c.count) for c in report.confusions] == [("b", "a", 2), ("a", "b", 1)]
    np.testing.assert_allclose(report.same, np.cos(np.radians([2, 2, 89, 3, 3])), atol=1e-6)
    np.testing.assert_allclose(report.other, np.cos(np.radians([90, 88, 1, 1, 2, 107])), atol=1e-6)


def test_the_threshold_keeps_the_rate_that_was_asked_for(tmp_path: Path) -> None:
    rows, labels = clustered(400, 12), [str(i % 40) for i in range(400)]
    write_index(tmp_path, rows, labels)
    for goal in (0.0, 0.01, 0.1, 0.5, 1.0):
        report = check(tmp_path, false_accept=goal)
        found = report.threshold
        assert found
        assert found.reached
        assert found.false_accept_rate == float((report.other >= found.score).mean()) <= goal
        lower = found.score - 2e-4
        assert goal == 1 or float((report.other >= lower).mean()) > goal or lower < 0
        true = (report.same >= found.score) & (report.same > report.other)
        assert found.true_accept_rate == pytest.approx(float(true.mean()))


def test_a_picture_with_two_labels_leaves_no_threshold(tmp_path: Path) -> None:
    write_index(tmp_path, turned([0, 0, 0, 0]), ["a", "a", "b", "b"])
    report = check(tmp_path)
    assert report.threshold
    assert not report.threshold.reached
    assert report.threshold.false_accept_rate == 1


def test_one_label_only(tmp_path: Path) -> None:
    write_index(tmp_path, turned([0, 5, 9]), ["a", "a", "a"])
    report = check(tmp_path)
    assert (report.recall_at_1, report.threshold, len(report.other)) == (1.0, None, 0)


def test_the_picture_of_one_label(tmp_path: Path) -> None:
    import_or_skip("matplotlib", "plot")
    write_index(tmp_path, turned([0, 5, 9]), ["a", "a", "a"])
    draw(check(tmp_path), tmp_path / "scores.png")
    assert (tmp_path / "scores.png").is_file()


def test_near_duplicates_that_contradict_come_first(tmp_path: Path) -> None:
    write_index(tmp_path, turned([0, 0.1, 50, 50.5, 120, 200]), ["a", "a", "b", "c", "c", "b"])
    found = check(tmp_path, duplicate=0.999).near_duplicates
    assert [(p.images, p.labels) for p in found] == [
        (("b/2.jpg", "c/3.jpg"), ("b", "c")),
        (("a/0.jpg", "a/1.jpg"), ("a", "a")),
    ]
    assert found[1].similarity == pytest.approx(np.cos(np.radians(0.1)), abs=1e-6)


def test_a_mislabelled_image_is_found(tmp_path: Path) -> None:
    images = write_gallery(tmp_path / "gallery", each=8)
    embedder = GridEmbedder()
    build(images, tmp_path / "good", embedder)
    good = check(tmp_path / "good")
    assert (good.recall_at_1, good.mislabels, good.confusions) == (1.0, [], [])
    labels = ["cola" if n == 3 else image.label for n, image in enumerate(images)]
    wrong = [GalleryImage(i.image, label, i.source) for i, label in zip(images, labels, strict=True)]
    build(wrong, tmp_path / "bad", embedder)
    report = check(tmp_path / "bad")
    (found,) = report.mislabels
    assert (found.image, found.label, found.looks_like) == ("tea/3.png", "cola", "tea")
    assert (found.votes, found.neighbours) == (5, 5)
    # The image itself, and those of its true label that are nearest to it.
    assert report.recall_at_1
    assert 0.8 < report.recall_at_1 < 1


@pytest.mark.parametrize("kind", ["HNSW32", "IVF"])
def test_the_recall_of_an_inexact_index(tmp_path: Path, kind: str) -> None:
    rows = clustered(3_000, 16)
    write_index(tmp_path, rows, [str(i % 300) for i in range(3_000)], kind)
    found = check(tmp_path, sample=500).index_recall
    assert found
    assert found.queries == 500
    assert 0.8 < found.at_10 <= found.at_1 + 0.05
    write_index(tmp_path, rows, [str(i % 300) for i in range(3_000)], "Flat")
    assert check(tmp_path, sample=100).index_recall is None


def test_a_sample_of_a_big_one(tmp_path: Path) -> None:
    write_index(tmp_path, clustered(3_000, 8), [str(i % 300) for i in range(3_000)])
    report = check(tmp_path, sample=64)
    assert (report.queries, len(report.other), report.count) == (64, 64, 3_000)


def test_one_entry_cannot_be_compared(tmp_path: Path) -> None:
    write_index(tmp_path, turned([0]), ["a"])
    with pytest.raises(GalleryError, match="has 1 entries; two are needed"):
        check(tmp_path)


def test_the_picture_has_both_distributions_and_the_threshold(tmp_path: Path) -> None:
    from PIL import Image

    import_or_skip("matplotlib", "plot")
    build(write_gallery(tmp_path / "gallery"), tmp_path / "index", GridEmbedder())
    report = check(tmp_path / "index")
    edges, same, other = histogram(report)
    assert len(edges) == 61
    assert same.sum() == pytest.approx(1)
    assert other.sum() == pytest.approx(1)
    path = tmp_path / "new" / "scores.png"
    draw(report, path)
    with Image.open(path) as image:
        assert image.size == (900, 480)
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    blue = (pixels[:, 2] - pixels[:, 0] > 60).sum()
    orange = (pixels[:, 0] - pixels[:, 2] > 60).sum()
    assert blue > 500
    assert orange > 500
