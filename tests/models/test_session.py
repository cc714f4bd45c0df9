"""What a host that downloads come from may do, and where it may send on to."""

import dataclasses
import time
from pathlib import Path

import pytest

from pdserve.errors import DiskError, FetchError, UsageError
from pdserve.models import download as module
from pdserve.models import session
from pdserve.models.archive import max_bytes
from pdserve.models.download import Partial, Policy, download
from pdserve.models.fetch import policy_of
from tests.hostile import endless, hostile, reply, trickle

QUICK = Policy(attempts=2, pause=0.01, connect_timeout=5, read_timeout=5)
MB = 1 << 20


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "downloads" / "m.tar"


def failure(url: str, target: Path, policy: Policy = QUICK, **named: object) -> FetchError:
    with pytest.raises(FetchError) as caught:
        download(url, target, policy=policy, **named)  # type: ignore[arg-type]
    return caught.value


def test_a_body_without_a_length_ends_at_the_bound(target: Path):
    with hostile(endless) as server:
        error = failure(server.url, target, dataclasses.replace(QUICK, max_bytes=5 * MB))
        assert "has more than 5.2 MB, the limit" in error.message
        assert server.sent_mb < 50
    assert list(target.parent.iterdir()) == []


def test_a_body_without_a_length_leaves_room_on_the_disk(target: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_LOOK_EVERY", MB)
    part = Partial(target)
    with hostile(endless) as server:
        error = failure(server.url, target, free=lambda path: module.RESERVE + 3 * MB - part.size)
        assert isinstance(error, DiskError)
        assert server.sent_mb < 50
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("body", [True, False])
def test_what_trickles_is_given_up(target: Path, monkeypatch: pytest.MonkeyPatch, body: bool):
    monkeypatch.setattr(session, "HEAD_S", 0.3)
    with hostile(lambda h, s: trickle(h, s, body)) as server:
        started = time.monotonic()
        error = failure(server.url, target, dataclasses.replace(QUICK, slow_s=0.3))
        assert ("is too slow" if body else "failed") in error.message
        assert "2 times in a row" in error.message
        assert time.monotonic() - started < 30


def test_a_byte_an_attempt_is_no_progress(target: Path):
    """Else a host that breaks off after each byte would be asked for ever."""
    served = []

    def byte(handler, server):  # type: ignore[no-untyped-def]
        served.append(handler.headers.get("Range"))
        start = int((handler.headers.get("Range") or "bytes=0-")[6:-1])
        handler.send_response(206 if start else 200)
        handler.send_header("ETag", '"x"')
        handler.send_header("Content-Length", str(5000 - start))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-4999/5000")
        handler.end_headers()
        handler.wfile.write(b"x")
        handler.close_connection = True

    with hostile(byte) as server:
        failure(server.url, target)
    assert len(served) == 2


@pytest.mark.parametrize(
    ("location", "words"),
    [("/again", "Exceeded 10 redirects"), ("file:///etc/passwd", "sends on to file:.* check the mirror")],
)
def test_where_a_mirror_may_not_send_on(target: Path, location: str, words: str):
    with hostile(lambda h, _: reply(h, status=302, Location=location)) as server:
        with pytest.raises(FetchError, match=words):
            raise failure(server.url, target)
        assert len(server.seen) <= session.MAX_REDIRECTS + 1


def test_from_elsewhere_not_to_this_machine(target: Path, monkeypatch: pytest.MonkeyPatch):
    with hostile(lambda h, _: reply(h, b"inside")) as inside:
        with hostile(lambda h, _: reply(h, status=302, Location=inside.url)) as proxy:
            monkeypatch.setenv("http_proxy", proxy.url)
            error = failure("http://far.example/m.tar", target)
            assert "on this machine; check the mirror" in error.message
        assert inside.seen == []


def test_a_redirect_elsewhere_takes_no_password_along(target: Path):
    with hostile(lambda h, _: reply(h, b"a file")) as other:
        there = other.url.replace("127.0.0.1", "localhost")
        with hostile(lambda h, _: reply(h, status=302, Location=there)) as server:
            download(server.url.replace("://", "://user:secret@"), target, policy=QUICK)
            assert "authorization" in server.seen[0][1]
        assert "authorization" not in other.seen[0][1]


def test_a_dead_proxy_is_named(target: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:1")
    error = failure("http://far.example/m.tar", target)
    assert "failed through the proxy http://127.0.0.1:1 (http_proxy)" in error.message
    assert "secret" not in error.message
    monkeypatch.setenv("http_proxy", "socks4://127.0.0.1:1")
    with pytest.raises(UsageError, match="http_proxy holds no address"):
        download("http://far.example/m.tar", target, policy=QUICK)


def test_the_bounds_of_a_download():
    assert policy_of({}).max_bytes == 16 << 30
    assert policy_of({"PDSERVE_MAX_DOWNLOAD_BYTES": "5000"}, offline=True) == Policy(
        max_bytes=5000, offline=True
    )
    for value in ("0", "-1", "5 GB", "1e9"):
        with pytest.raises(UsageError, match="the most bytes that one download may have"):
            policy_of({"PDSERVE_MAX_DOWNLOAD_BYTES": value})
    assert (max_bytes(None), max_bytes(21_400_000)) == (None, 42_800_000 + 64 * MB)
