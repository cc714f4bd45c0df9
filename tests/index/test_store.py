"""index.json, whoever wrote it."""

import json
from pathlib import Path
from typing import Any

import pytest

from pdserve.errors import IndexFolderError, UsageError
from pdserve.files import FileRecord
from pdserve.index import store
from pdserve.index.embed import EmbedderId
from pdserve.index.store import Manifest
from pdserve.models.home import Home

KNOWN = Manifest(
    version=7,
    previous=6,
    change="append: 3 added",
    type="Flat",
    metric="IP",
    dimension=512,
    count=48,
    labels=8,
    slots=48,
    trained_on=48,
    next_id=51,
    embedder=EmbedderId("e", "f"),
    created="2025-01-31T12:00:00+00:00",
    updated="2025-01-31T12:00:00+00:00",
    files={"vector.index": FileRecord(9, "0" * 64, 5)},
)


def test_written_and_read(tmp_path: Path) -> None:
    assert store.read_manifest(tmp_path) is None
    (tmp_path / store.MANIFEST).write_text(store.manifest_json(KNOWN), "utf-8")
    assert store.read_manifest(tmp_path) == KNOWN


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "its format is 2"),
        ({"version": "7"}, "version is '7'"),
        ({"count": -1}, "count is -1"),
        ({"previous": "../../x"}, r"previous is '\.\./\.\./x'"),
        ({"type": 3}, "type is 3"),
        ({"created": None}, "created is None"),
        ({"more": 1}, "more"),
        ({"embedder": "e"}, "mapping"),
        ({"files": {"../x": {"bytes": 1, "sha256": "", "mtime_ns": 0}}}, "names a file outside its folder"),
        ({"files": {"a\\b": {"bytes": 1, "sha256": "", "mtime_ns": 0}}}, "names a file outside its folder"),
        ({"files": {"..": {"bytes": 1, "sha256": "", "mtime_ns": 0}}}, "names a file outside its folder"),
        ({"files": {"x": 3}}, "mapping"),
    ],
    ids=str,
)
def test_what_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    fields = json.loads(store.manifest_json(KNOWN)) | change
    (tmp_path / store.MANIFEST).write_text(json.dumps(fields), "utf-8")
    with pytest.raises(IndexFolderError, match=rf"manifest .* cannot be read .*{words}"):
        store.read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"format": 1}', "3"], ids=lambda text: text[:12])
def test_no_manifest_at_all(tmp_path: Path, text: str) -> None:
    (tmp_path / store.MANIFEST).write_text(text, "utf-8")
    with pytest.raises(IndexFolderError, match="cannot be read"):
        store.read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["./file", "file", "./vector.index"])
def test_a_file_is_no_index(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).touch()
    for find in (store.find, store.find_or_new):
        with pytest.raises(UsageError, match="is a file, and an index is a folder"):
            find(name, Home(tmp_path))


@pytest.mark.parametrize("name", ["name ", " name", "na\tme", "name\n", "./name\n", "na\x1b[2Jme"])
def test_a_new_name_can_be_typed_again(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="plain name"):
        store.find_or_new(name, Home(tmp_path))
    for there in ("./my photos ", "my photos", "商品"):
        assert store.find_or_new(there, Home(tmp_path)).name == Path(there).name
