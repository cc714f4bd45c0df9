"""Which proxy a request goes through, and what NO_PROXY excepts."""

import pytest

from pdserve.errors import UsageError
from pdserve.proxies import find_proxy

THERE = "http://proxy.example:3128"


@pytest.mark.parametrize(
    ("host", "port", "without", "through"),
    [
        ("models.example.com", 80, "", True),
        ("models.example.com", 80, "*", False),
        ("models.example.com", 80, "example.com", False),
        ("models.example.com", 80, ".example.com", False),
        ("models.example.com", 80, "*.example.com", False),
        ("models.example.com", 80, "models.*", False),
        ("models.example.com", 80, "models.example.com:80", False),
        ("models.example.com", 80, "models.example.com:8080", True),
        ("models.example.com", 80, "  a ,EXAMPLE.COM.", False),
        ("notexample.com", 80, "example.com", True),
        ("example.com.evil.org", 80, "example.com", True),
        ("192.0.2.7", 80, "192.0.2.0/24", False),
        ("192.0.2.7", 80, "192.0.3.0/24 10.0.0.0/8", True),
        ("192.0.2.7", 80, "192.0.2.7:80", False),
        ("192.0.2.7", 80, "192.0.2.*", False),
        ("2001:db8::7", 80, "2001:db8::/32", False),
        ("2001:db8::7", 80, "[2001:db8::7]", False),
        ("2001:db8::7", 80, "[2001:db8::7]:80", False),
        ("2001:db8::7", 80, "[2001:db8::7]:81", True),
        ("2001:db8::7", 80, "2001:db8:0:0::7", False),
        ("2001:db8::7", 80, "::1,fe80::/10", True),
        ("models.example.com", 80, "[::1],fe80::/10,::,/,[,:", True),
    ],
)
def test_no_proxy(host: str, port: int, without: str, through: bool) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        found = find_proxy("http", host, port, {"http_proxy": THERE, name: without})
        assert (found is not None) is through


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.8.8.8", "localhost", "::1", "[::1]", "a.localhost", "0.0.0.0"]
)
def test_this_machine_is_asked_without_one(host: str) -> None:
    """Also where the proxy is one that could not be used."""
    for url in (THERE, "socks5://127.0.0.1:9", "nonsense://"):
        assert find_proxy("http", host, 80, {"all_proxy": url, "no_proxy": "[::1]"}) is None


def test_which_variable_counts() -> None:
    environ = {"ALL_PROXY": "http://all:1", "HTTPS_PROXY": "http://u:secret@tls:2", "http_proxy": "plain:3"}
    plain, tls = (find_proxy(each, "example.com", None, environ) for each in ("http", "https"))
    assert plain is not None
    assert tls is not None
    assert (plain.url, str(plain)) == ("http://plain:3", "http://plain:3 (http_proxy)")
    assert (tls.url, str(tls)) == ("http://u:secret@tls:2", "http://tls:2 (HTTPS_PROXY)")
    fallback = find_proxy("http", "example.com", None, {"ALL_PROXY": "http://all:1", "http_proxy": " "})
    assert fallback is not None
    assert fallback.origin == "ALL_PROXY"


@pytest.mark.parametrize(
    "url", ["ftp://a:1", "http://", "http://a:99999", "http://[::1", "socks4://a:1", "http://a:0"]
)
def test_what_is_no_proxy_is_said(url: str) -> None:
    with pytest.raises(UsageError, match="ALL_PROXY holds no address of a proxy"):
        find_proxy("https", "example.com", 443, {"ALL_PROXY": url})


def test_socks_is_said() -> None:
    environ = {"ALL_PROXY": "socks5://u:secret@127.0.0.1:9"}
    with pytest.raises(UsageError) as failed:
        find_proxy("https", "example.com", 443, environ, package="no_such_package")
    assert failed.value.message == (
        "ALL_PROXY names the SOCKS proxy socks5://127.0.0.1:9, which nothing here speaks; "
        "pip install no_such_package, or take example.com out of its way with NO_PROXY=example.com."
    )
    with pytest.raises(UsageError, match="give an http:// proxy in its place"):
        find_proxy("https", "example.com", 443, environ, package=None)
