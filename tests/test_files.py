import pytest

from pdserve.errors import DiskError
from pdserve.files import replace_folder, temp_sibling


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
