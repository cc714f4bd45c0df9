from pathlib import Path

import pytest

from pdserve.errors import SettingsError
from pdserve.models.labels import FOLDER, read_labels


def listed(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "labels.txt"
    path.write_bytes(text.encode(encoding))
    return path


def test_a_name_per_line(tmp_path: Path):
    assert read_labels(listed(tmp_path, "cat\nbig dog\n")) == ("cat", "big dog")


def test_numbers_and_names(tmp_path: Path):
    """PaddleClas's form, in any order, with any blank between."""
    assert read_labels(listed(tmp_path, "1 goldfish, Carassius auratus\n0\ttench\n")) == (
        "tench",
        "goldfish, Carassius auratus",
    )


def test_names_that_are_numbers(tmp_path: Path):
    assert read_labels(listed(tmp_path, "0\n180\n")) == ("0", "180")


def test_names_that_begin_with_numbers(tmp_path: Path):
    assert read_labels(listed(tmp_path, "3 wheels\nlorry\n")) == ("3 wheels", "lorry")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_line_ends_and_marks_of_other_systems(tmp_path: Path, encoding: str):
    assert read_labels(listed(tmp_path, "猫\r\nchien \r\n\r\n", encoding)) == ("猫", "chien")


@pytest.mark.parametrize("text", ["0 a\n2 b\n", "1 a\n2 b\n", "0 a\n0 b\n", "0 a\n1 b\n1 c\n"])
def test_numbers_that_miss_or_repeat_a_class(tmp_path: Path, text: str):
    with pytest.raises(SettingsError, match="does not number its classes from 0 to"):
        read_labels(listed(tmp_path, text))


def test_more_digits_than_python_reads_are_a_name(tmp_path: Path):
    digits = "9" * 5000
    assert read_labels(listed(tmp_path, f"{digits} x\nlorry\n")) == (f"{digits} x", "lorry")


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_empty(tmp_path: Path, text: str):
    with pytest.raises(SettingsError, match="has no labels"):
        read_labels(listed(tmp_path, text))


def test_missing_or_no_text(tmp_path: Path):
    for path in (tmp_path / "none.txt", tmp_path, listed(tmp_path, "é", "latin-1")):
        with pytest.raises(SettingsError, match="Cannot read the label file"):
            read_labels(path)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_lists_that_come_with_pdserve(path: Path):
    names = read_labels(path)
    assert len(names) > 1
    assert all(names)


def test_imagenet():
    names = read_labels(FOLDER / "imagenet1k_label_list.txt")
    assert len(names) == 1000
    assert (names[0], names[999]) == (
        "tench, Tinca tinca",
        "toilet tissue, toilet paper, bathroom tissue",
    )
