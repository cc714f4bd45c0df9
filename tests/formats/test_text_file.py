"""Small files of others: what they hold, or why they cannot be read; never a wait without end."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pdserve.formats import prototxt, text_file, yaml_file
from pdserve.formats.text_file import read_bytes, read_text, reason
from pdserve.models.labels import read_labels

KINDS: dict[str, Callable[[Path], object]] = {
    "yaml": lambda path: yaml_file.read(path),
    "prototxt": prototxt.read,
    "labels": read_labels,
    "bytes": lambda path: read_bytes(path, 1 << 20),
}


def test_text_and_its_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes("\ufeffgrün\r\n".encode())
    assert read_text(path, 100) == "grün\r\n"
    assert read_bytes(path, len(path.read_bytes())) == path.read_bytes()


@pytest.mark.parametrize(
    ("most", "words"), [(2 << 20, "it has more than 2 MiB"), (9 << 10, "more than 9 KiB")]
)
def test_more_than_its_bound(tmp_path: Path, most: int, words: str) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"x" * (most + 1))
    with pytest.raises(OSError, match=words):
        read_bytes(path, most)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_said_to_be_that(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "text"
    path.write_bytes("0 tench\n1 goldfish\n".encode(encoding))
    with pytest.raises(ValueError, match=r"^it is UTF-16 text, as some Windows .*; save it as UTF-8$"):
        read_text(path, 100)


def test_no_text_at_all(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(UnicodeDecodeError):
        read_text(path, 100)


@pytest.mark.posix
def test_a_pipe_that_somebody_fills_is_read(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(b"a: 1\n",))
    writer.start()  # waits for a reader
    holder = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer.join()
    try:
        assert yaml_file.read(path) == {"a": 1}
    finally:
        os.close(holder)


@pytest.mark.posix
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_waits_for_a_pipe_or_a_device_without_end(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_file, "PATIENCE_S", 0.2)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)  # somebody has it open, and says nothing
    try:
        with pytest.raises(Exception, match=r"nothing has come from it for 0 s"):
            KINDS[kind](path)
    finally:
        os.close(writer)
    with pytest.raises(Exception, match="it has more than"):
        KINDS[kind](Path("/dev/zero"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_said_to_be_one(tmp_path: Path, kind: str) -> None:
    with pytest.raises(Exception, match=r"folder|Permission"):
        KINDS[kind](tmp_path)


def test_reasons_are_ends_of_sentences() -> None:
    assert reason(OSError(2, "No such file or directory", "/x")) == "No such file or directory"
    assert reason(ValueError("two\nlines")) == "two lines"
