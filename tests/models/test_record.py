import json
import os

import pytest

from pdserve.errors import ChecksumError
from pdserve.models import record


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a").write_bytes(b"aaaa")
    (tmp_path / "deep" / "b").write_bytes(b"bbbb")
    record.write(tmp_path, name="M", source="https://x/m.tar", origin="/mirror/m.tar", sha256="00", size=9)
    return tmp_path


def verify_bytes(folder):
    """The folder's verified record, once every recorded file has been read and has the recorded bytes."""
    found = record.verify(folder)
    assert found is not None
    assert all(each.matches(folder / name, full=True) for name, each in found.files.items())
    return found


def alter(path, data):
    """Other bytes, with the modification time that was recorded."""
    stat = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_what_it_says(folder):
    found = json.loads((folder / "fetch.json").read_text("utf-8"))
    assert (found["name"], found["source"], found["origin"]) == ("M", "https://x/m.tar", "/mirror/m.tar")
    assert (found["sha256"], found["bytes"]) == ("00", 9)
    assert found["date"].endswith("+00:00")
    assert sorted(found["files"]) == ["a", "deep/b"]
    assert found["files"]["a"]["bytes"] == 4
    assert found["files"]["a"]["sha256"].startswith("61be55a8e2f6b4e1")
    again = verify_bytes(folder)
    assert again is not None
    assert again.files["deep/b"].bytes == 4


def test_copied_elsewhere_is_the_same(folder):
    os.utime(folder / "a", ns=(1, 1))
    assert record.verify(folder) is not None


def test_files_added_do_not_matter(folder):
    (folder / "new").write_bytes(b"x")
    assert verify_bytes(folder) is not None


def test_missing(folder):
    (folder / "a").unlink()
    with pytest.raises(ChecksumError, match=r"a missing or changed; .*`pdserve fetch M --force`"):
        record.verify(folder)


def test_other_length(folder):
    alter(folder / "deep" / "b", b"bbbbb")
    with pytest.raises(ChecksumError, match="deep/b missing or changed"):
        record.verify(folder)


def test_other_bytes(folder):
    (folder / "a").write_bytes(b"aaab")
    os.utime(folder / "a", ns=(1, 1))
    with pytest.raises(ChecksumError, match="a missing or changed"):
        record.verify(folder)


def test_other_bytes_with_the_same_time_are_found_by_the_full_check(folder):
    alter(folder / "a", b"aaab")
    found = record.verify(folder)
    assert found is not None
    assert not found.files["a"].matches(folder / "a", full=True)


def test_no_record(tmp_path):
    assert record.read(tmp_path) is None
    assert record.verify(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": {"a": 1}}', '{"files": 3}', "[" * 100_000])
def test_unreadable(folder, text):
    (folder / "fetch.json").write_text(text, "utf-8")
    with pytest.raises(ChecksumError, match=r"fetch\.json cannot be read"):
        record.verify(folder)


def test_a_recorded_name_that_no_file_can_have(folder):
    fields = json.loads((folder / "fetch.json").read_text("utf-8"))
    fields["files"]["a\0b"] = fields["files"]["a"]
    (folder / "fetch.json").write_text(json.dumps(fields), "utf-8")
    with pytest.raises(ChecksumError, match=r"a\\x00b missing or changed"):
        record.verify(folder)
