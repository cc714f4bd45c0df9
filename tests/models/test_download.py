import base64
import hashlib
import json
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pdserve.errors import ChecksumError, DiskError, FetchError
from pdserve.files import free_space
from pdserve.models.download import Partial, Policy, download
from tests.file_server import Fault, serve

BODY = random.Random(7).randbytes(300_000)
OTHER = random.Random(8).randbytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
MD5 = base64.b64encode(hashlib.md5(BODY).digest()).decode()
QUICK = Policy(pause=0.01, connect_timeout=5, read_timeout=5)


class Heard:
    """A progress that records its calls."""

    def __init__(self) -> None:
        self.starts: list[tuple[int | None, int]] = []
        self.count = 0
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def start(self, name: str, total: int | None, completed: int) -> None:
        self.starts.append((total, completed))
        self.count = completed

    def advance(self, name: str, n: int) -> None:
        self.count += n

    def done(self, name: str) -> None:
        pass

    def note(self, name: str, text: str) -> None:
        self.notes.append(text)

    def warn(self, name: str, text: str) -> None:
        self.warnings.append(f"{name}: {text}")


@pytest.fixture
def server():
    with serve() as running:
        yield running


@pytest.fixture
def target(tmp_path):
    return tmp_path / "downloads" / "m.tar"


def get(url: str, target: Path, **options: object):
    return download(url, target, **{"policy": QUICK, **options})  # type: ignore[arg-type]


def test_whole(server, target):
    heard = Heard()
    got = get(server.put("/m.tar", BODY, headers={"Content-MD5": MD5}), target, progress=heard, sha256=SHA256)
    assert got.path.read_bytes() == BODY
    assert (got.sha256, got.size) == (SHA256, len(BODY))
    assert heard.starts == [(len(BODY), 0)]
    assert heard.count == len(BODY)
    assert server.ranges == [None]


def test_length_unknown(server, target):
    heard = Heard()
    got = get(server.put("/m.tar", BODY, chunked=True), target, progress=heard)
    assert got.path.read_bytes() == BODY
    assert heard.starts == [(None, 0)]


def test_broken_off_and_resumed(server, target):
    url = server.put(
        "/m.tar", BODY, headers={"Content-MD5": MD5}, faults=[Fault(stop=100_000), Fault(stop=50_000)]
    )
    heard = Heard()
    got = get(url, target, progress=heard)
    assert got.path.read_bytes() == BODY
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-"]
    assert [headers.get("if-range") for _, headers in server.asked] == [None, '"1"', '"1"']
    assert heard.starts == [(300_000, 0), (300_000, 100_000), (300_000, 150_000)]
    assert heard.count == len(BODY)


def test_broken_off_where_length_is_unknown(server, target):
    got = get(server.put("/m.tar", BODY, chunked=True, faults=[Fault(stop=100_000)]), target)
    assert got.path.read_bytes() == BODY


def test_resumed_by_date(server, target):
    date = {"Last-Modified": "Wed, 01 Jan 2025 00:00:00 GMT"}
    url = server.put("/m.tar", BODY, etag='W/"1"', headers=date, faults=[Fault(stop=1000)])
    assert get(url, target).path.read_bytes() == BODY
    assert server.ranges == [None, "bytes=1000-"]
    assert server.asked[1][1]["if-range"] == date["Last-Modified"]


@pytest.mark.parametrize("options", [{"etag": None}, {"ranges": False}])
def test_not_resumable_starts_over(server, target, options):
    url = server.put("/m.tar", BODY, faults=[Fault(stop=1000)], **options)
    assert get(url, target).path.read_bytes() == BODY


def test_later_run_goes_on(server, target):
    url = server.put("/m.tar", BODY, faults=[Fault(stop=100_000)])
    with pytest.raises(FetchError, match=r"sent 100000 of 300000|failed .*100\.0 kB\) is kept"):
        get(url, target, policy=Policy(attempts=1))
    assert Partial(target).size == 100_000
    assert get(url, target).path.read_bytes() == BODY
    assert server.ranges == [None, "bytes=100000-"]


@pytest.mark.parametrize("if_range", [True, False])
def test_file_changed_between_the_runs(server, target, if_range):
    """With another ETag the beginning of the old file is of no use, even if the server ignores If-Range."""
    url = server.put("/m.tar", OTHER, faults=[Fault(stop=100_000)])
    with pytest.raises(FetchError):
        get(url, target, policy=Policy(attempts=1))
    server.put("/m.tar", BODY, etag='"2"', if_range=if_range)
    assert get(url, target).path.read_bytes() == BODY
    assert server.ranges[:2] == [None, "bytes=100000-"]


@pytest.mark.parametrize("check", ["md5", "sha256"])
def test_file_changed_under_the_same_etag(server, target, check):
    """Only the checksum shows it; then everything is fetched once more."""
    promised = {"Content-MD5": MD5} if check == "md5" else {}
    url = server.put("/m.tar", OTHER, headers=promised, faults=[Fault(stop=100_000)])
    with pytest.raises(FetchError):
        get(url, target, policy=Policy(attempts=1))
    server.put("/m.tar", BODY, headers=promised)
    got = get(url, target, sha256=SHA256 if check == "sha256" else None)
    assert got.path.read_bytes() == BODY
    assert server.ranges == [None, "bytes=100000-", None]


def test_wrong_range_in_the_answer(server, target):
    url = server.put(
        "/m.tar", BODY, faults=[Fault(stop=1000), Fault(headers={"Content-Range": "bytes 7-9/10"})]
    )
    assert get(url, target).path.read_bytes() == BODY
    assert server.ranges == [None, "bytes=1000-", None]


def test_less_of_the_range_than_asked_for(server, target):
    """A server may answer with as much as it likes; the rest is asked for then."""
    less = {"Content-Range": "bytes 1000-1999/300000", "Content-Length": "1000"}
    url = server.put("/m.tar", BODY, faults=[Fault(stop=1000), Fault(stop=1000, headers=less)])
    assert get(url, target).path.read_bytes() == BODY
    assert server.ranges == [None, "bytes=1000-", "bytes=2000-"]


def test_shorter_file_by_now(server, target):
    """The server no longer has the bytes that are asked for (416)."""
    url = server.put("/m.tar", BODY, faults=[Fault(stop=100_000)])
    with pytest.raises(FetchError):
        get(url, target, policy=Policy(attempts=1))
    server.put("/m.tar", BODY[:50_000])
    assert get(url, target).path.read_bytes() == BODY[:50_000]


def test_other_address_starts_over(server, target):
    server.put("/a.tar", OTHER, faults=[Fault(stop=1000)])
    server.put("/m.tar", BODY)
    with pytest.raises(FetchError):
        get(server.url + "/a.tar", target, policy=Policy(attempts=1))
    assert get(server.url + "/m.tar", target).path.read_bytes() == BODY
    assert server.ranges == [None, None]


def test_complete_one_is_taken_as_it_is(server, target):
    url = server.put("/m.tar", BODY)
    get(url, target)
    assert get(url, target).sha256 == SHA256
    assert len(server.asked) == 1


def test_complete_one_that_was_cut_since(server, target):
    url = server.put("/m.tar", BODY)
    get(url, target).path.write_bytes(BODY[:10])
    assert get(url, target).path.read_bytes() == BODY
    assert server.ranges == [None, None]


@pytest.mark.parametrize("garbage", ["", "{", "[]", '{"url": 1}'])
def test_unreadable_note_starts_over(server, target, garbage):
    url = server.put("/m.tar", BODY, faults=[Fault(stop=1000)])
    with pytest.raises(FetchError):
        get(url, target, policy=Policy(attempts=1))
    Partial(target).note.write_text(garbage, "utf-8")
    assert get(url, target).path.read_bytes() == BODY
    assert server.ranges == [None, None]


def test_errors_of_the_server_then_works(server, target):
    heard = Heard()
    url = server.put("/m.tar", BODY, faults=[Fault(status=500), Fault(status=503), Fault(status=429)])
    assert get(url, target, progress=heard).path.read_bytes() == BODY
    assert [note.split(";")[0] for note in heard.notes[:3]] == [
        "answered 500 Internal Server Error",
        "answered 503 Service Unavailable",
        "answered 429 Too Many Requests",
    ]


def test_waits_as_the_server_asks(server, target):
    url = server.put("/m.tar", BODY, faults=[Fault(status=503, headers={"Retry-After": "1"})])
    begin = time.monotonic()
    get(url, target)
    assert time.monotonic() - begin >= 0.95


def test_errors_of_the_server_without_end(server, target):
    url = server.put("/m.tar", BODY, faults=[Fault(status=502)] * 9)
    with pytest.raises(FetchError, match=r"answered 502 Bad Gateway, 5 times in a row\. Check the network"):
        get(url, target)
    assert len(server.asked) == 5


def test_breaks_that_bring_something_do_not_count(server, target):
    url = server.put("/m.tar", BODY, faults=[Fault(stop=10_000)] * 12)
    assert get(url, target, policy=Policy(attempts=2, pause=0.001, longest_pause=0.01)).size == len(BODY)
    assert len(server.asked) == 13


def test_not_there_is_not_tried_again(server, target):
    with pytest.raises(
        FetchError, match=r"/none\.tar answered 404 Not Found: it is not there; check the name"
    ):
        get(server.url + "/none.tar", target)
    assert len(server.asked) == 1


def test_not_allowed(server, target):
    with pytest.raises(FetchError, match="answered 403 Forbidden"):
        get(server.put("/m.tar", BODY, faults=[Fault(status=403)]), target)


def test_wrong_length(server, target):
    """More promised than sent: never taken for complete."""
    url = server.put("/m.tar", BODY, headers={"Content-Length": "300001"}, ranges=False, etag=None)
    server.files["/m.tar"].faults = [Fault(stop=300_000)] * 5
    with pytest.raises(FetchError, match="in a row"):
        get(url, target)


@pytest.mark.parametrize("key", ["Content-MD5", "x-bce-content-md5"])
@pytest.mark.parametrize("value", [MD5, hashlib.md5(BODY).hexdigest()])
def test_wrong_md5(server, target, key, value):
    url = server.put("/m.tar", OTHER, headers={key: value})
    with pytest.raises(ChecksumError, match=f"MD5 .* where {hashlib.md5(BODY).hexdigest()} was promised"):
        get(url, target)
    assert list(target.parent.iterdir()) == []


def test_etag_is_not_taken_for_an_md5(server, target):
    url = server.put("/m.tar", BODY, etag=f'"{hashlib.md5(OTHER).hexdigest()}"')
    assert get(url, target).path.read_bytes() == BODY


def test_wrong_sha256(server, target):
    with pytest.raises(ChecksumError, match=f"SHA-256 {hashlib.sha256(OTHER).hexdigest()} but the catalog"):
        get(server.put("/m.tar", OTHER), target, sha256=SHA256)
    assert list(target.parent.iterdir()) == []
    assert len(server.asked) == 1


def test_body_is_kept_as_sent(server, target):
    """A server that calls its .gz files gzip-encoded means the file itself."""
    import gzip

    zipped = gzip.compress(BODY)
    url = server.put("/m.tar", zipped, headers={"Content-Encoding": "gzip"})
    assert get(url, target).path.read_bytes() == zipped
    assert server.asked[0][1]["accept-encoding"] == "identity"


def test_no_room(server, target):
    """The archive and its unpacked copy must fit, before a byte is written."""
    with pytest.raises(DiskError, match=r"Fetching m\.tar needs 600\.0 kB but .* only 599\.9 kB free"):
        get(server.put("/m.tar", BODY), target, free=lambda path: 599_900)
    assert Partial(target).size == 0
    get(server.put("/m.tar", BODY), target, free=lambda path: 600_000)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_disk_fills_up(server, target):
    target.parent.mkdir()
    Partial(target).path.symlink_to("/dev/full")
    with pytest.raises(
        DiskError, match=r"Cannot write .*m\.tar\.part: No space left on device; free some space"
    ):
        get(server.put("/m.tar", BODY), target)


def test_no_folder_can_be_made(server, target):
    target.parent.write_text("a file")
    with pytest.raises(DiskError, match="Cannot write"):
        get(server.put("/m.tar", BODY), target)


def test_nobody_there(target):
    with pytest.raises(FetchError, match=r"failed \(.*refused.*\), 2 times in a row"):
        get("http://127.0.0.1:9/m.tar", target, policy=Policy(attempts=2, pause=0.01))


def test_silent_server(server, target):
    url = server.put("/m.tar", BODY, faults=[Fault(stop=1000, linger=True)])
    quick = Policy(pause=0.01, read_timeout=0.3)
    assert get(url, target, policy=quick).path.read_bytes() == BODY


@pytest.mark.parametrize("url", ["http://", "nothing://x/m.tar"])
def test_no_address(target, url):
    with pytest.raises(FetchError, match="Cannot fetch"):
        get(url, target)


def test_password_is_neither_shown_nor_kept(server, target):
    server.put("/m.tar", BODY, faults=[Fault(status=500)])
    url = server.url.replace("://", "://user:secret@") + "/m.tar"
    with pytest.raises(FetchError) as caught:
        get(url, target, policy=Policy(attempts=1))
    assert "secret" not in caught.value.message
    get(url, target)
    assert server.asked[1][1]["authorization"].startswith("Basic ")
    assert "secret" not in Partial(target).note.read_text("utf-8")


def test_proxy_is_used_but_not_for_this_machine(server, target, monkeypatch):
    """A proxy is just a server that is asked for whole addresses; this one has the file itself."""
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    server.put("http://models.example/m.tar", BODY)
    assert get("http://models.example/m.tar", target).path.read_bytes() == BODY
    server.put("/own.tar", OTHER)
    assert get(server.url + "/own.tar", target).path.read_bytes() == OTHER
    assert [path for path, _ in server.asked] == ["http://models.example/m.tar", "/own.tar"]


def test_cancelled_while_receiving(server, target):
    url = server.put("/m.tar", BODY, faults=[Fault(stop=200_000, linger=True)])
    cancel = threading.Event()

    class Impatient(Heard):
        def advance(self, name: str, n: int) -> None:
            cancel.set()

    with pytest.raises(FetchError, match="interrupted"):
        get(url, target, cancel=cancel, progress=Impatient())
    kept = Partial(target).size
    assert 0 < kept < len(BODY)
    assert get(url, target).path.read_bytes() == BODY
    assert server.ranges == [None, f"bytes={kept}-"]


def test_cancelled_while_waiting(server, target):
    url = server.put("/m.tar", BODY, faults=[Fault(status=500)])
    cancel = threading.Event()
    threading.Timer(0.2, cancel.set).start()
    begin = time.monotonic()
    with pytest.raises(FetchError, match="interrupted"):
        get(url, target, cancel=cancel, policy=Policy(pause=60))
    assert time.monotonic() - begin < 5


@pytest.mark.full
@pytest.mark.parametrize("how", ["kill", pytest.param("interrupt", marks=pytest.mark.posix)])
def test_process_ended_midway_then_resumed(server, target, how):
    if how == "interrupt" and sys.platform == "win32":
        pytest.skip("sends SIGINT")
    url = server.put("/m.tar", BODY, faults=[Fault(stop=200_000, linger=True)])
    code = "import sys, pathlib as p; from pdserve.models import download as d; "
    code += "d.download(sys.argv[1], p.Path(sys.argv[2]))"
    with subprocess.Popen([sys.executable, "-c", code, url, str(target)], stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while Partial(target).size < 131_072 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill() if how == "kill" else process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
    kept = Partial(target).size
    assert 131_072 <= kept <= 200_000
    assert get(url, target).path.read_bytes() == BODY
    assert server.ranges == [None, f"bytes={kept}-"]


def test_note_beside_the_part(server, target):
    get(server.put("/m.tar", BODY, headers={"Content-MD5": MD5}), target)
    assert json.loads(Partial(target).note.read_text("utf-8")) == {
        "url": server.url + "/m.tar",
        "validator": '"1"',
        "total": len(BODY),
        "md5": hashlib.md5(BODY).hexdigest(),
        "pieces": 1,
        "complete": True,
        "plain": True,
    }


def test_free_space_is_that_of_the_nearest_folder(tmp_path):
    assert free_space(tmp_path / "not" / "yet") > 0


def test_a_part_is_of_one_address_and_keeps_no_secret(server, target):
    """Two queries are two files, but what is noted beside the part tells neither."""
    for query in ("version=1&token=secret", "version=2"):
        server.put(f"/m.tar?{query}", query.encode())
        assert get(f"{server.url}/m.tar?{query}", target).path.read_text("utf-8") == query
        assert "secret" not in Partial(target).note.read_text("utf-8")


def test_plain_http_is_remembered(server, target):
    server.put("/m.tar", BODY, faults=[Fault(stop=100_000)])
    assert get(server.url + "/m.tar", target).plain
    assert get(server.url + "/m.tar", target).plain  # complete already


@pytest.mark.parametrize("chunked", [False, True])
def test_more_bytes_than_allowed_are_refused(server, target, chunked):
    """Announced, and not announced; nothing is left to go on from."""
    url = server.put("/m.tar", BODY, chunked=chunked)
    with pytest.raises(FetchError, match=r"/m\.tar has more than 200\.0 kB, the limit"):
        get(url, target, max_bytes=200_000)
    assert not Partial(target).path.exists()
    assert get(url, target, max_bytes=len(BODY)).size == len(BODY)
