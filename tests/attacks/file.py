"""Files that a server or a command reads: models, indexes, settings, galleries."""

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pdserve.files import link_or_copy
from pdserve.locks import file_lock
from pdserve.services.http.browsers import WRITE_HEADER
from tests.attacks.attack import Target, attack
from tests.tiny import picture

# Galleries and indexes

_WRITES = ("--gallery-writes",)
_HEADERS = {WRITE_HEADER: "1"}


def _upload(target: Target, image: bytes, label: str, timeout_s: float = 60) -> Any:
    files = {"images": ("x.png", image)}
    return target.http.post(
        "/v1/gallery", files=files, data={"label": label}, headers=_HEADERS, timeout=timeout_s
    )


def _index(target: Target) -> Path:
    return target.home / "indexes" / "colors"


def _link(source: Path, folder: Path, name: str) -> None:
    """The plain name as a hard link to the version, as it once was."""
    (folder / name).unlink(missing_ok=True)
    link_or_copy(source / name, folder / name)


@attack(service=None, full=True, without={"pdserve.index.publish:_put": _link})
def index_overwritten_in_place(target: Target) -> None:
    """Another program writes over the plain files of an index: the version and the server are unharmed."""
    with target.start(*_WRITES, service="recognition") as own:
        assert _upload(own, picture((9, 99, 9)), "green").status_code == 200
        folder = _index(own)
        known = json.loads((folder / "index.json").read_text("utf-8"))
        plain = folder / "vector.index"
        plain.write_bytes(plain.read_bytes()[:-7] + b"another")
        kept = (folder / ".versions" / str(known["version"]) / "vector.index").read_bytes()
        assert hashlib.sha256(kept).hexdigest() == known["files"]["vector.index"]["sha256"]
        deadline = time.monotonic() + 20
        while "vector.index is not as it was published" not in own.log:
            assert time.monotonic() < deadline, "nothing is said of it"
            time.sleep(0.1)
        assert own.http.get("/v1/gallery").json()["index_version"] == known["version"]
        own.good()


@contextlib.contextmanager
def _another_writer(target: Target) -> Iterator[None]:
    """Another process changes the index, for as long as the block takes."""
    with file_lock(_index(target) / ".lock", "colors"):
        yield


def _uploads(target: Target, count: int, size: int) -> tuple[list[threading.Thread], list[int]]:
    """Uploads of ``size`` bytes each, in threads; and their statuses, as they come."""
    statuses: list[int] = []

    def upload(number: int) -> None:
        image = picture((number, 200, 40))
        statuses.append(_upload(target, image + bytes(size - len(image)), "waits", 120).status_code)

    threads = [threading.Thread(target=upload, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    return threads, statuses


@attack(service=None, full=True, without={"pdserve.services.http.gallery:MAX_WAITING": 10**6})
def more_gallery_writers_than_may_wait(target: Target) -> None:
    """Forty change the gallery while another process holds it: few wait, the others are told so at once."""
    with target.start(*_WRITES, service="recognition") as own:
        with _another_writer(own):
            threads, statuses = _uploads(own, 40, 2_000)
            deadline = time.monotonic() + 20
            while len(statuses) < 24:
                assert time.monotonic() < deadline, "all of them wait"
                time.sleep(0.05)
            assert set(statuses) == {503}
            own.good()
        for thread in threads:
            thread.join()
        assert statuses.count(200) == 16


@attack(service=None, full=True, without={"pdserve.services.http.gallery:release": lambda scope: None})
def bodies_of_waiting_gallery_writers(target: Target) -> None:
    """Writers wait for the gallery: the memory of their bodies is free for others."""
    options = (*_WRITES, "--max-inflight-bytes", "64000000")
    with target.start(*options, service="recognition") as own:
        with _another_writer(own):
            threads, statuses = _uploads(own, 5, 6_000_000)
            time.sleep(3)  # they have all been embedded
            assert not statuses
            large = picture((1, 2, 3)) + bytes(6_000_000)
            for _ in range(3):
                assert own.http.post("/v1/recognition", content=large).status_code == 200
        for thread in threads:
            thread.join()
        assert statuses == [200] * 5


@attack(service="recognition", options=_WRITES, without={"pdserve.index.gallery:MAX_TEXT": 10**9})
def label_of_sixty_kilobytes(target: Target) -> None:
    """A label that every reader of the index would hold for good."""
    answer = _upload(target, picture((7, 7, 200)), "L" * 60_000)
    assert answer.status_code == 400, answer.status_code
    assert len(answer.content) < 500
    assert target.http.get("/v1/gallery").json()["count"] == 2


@attack(
    service="recognition",
    options=_WRITES,
    without={"pdserve.services.http.gallery:MAX_SELECTED": 10**9},
)
def two_thousand_to_remove(target: Target) -> None:
    """A request that removes more than one may."""
    answer = target.http.request("DELETE", "/v1/gallery", params=[("id", "9")] * 2_000, headers=_HEADERS)
    assert answer.status_code == 400, answer.status_code
    assert "are more than 1000; ask several times" in answer.text


@attack(service=None, without={"pdserve.vision.image_files:_identity": lambda path: (0, hash(path))})
def gallery_that_links_to_itself(target: Target) -> None:
    """A label folder with links to itself and to all of the machine: each folder is read once."""
    root = target.home / "looped"
    (root / "red").mkdir(parents=True)
    (root / "red" / "0.png").write_bytes(picture((255, 0, 0)))
    (root / "red" / "again").symlink_to("../red")
    (root / "red" / "twice").symlink_to("../red")
    build = ("index", "build", "--gallery", str(root), "--out", str(target.home / "looped_index"))
    done = target.command(*build, "--model", "tiny_embedder", "--json", timeout_s=60)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert (made["count"], made["present"]) == (1, 0)


@attack(service=None, without={"pdserve.index.gallery:unfit": lambda text: None})
def name_that_is_no_text(target: Target) -> None:
    """A file whose name is bytes and no text: the other files are built, and it is named."""
    root = target.home / "bytes"
    (root / "red").mkdir(parents=True)
    (root / "red" / "0.png").write_bytes(picture((255, 0, 0)))
    Path(os.fsdecode(bytes(root / "red") + b"/caf\xe9.png")).write_bytes(picture((200, 0, 0)))
    build = ("index", "build", "--gallery", str(root), "--out", str(target.home / "bytes_index"))
    done = target.command(*build, "--model", "tiny_embedder", "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert (made["count"], [each["image"] for each in made["skipped"]]) == (1, ["red/caf\\xe9.png"])
