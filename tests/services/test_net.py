"""The server's certificate: what is refused before a port opens, and both listeners with it."""

import shutil
import ssl
import subprocess
from pathlib import Path

import grpc
import httpx
import pytest

from pdserve.errors import SettingsError
from pdserve.formats.protos import pipeline
from pdserve.services.net import check_tls
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
