"""``verify`` says what is wrong, and only then."""

from pathlib import Path

import numpy as np
import pytest

from pdserve.index import faiss_index, store
from pdserve.index.edit import build
from pdserve.index.verify import Finding, verify
from tests.index.galleries import GridEmbedder, clustered, write_gallery
from tests.index.test_edit import foreign


def wrong(folder: Path) -> list[Finding]:
    return [finding for finding in verify(folder) if finding.good is False]


def test_a_good_one(tmp_path: Path) -> None:
    build(write_gallery(tmp_path / "gallery"), tmp_path / "index", GridEmbedder())
    assert {finding.good for finding in verify(tmp_path / "index")} == {True}


def test_one_of_paddleclas_is_good_as_far_as_known(tmp_path: Path) -> None:
    foreign(tmp_path)
    assert {finding.what for finding in verify(tmp_path) if finding.good is None} == {"manifest", "images"}
    assert not wrong(tmp_path)


@pytest.mark.parametrize("name", store.FILES)
def test_a_changed_or_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "index"
    build(write_gallery(tmp_path / "gallery"), folder, GridEmbedder())
    plain = folder / name
    plain.unlink()
    assert [finding.what for finding in wrong(folder)] == [name]
    own = store.version_folder(folder, 1) / name
    own.write_bytes(own.read_bytes() + b"x")
    assert {f".versions/1/{name}", name, "index"} == {finding.what for finding in wrong(folder)}


@pytest.mark.parametrize("value", [np.nan, np.inf, 3.0, 1e30])
def test_a_vector_that_is_not_normalised(tmp_path: Path, value: float) -> None:
    foreign(tmp_path)
    rows = clustered(30, 16)
    rows[4] *= value
    index = faiss_index.create("Flat", "IP", 16, 30, rows)
    faiss_index.add(index, np.arange(30), rows)
    with (tmp_path / "vector.index").open("wb") as file:
        faiss_index.write(index, file)
    (finding,) = wrong(tmp_path)
    assert finding.what == "normalised"
    assert "1 vectors are not finite or not of length 1, as entry 4" in finding.detail
