"""The Python clients, sync and async, HTTP and gRPC, against a real server."""

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from pdserve.clients import AsyncHttpClient, AsyncRpcClient, HttpClient, Labels, RpcClient
from pdserve.errors import ClientError, UnreachableError, UsageError
from tests.running import Server
from tests.tiny import NAMES, expected, picture

RED, BLUE = (255, 0, 0), (0, 0, 255)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(params=["http", "rpc"])
def client(request: pytest.FixtureRequest, tiny_server: Server) -> Iterator[HttpClient | RpcClient]:
    made = HttpClient(tiny_server.url) if request.param == "http" else RpcClient(tiny_server.target)
    with made:
        yield made


def test_labels_with_class_ids_and_scores(client: HttpClient | RpcClient) -> None:
    labels = client.predict(picture(BLUE))
    assert [label.label for label in labels] == ["blue", "red", "green"]
    assert labels[0].class_id == 2
    assert labels[0].score == pytest.approx(expected(BLUE)[2], abs=1e-5)
    assert len(client.predict(picture(BLUE), top_k=2)) == 2


def test_a_batch_with_a_bad_image(client: HttpClient | RpcClient) -> None:
    first, second, third = client.predict_batch([picture(RED), b"hello", picture(BLUE)], top_k=1)
    assert isinstance(first, list)
    assert isinstance(third, list)
    assert [first[0].label, third[0].label] == ["red", "blue"]
    assert isinstance(second, ClientError)
    assert "no image" in second.message


def test_a_bad_image_raises_what_the_server_said(client: HttpClient | RpcClient) -> None:
    with pytest.raises(ClientError, match="no image"):
        client.predict(b"hello")


def test_any_service_is_asked_the_same_way(client: HttpClient | RpcClient) -> None:
    good, bad = client.ask([picture(BLUE), b"hello"], top_k=2, service="classification")
    assert isinstance(good, Labels)
    assert [label.label for label in good.labels] == ["blue", "red"]
    assert isinstance(bad, ClientError)
    with pytest.raises(UsageError, match="known are classification, "):
        client.ask([b""], service="segmentation")


def test_threads_share_a_client(client: HttpClient | RpcClient) -> None:
    colors = [RED, BLUE] * 20
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda color: client.predict(picture(color)), colors))
    assert [answer[0].label for answer in answers] == ["red", "blue"] * 20


def test_clients_load_neither_numpy_nor_an_engine(tiny_server: Server) -> None:
    """Importing them and using them: a program that only asks should start fast."""
    program = (
        "import sys, pdserve.clients, pdserve.clients.http, pdserve.clients.grpc\n"
        "from pdserve.clients import HttpClient, RpcClient\n"
        "image = sys.stdin.buffer.read()\n"
        "for client in (HttpClient(sys.argv[1]), RpcClient(sys.argv[2])):\n"
        "    with client:\n"
        "        assert client.predict(image), client\n"
        "heavy = {'numpy', 'cv2', 'PIL', 'openvino', 'onnxruntime', 'faiss', 'fastapi', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", program, tiny_server.url, tiny_server.target]
    done = subprocess.run(command, input=picture(RED), capture_output=True, timeout=60, check=True)
    assert done.stdout.decode().strip() == "[]"


def test_async_clients(tiny_server: Server) -> None:
    async def ask() -> None:
        async with AsyncHttpClient(tiny_server.url) as http, AsyncRpcClient(tiny_server.target) as rpc:
            assert await http.is_ready()
            for client in (http, rpc):
                answers = await asyncio.gather(*(client.predict(picture(c), 1) for c in (RED, BLUE)))
                assert [labels[0].label for labels in answers] == ["red", "blue"]
                with pytest.raises(ClientError, match="no image"):
                    await client.predict(b"hello")

    asyncio.run(ask())


def test_nobody_there() -> None:
    port = free_port()
    for client in (HttpClient(f"http://127.0.0.1:{port}"), RpcClient(f"127.0.0.1:{port}")):
        with client, pytest.raises(UnreachableError, match="pdserve serve classification"):
            client.predict(picture(RED))

    async def ask() -> None:
        for client in (AsyncHttpClient(f"http://127.0.0.1:{port}"), AsyncRpcClient(f"127.0.0.1:{port}")):
            async with client:
                with pytest.raises(UnreachableError):
                    await client.predict(picture(RED))
        async with AsyncHttpClient(f"http://127.0.0.1:{port}") as http:
            assert not await http.is_ready()

    asyncio.run(ask())


def test_a_server_that_never_answers() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        http = HttpClient(f"http://127.0.0.1:{port}", timeout=0.2)
        with http, pytest.raises(ClientError, match=r"within 0\.2 s"):
            http.predict(picture(RED))
        with RpcClient(f"127.0.0.1:{port}", timeout=0.2) as rpc, pytest.raises(ClientError):
            rpc.predict(picture(RED))


def test_a_proxy_in_the_environment_is_passed_by(
    tiny_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
        monkeypatch.setenv(name.upper(), f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    for client in (HttpClient(tiny_server.url), RpcClient(tiny_server.target)):
        with client:
            assert client.predict(picture(RED))[0].label == NAMES[0]


@pytest.mark.parametrize("url", ["127.0.0.1:80", "ftp://x:1", "http://", "http://x:99999"])
def test_a_wrong_http_address(url: str) -> None:
    with pytest.raises(UsageError):
        HttpClient(url)


@pytest.mark.parametrize("target", ["http://127.0.0.1:80", "127.0.0.1", "x:y", "/"])
def test_a_wrong_rpc_address(target: str) -> None:
    with pytest.raises(UsageError):
        RpcClient(target)


class _Other(BaseHTTPRequestHandler):
    """Some other server, which answers everything with a page."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, *_: Any) -> None:
        pass


def test_a_server_of_another_kind() -> None:
    with HTTPServer(("127.0.0.1", 0), _Other) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            client = HttpClient(f"http://127.0.0.1:{server.server_port}")
            with (
                client,
                pytest.raises(ClientError, match=r"answers 200: .* no answer of pdserve; something else"),
            ):
                client.predict(picture(RED))
        finally:
            server.shutdown()
            thread.join()
