"""Files that a server or a command reads: models, indexes, settings, galleries."""

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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


# Models, and what lies beside them


def _serving(target: Target, name: str) -> Path:
    """A copy of the tiny classifier's folder, for the attack to spoil."""
    source = target.home / "models" / "tiny_serving"
    return Path(shutil.copytree(source, target.home / name, dirs_exist_ok=True))


@attack(service=None, full=True, without={"pdserve.engines.trial:require": lambda *_: None})
def one_changed_byte_of_a_program(target: Target) -> None:
    """A published program that ends Paddle's loader by a signal is refused, and what runs goes on."""
    if importlib.util.find_spec("paddle") is None:
        pytest.skip("needs Paddle, which alone loads such a program")
    with target.start(service="classification") as own:
        program = own.home / "models" / "tiny_serving" / "inference.pdmodel"
        data = bytearray(program.read_bytes())
        assert data[1841] == 95
        data[1841] = 253
        new = program.with_name("new")
        new.write_bytes(data)
        new.replace(program)
        own.until(lambda: "not reloaded, what runs goes on" in own.log, 60)
        assert "SIGSEGV" in own.log or "SIGABRT" in own.log, own.log[-1000:]
        own.good()
        assert "Traceback" not in own.log


@attack(service=None, without={"pdserve.formats.yaml_file:_count": lambda text: None})
def a_description_of_many_keys(target: Target) -> None:
    """They are counted before one of them is built."""
    folder = _serving(target, "many_keys_serving")
    (folder / "inference.yml").write_text("".join(f"k{i}: 1\n" for i in range(100_000)), "utf-8")
    done = target.command("predict", "--local", "--model", str(folder), str(target.home / "two.png"))
    assert done.returncode != 0
    assert "it has more than 100000 values" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1


_TO_THE_END = re.compile(r"""#[^\n]*|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'""", re.DOTALL)


@attack(service=None, without={"pdserve.formats.prototxt:_QUOTED": _TO_THE_END})
def quotes_without_an_end(target: Target) -> None:
    """A text of a hundred thousand quotes is read once, and not from each of them to its end."""
    folder = _serving(target, "quotes_serving")
    (folder / "serving_server_conf.prototxt").write_text('\\"' * 100_000, "utf-8")
    done = target.command("alias", str(folder), timeout_s=20)
    assert done.returncode == 1, done.stderr
    assert "is no serving configuration" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1


# pdserve that waits for a pipe's writer for a moment only, as nobody writes there.
_IMPATIENT = """
from pdserve.formats import text_file
text_file.PATIENCE_S = 0.3
from pdserve.cli import main
main()
"""


@attack(
    service=None,
    without={"pdserve.formats.text_file:read_bytes": lambda path, most: path.read_bytes()},
)
def a_pipe_in_which_nobody_writes(target: Target) -> None:
    """As a label file it is a sentence, and no command that never ends."""
    pipe = target.home / "labels.txt"
    os.mkfifo(pipe)
    image = str(target.home / "two.png")
    options = ("--local", "--model", "tiny", "--labels", str(pipe))
    silent = os.open(pipe, os.O_RDWR)
    try:
        done = target.python(_IMPATIENT, "predict", image, *options, timeout_s=20)
    finally:
        os.close(silent)
        pipe.unlink()  # the next attack may copy the home
    assert done.returncode == 2, done.stderr
    assert "Cannot read the label file" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1
