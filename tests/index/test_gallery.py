"""Label lists and folders as galleries."""

from pathlib import Path

import pytest

from pdserve.errors import GalleryError
from pdserve.index.gallery import GalleryImage, check, read_list, scan
from tests.index.galleries import draw, write_gallery


def test_a_label_list(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("\ufefftea/0.jpg\tgreen tea\r\n\n cola/1.jpg\t可口可乐\t7\n".encode())
    assert read_list(path, tmp_path) == [
        GalleryImage("tea/0.jpg", "green tea", tmp_path / "tea/0.jpg"),
        GalleryImage("cola/1.jpg", "可口可乐", tmp_path / "cola/1.jpg"),
    ]


def test_another_delimiter(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("tea/0.jpg 5\n")
    assert read_list(path, tmp_path, " ")[0].label == "5"
    with pytest.raises(GalleryError, match=r"line 1: 'tea/0.jpg 5' is not an image, a tab and a label"):
        read_list(path, tmp_path)


@pytest.mark.parametrize("line", ["tea/0.jpg", "tea/0.jpg\t", "\ttea", "tea/0.jpg\t\tx"])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text(f"a.jpg\tb\n{line}\n")
    with pytest.raises(GalleryError, match="line 2"):
        read_list(path, tmp_path)


def test_a_list_that_is_missing_empty_or_no_text(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    with pytest.raises(GalleryError, match="cannot be read"):
        read_list(path, tmp_path)
    path.write_text("\n\n")
    with pytest.raises(GalleryError, match="names no image"):
        read_list(path, tmp_path)
    path.write_bytes(b"a.jpg\t\xff\xfe\n")
    with pytest.raises(GalleryError, match="cannot be read"):
        read_list(path, tmp_path)


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


@pytest.mark.parametrize("text", ["", " ", "a\tb", "a\nb", "a\rb", "\udc80"])
def test_what_an_entry_cannot_hold(text: str) -> None:
    with pytest.raises(GalleryError):
        check([GalleryImage("a.jpg", text, b"")])
    with pytest.raises(GalleryError):
        check([GalleryImage(text, "label", b"")])
