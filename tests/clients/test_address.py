import socket

import pytest

from pdserve.clients.address import Address, http_address, is_this_machine, rpc_address
from pdserve.errors import UsageError


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:18080", Address("http", "127.0.0.1", 18080)),
        ("http://127.0.0.1:18080/", Address("http", "127.0.0.1", 18080)),
        ("http://Server", Address("http", "server", 80)),
        ("https://server.example", Address("https", "server.example", 443)),
        ("HTTPS://server:8443", Address("https", "server", 8443)),
        ("http://[::1]:18080", Address("http", "::1", 18080)),
    ],
)
def test_http(url: str, expected: Address):
    assert http_address(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "", "server:18080", "127.0.0.1", "ftp://server:21", "http://", "http://:80", "http://server:port",
        "http://server:", "http://server:0", "http://server:70000", "http://server:-1", "http://[::1",
        "http://server:80/v1/classification", "http://server?x=1", "http://server#x", "http://me@server:80",
        "http://two words:80", "http:server", " http://server", "http://server:80\n",
    ],
)  # fmt: skip
def test_no_http_address(url: str):
    with pytest.raises(UsageError, match="not of the form http://host:port") as caught:
        http_address(url)
    assert repr(url) in caught.value.message


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("127.0.0.1:9993", Address("grpc", "127.0.0.1", 9993)),
        ("Server.example:1", Address("grpc", "server.example", 1)),
        ("[::1]:9993", Address("grpc", "::1", 9993)),
        ("grpc://127.0.0.1:9993", Address("grpc", "127.0.0.1", 9993)),
        ("grpcs://server.example:443", Address("grpcs", "server.example", 443)),
        ("GRPCS://[::1]:9993/", Address("grpcs", "::1", 9993)),
    ],
)
def test_rpc(target: str, expected: Address):
    assert rpc_address(target) == expected


@pytest.mark.parametrize(
    "target",
    [
        "", "server", ":9993", "server:", "server:0", "server:70000", "server:port", "http://server:9993",
        "https://server:9993", "grpcs://server", "grpcs://", "grpcs://server:9993/x", "grpcs://me@server:9993",
        "server:9993/", "server:9993?x", "me@server:9993", "::1:9993", "[::1]", "a b:1", " server:9993",
    ],
)  # fmt: skip
def test_no_rpc_address(target: str):
    with pytest.raises(UsageError, match="not of the form host:port"):
        rpc_address(target)


@pytest.mark.parametrize(
    "text", ["http://127.0.0.1:18080", "https://server:443", "http://[::1]:18080", "http://[fe80::1]:1"]
)
def test_an_address_is_written_as_it_is_read(text: str):
    assert str(http_address(text)) == text


def test_netloc():
    assert str(rpc_address("[::1]:9993")) == rpc_address("[::1]:9993").netloc == "[::1]:9993"
    assert rpc_address("server:1").netloc == "server:1"
    assert str(rpc_address("grpc://server:1")) == "server:1"
    assert str(rpc_address("grpcs://server:1")) == "grpcs://server:1"
    assert rpc_address("grpcs://server:1").netloc == "server:1"


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LocalHost", "localhost.", "app.localhost", "127.0.0.1", "127.9.9.9", "0.0.0.0", "::1",
        "::",
    ],
)  # fmt: skip
def test_this_machine(host: str):
    assert is_this_machine(host)


def test_this_machines_own_names_and_addresses():
    assert is_this_machine(socket.gethostname())
    assert is_this_machine(socket.gethostname().upper())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward:
        try:
            outward.connect(("192.0.2.1", 9))  # sends nothing, and says which address would be used
        except OSError:
            pytest.skip("this machine has no address but loopback")
        assert is_this_machine(outward.getsockname()[0])


@pytest.mark.parametrize(
    "host", ["192.0.2.1", "198.51.100.7", "2001:db8::1", "mylocalhost", "localhost.example"]
)
def test_another_machine(host: str):
    assert not is_this_machine(host)
