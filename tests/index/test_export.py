"""An index in the form of PaddleClas and of PaddleX, there and back, and read by PaddleX's own code."""

import errno
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pdserve.errors import DiskError, IndexFolderError, UsageError
from pdserve.index import INDEX_TYPES, edit, faiss_index, id_map, search, store
from pdserve.index.export import export
from pdserve.index.faiss_check import faiss
from tests.index.galleries import LABELS, GridEmbedder, write_gallery

EMBEDDER = GridEmbedder(8)
PADDLEX = Path(__file__).parents[1] / "data" / "paddlex" / "index.py"


@pytest.fixture(params=[(kind, metric) for kind in INDEX_TYPES for metric in ("IP", "L2")], ids="-".join)
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An index of 20 entries, of which two were removed again."""
    kind, metric = request.param
    folder = tmp_path / "index"
    images = write_gallery(tmp_path / "gallery")
    edit.build(images, folder, EMBEDDER, kind=kind, metric=metric)
    edit.remove(folder, images=["tea/0.png", "cola/4.png"])
    return folder


def vectors(folder: Path) -> dict[str, list[Any]]:
    """Label -> its vectors."""
    snapshot = store.read(folder)
    found: dict[str, list[Any]] = {}
    for i, row in zip(*faiss_index.extract(snapshot.index), strict=True):
        found.setdefault(id_map.split(snapshot.id_map[int(i)])[1], []).append(row.tolist())
    return {label: sorted(rows) for label, rows in found.items()}


def test_paddlex_and_back(index: Path, tmp_path: Path) -> None:
    before = store.read(index)
    made = export(index, tmp_path / "out", "paddlex")
    assert sorted(path.name for path in made.folder.iterdir()) == ["id_map.yaml", "vector.index"]
    assert (made.count, made.images, made.version) == (18, False, before.version)
    content = yaml.full_load((made.folder / "id_map.yaml").read_text("utf-8"))
    assert content["id_map"] == {i: id_map.split(entry)[1] for i, entry in before.id_map.items()}
    assert (content["index_type"], content["metric_type"]) == (before.form.type, before.form.metric)
    assert vectors(made.folder) == vectors(index)
    again = export(made.folder, tmp_path / "again", "paddleclas")
    assert vectors(again.folder) == vectors(index)
    # PaddleClas takes an entry apart at its blanks, so there must be something before the label.
    assert all(len(entry.split()) > 1 for entry in id_map.read(again.folder / "id_map.pkl").values())


@pytest.mark.parametrize("index", [("Flat", "IP")], indirect=True)
def test_a_full_disk_is_named_and_leaves_nothing(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(faiss_index, "write", full)
    out = tmp_path / "out"
    with pytest.raises(DiskError, match=f"Cannot write {out}: No space left on device; free some space"):
        export(index, out)
    assert not out.exists()
    assert not list(tmp_path.glob(".out*"))


def test_paddleclas(index: Path, tmp_path: Path) -> None:
    made = export(index, tmp_path / "out")
    assert (made.form, made.files, made.images) == ("paddleclas", ("vector.index", "id_map.pkl"), True)
    for name in made.files:
        assert (made.folder / name).read_bytes() == (index / name).read_bytes()
    assert store.read(made.folder).id_map == store.read(index).id_map


def test_removed_entries_of_a_graph_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PaddleX refuses an index with more vectors than labels, as a graph with tombstones has."""
    monkeypatch.setattr(faiss_index, "COMPACT_BELOW", 0)
    index = tmp_path / "index"
    edit.build(write_gallery(tmp_path / "gallery"), index, EMBEDDER, kind="HNSW32")
    edit.remove(index, images=["tea/0.png"])
    assert store.read(index).form.slots == 20
    made = export(index, tmp_path / "out", "paddlex")
    assert store.read(made.folder).form.slots == 19 == made.count
    assert vectors(made.folder) == vectors(index)
    assert store.read(export(index, tmp_path / "as it is").folder).form.slots == 20


def test_what_is_there_stays(index: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("x", "utf-8")
    for where in (out, index, out / "mine"):
        with pytest.raises(UsageError, match="is there already; give --out a new folder"):
            export(index, where, "paddlex")
    (out / "mine").unlink()
    assert export(index, out, "paddlex").count == 18
    with pytest.raises(UsageError, match="'other' is no form of an index; choose one of paddleclas, paddlex"):
        export(index, tmp_path / "new", "other")


def test_a_metric_that_they_do_not_know(tmp_path: Path) -> None:
    f = faiss()
    index = f.IndexFlat(2, f.METRIC_L1)
    index.add(np.eye(2, dtype=np.float32))
    f.write_index(index, str(tmp_path / "vector.index"))
    (tmp_path / "id_map.pkl").write_bytes(id_map.dumps({0: "a\tb", 1: "c\td"}))
    with pytest.raises(IndexFolderError, match="a metric that PaddleX does not know; it knows IP and L2"):
        export(tmp_path, tmp_path / "out", "paddlex")
    assert not (tmp_path / "out").exists()


def paddlex(python: str, *arguments: object, given: object = None) -> Any:
    """The answer of PaddleX's own code."""
    command = [python, str(PADDLEX), *map(str, arguments)]
    done = subprocess.run(
        command, input=json.dumps(given), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else None


@pytest.mark.paddlex
def test_paddlex_reads_what_is_written_and_changes_it(
    index: Path, tmp_path: Path, paddlex_python: str
) -> None:
    made = export(index, tmp_path / "out", "paddlex")
    loaded = search.load(index)
    queries = np.array([row for rows in vectors(index).values() for row in rows], np.float32)
    answers = paddlex(paddlex_python, "search", made.folder, given=queries.tolist())
    for theirs, ours in zip(answers, loaded.search(queries, 3), strict=True):
        assert theirs["label"] == [match.label for match in ours]
        scores = theirs["score"] if loaded.metric == "IP" else [1 - score / 2 for score in theirs["score"]]
        assert scores == pytest.approx([match.similarity for match in ours], abs=1e-5)
    added = {"vectors": queries[:2].tolist(), "labels": ["new", "neu"]}
    paddlex(paddlex_python, "append", made.folder, tmp_path / "more", given=added)
    more = vectors(tmp_path / "more")
    assert set(more) == {*LABELS, "new", "neu"}
    assert more["new"] == [pytest.approx(queries[0].tolist())]
    if loaded.type != "HNSW32":  # from which PaddleX removes nothing
        gone = next(iter(loaded._id_map))
        paddlex(paddlex_python, "remove", made.folder, tmp_path / "less", gone)
        assert store.read(tmp_path / "less").id_map.keys() == loaded._id_map.keys() - {gone}


@pytest.mark.paddlex
def test_the_recorded_indexes_are_what_paddlex_writes(tmp_path: Path, paddlex_python: str) -> None:
    tmp_path = tmp_path / "made"
    tmp_path.mkdir()
    paddlex(paddlex_python, "build", tmp_path)
    recorded = PADDLEX.parent / "indexes"
    assert json.loads((tmp_path / "answers.json").read_text("utf-8")) == json.loads(
        (recorded / "answers.json").read_text("utf-8")
    )
    for folder in recorded.iterdir():
        if folder.is_dir():
            assert (tmp_path / folder.name / "id_map.yaml").read_bytes() == (
                folder / "id_map.yaml"
            ).read_bytes()
            assert vectors(tmp_path / folder.name) == vectors(folder)
