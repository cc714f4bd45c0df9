"""Indexes that PaddleX 3.7.2 wrote are read, searched, changed and described like PaddleClas's."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pdserve.errors import IndexFolderError, OtherEmbedderError
from pdserve.index import edit, forms, id_map, publish, quality, search, store, verify
from tests.index.galleries import GridEmbedder, write_gallery

RECORDED = Path(__file__).parents[1] / "data" / "paddlex" / "indexes"
ANSWERS: dict[str, Any] = json.loads((RECORDED / "answers.json").read_text("utf-8"))
KINDS = list(ANSWERS["answers"])
FILES = {"vector.index", "id_map.yaml"}


@pytest.fixture(params=KINDS)
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / request.param
    shutil.copytree(RECORDED / request.param, folder)
    return folder


def test_searched_with_the_answers_of_paddlex(index: Path) -> None:
    loaded = search.load(index)
    assert f"{loaded.type}-{loaded.metric}" == index.name
    assert (loaded.count, loaded.dimension, loaded.version, loaded.embedder) == (20, 8, 0, None)
    queries = np.array(ANSWERS["vectors"][:4], np.float32)
    for found, wanted in zip(loaded.search(queries, 3), ANSWERS["answers"][index.name], strict=True):
        assert [match.label for match in found] == wanted["label"]
        # faiss's score of L2 is the squared distance; ours is the similarity for both metrics.
        scores = [s if loaded.metric == "IP" else 1 - s / 2 for s in wanted["score"]]
        assert [match.similarity for match in found] == pytest.approx(scores, abs=1e-6)
    assert loaded.search(queries[:1], 1)[0][0].image == "paddlex/0"


def test_the_other_dimension_is_refused_and_the_unknown_embedder_is_said(
    index: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = search.load(index)
    with pytest.raises(OtherEmbedderError, match=r"vectors of 8 numbers and grid .*makes 16"):
        loaded.require(GridEmbedder(16))
    caplog.set_level("INFO", "pdserve")
    loaded.require(GridEmbedder(8))
    assert "does not say which embedder made it; grid, which has its dimension, is taken" in caplog.text


def test_a_change_adopts_it_and_can_be_rolled_back(
    index: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = search.load(index)
    images = write_gallery(tmp_path / "gallery", ("new",), 2)
    made = edit.append(images, index, GridEmbedder(8))
    assert (made.version, made.added, made.count) == (1, 2, 22)
    # PaddleX's labels would be those of other vectors from here on.
    assert not (index / "id_map.yaml").exists()
    assert "PaddleX's id_map.yaml is replaced by id_map.pkl; `pdserve index export` writes it" in caplog.text
    assert search.changed(index, before)
    snapshot = store.read(index)
    assert snapshot.id_map[20] == "new/0.png\tnew"
    assert snapshot.id_map[13] == "paddlex/13\t007"
    assert id_map.read(index / "id_map.pkl") == snapshot.id_map
    assert edit.remove(index, labels=["cola"]).count == 20
    assert publish.rollback(index).count == 22
    assert all(each.good is not False for each in verify.verify(index))


def test_rolled_back_to_what_paddlex_wrote(index: Path) -> None:
    edit.remove(index, images=["paddlex/3"])
    assert publish.rollback(index).count == 20
    assert store.read(index).id_map[3] == "paddlex/3\t007"


def test_killed_after_it_was_adopted(index: Path) -> None:
    """Both files of labels are there, with the same labels and no manifest yet."""
    entries = store.read(index).id_map
    (index / "id_map.pkl").write_bytes(id_map.dumps(entries))
    assert store.read(index).id_map == entries


def test_two_files_with_different_labels_are_refused(index: Path) -> None:
    entries = store.read(index).id_map
    (index / "id_map.pkl").write_bytes(id_map.dumps(entries | {0: "x.jpg\tother"}))
    with pytest.raises(
        IndexFolderError, match=r"id_map.pkl of PaddleClas and id_map.yaml of PaddleX, with diff"
    ):
        store.read(index)


def test_labels_of_other_vectors_are_refused(index: Path) -> None:
    path = index / "id_map.yaml"
    path.write_text(path.read_text("utf-8").replace("  7: 'null'\n", ""), "utf-8")
    with pytest.raises(
        IndexFolderError, match=r"id_map.yaml has 19 entries and vector.index 20: no label .* 7"
    ):
        store.read(index)


def test_verified_measured_and_merged(index: Path, tmp_path: Path) -> None:
    found = {each.what: each for each in verify.verify(index)}
    assert found["manifest"].detail == "missing, as in an index of PaddleX"
    assert [each.what for each in found.values() if each.good is False] == []
    assert quality.check(index).count == 20
    target = tmp_path / "target"
    edit.build(write_gallery(tmp_path / "gallery", ("new",), 2), target, GridEmbedder(8))
    assert edit.merge(target, [index]).added == 20
    assert {path.name for path in index.iterdir()} == FILES


def test_a_changed_file_of_labels_is_noticed(index: Path) -> None:
    loaded = search.load(index)
    assert not search.changed(index, loaded)
    path = index / "id_map.yaml"
    path.write_text(path.read_text("utf-8").replace("tea", "green tea"), "utf-8")
    assert search.changed(index, loaded)


def test_the_table() -> None:
    assert list(forms.FORMS) == ["paddleclas", "paddlex"]
    assert forms.FORMS["paddleclas"].file == store.ID_MAP
