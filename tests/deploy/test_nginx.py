"""deploy/nginx/pdserve.conf in the real nginx, in front of a real server: TLS, HTTP, gRPC, bodies, limits."""

import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from pdserve.clients import HttpClient, RpcClient
from pdserve.settings import ServerSettings
from tests.certificates import issue
from tests.clients.test_http_and_rpc import free_port
from tests.docs.blocks import ROOT
from tests.running import Server, start
from tests.tiny import NAMES, picture

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin") or ""
CONFIG = (ROOT / "deploy" / "nginx" / "pdserve.conf").read_text("utf-8")
MOST = 4 << 20  # bytes in a body here

full = [
    pytest.mark.full,
    pytest.mark.posix,
    pytest.mark.skipif(not NGINX, reason="needs nginx: apt-get install nginx-light"),
]


def test_its_bounds_are_the_servers_own() -> None:
    settings = ServerSettings(name="imagenet")
    (size,) = re.findall(r"client_max_body_size (\d+)m;", CONFIG)
    assert int(size) << 20 == settings.max_body_bytes
    assert f"client_header_timeout {settings.header_timeout_s:.0f}s;" in CONFIG
    assert f"client_body_timeout {settings.body_timeout_s:.0f}s;" in CONFIG
    (most,) = re.findall(r"max_conns=(\d+);", CONFIG)
    assert int(most) < settings.max_connections_per_address


@dataclass(frozen=True)
class Proxy:
    """nginx on a free port; ``server`` is behind it, ``ca`` vouches for it."""

    port: int
    server: Server
    ca: Path

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.ca)

    def post(self, content: "bytes | Iterator[bytes]") -> httpx.Response:
        with httpx.Client(verify=self.tls, trust_env=False, timeout=120) as client:
            return client.post(f"{self.url}/v1/classification", content=content)


@pytest.fixture(scope="module")
def proxy(tiny_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("nginx")
    certificates = issue(folder / "tls")
    port = free_port()
    with start(tiny_home, "--model", "tiny", "--max-body-bytes", str(MOST)) as server:
        text = CONFIG
        for theirs, ours in {
            "listen 443 ": f"listen 127.0.0.1:{port} ",
            "pdserve.example": "localhost",
            "/etc/nginx/tls/pdserve.crt": str(certificates.cert),
            "/etc/nginx/tls/pdserve.key": str(certificates.key),
            "127.0.0.1:18080": f"127.0.0.1:{server.http_port}",
            "127.0.0.1:9993": server.target,
            "client_max_body_size 256m": f"client_max_body_size {MOST >> 20}m",
        }.items():
            assert theirs in text
            text = text.replace(theirs, ours)
        parts = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        http = ["access_log off;", *(f"{part}_temp_path {folder}/{part};" for part in parts), text]
        whole = [f"pid {folder}/pid;", "daemon off;", "events {}", "http {", *http, "}"]
        (folder / "nginx.conf").write_text("\n".join(whole))
        command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "log")]
        tried = subprocess.run([*command, "-t"], capture_output=True, text=True, timeout=60, check=False)
        assert tried.returncode == 0, tried.stderr
        with subprocess.Popen(command) as process:
            try:
                _wait(process, port)
                yield Proxy(port, server, certificates.ca)
            finally:
                process.terminate()
                process.wait(20)


def _wait(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 5).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError("nginx did not start")


class TestNginx:
    pytestmark = full

    def test_http_and_grpc_answer_on_one_port(self, proxy: Proxy) -> None:
        with HttpClient(proxy.url, ca=proxy.ca) as http:
            assert http.predict(picture((0, 255, 0)))[0].label == NAMES[1]
        with RpcClient(f"grpcs://localhost:{proxy.port}", ca=proxy.ca) as rpc:
            assert rpc.predict(picture((0, 0, 255)))[0].label == NAMES[2]

    def test_a_body_goes_on_up_to_the_limit(self, proxy: Proxy) -> None:
        """What is no image is said by the server, what is too large by nginx."""
        fits = picture((255, 0, 0)) + bytes(MOST - 4096)
        assert proxy.post(fits).json()["results"][0]["labels"][0]["label"] == NAMES[0]
        over = proxy.post(bytes(MOST + 1))
        assert over.status_code == 413
        assert "nginx" in over.text

    def test_a_body_without_a_length_is_bounded_too(self, proxy: Proxy) -> None:
        def parts(count: int) -> Iterator[bytes]:
            yield picture((0, 255, 0))
            for _ in range(count):
                yield bytes(1 << 16)

        assert proxy.post(parts(8)).json()["results"][0]["labels"][0]["label"] == NAMES[1]
        assert proxy.post(parts((MOST >> 16) + 1)).status_code == 413
        assert proxy.post(picture((255, 0, 0))).status_code == 200  # the server stands

    def test_an_upload_is_not_kept_at_nginx(self, proxy: Proxy) -> None:
        """The server hears of a body before it is whole: it refuses a form that it cannot read at once."""
        context = proxy.tls
        with (
            socket.create_connection(("127.0.0.1", proxy.port), 60) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as sent,
        ):
            head = "POST /v1/nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
            sent.sendall(head.encode() + bytes(1000))
            assert sent.recv(4096).startswith(b"HTTP/1.1 404")  # with 999,000 bytes to come

    def test_metrics_are_not_for_callers(self, proxy: Proxy) -> None:
        with httpx.Client(verify=proxy.tls, trust_env=False, timeout=60) as client:
            assert client.get(f"{proxy.url}/metrics").status_code == 404
            assert client.get(f"{proxy.url}/v2/health/ready").status_code == 200
