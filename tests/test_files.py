"""Files and folders are replaced whole or not at all; checksums, records and locks of files."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from pdserve import files
from pdserve.errors import DiskError
from pdserve.files import (
    FileRecord,
    digest,
    link_or_copy,
    replace_file,
    replace_files,
    replace_folder,
    replace_folders,
    sha256,
    signature,
    sync_file,
    sync_folder,
    temp_sibling,
    temp_siblings,
    write_synced,
)


def test_appears_when_complete(tmp_path):
    target = tmp_path / "models" / "m"
    with replace_folder(target) as folder:
        (folder / "a").write_bytes(b"a")
        assert folder.parent == target.parent
        assert not target.exists()
    assert [p.name for p in target.iterdir()] == ["a"]
    assert [p.name for p in target.parent.iterdir()] == ["m"]


def test_replaces_when_complete(tmp_path):
    target = tmp_path / "m"
    target.mkdir()
    (target / "old").write_bytes(b"")
    with replace_folder(target) as folder:
        (folder / "new").write_bytes(b"")
        assert (target / "old").exists()
    assert [p.name for p in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


def test_error_leaves_all_as_it_was(tmp_path):
    target = tmp_path / "m"
    target.mkdir()
    (target / "old").write_bytes(b"")

    def fail() -> None:
        with replace_folder(target) as folder:
            (folder / "new").write_bytes(b"")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [p.name for p in target.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [target]


def test_leftovers_of_a_killed_run_are_swept(tmp_path):
    (temp_sibling(tmp_path / "m") / "deep").mkdir(parents=True)
    with replace_folder(tmp_path / "m"):
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "m"]


def test_nowhere_to_write(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskError, match="Cannot write"), replace_folder(tmp_path / "file" / "m"):
        pass


def test_leftovers_of_other_folders_stay(tmp_path: Path) -> None:
    other = temp_sibling(tmp_path / "m.v2")
    other.mkdir()
    with replace_folder(tmp_path / "m"):
        pass
    assert other.is_dir()


def test_several_folders_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").touch()
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if target.name == "b" and (self / "new").exists():
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    def replace() -> None:
        with replace_folders(tmp_path / "a", tmp_path / "b", tmp_path / "deep" / "c") as new:
            for folder in new:
                (folder / "new").touch()

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(DiskError, match=r"Cannot write .*b: Permission denied"):
            replace()
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "a", "a/old", "b", "b/old",
    ]  # fmt: skip
    replace()
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "a", "a/new", "b", "b/new", "deep", "deep/c", "deep/c/new",
    ]  # fmt: skip


def test_a_file_is_replaced_when_the_block_succeeds(tmp_path: Path) -> None:
    target = tmp_path / "f"
    with replace_file(target) as new:
        new.write_text("one")
        assert not target.exists()

    def fail() -> None:
        with replace_file(target) as new:
            new.write_text("two")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert target.read_text() == "one"
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_to_the_target_itself_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "f"
    target.write_text("one")
    with replace_file(target) as new:
        link_or_copy(target, new)
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("refused", ["a", "b", "c"])
def test_several_files_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    targets = [tmp_path / name for name in ("a", "b", "c")]  # b is new
    for target in (targets[0], targets[2]):
        target.write_text("old")
    replace = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if target.name == refused and self.read_text() == "new":
            raise PermissionError(13, "Permission denied")
        return replace(self, target)

    def write() -> None:
        with replace_files(*targets) as new:
            for path in new:
                path.write_text("new")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        with pytest.raises(DiskError, match=f"Cannot write .*{refused}: Permission denied"):
            write()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old", "c": "old"}
    write()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys("abc", "new")


def test_checksums(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"abc" * 1_000_000)
    expected = hashlib.sha256(b"abc" * 1_000_000)
    assert sha256(path) == expected.hexdigest()
    assert digest(path, "sha256", "md5") == (
        expected.hexdigest(),
        hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest(),
    )
    assert (
        sha256(path, b"x", path) == hashlib.sha256(path.read_bytes() + b"x" + path.read_bytes()).hexdigest()
    )
    write_synced(tmp_path / "g", lambda file: file.write(path.read_bytes()))
    assert sha256(tmp_path / "g") == expected.hexdigest()


def test_a_record_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"one")
    recorded = FileRecord.of(path)
    assert recorded == FileRecord.of(path, sha256(path))
    assert recorded.is_untouched(path)
    os.utime(path, ns=(1, 1))
    assert not recorded.is_untouched(path)
    assert recorded.matches(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(1, recorded.mtime_ns))
    assert recorded.matches(path)  # believed
    assert not recorded.matches(path, full=True)
    path.write_bytes(b"three")
    assert not recorded.matches(path)


def test_a_signature_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    assert signature(path) is None
    path.write_bytes(b"one")
    before = signature(path)
    assert before == signature(path)
    with replace_file(path) as new:
        new.write_bytes(b"one")
        os.utime(new, ns=(1, before[0] if before else 0))
    assert signature(path) != before


def test_temporary_names_are_found(tmp_path: Path) -> None:
    made = temp_sibling(tmp_path / "f")
    made.touch()
    (tmp_path / ".f.notes.tmp").touch()
    assert temp_siblings(tmp_path) == [made]


@pytest.mark.posix
@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_that_flushes_nothing_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fsync(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)  # as CIFS answers for folders
    write_synced(tmp_path / "f", lambda file: file.write(b"x"))
    sync_file(tmp_path / "f")
    sync_folder(tmp_path)
    assert (tmp_path / "f").read_bytes() == b"x"


def test_what_nobody_has_touched_for_a_day_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for left in (temp_sibling(tmp_path / "f"), temp_sibling(tmp_path / "g")):
        left.touch()
    with replace_files(tmp_path / "f") as (new,):
        new.touch()
    assert len(temp_siblings(tmp_path)) == 2  # perhaps somebody is writing them
    monkeypatch.setattr(files, "_FORGOTTEN_S", -1)
    with replace_files(tmp_path / "f") as (new,):
        new.touch()
    assert [path.name[:3] for path in temp_siblings(tmp_path)] == [".g."]


@pytest.mark.parametrize("below", ["", "x", "x/y"])
def test_a_file_where_a_folder_is_meant(below: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"kept")
    words = f"{file} is a file, where a folder is meant"
    with pytest.raises(DiskError, match=words), files.disk_errors(file / below):
        (file / below).mkdir(parents=True)
    assert file.read_bytes() == b"kept"
