"""Certificates and addresses: what is refused before a port opens, and both listeners with them."""

import errno
import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from pdserve.errors import SettingsError
from pdserve.formats.protos import pipeline
from pdserve.services.net import bind, check_tls, container_warning
from pdserve.settings import ServerSettings
from tests.certificates import Certificates, issue
from tests.services.listeners import listeners


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return issue(tmp_path_factory.mktemp("tls"))


def settings(cert: Path | None, key: Path | None) -> ServerSettings:
    return ServerSettings(name="imagenet", http_port=0, tls_cert=cert, tls_key=key)


def test_without_tls():
    found = check_tls(settings(None, None))
    assert (found.context, found.credentials) == (None, None)


def test_a_certificate_and_its_key(made: Certificates):
    found = check_tls(settings(made.cert, made.key))
    assert found.context
    assert found.credentials
    assert "PRIVATE KEY" not in repr(found)


def test_one_without_the_other(made: Certificates):
    with pytest.raises(SettingsError, match="--tls-cert needs --tls-key beside it"):
        check_tls(settings(made.cert, None))
    with pytest.raises(SettingsError, match="--tls-key needs --tls-cert beside it"):
        check_tls(settings(None, made.key))


def test_files_that_do_not_belong_together(made: Certificates, tmp_path: Path):
    other = issue(tmp_path)
    with pytest.raises(SettingsError, match="is not the key of the certificate"):
        check_tls(settings(made.cert, other.key))


def test_files_that_cannot_be_read(made: Certificates, tmp_path: Path):
    with pytest.raises(SettingsError, match=r"Cannot read --tls-cert .*none\.pem: No such file"):
        check_tls(settings(tmp_path / "none.pem", made.key))
    with pytest.raises(SettingsError, match="Cannot read --tls-key"):
        check_tls(settings(made.cert, tmp_path))


@pytest.mark.parametrize("content", [b"", b"no certificate", b"\0" * 100])
def test_files_of_another_kind(made: Certificates, tmp_path: Path, content: bytes):
    path = tmp_path / "other.pem"
    path.write_bytes(content)
    for cert, key in ((path, made.key), (made.cert, path), (made.key, made.cert)):
        with pytest.raises(SettingsError, match="are not a certificate and its key in PEM form") as caught:
            check_tls(settings(cert, key))
        assert "\n" not in caught.value.message


def test_a_key_with_a_password(made: Certificates, tmp_path: Path):
    """No terminal is asked for it."""
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    key = load_pem_private_key(made.key.read_bytes(), None)
    locked = tmp_path / "locked.pem"
    locked.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )
    with pytest.raises(SettingsError, match="is encrypted; write it without a password"):
        check_tls(settings(made.cert, locked))


def test_both_listeners(made: Certificates):
    with listeners(tls_cert=made.cert, tls_key=made.key) as opened:
        trusting = ssl.create_default_context(cafile=made.ca)
        with httpx.Client(base_url=opened.url, verify=trusting, trust_env=False) as client:
            assert client.get("/v2/health/live").status_code == 200
            assert client.post("/v1/classification", content=bytes(3_000_000)).status_code == 200
        trusting.maximum_version = ssl.TLSVersion.TLSv1_2
        with httpx.Client(base_url=opened.url, verify=trusting, trust_env=False) as client:
            assert client.get("/v2/health/live").status_code == 200
        with httpx.Client(base_url=opened.url, trust_env=False) as client, pytest.raises(httpx.ConnectError):
            client.get("/v2/health/live")
        plain = opened.url.replace("https", "http")
        with httpx.Client(base_url=plain, trust_env=False) as client, pytest.raises(httpx.TransportError):
            client.get("/v2/health/live")
        credentials = grpc.ssl_channel_credentials(made.ca.read_bytes())
        with grpc.secure_channel(opened.target, credentials) as channel:
            call = channel.unary_unary(
                pipeline.METHOD, response_deserializer=pipeline.response_class().FromString
            )
            request = pipeline.request_class()(key=["a"], value=["eA=="]).SerializeToString()
            assert call(request, timeout=20).err_no == 0
        with grpc.insecure_channel(opened.target) as channel, pytest.raises(grpc.RpcError):
            channel.unary_unary(pipeline.METHOD)(b"", timeout=20)


@pytest.mark.parametrize(("version", "spoken"), [("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)])
def test_versions(made: Certificates, version: str, spoken: bool):
    """The command speaks what Python's own module may be built without."""
    if not shutil.which("openssl"):
        pytest.skip("needs the openssl command")
    with listeners(tls_cert=made.cert, tls_key=made.key) as opened:
        address = opened.url.removeprefix("https://")
        done = subprocess.run(
            ["openssl", "s_client", "-connect", address, version, "-CAfile", str(made.ca)],
            input=b"",
            capture_output=True,
            timeout=30,
            check=False,
        )
    assert (b"Cipher is (NONE)" not in done.stdout) is spoken
    assert (b"Verify return code: 0 (ok)" in done.stdout) or not spoken


# Addresses to listen on


def opened(host: str, port: int = 0) -> list[tuple[str, int]]:
    """Addresses and ports that a host is bound to."""
    bound = bind(host, port)
    try:
        return [each.getsockname()[:2] for each in bound]
    finally:
        for each in bound:
            each.close()


def without_ipv6() -> bool:
    try:
        opened("::1")
    except SettingsError:
        return True
    return False


both = pytest.mark.skipif(without_ipv6(), reason="this machine has no IPv6")


@both
@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "localhost."])
def test_localhost_is_both_loopbacks_on_one_port(host: str):
    (first, second) = opened(host)
    assert (first[0], second[0]) == ("127.0.0.1", "::1")
    assert first[1] == second[1] > 0
    assert {port for _, port in opened(host, first[1])} == {first[1]}


def test_localhost_where_ipv6_is_off(monkeypatch: pytest.MonkeyPatch):
    real = socket.socket.bind

    def no_ipv6(self: socket.socket, address: Any) -> None:
        if self.family == socket.AF_INET6:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        real(self, address)

    monkeypatch.setattr(socket.socket, "bind", no_ipv6)
    assert [host for host, _ in opened("localhost")] == ["127.0.0.1"]
    with pytest.raises(SettingsError, match="Cannot listen on ::1:0: Cannot assign requested address"):
        opened("::1")


def test_the_address_of_another_machine():
    with pytest.raises(SettingsError, match=r"no such address: give .*, or 0\.0\.0\.0 for all") as caught:
        opened("192.0.2.1")  # RFC 5737: nobody's
    assert "port" not in caught.value.message


@pytest.mark.parametrize("host", ["*", "http://127.0.0.1", "127.0.0.1:8080", "[::1]", "127.0.0.1/8"])
def test_what_is_more_than_a_host(host: str):
    """A star is looked up to the loopback, where nobody else would reach the server."""
    with pytest.raises(SettingsError, match=r"is no address.*; give a name or an address alone") as caught:
        opened(host)
    assert repr(host) in caught.value.message


@both
def test_a_port_that_is_taken_at_one_of_them():
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"Cannot listen on localhost:{port}: Address already in use"):
            opened("localhost", port)
        assert opened("127.0.0.1", port) == [("127.0.0.1", port)]


@pytest.mark.parametrize(
    ("host", "found"),
    [("127.0.0.1", ["127.0.0.1"]), ("0.0.0.0", ["0.0.0.0"]), ("127.0.0.9", ["127.0.0.9"])],
)
def test_an_address_is_itself(host: str, found: list[str]):
    assert [each for each, _ in opened(host)] == found


@pytest.mark.parametrize("host", ["no.such.host.invalid", "x" * 70, "http://127.0.0.1"])
def test_what_is_no_address(host: str):
    with pytest.raises(SettingsError, match="is no address of this machine"):
        opened(host)


def test_both_listeners_answer_at_both_loopbacks():
    with listeners(host="localhost") as found:
        port, rpc = found.url.rpartition(":")[2], found.target.rpartition(":")[2]
        for host in ("127.0.0.1",) if without_ipv6() else ("127.0.0.1", "[::1]"):
            assert httpx.get(f"http://{host}:{port}/v2/health/live", trust_env=False).status_code == 200
            with grpc.insecure_channel(f"{host}:{rpc}") as channel:
                grpc.channel_ready_future(channel).result(20)


@pytest.mark.parametrize(
    ("host", "files", "environ", "warned"),
    [
        ("127.0.0.1", (".dockerenv",), {}, True),
        ("localhost", ("run/.containerenv",), {}, True),
        ("127.0.0.1", (), {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, True),
        ("::1", (), {"container": "podman"}, True),
        ("0.0.0.0", (".dockerenv",), {}, False),
        ("127.0.0.1", (), {}, False),
    ],
)
def test_a_loopback_inside_a_container(
    host: str, files: tuple[str, ...], environ: dict[str, str], warned: bool, tmp_path: Path
):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    warning = container_warning(host, environ, tmp_path)
    assert ("--host 0.0.0.0" in warning and host in warning) if warning else not warned
