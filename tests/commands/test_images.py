"""The images that a command line names."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from pdserve.commands.images import find_sources
from pdserve.errors import ImageError, UsageError
from tests.file_server import Fault, FileServer, serve


@pytest.fixture
def files() -> Iterator[FileServer]:
    with serve() as server:
        yield server


def names(named: list[str]) -> list[str]:
    return [source.name for source in find_sources(named)]


def test_files_and_folders_in_order(tmp_path: Path):
    inside = ["b.jpg", "a/z.PNG", "a/b/c.jpeg", "a.webp", "a/notes.txt", "c.tif"]
    for name in inside:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "folder.png").mkdir()
    single = str(tmp_path / "c.tif")
    found = find_sources([single, str(tmp_path), "missing.jpg"])
    images = sorted(tmp_path / name for name in inside if name != "a/notes.txt")
    assert [source.name for source in found] == [single, *map(str, images), "missing.jpg"]
    assert found[1].read() == images[0].read_bytes()


def test_a_file_is_taken_whatever_its_suffix(tmp_path: Path):
    (tmp_path / "photo").write_bytes(b"bytes")
    (source,) = find_sources([str(tmp_path / "photo")])
    assert source.read() == b"bytes"


def test_a_folder_without_images(tmp_path: Path):
    (tmp_path / "notes.txt").write_bytes(b"")
    with pytest.raises(UsageError, match=r"has no images \(\.bmp, "):
        find_sources([str(tmp_path)])


def test_a_missing_file_is_an_error_of_its_own(tmp_path: Path):
    (source,) = find_sources([str(tmp_path / "none.jpg")])
    with pytest.raises(ImageError, match=r"Cannot read .*none\.jpg: No such file"):
        source.read()


def test_standard_input(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"an image")))
    (source,) = find_sources(["-"])
    assert (source.name, source.read()) == ("-", b"an image")
    with pytest.raises(UsageError, match="once only"):
        find_sources(["-", "a.jpg", "-"])


def test_urls(files: FileServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # a request to this machine goes past it
    url = files.put("/cat.jpg", b"a cat")
    (source,) = find_sources([url])
    assert source.name == url
    assert source.read() == b"a cat"
    (upper,) = find_sources(["HTTP" + url.removeprefix("http")])
    assert upper.read() == b"a cat"


def test_urls_that_do_not_answer_well(files: FileServer):
    broken = files.put("/broken.jpg", b"", faults=[Fault(status=500)])
    for url, words in (
        (files.url + "/none.jpg", "404 Not Found"),
        (broken, "500 Internal Server Error"),
        ("http://127.0.0.1:1/cat.jpg", "Cannot get http://127.0.0.1:1/cat.jpg"),
        ("http://127.0.0.1:port/", "Cannot get"),
        ("http://", "Cannot get"),
    ):
        (source,) = find_sources([url])
        with pytest.raises(ImageError, match=words) as caught:
            source.read()
        assert "\n" not in caught.value.message


def test_a_url_that_is_cut_short(files: FileServer):
    (source,) = find_sources([files.put("/cat.jpg", bytes(5000), faults=[Fault(stop=1000)])])
    with pytest.raises(ImageError, match="Cannot get"):
        source.read()
