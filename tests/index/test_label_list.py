"""Label lists, as PaddleClas, spreadsheets and other tools write them."""

import json
from pathlib import Path

import pytest

from pdserve.errors import GalleryError, UsageError
from pdserve.index.gallery import GalleryImage
from pdserve.index.label_list import read_list

LINES = """{"file_name": "a.jpg", "label": "red, dry wine"}

{"image": "b.jpg", "category": "cola"}
"""


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


def read(
    root: Path, content: str | bytes, delimiter: str | None = None, name: str = "list.txt"
) -> list[tuple[str, str]]:
    path = root / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(each.image, each.label) for each in read_list(path, root, delimiter)]


def test_a_blank_parts_the_image_from_all_of_the_label(tmp_path: Path) -> None:
    (tmp_path / "my photo.jpg").write_bytes(b"")
    assert read(tmp_path, "a.jpg red wine\nb.jpg cola\nmy photo.jpg green tea\n", " ") == [
        ("a.jpg", "red wine"),
        ("b.jpg", "cola"),
        ("my photo.jpg", "green tea"),
    ]


def test_a_delimiter_as_it_is_typed(tmp_path: Path) -> None:
    assert read(tmp_path, "a.jpg\tred wine\n", "\\t") == [("a.jpg", "red wine")]
    assert read(tmp_path, "a.jpg::red::7\n", "::") == [("a.jpg", "red")]
    with pytest.raises(UsageError, match="delimiter is empty"):
        read(tmp_path, "a.jpg\tred wine\n", "")


@pytest.mark.parametrize(
    ("content", "delimiter", "name"),
    [
        ('a.jpg,"red, dry wine"\nb.jpg,cola\n', ",", "list.txt"),
        ('a.jpg,"red, dry wine"\nb.jpg,cola\n', None, "list.csv"),
        ('a.jpg;"red, dry wine";7;\r\nb.jpg;cola;;\r\n;;\r\n', None, "list.csv"),
        ('\ufefflabel;filename\r\n"red, dry wine";a.jpg\r\ncola;b.jpg\r\n', None, "LIST.CSV"),
        ("# made by hand\nimage\tlabel\na.jpg\tred, dry wine  \n\n b.jpg\tcola\tb\r", None, "list.txt"),
        ('a.jpg\t"red, dry wine"\rb.jpg\tcola', None, "list.txt"),
        (LINES, None, "a.jsonl"),
        ('[{"path": "a.jpg", "label": "red, dry wine"}, {"path": "b.jpg", "class": "cola"}]', None, "a.json"),
        ("a.jpg\tred, dry wine\r\nb.jpg\tcola\r\n".encode("utf-16"), None, "list.txt"),
    ],
)  # fmt: skip
def test_the_forms_of_other_tools(
    tmp_path: Path, content: str | bytes, delimiter: str | None, name: str
) -> None:
    assert read(tmp_path, content, delimiter, name) == [("a.jpg", "red, dry wine"), ("b.jpg", "cola")]


def test_quotes_that_are_no_quotes_and_quotes_in_quotes(tmp_path: Path) -> None:
    content = 'a.jpg,7" pizza\nb.jpg,"7"" pizza"\nc.jpg,"the "best" one\n'
    labels = [label for _, label in read(tmp_path, content, ",")]
    assert labels == ['7" pizza', '7" pizza', '"the "best" one']


def test_paths_of_windows_absolute_ones_and_none(tmp_path: Path) -> None:
    (tmp_path / "tea").mkdir()
    (tmp_path / "tea" / "0.jpg").write_bytes(b"")
    (tmp_path / "odd\\name.jpg").write_bytes(b"")
    path = tmp_path / "list.txt"
    path.write_text(
        f"tea\\0.jpg\ttea\nodd\\name.jpg\ttea\n{tmp_path}/x.jpg\ttea\nn01440764/n_1.JPEG\t0\n", "utf-8"
    )
    assert read_list(path, tmp_path) == [
        GalleryImage("tea/0.jpg", "tea", tmp_path / "tea/0.jpg"),
        GalleryImage("odd\\name.jpg", "tea", tmp_path / "odd\\name.jpg"),
        GalleryImage(f"{tmp_path}/x.jpg", "tea", tmp_path / "x.jpg"),
        GalleryImage("n01440764/n_1.JPEG", "0", tmp_path / "n01440764/n_1.JPEG"),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a.jpg;cola\n", "line 1: 'a.jpg;cola' is not an image, a tab and a label; .*here perhaps ';'"),
        (
            b"a.jpg\tcola\nb.jpg\t\xbf\xc9\xc0\xd6\n",
            r"line 2 is no UTF-8 \(byte 0xbf\); save it as UTF-8.*GB18030",
        ),
        ('{"image": "a.jpg"}\n', "line 1: .* is no object with an image .* and a label"),
        ('{"image": "a.jpg", "label": tea}\n', "begins as JSON and is none"),
        ('a.jpg\t"two\ttabs"\n', "line 1: .* has a tab or a line break in it"),
        (f"a.jpg\t{'x' * 5000}\n", "line 1: .* is longer than 4096 bytes"),
        ("# only this\n", "names no image"),
        (json.dumps([["a.jpg", "tea"]]), "line 1: .* is no object with an image"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: str | bytes, said: str) -> None:
    with pytest.raises(GalleryError, match=said):
        read(tmp_path, content)
