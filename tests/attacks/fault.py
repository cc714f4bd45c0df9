"""What the machine does to it: full disks, few descriptors, kills, stops, overload."""

import contextlib
import json
import threading
import time

import httpx

from pdserve.services.http.browsers import WRITE_HEADER
from tests.attacks.attack import Target, attack
from tests.tiny import picture


@attack(service=None, full=True, without={"pdserve.index.publish:_switch": lambda *_: None})
def killed_while_the_gallery_is_written(target: Target) -> None:
    """A server is killed in the middle of writes: what it acknowledged is there, and can be changed."""
    options = ("--gallery-writes", "--detector", "none")
    acknowledged: list[str] = []
    with target.start(*options, service="recognition") as own:

        def write() -> None:
            for number in range(10_000):
                label = f"label {number}"
                image = {"images": ("x.png", picture((number % 250, 99, number // 250)))}
                with contextlib.suppress(httpx.HTTPError):
                    answer = own.http.post(
                        "/v1/gallery", files=image, data={"label": label}, headers={WRITE_HEADER: "1"}
                    )
                    if answer.status_code != 200:
                        return
                    acknowledged.append(label)
                    continue
                return

        writer = threading.Thread(target=write)
        writer.start()
        deadline = time.monotonic() + 60
        while len(acknowledged) < 5:
            assert time.monotonic() < deadline, "nothing is acknowledged"
            time.sleep(0.01)
        own.running.process.kill()
        writer.join()
        entries = own.command("index", "info", "--entries", "--index", "colors", "--json")
        found = [json.loads(line)["label"] for line in entries.stdout.splitlines()]
        assert set(acknowledged) <= set(found)
        assert len(found) <= 2 + len(acknowledged) + 1
        assert own.command("index", "remove", "--label", acknowledged[0], "--index", "colors").returncode == 0
        assert own.command("index", "verify", "--index", "colors").returncode == 0


# pdserve in a process whose files may have so many bytes, as on a disk that is full.
FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
from pdserve.cli import main
main()
"""


@attack(
    full=True,
    service=None,
    without={"pdserve.files:disk_errors": lambda path: contextlib.nullcontext()},
)
def a_disk_that_is_full(target: Target) -> None:
    """A change of an index fails with a sentence, and the index is as it was."""
    folder = target.home / "indexes" / "colors"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    photos = target.home / "more" / "green"
    photos.mkdir(parents=True)
    (photos / "0.png").write_bytes(picture((0, 255, 0)))
    for limit in ("0", "100", "300"):
        done = target.python(
            FULL,
            limit,
            "index",
            "append",
            "--gallery",
            str(photos.parent),
            "--index",
            "colors",
            "--model",
            "tiny_embedder",
        )
        assert done.returncode == 1, done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        assert "Cannot write" in done.stderr, done.stderr
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert {name: after.get(name) for name in before} == before


# pdserve on a file system that knows no flock, as some over a network.
NO_FLOCK = """
import errno, fcntl, os
def flock(*_):
    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
fcntl.flock = flock
from pdserve.cli import main
main()
"""


@attack(service=None, full=True, without={"pdserve.locks:_has_flock": lambda path: True})
def a_file_system_without_flock(target: Target) -> None:
    """An index is changed there all the same, one writer after the other, and the lock is free afterwards."""
    for number in range(2):
        photos = target.home / "flock" / f"label {number}"
        photos.mkdir(parents=True)
        (photos / "0.png").write_bytes(picture((9, 99, 9 + number)))
        change = ("index", "append", "--gallery", str(photos.parent), "--index", "colors")
        done = target.python(NO_FLOCK, *change, timeout_s=30)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    entries = target.command("index", "info", "--entries", "--index", "colors", "--json")
    labels = {json.loads(line)["label"] for line in entries.stdout.splitlines()}
    assert labels >= {"label 0", "label 1"}


@attack(
    full=True,
    options=("--max-queue-size", "8"),
    undefended_options=("--max-queue-size", "100000"),
    without={},
)
def more_than_can_be_answered(target: Target) -> None:
    """What does not fit into the queue is refused at once, with a time to come again; the rest is not."""
    files = [("images", (str(i), picture((255, 0, 0), (300, 300)))) for i in range(12)]
    answers = []

    def ask() -> None:
        answers.append(target.http.post("/v1/classification", files=files))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 503}, statuses
    assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status_code == 503)
