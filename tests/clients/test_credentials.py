"""Clients that show a key and speak TLS, and what they say where that comes to nothing."""

import asyncio
import re
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from pdserve.clients import AsyncHttpClient, AsyncRpcClient, HttpClient, RpcClient
from pdserve.clients.credentials import Access, key_to_send
from pdserve.clients.discovery import find_service
from pdserve.commands.remote import open_remote, predict_all
from pdserve.errors import (
    BusyError,
    ClientError,
    KeyRefusedError,
    SettingsError,
    UnreachableError,
    UsageError,
)
from tests.certificates import Certificates, issue
from tests.commands.test_predict import sources
from tests.running import Server, pdserve, start
from tests.services.listeners import Listeners, listeners
from tests.tiny import picture

KEY, WRONG = "one-good-key-of-many", "nobody-knows-this-key"
RED = picture((255, 0, 0))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return issue(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"# ours\n{KEY}\n", "utf-8")
    return path


@pytest.fixture(scope="module")
def server(tiny_home: Path, made: Certificates, key_file: Path) -> Iterator[Server]:
    """The real server, with keys and TLS."""
    options = ("--api-key", key_file, "--tls-cert", made.cert, "--tls-key", made.key)
    with start(tiny_home, "--model", "tiny", *map(str, options)) as server:
        yield server


@pytest.fixture(scope="module")
def keyed(key_file: Path) -> Iterator[Listeners]:
    with listeners(api_key_file=key_file) as opened:
        yield opened


@pytest.fixture(scope="module")
def plain() -> Iterator[Listeners]:
    with listeners() as opened:
        yield opened


def clients(http: str, rpc: str, **access: Any) -> Iterator[HttpClient | RpcClient]:
    yield HttpClient(http, **access)
    yield RpcClient(rpc, **access)


def failure(client: HttpClient | RpcClient, image: bytes = b"an image") -> ClientError:
    with client, pytest.raises(ClientError) as caught:
        client.predict(image)
    told = "".join(traceback.format_exception(caught.value)) + repr(client) + repr(vars(client))
    assert KEY not in told
    assert WRONG not in told
    return caught.value


def test_a_key_over_tls(server: Server, made: Certificates):
    for client in clients(server.url, server.target, api_key=KEY, ca=made.ca):
        with client:
            assert client.predict(RED)[0].label == "red"
            assert len(client.predict_batch([RED, RED])) == 2
    with RpcClient(f"grpcs://{server.target}", api_key=KEY, ca=made.ca) as rpc:
        assert str(rpc.address) == f"grpcs://{server.target}"
        assert rpc.predict(RED)[0].label == "red"


def test_a_key_over_tls_async(server: Server, made: Certificates):
    async def ask() -> None:
        for client in (
            AsyncHttpClient(server.url, api_key=KEY, ca=made.ca),
            AsyncRpcClient(server.target, api_key=KEY, ca=made.ca),
        ):
            async with client:
                assert (await client.predict(RED))[0].label == "red"
        for client in (
            AsyncHttpClient(server.url, ca=made.ca),
            AsyncRpcClient(server.target, ca=made.ca),
        ):
            async with client:
                with pytest.raises(KeyRefusedError, match="needs a key"):
                    await client.predict(RED)

    asyncio.run(ask())


def test_no_key(keyed: Listeners):
    for client in clients(keyed.url, keyed.target):
        error = failure(client)
        assert isinstance(error, KeyRefusedError)
        assert "needs a key; give it with --api-key FILE, or in PDSERVE_API_KEY" in error.message


def test_a_wrong_key(keyed: Listeners):
    for client in clients(keyed.url, keyed.target, api_key=WRONG):
        error = failure(client)
        assert isinstance(error, KeyRefusedError)
        assert "refuses the key that was sent; give another" in error.message


@pytest.mark.parametrize("key", ["", "two words of it", "line\nbreak-in-a-key", "schlüssel-mit-umlaut"])
def test_a_key_that_cannot_be_sent(key: str):
    for kind in (HttpClient, RpcClient, AsyncHttpClient, AsyncRpcClient):
        with pytest.raises(SettingsError, match="api_key") as caught:
            kind(api_key=key)
        assert not key or key not in caught.value.message


def test_the_key_to_send(key_file: Path):
    assert key_to_send(None, {}) is None
    assert key_to_send(None, {"PDSERVE_API_KEY": ""}) is None
    assert key_to_send(None, {"PDSERVE_API_KEY": WRONG}) == WRONG
    assert key_to_send(key_file, {"PDSERVE_API_KEY": WRONG}) == KEY
    with pytest.raises(SettingsError, match="PDSERVE_API_KEY") as caught:
        key_to_send(Path(WRONG), {})
    assert WRONG not in caught.value.message
    assert KEY not in repr(Access(KEY))


def test_a_certificate_that_nobody_vouches_for(server: Server, tmp_path: Path):
    other = issue(tmp_path)
    for ca in (None, other.ca):
        for client in clients(server.url, server.target, api_key=KEY, ca=ca, tls=True):
            error = failure(client)
            assert isinstance(error, UnreachableError)
            assert re.search(r"is not trusted \(.*local issuer certificate\); give", error.message)
            assert "--ca FILE" in error.message


def test_a_certificate_for_another_name(tmp_path: Path):
    other = issue(tmp_path, "other.example")
    with listeners(tls_cert=other.cert, tls_key=other.key) as opened:
        for client in clients(opened.url, opened.target, ca=other.ca):
            error = failure(client)
            assert isinstance(error, UnreachableError)
            assert "is for other names" in error.message


def test_tls_where_none_is_spoken(plain: Listeners, made: Certificates):
    for client in clients(plain.url.replace("http", "https"), plain.target, ca=made.ca):
        error = failure(client)
        assert isinstance(error, UnreachableError)
        assert "does not use TLS" in error.message


def test_no_tls_where_it_is_spoken(server: Server):
    for client in clients(server.url.replace("https", "http"), server.target, api_key=KEY):
        error = failure(client)
        assert "if it uses TLS, " in error.message


def test_tls_and_an_address_without_it():
    with pytest.raises(UsageError, match="asks without TLS; write https://"):
        HttpClient("http://127.0.0.1:18080", tls=True)
    with HttpClient(tls=True) as http, RpcClient(tls=True) as rpc:
        assert str(http.address) == "https://127.0.0.1:18080"
        assert str(rpc.address) == "grpcs://127.0.0.1:9993"


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_an_authority_that_cannot_be_read(tmp_path: Path, content: bytes | None):
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    for kind, address in ((HttpClient, "https://127.0.0.1:1"), (RpcClient, "127.0.0.1:1")):
        with pytest.raises(UsageError, match=r"--ca .*ca\.pem") as caught:
            kind(address, ca=path)
        assert "\n" not in caught.value.message


def test_an_overloaded_server(plain: Listeners):
    for client in clients(plain.url, plain.target):
        error = failure(client, b"full")
        assert isinstance(error, BusyError)
        assert "is overloaded; ask again in a moment (9 images wait already" in error.message
        assert "Log_id" not in error.message


def test_the_servers_deadline_is_not_the_clients(plain: Listeners):
    for client in clients(plain.url, plain.target):
        error = failure(client, b"late")
        assert "The time was up." in error.message
        assert "within" not in error.message
    with RpcClient(plain.target, timeout=0.2) as rpc, pytest.raises(ClientError, match=r"within 0\.2 s"):
        rpc.predict(b"slow")


class _Elsewhere(BaseHTTPRequestHandler):
    """Sends callers on to another server, and notes what they show."""

    seen: list[tuple[int, str | None]]
    to: str

    def do_POST(self) -> None:
        port = self.server.server_address[1]
        self.seen.append((int(port), self.headers.get("Authorization")))
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(307)
        self.send_header("Location", self.to)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def test_a_redirect_is_not_followed():
    seen: list[tuple[int, str | None]] = []
    with (
        HTTPServer(("127.0.0.1", 0), _Elsewhere) as first,
        HTTPServer(("127.0.0.1", 0), _Elsewhere) as second,
    ):
        _Elsewhere.seen, _Elsewhere.to = seen, f"http://127.0.0.1:{second.server_port}/v1/classification"
        threads = [threading.Thread(target=each.serve_forever, args=(0.01,)) for each in (first, second)]
        for thread in threads:
            thread.start()
        try:
            error = failure(HttpClient(f"http://127.0.0.1:{first.server_port}", api_key=KEY))
        finally:
            for each, thread in zip((first, second), threads, strict=True):
                each.shutdown()
                thread.join()
    assert "answers 307" in error.message
    assert seen == [(first.server_port, f"Bearer {KEY}")]


def test_a_refused_key_ends_it_all():
    asked = []

    def refuse(image: bytes) -> Any:
        asked.append(image)
        raise KeyRefusedError("no")

    with pytest.raises(KeyRefusedError):
        list(predict_all(sources(500), refuse, jobs=2))
    assert len(asked) < 20


def test_the_service_behind_a_key(server: Server, made: Certificates):
    access = Access(KEY, ca=made.ca)
    assert find_service(server.url, False, access) == "classification"
    for rpc, address in ((False, server.url), (True, server.target)):
        with open_remote("classification", address, rpc, 60, 1, access) as ask:
            assert [label.label for label in ask(RED)] == ["red"]  # type: ignore[union-attr]


# The command


@pytest.fixture
def image(tmp_path: Path) -> str:
    (tmp_path / "red.png").write_bytes(RED)
    return str(tmp_path / "red.png")


@pytest.mark.full
def test_the_command_with_a_key_file(
    server: Server, made: Certificates, key_file: Path, image: str, tmp_path: Path
):
    for where in (
        ("--url", server.url),
        ("--rpc", "--url", server.target),
        ("--rpc", "--url", f"grpcs://{server.target}"),
    ):
        options = ("--api-key", str(key_file), "--ca", str(made.ca), "--top-k", "1", "--json")
        done = pdserve(tmp_path, "predict", image, *where, *options)
        assert done.returncode == 0, done.stderr
        assert '"red"' in done.stdout


@pytest.mark.full
def test_the_command_with_a_key_in_the_environment(keyed: Listeners, image: str, tmp_path: Path):
    wrong = pdserve(tmp_path, "predict", image, "--url", keyed.url, PDSERVE_API_KEY=WRONG)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "refuses the key" in wrong.stderr
    none = pdserve(tmp_path, "predict", image, "--rpc", "--url", keyed.target)
    assert none.returncode == 1
    assert "PDSERVE_API_KEY" in none.stderr
    assert WRONG not in wrong.stderr
    right = pdserve(tmp_path, "predict", image, "--url", keyed.url, PDSERVE_API_KEY=KEY)
    assert "cannot be read" in right.stderr + right.stdout  # it comes in; the fake has no labels


@pytest.mark.full
def test_the_command_with_a_key_for_a_file(image: str, tmp_path: Path):
    done = pdserve(tmp_path, "predict", image, "--api-key", WRONG, PDSERVE_DEBUG="1")
    assert done.returncode == 2
    assert "--api-key takes a file" in done.stderr
    assert done.stderr.count(WRONG) == 0


@pytest.mark.full
def test_what_a_server_wants_is_nothing_to_a_model_here(image: str, tmp_path: Path, key_file: Path):
    for option in (("--api-key", str(key_file)), ("--tls",), ("--ca", str(key_file))):
        done = pdserve(tmp_path, "predict", image, "--local", "--model", "tiny", *option)
        assert done.returncode == 2
        assert "--local asks no server" in done.stderr
