"""Entries by the digest of their images."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from pdserve.errors import IndexFolderError
from pdserve.index import entries
from pdserve.index.entries import Entries, Finder


def digest(i: int) -> bytes:
    return hashlib.sha256(str(i).encode()).digest()


def test_found_by_digest() -> None:
    some = Entries.of(range(10, 1010), [digest(i) for i in range(1000)])
    find = Finder(some)
    assert [find(digest(i)) for i in (0, 7, 999)] == [10, 17, 1009]
    assert find(digest(1000)) is None


def test_digests_that_begin_alike_are_told_apart() -> None:
    alike = [b"\1" * 8 + bytes([i]) * 24 for i in range(5)]
    find = Finder(Entries.of(range(5), alike))
    assert [find(each) for each in alike] == [0, 1, 2, 3, 4]
    assert find(b"\1" * 32) == 1
    assert find(b"\1" * 31 + b"\2") is None


def test_unknown_images_are_never_found() -> None:
    find = Finder(Entries.unknown([1, 2, 3]))
    assert find(entries.UNKNOWN) is None
    assert find(digest(1)) is None


def test_plus_and_without() -> None:
    some = Entries.of([1, 2, 3], [digest(i) for i in (1, 2, 3)]).without(np.array([2]))
    both = some.plus(Entries.of([9], [digest(9)]))
    assert both.ids.tolist() == [1, 3, 9]
    assert Finder(both)(digest(9)) == 9
    assert Finder(both)(digest(2)) is None


def test_written_and_read(tmp_path: Path) -> None:
    some = Entries.of([5, 6], [digest(5), digest(6)])
    path = tmp_path / entries.FILE
    with path.open("wb") as file:
        entries.write(file, some)
    again = entries.read(path)
    assert again.ids.tolist() == [5, 6]
    assert again.sha256.tobytes() == digest(5) + digest(6)


def test_a_broken_file(tmp_path: Path) -> None:
    path = tmp_path / entries.FILE
    with path.open("wb") as file:
        entries.write(file, Entries.of(range(50), [digest(i) for i in range(50)]))
    data = path.read_bytes()
    for cut in (b"", data[:5], data[:60], data[:-1]):
        path.write_bytes(cut)
        with pytest.raises(IndexFolderError, match="is broken"):
            entries.read(path)
    np.save(path, np.zeros((3, 3)))
    with pytest.raises(IndexFolderError, match="is broken"):
        entries.read(path)
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(IndexFolderError, match="is broken"):
        entries.read(path)


@pytest.mark.parametrize(
    "change",
    [
        (b"(50,)", b"(99999999999,)"),
        (b"(50,)", b"(49,)"),
        (b"(50,)", b"(-1,)"),
        (b"(50,)", b"(((((("),
        (b"'descr'", b"'descr\\"),
        (b"NUMPY\1", b"NUMPY\2"),
        (b"'|u1'", b"'|O'"),
    ],
    ids=str,
)
def test_a_header_that_lies(tmp_path: Path, change: tuple[bytes, bytes]) -> None:
    path = tmp_path / entries.FILE
    with path.open("wb") as file:
        entries.write(file, Entries.of(range(50), [digest(i) for i in range(50)]))
    data, (old, new) = path.read_bytes(), change
    header = data[:128].replace(old, new).rstrip()
    assert old in data[:128]
    path.write_bytes((header.ljust(127)[:127] + b"\n") + data[128:])
    with pytest.raises(IndexFolderError, match="is broken"):
        entries.read(path)
