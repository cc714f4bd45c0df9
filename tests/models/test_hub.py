"""Models from a hub: against a local stand-in that lists, redirects to another host, and goes wrong."""

import hashlib
import json
import random

import pytest

from pdserve.errors import ArchiveError, ChecksumError, FetchError, OfflineError, UsageError
from pdserve.models.download import Policy
from pdserve.models.fetch import Fetched, fetch
from pdserve.models.home import Home
from pdserve.models.hub import MAX_FILES, MAX_PAGES, Endpoint
from tests.file_server import Fault, FileServer, serve
from tests.models.test_download import Heard
from tests.models.test_record import verify_bytes

WEIGHTS = random.Random(3).randbytes(300_000)
SMALL = {"inference.json": b'{"base_code": {}}', "inference.yml": b"Global: {}\n", "config.json": b"{}"}
OTHERS = {"README.md": b"# Net", ".gitattributes": b"", "net.safetensors": b"s", "sub/inference.json": b"{}"}
TREE = "/api/models/me/net/tree/main?recursive=true"
QUICK = Policy(attempts=3, pause=0.01, connect_timeout=5, read_timeout=5)


def small(path: str, body: bytes) -> dict[str, object]:
    oid = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
    return {"type": "file", "path": path, "size": len(body), "oid": oid}


def large(path: str, body: bytes) -> dict[str, object]:
    lfs = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130}
    return {"type": "file", "path": path, "size": len(body), "oid": "0" * 40, "lfs": lfs}


LISTING = [
    {"type": "directory", "path": "sub", "size": 0, "oid": "1" * 40},
    *(small(path, body) for path, body in {**SMALL, **OTHERS}.items()),
    large("inference.pdiparams", WEIGHTS),
]


@pytest.fixture
def cdn():
    with serve() as running:
        running.put("/blob?signature=1", WEIGHTS)
        yield running


@pytest.fixture
def hub(cdn):
    with serve() as running:
        running.put(TREE, json.dumps(LISTING).encode())
        for path, body in SMALL.items():
            running.put(f"/me/net/resolve/main/{path}", body)
        redirect = Fault(status=302, headers={"Location": f"{cdn.url}/blob?signature=1"})
        running.put("/me/net/resolve/main/inference.pdiparams", b"", faults=[redirect] * 20)
        yield running


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


@pytest.fixture
def get(hub, home):
    def run(address: str = "hf://me/net", token: str | None = None, **options: object) -> Fetched:
        environ = {"HF_ENDPOINT": hub.url + "/", **({"HF_TOKEN": token} if token else {})}
        return fetch(address, home, **{"environ": environ, "policy": QUICK, **options})  # type: ignore[arg-type]

    return run


def authorizations(server: FileServer) -> set[str | None]:
    return {headers.get("authorization") for _, headers in server.asked}


def test_a_models_files_come_with_a_record(get, hub, cdn, home):
    heard = Heard()
    got = get(progress=heard)
    assert (got.name, got.path, got.sha256) == ("net", home.inference_model("net"), None)
    files = {path.name: path.read_bytes() for path in got.path.iterdir() if path.name != "fetch.json"}
    assert files == {**SMALL, "inference.pdiparams": WEIGHTS}
    assert got.bytes == sum(map(len, files.values()))
    record = json.loads((got.path / "fetch.json").read_text("utf-8"))
    assert (record["source"], record["origin"]) == ("hf://me/net@main", f"{hub.url}/me/net/tree/main")
    assert verify_bytes(got.path) is not None
    asked = {path for path, _ in hub.asked}
    assert not any(name in path for name in OTHERS for path in asked)
    assert {start[0] for start in heard.starts} == {got.bytes}  # one bar for all files
    assert heard.count == got.bytes
    assert not (home.root / "downloads" / "net.hub").exists()
    before = len(hub.asked)
    assert get().action == "present"
    assert len(hub.asked) == before


def test_mirrors_do_not_apply(get):
    assert get(mirrors=["/nowhere"]).action == "fetched"


def test_a_revision(get, hub, cdn):
    hub.put("/api/models/me/net/tree/refs%2Fpr%2F1?recursive=true", json.dumps(LISTING).encode())
    for path, body in {**SMALL, "inference.pdiparams": WEIGHTS}.items():
        hub.put(f"/me/net/resolve/refs%2Fpr%2F1/{path}", body)
    got = get("hf://me/net@refs/pr/1")
    assert got.origin == f"{hub.url}/me/net/tree/refs/pr/1"
    with pytest.raises(UsageError, match="net is here already, from hf://me/net@refs/pr/1"):
        get()


def test_pages_are_joined_and_their_links_not_followed_elsewhere(get, hub, cdn):
    first, second = LISTING[:5], LISTING[5:]
    link = {"Link": f'<{cdn.url}/api/models/me/net/tree/main?recursive=true&cursor=a%3D>; rel="next"'}
    hub.put(TREE, json.dumps(first).encode(), headers=link)
    hub.put(TREE + "&cursor=a%3D", json.dumps(second).encode())
    assert get().action == "fetched"
    assert [path for path, _ in cdn.asked] == ["/blob?signature=1"]


def test_the_token_goes_to_the_hub_alone(get, hub, cdn):
    """Neither to where a file is redirected, nor to where a listing is."""
    get(token="hf_secret")
    assert authorizations(hub) == {"Bearer hf_secret"}
    assert authorizations(cdn) == {None}
    assert "hf_secret" not in "".join(p.read_text("utf-8", "replace") for p in get().path.iterdir())
    with serve() as elsewhere:
        elsewhere.put("/tree", json.dumps(LISTING).encode())
        hub.put(TREE, b"", faults=[Fault(status=307, headers={"Location": elsewhere.url + "/tree"})])
        get(token="hf_secret", force=True)
        assert authorizations(elsewhere) == {None}


def test_without_a_token_none_is_sent(get, hub):
    get()
    assert authorizations(hub) == {None}


def test_a_broken_download_goes_on_where_it_stopped(get, hub, cdn):
    cdn.put("/blob?signature=1", WEIGHTS, faults=[Fault(stop=100_000)])
    get()
    assert cdn.ranges == [None, "bytes=100000-"]


def test_an_interrupted_one_goes_on_in_the_next_run(get, hub, cdn):
    cdn.put("/blob?signature=1", WEIGHTS, faults=[Fault(stop=100_000), *[Fault(status=503)] * 2])
    with pytest.raises(FetchError, match="503"):
        get()
    asked = len(hub.asked)
    get()
    assert cdn.ranges[-1] == "bytes=100000-"
    again = [path for path, _ in hub.asked[asked:]]
    assert again == [TREE, "/me/net/resolve/main/inference.pdiparams"]  # the small ones were there


def test_weights_of_another_digest(get, cdn, home):
    cdn.put("/blob?signature=1", WEIGHTS[::-1])
    with pytest.raises(ChecksumError, match="but the hub lists"):
        get()
    assert not home.inference_model("net").exists()


def test_more_weights_than_listed(get, hub, cdn, home):
    cdn.put("/blob?signature=1", WEIGHTS * 2)
    with pytest.raises(FetchError, match=r"has more than 300\.0 kB, the limit"):
        get()
    cdn.put("/blob?signature=1", WEIGHTS * 2, chunked=True)
    with pytest.raises(FetchError, match=r"has more than 300\.0 kB, the limit"):
        get()
    assert not home.inference_model("net").exists()


@pytest.mark.parametrize("body", [b"Global: {a}", b"Global: []\n"])
def test_a_small_file_of_another_digest(get, hub, home, body):
    hub.put("/me/net/resolve/main/inference.yml", body)
    with pytest.raises(ChecksumError, match=r"inference\.yml is not the file of 11 bytes that the hub lists"):
        get()
    assert not home.inference_model("net").exists()
    hub.put("/me/net/resolve/main/inference.yml", SMALL["inference.yml"])
    assert get().action == "fetched"


@pytest.mark.parametrize(
    ("status", "token", "said"),
    [
        (401, None, "private, or not there; set HF_TOKEN"),
        (403, "hf_x", "HF_TOKEN may not read it"),
        (404, None, "no such repository, or it has no revision 'main'"),
        (400, None, "check HF_ENDPOINT"),
    ],
)
def test_a_repository_that_is_not_to_be_read(get, hub, status, token, said):
    hub.put(TREE, b"", faults=[Fault(status=status)])
    with pytest.raises(FetchError, match=f"answered {status} for hf://me/net@main: .*{said}"):
        get(token=token)


def test_a_hub_that_is_down_for_a_moment(get, hub):
    hub.put(TREE, json.dumps(LISTING).encode(), faults=[Fault(status=503), Fault(status=429)])
    assert get().action == "fetched"


def test_a_hub_that_is_down(home):
    with pytest.raises(FetchError, match=r"Cannot list hf://me/net@main at http://127.*HF_ENDPOINT"):
        fetch("hf://me/net", home, environ={"HF_ENDPOINT": "http://127.0.0.1:9"}, policy=QUICK)


def test_without_the_network(get, hub):
    with pytest.raises(OfflineError, match="`pdserve fetch hf://me/net@main`"):
        get(policy=Policy(offline=True))
    assert hub.asked == []


def test_a_repository_of_something_else(get, hub):
    hub.put(TREE, json.dumps([small("README.md", b""), large("model.safetensors", b"x")]).encode())
    with pytest.raises(FetchError, match=r"no inference model of Paddle .*README\.md, model\.safetensors"):
        get()


def many(count: int) -> list[dict[str, object]]:
    return [large("inference.pdiparams", WEIGHTS), small("inference.json", b"{}")] + [
        small(f"{i}.yml", b"") for i in range(count)
    ]


@pytest.mark.parametrize(
    ("listing", "said"),
    [
        (many(MAX_FILES), "files of models, more than 64"),
        (
            [{**large("inference.pdiparams", b""), "lfs": {"oid": "0" * 64, "size": 1 << 40}}, *many(0)[1:]],
            "limit",
        ),
        ([*many(0), {**small("inference.yml", b""), "size": 1 << 30}], "no file of a model"),
    ],
)
def test_a_repository_beyond_the_bounds(get, hub, listing, said):
    hub.put(TREE, json.dumps(listing).encode())
    with pytest.raises(FetchError, match=said):
        get()
    assert len(hub.asked) == 1


def test_a_listing_without_an_end(get, hub):
    link = {"Link": f'<{hub.url}{TREE}&cursor=a>; rel="next"'}
    hub.put(TREE, b"[]", headers=link)
    hub.put(TREE + "&cursor=a", b"[]", headers=link)
    with pytest.raises(FetchError, match=f"more than {MAX_PAGES} pages"):
        get()
    assert len(hub.asked) == MAX_PAGES


def test_a_page_without_an_end(get, hub):
    hub.put(TREE, b"[" + b" " * (9 << 20))
    with pytest.raises(FetchError, match="page of more than"):
        get()


@pytest.mark.parametrize(
    "listing",
    [
        "nothing",
        {"error": "x"},
        [1],
        [{"path": "a"}],
        [{"type": "file", "path": "a.yml", "size": -1, "oid": "0" * 40}],
        [{"type": "file", "path": "a.yml", "size": "1", "oid": "0" * 40}],
        [{"type": "file", "path": "a.yml", "size": 1, "oid": "zz"}],
        [{"type": "file", "path": "a.yml", "size": 1, "oid": None}],
        [{"type": "file", "path": "a", "size": 1, "oid": "0" * 40, "lfs": {"oid": "0", "size": 1}}],
    ],
)
def test_a_listing_of_another_form(get, hub, listing):
    hub.put(TREE, json.dumps(listing).encode())
    with pytest.raises(FetchError, match="not in the hub's form"):
        get()


@pytest.mark.parametrize("path", ["../x.yml", "/etc/x.yml", "a\\b.yml", "C:x.yml"])
def test_a_path_that_leads_outside(get, hub, path):
    hub.put(TREE, json.dumps([*many(0), small(path, b"")]).encode())
    with pytest.raises(ArchiveError, match="outside its folder"):
        get()


def test_plain_http_is_said(get):
    heard = Heard()
    get(progress=heard)
    assert [line for line in heard.warnings if "plain http" in line] == heard.warnings
    assert len(heard.warnings) == 1


@pytest.mark.parametrize(
    "url", ["hub.example", "ftp://hub.example", "https://", "https://h/?a=1", "https://[x"]
)
def test_an_endpoint_that_is_none(url):
    with pytest.raises(UsageError, match="HF_ENDPOINT"):
        Endpoint.from_environ({"HF_ENDPOINT": url})


def test_the_usual_endpoint():
    assert Endpoint.from_environ({}) == Endpoint("https://huggingface.co", None)
    assert Endpoint.from_environ({"HF_ENDPOINT": "https://hub.example/a/"}).url == "https://hub.example/a"


@pytest.mark.parametrize("token", ["a b", "a\nb", "é"])
def test_a_token_that_is_none(token):
    with pytest.raises(UsageError, match="HF_TOKEN has characters") as caught:
        Endpoint.from_environ({"HF_TOKEN": token})
    assert token not in caught.value.message


def test_a_token_is_not_sent_in_the_clear():
    environ = {"HF_ENDPOINT": "http://hub.example", "HF_TOKEN": "hf_secret"}
    with pytest.raises(UsageError, match=r"plain http to http://hub\.example") as caught:
        Endpoint.from_environ(environ)
    assert "hf_secret" not in caught.value.message
    assert Endpoint.from_environ({"HF_ENDPOINT": "http://localhost:80", "HF_TOKEN": "x"}).token == "x"
