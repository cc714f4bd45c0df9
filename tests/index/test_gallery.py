"""Folders as galleries."""

import os
from pathlib import Path

import pytest

from pdserve.errors import GalleryError
from pdserve.index.gallery import MAX_TEXT, GalleryImage, check, scan
from tests.index.galleries import draw, write_gallery


def test_folders_are_labels(tmp_path: Path) -> None:
    write_gallery(tmp_path, ("tea", "黑咖啡"), each=2)
    (tmp_path / "tea" / "more").mkdir()
    (tmp_path / "tea" / "more" / "x.PNG").write_bytes(draw(0, 9))
    (tmp_path / "loose.jpg").write_bytes(b"")
    (tmp_path / "tea" / "notes.txt").write_text("no image")
    images, skipped = scan(tmp_path)
    assert [(i.image, i.label) for i in images] == [
        ("tea/0.png", "tea"),
        ("tea/1.png", "tea"),
        ("tea/more/x.PNG", "tea"),
        ("黑咖啡/0.png", "黑咖啡"),
        ("黑咖啡/1.png", "黑咖啡"),
    ]
    assert [each.image for each in skipped] == ["loose.jpg"]


def test_an_empty_gallery_and_none(tmp_path: Path) -> None:
    with pytest.raises(GalleryError, match="has no images in folders"):
        scan(tmp_path)
    with pytest.raises(GalleryError, match="There is no gallery folder"):
        scan(tmp_path / "nothing")


@pytest.mark.parametrize("text", ["", " ", "a\tb", "a\nb", "a\rb", "\udc80", "x" * (MAX_TEXT + 1)])
def test_what_an_entry_cannot_hold(text: str) -> None:
    with pytest.raises(GalleryError):
        check([GalleryImage("a.jpg", text, b"")])
    with pytest.raises(GalleryError):
        check([GalleryImage(text, "label", b"")])


def test_what_a_gallery_has_beside_its_pictures(tmp_path: Path) -> None:
    """Linked label folders are labels; what is skipped has a name; no name stops the rest."""
    cola, tea = draw(1, 0), draw(0, 0)
    for name, data in {
        "gallery/tea/1.jfif": tea,
        "gallery/tea/.ipynb_checkpoints/1-checkpoint.jpg": tea,
        "gallery/.ipynb_checkpoints/x-checkpoint.jpg": cola,
        "gallery/@eaDir/1.jpg/SYNOPHOTO_THUMB.jpg": cola,
        "gallery/tea/Thumbs.db": b"thumbs",
        "gallery/tea/2.heic": b"....ftypheic",
        "gallery/loose.png": tea,
        "pool/cola/1.jpg": cola,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    root = tmp_path / "gallery"
    (root / "cola").symlink_to("../pool/cola")
    (root / "gone").symlink_to("../pool/gone")
    (root / "tea" / "around").symlink_to("..")
    bad = bytes(root) + b"/caf\xe9"
    try:
        Path(os.fsdecode(bad)).mkdir()
        Path(os.fsdecode(bad), "1.png").write_bytes(tea)
    except OSError:
        bad = b""  # a file system whose names are text
    (root / "tea" / "two\nlines.png").write_bytes(tea)
    found = scan(root)
    assert [(each.image, each.label) for each in found.images] == [
        ("cola/1.jpg", "cola"),
        ("tea/1.jfif", "tea"),
    ]
    skipped = {each.image: each.reason for each in found.skipped}
    assert "cannot be read; convert it to JPEG or PNG" in skipped.pop("tea/2.heic")
    assert skipped.pop("tea/two\nlines.png").startswith("has a name that has a tab or a line break")
    assert skipped.pop("loose.png") == "is in no folder named after a label"
    if bad:
        assert skipped.pop("caf\\xe9/1.png") == "has a name that is no text (UTF-8); rename it"
    assert not skipped
    left_out = {each.path.relative_to(root).as_posix(): each.reason for each in found.left_out}
    assert {name for name, reason in left_out.items() if reason == "is hidden, or a system's own"} == {
        ".ipynb_checkpoints", "tea/.ipynb_checkpoints", "@eaDir", "tea/Thumbs.db",
    }  # fmt: skip
    assert left_out["gone"] == "is a link that leads nowhere"
    assert left_out["tea/around"] == "is a link to a folder that it is in"
