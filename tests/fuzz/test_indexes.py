"""The files of an index: id_map.pkl, index.json, vector.index, entries.npy."""

import io
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from pdserve.errors import IndexFolderError
from pdserve.index import INDEX_TYPES, METRICS, entries, faiss_index, id_map, id_map_yaml, store
from tests.fuzz.guard import outcome
from tests.fuzz.mutation import mutated, mutated_json, numpy_files
from tests.fuzz.test_models import PICKLE_TOKENS
from tests.index.galleries import clustered

ENTRIES = {0: "tea/0.jpg\ttea", 1: "c/1.jpg\t黑咖啡", 70_000: "x\ty", 1 << 40: "z\ty"}
ID_MAPS = [pickle.dumps(ENTRIES, protocol) for protocol in (2, 4, 5)]
ID_MAPS.append(pickle.dumps({np.int64(i): f"{i}.jpg\ttea" for i in range(5)}, 4))


@given(mutated(ID_MAPS, (*PICKLE_TOKENS, b"\x8c\xff", b"\x94" * 300, b"}}", b"\x93", b"K\x01h\0s", b"\x95")))
def test_id_map(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "id_map.pkl"
    path.write_bytes(data)
    read = outcome(lambda: id_map.read(path), IndexFolderError)
    if read is not None:
        assert all(type(key) is int and type(value) is str for key, value in read.items())
        path.write_bytes(id_map.dumps(read))
        assert id_map.read(path) == read


YAML_MAPS = [
    id_map_yaml.dumps(ENTRIES, "Flat", "IP"),
    b"id_map: {0: a, 1: 'b', 2: \"c\\u00e4\"}\nindex_type: IVF\nmetric_type: L2\n",
]
YAML_TOKENS = (
    b"&a ",
    b"*a",
    b"!!python/name:os.system ",
    b"<<: ",
    b"---\n",
    b"? ",
    b"[",
    b"{",
    b"|\n",
    b"%TAG",
)


@given(mutated(YAML_MAPS, (*YAML_TOKENS, b"\xff\xfe", b"\t", b"\x00", b"9" * 40, b"[" * 300)))
def test_id_map_of_paddlex(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "id_map.yaml"
    path.write_bytes(data)
    read = outcome(lambda: id_map_yaml.read(path), IndexFolderError)
    if read is not None:
        assert all(type(key) is int and type(value) is str for key, value in read.items())
        path.write_bytes(id_map_yaml.dumps(read, "Flat", "IP"))
        assert id_map_yaml.read(path) == read


MANIFESTS = [
    {
        "format": 1, "version": 7, "previous": 6, "change": "append: 3 added", "type": "Flat",
        "metric": "IP", "dimension": 512, "count": 48, "labels": 8, "slots": 48, "trained_on": 48,
        "next_id": 51, "embedder": {"name": "e", "fingerprint": "f"},
        "created": "2025-01-31T12:00:00+00:00", "updated": "2025",
        "files": {"vector.index": {"bytes": 98390, "sha256": "0" * 64, "mtime_ns": 1738}},
    }
]  # fmt: skip


@given(mutated_json(MANIFESTS, ({"bytes": "x", "sha256": 1, "mtime_ns": None}, "../../x")))
def test_manifest(tmp_path: Path, data: bytes) -> None:
    (tmp_path / store.MANIFEST).write_bytes(data)
    read = outcome(lambda: store.read_manifest(tmp_path), IndexFolderError)
    if read is not None:
        assert store.manifest_json(read)


def _vector_file(kind: Any, metric: Any) -> bytes:
    rows = clustered(30, 4)
    index = faiss_index.create(kind, metric, 4, len(rows), rows)
    faiss_index.add(index, np.arange(len(rows), dtype=np.int64), rows)
    out = io.BytesIO()
    faiss_index.write(index, out)
    return out.getvalue()


VECTORS = {f"{kind}-{metric}": _vector_file(kind, metric) for kind in INDEX_TYPES for metric in METRICS}
FAISS_TOKENS = (
    b"IxMp", b"IxM2", b"IxFI", b"IxF2", b"IHNf", b"IwFl", b"IwPQ", b"IxPq", b"IxSQ", b"IxPT", b"IxRF",
    b"ilar", b"ilod", b"ilst", b"full", b"sprs", b"IBxF", b"null",
)  # fmt: skip


@st.composite
def _with_lengths(draw: DrawFn, data: bytes) -> bytes:
    """Eight bytes that may be a length, or four that may be a place in the graph, say another number."""
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 2))):
        if draw(st.booleans()):
            number = draw(st.sampled_from((0, 1, 2**20, 2**28, 2**31, 2**36, 2**39, 2**62, 2**63, 2**64 - 1)))
            some = struct.pack("<Q", number)
        else:
            some = struct.pack(
                "<i", draw(st.sampled_from((-2, -1, 0, 1, 3, 29, 30, 31, 32, 2**16, 2**30, -(2**31))))
            )
        at = draw(st.integers(0, len(out) - 8))
        out[at : at + len(some)] = some
    return bytes(out)


@pytest.mark.parametrize("name", VECTORS)
@given(data=st.data())
def test_vectors(tmp_path: Path, name: str, data: Any) -> None:
    path = tmp_path / "vector.index"
    others = [VECTORS[name], *VECTORS.values()]
    path.write_bytes(
        data.draw(st.one_of(_with_lengths(VECTORS[name]), mutated(others, FAISS_TOKENS, most=2, among=200)))
    )
    index = outcome(lambda: faiss_index.read(path), IndexFolderError)
    if index is not None:
        outcome(lambda: _use(index), IndexFolderError)


def _use(index: Any) -> None:
    """What the reader of an index does with it."""
    form = faiss_index.form(index)
    faiss_index.ids(index)
    if form.dimension <= 64:
        faiss_index.search_wider(index)
        scores, _ = faiss_index.search(index, np.ones((2, form.dimension), np.float32), 3)
        assert scores.shape == (2, 3)
    if form.changeable:
        ids, rows = faiss_index.extract(index)
        assert rows.shape == (len(ids), form.dimension)


def _entries_file() -> bytes:
    out = io.BytesIO()
    entries.write(out, entries.Entries.of(range(3), [bytes([i]) * 32 for i in range(3)]))
    return out.getvalue()


ENTRY_FILES = [_entries_file()]
NUMPY_TOKENS = (
    b"(99999999999,)",
    b"'|O'",
    b"object",
    b"True",
    b"((((",
    b"\\x00",
    b"(-1,)",
    b"9" * 30,
    b"PK\x03\x04",
    b"\x80\x04.",
)


@given(st.one_of(mutated(ENTRY_FILES, NUMPY_TOKENS, among=128), numpy_files(ENTRY_FILES[0][-120:])))
def test_entries(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / entries.FILE
    path.write_bytes(data)
    read = outcome(lambda: entries.read(path), IndexFolderError)
    assert read is None or read.sha256.shape == (len(read.ids), 32)
