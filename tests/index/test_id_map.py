"""id_map.pkl: read as PaddleClas writes it, by a reader that runs nothing."""

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pdserve.errors import IndexFolderError
from pdserve.index import id_map

ENTRIES = {
    0: "tea/0.jpg\ttea",
    1: "coffee/1.jpg\t黑咖啡",
    300: "a/b c.jpg\ttwo words",
    70_000: "x\ty",
    1 << 40: "z\ty",
}


def read(tmp_path: Path, data: bytes) -> id_map.IdMap:
    path = tmp_path / "id_map.pkl"
    path.write_bytes(data)
    return id_map.read(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_python_pickles_is_read(tmp_path: Path, protocol: int) -> None:
    assert read(tmp_path, pickle.dumps(ENTRIES, protocol)) == ENTRIES
    assert read(tmp_path, pickle.dumps({}, protocol)) == {}
    assert read(tmp_path, pickle.dumps({7: "one\tentry"}, protocol)) == {7: "one\tentry"}


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_the_pure_python_pickler_is_read(tmp_path: Path, protocol: int) -> None:
    data = pickle._dumps(ENTRIES, protocol)  # type: ignore[attr-defined]
    assert read(tmp_path, data) == ENTRIES


def test_long_labels_and_many_entries(tmp_path: Path) -> None:
    entries = {i: f"{i}.jpg\t{'x' * (i % 400)}" for i in range(5_000)}
    assert read(tmp_path, pickle.dumps(entries)) == entries


@pytest.mark.parametrize("protocol", [3, 4])
def test_numpy_integers_of_paddleclas_are_read(tmp_path: Path, protocol: int) -> None:
    ids = np.arange(300).astype(np.int64)
    entries = {i: f"tea/{i}.jpg\ttea" for i in ids}  # the keys are numpy.int64
    made = read(tmp_path, pickle.dumps(entries, protocol))
    assert made == {i: f"tea/{i}.jpg\ttea" for i in range(300)}
    assert all(type(i) is int for i in made)


def test_numpy_integers_among_plain_ones_as_after_an_append(tmp_path: Path) -> None:
    entries = {0: "a\tb", np.int64(1): "c\td", np.int64(-5): "e\tf"}
    assert read(tmp_path, pickle.dumps(entries, 4)) == {0: "a\tb", 1: "c\td", -5: "e\tf"}


def test_the_name_that_numpy_1_has_for_its_scalar(tmp_path: Path) -> None:
    new = pickle.dumps({np.int64(3): "a\tb"}, 3)
    old = new.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert b"cnumpy.core.multiarray" in old
    assert read(tmp_path, old) == {3: "a\tb"}


def test_what_is_written_is_a_plain_pickle() -> None:
    assert pickle.loads(id_map.dumps(ENTRIES)) == ENTRIES
    assert id_map.dumps(ENTRIES)[:2] == b"\x80\x04"


class _Runs:
    """Runs a command when it is unpickled in the usual way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_malicious_pickle_does_not_run(tmp_path: Path, protocol: int) -> None:
    ran = tmp_path / "ran"
    for victim in ({0: _Runs(ran)}, {_Runs(ran): "a\tb"}, _Runs(ran), [_Runs(ran)]):
        with pytest.raises(IndexFolderError):
            read(tmp_path, pickle.dumps(victim, protocol))
        assert not ran.exists()
    pickle.loads(pickle.dumps(_Runs(ran), protocol))
    assert ran.exists()  # so it would have run


@pytest.mark.parametrize(
    "content",
    [
        {0: b"bytes"},
        {0: 1},
        {"a": "b"},
        {0: None},
        {True: "a\tb"},
        {0: {1: "nested"}},
        [1, 2],
        "text",
        {1: ("a", "b")},
        {0.5: "a"},
        {np.int32(1): "a\tb"},
        {np.float64(1): "a\tb"},
        {0: np.str_("a\tb")},
        {1 << 70: "a\tb"},
        {0: np.arange(3)},
    ],
)
def test_anything_but_a_dict_of_int_and_str_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(IndexFolderError, match="is no id map"):
        read(tmp_path, pickle.dumps(content, 4))


@pytest.mark.parametrize("protocol", [2, 4])
def test_every_cut_is_refused(tmp_path: Path, protocol: int) -> None:
    data = pickle.dumps({np.int64(1): "a\tb", 2: "c\td"}, protocol)
    for end in range(len(data)):
        with pytest.raises(IndexFolderError):
            read(tmp_path, data[:end])


@pytest.mark.full
def test_every_changed_byte_is_refused_or_harmless(tmp_path: Path) -> None:
    data = pickle.dumps({np.int64(1): "a\tb", 2: "c\td", 300: "e\tf"}, 4)
    for at in range(len(data)):
        for value in (0, 1, 0x2E, 0x52, 0x7D, 0x93, 0xFF):
            try:
                made = read(tmp_path, data[:at] + bytes([value]) + data[at + 1 :])
            except IndexFolderError:
                continue
            assert all(type(k) is int and type(v) is str for k, v in made.items())


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04}r\xff\xff\xff\xff.",  # a memo of four billion places
        b"\x80\x04}\x8d\x00\x00\x00\x00\x00\x00\x00\x70" + b"x" * 10,  # a text of 2^62 bytes
        b"\x80\x04}(K\x00X\xff\xff\xff\x7fabcu.",
        b"\x80\x04}}K\x01\x8c\x01as.",
        b"\x80\x04}K\x01(\x8c\x01au.",
        b"\x80\x04(t.",
        b"",
        b".",
    ],
)
def test_bombs_and_nonsense_take_nothing_and_are_refused(tmp_path: Path, data: bytes) -> None:
    try:
        made = read(tmp_path, data)
    except IndexFolderError:
        return
    assert made == {}


def test_a_text_that_is_not_utf_8(tmp_path: Path) -> None:
    data = b"\x80\x04}K\x00X" + struct.pack("<I", 2) + b"\xff\xfes."
    with pytest.raises(IndexFolderError, match="UTF-8"):
        read(tmp_path, data)


def test_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "id_map.pkl"
    path.write_bytes(id_map.dumps(ENTRIES))
    with pytest.raises(IndexFolderError, match="more than the limit of 10"):
        id_map.read(path, max_bytes=10)


@pytest.mark.parametrize(
    ("entry", "parts"),
    [
        ("a/0.jpg\ttea", ("a/0.jpg", "tea")),
        ("a/0.jpg\tgreen tea", ("a/0.jpg", "green tea")),
        ("a b/0.jpg\tgreen tea\t7", ("a b/0.jpg", "green tea")),
        ("a/0.jpg 绿茶", ("a/0.jpg", "绿茶")),
        ("a/0.jpg", ("a/0.jpg", "")),
    ],
)
def test_an_entry_is_split_at_the_tab(entry: str, parts: tuple[str, str]) -> None:
    assert id_map.split(entry) == parts
