"""The images that a command line names."""

import io
import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pdserve.commands import images
from pdserve.commands.images import find_sources
from pdserve.errors import ImageError, UsageError
from tests.file_server import Fault, FileServer, serve
from tests.hostile import bomb, endless, hostile, reply, trickle
from tests.tiny import picture


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


def test_a_file_in_a_folder_is_known_by_its_suffix_or_its_first_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name in ("a.jfif", "b.JP2", "c.avif", "d.tif", "e.pgm", "f.j2k", "g.jpe"):
        (tmp_path / name).write_bytes(b"")
    for name, data in {
        "from_a_camera": picture((1, 2, 3)),
        "film.mp4": b"\0\0\0\x18ftypmp42",
        "notes": b"BMW and P6",
        ".DS_Store": b"",
        ".hidden/x.jpg": b"",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    found = [Path(name).name for name in names([str(tmp_path)])]
    assert found == ["a.jfif", "b.JP2", "c.avif", "d.tif", "e.pgm", "f.j2k", "from_a_camera", "g.jpe"]
    said = capsys.readouterr().err
    assert "film.mp4, notes (is no image)" in said
    assert ".DS_Store, .hidden (is hidden, or a system's own)" in said


def test_linked_folders_are_followed_once(tmp_path: Path):
    (tmp_path / "pool" / "in").mkdir(parents=True)
    (tmp_path / "pool" / "in" / "1.jpg").write_bytes(b"")
    root = tmp_path / "root"
    (root / "real").mkdir(parents=True)
    (root / "real" / "2.jpg").write_bytes(b"")
    (root / "again").symlink_to("real")
    (root / "linked").symlink_to(tmp_path / "pool")
    (tmp_path / "pool" / "in" / "back").symlink_to("..")
    (root / "top").symlink_to("/")
    found = [str(Path(name).relative_to(root)) for name in names([str(root)])]
    assert found == ["linked/in/1.jpg", "real/2.jpg"]


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() != 0, reason="needs the superuser, to be another")
def test_a_folder_that_may_not_be_entered_is_named(tmp_path: Path):
    (tmp_path / "closed").mkdir(mode=0o700)
    (tmp_path / "1.jpg").write_bytes(b"")
    tmp_path.chmod(0o755)
    code = "import sys; from pdserve.vision.image_files import find_images; from pathlib import Path\n"
    code += (
        "found = find_images(Path('.')); print(found.images, [(e.reason, e.meant) for e in found.left_out])"
    )
    handle = os.open(tmp_path, os.O_RDONLY)
    first = f"import os; os.fchdir({handle}); import pdserve.vision.image_files"
    done = subprocess.run(
        [sys.executable, "-c", f"{first}; os.setuid(65534)\n{code}"],
        capture_output=True, text=True, check=True, pass_fds=[handle], cwd=Path(__file__).parents[2],
    )  # fmt: skip
    os.close(handle)
    assert done.stdout == "[PosixPath('1.jpg')] [('cannot be read: Permission denied', True)]\n"


def test_a_folder_without_images(tmp_path: Path):
    (tmp_path / "notes.txt").write_bytes(b"")
    with pytest.raises(UsageError, match=r"has no images \(\.apng, "):
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


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
def test_what_is_no_file_cannot_be_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(images, "_PATIENCE_S", 0.2)
    monkeypatch.setattr(images, "MAX_IMAGE_BYTES", 3 << 20)
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    (source,) = find_sources([str(pipe)])
    with pytest.raises(ImageError, match="gave no whole image within"):  # nobody writes
        source.read()
    writer = os.open(pipe, os.O_RDWR)
    try:
        os.write(writer, b"half")
        with pytest.raises(ImageError, match="gave no whole image within"):
            source.read()
    finally:
        os.close(writer)
    (source,) = find_sources(["/dev/zero"])
    with pytest.raises(ImageError, match=r"more than 3\.1 MB, the limit of an image"):
        source.read()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
def test_a_pipe_that_somebody_writes_to_is_read(tmp_path: Path):
    """As in ``predict <(command)``."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    content = bytes(range(256)) * 2000

    def write() -> None:
        pipe.write_bytes(content)

    (source,) = find_sources([str(pipe)])
    first = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    thread = threading.Thread(target=write)
    thread.start()
    while not select.select([first], [], [], 10)[0]:
        pass
    try:
        assert source.read() == content
    finally:
        os.close(first)
        thread.join(10)


def test_a_file_of_gigabytes_is_not_read(tmp_path: Path):
    with (tmp_path / "giant.jpg").open("wb") as file:
        file.truncate(10 << 30)
    (source,) = find_sources([str(tmp_path / "giant.jpg")])
    with pytest.raises(ImageError, match=r"more than 268\.4 MB, the limit of an image"):
        source.read()


def test_a_name_that_is_too_long_is_an_error_of_its_own():
    (source,) = find_sources(["x" * 5000])
    with pytest.raises(ImageError, match="File name too long"):
        source.read()


def read(url: str) -> bytes:
    (source,) = find_sources([url])
    return source.read()


def test_urls_within_bounds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(images, "MAX_IMAGE_BYTES", 3 << 20)
    monkeypatch.setattr(images, "_PATIENCE_S", 0.5)
    with hostile(endless) as server:
        with pytest.raises(ImageError, match="more than 3 MiB"):
            read(server.url)
        assert server.sent_mb < 50
    for answer, words in (
        (lambda h, _: reply(h, bomb(20), Content_Encoding="gzip"), "more than 3 MiB"),
        (lambda h, s: trickle(h, s, True), "did not come within 0.5 s"),
        (lambda h, s: trickle(h, s, False), "did not come within 0.5 s"),
        (lambda h, _: reply(h, status=302, Location="/again"), "sends on more than 5 times"),
        (lambda h, _: reply(h, status=302, Location="file:///etc/passwd"), "Cannot get|not https"),
    ):
        with hostile(answer) as server, pytest.raises(ImageError, match=words):
            read(server.url)


def test_where_a_url_may_send_on(monkeypatch: pytest.MonkeyPatch):
    """Also elsewhere, without the password; from another machine not to this one."""
    with hostile(lambda h, _: reply(h, b"an image")) as other:
        there = other.url.replace("127.0.0.1", "localhost")
        with hostile(lambda h, _: reply(h, status=302, Location=there)) as server:
            assert read(server.url.replace("://", "://user:secret@")) == b"an image"
            assert "authorization" in server.seen[0][1]
        assert "authorization" not in other.seen[0][1]
        with hostile(lambda h, _: reply(h, status=302, Location=other.url)) as proxy:
            monkeypatch.setenv("http_proxy", proxy.url)
            with pytest.raises(ImageError, match="on this machine; give that address if it is right"):
                read("http://far.example/cat.jpg")
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        with pytest.raises(ImageError, match=r"Cannot get .*cat.jpg, through the proxy http"):
            read("http://far.example/cat.jpg")
        assert len(other.seen) == 1
    before, after = (httpx.URL(f"{each}://far.example/") for each in ("https", "http"))
    with pytest.raises(ImageError, match="which is not https"):
        images._checked(before, httpx.Request("GET", after))
