"""Names by which callers may reach the server: which are taken, which refused, and how."""

import socket
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from pdserve.errors import SettingsError
from pdserve.services.auth import Keys
from pdserve.services.http.app import build_app
from pdserve.services.http.hosts import HostHeaderError, Hosts, allowed_hosts, host_name
from pdserve.services.telemetry.metrics import Metrics
from pdserve.settings import ServerSettings
from tests.services.watching import FakeService, requests

PLAIN = ServerSettings(name="imagenet")
KEY = "k" * 32


def settings(**more: Any) -> ServerSettings:
    return PLAIN.model_copy(update=more)


def client(metrics: Metrics | None = None, keyed: bool = False, **more: Any) -> TestClient:
    """A client of a server with these settings."""
    metrics = metrics or Metrics()
    keys = Keys(KEY, None) if keyed else None
    return TestClient(build_app(FakeService(metrics), settings(**more), metrics, keys=keys))


def ask(http: TestClient, path: str, host: str, method: str = "GET", **headers: str) -> tuple[int, Any]:
    """Status and content."""
    sent = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    answer = http.request(method, path, headers=[(b"Host", host.encode("latin-1")), *sent])
    is_json = answer.headers.get("Content-Type") == "application/json"
    return answer.status_code, answer.json() if is_json and answer.content else answer.content


def check(hosts: Hosts, *sent: bytes) -> None:
    hosts.check({"headers": [(b"accept", b"*/*"), *((b"host", each) for each in sent)]})


@pytest.mark.parametrize(
    ("host", "name"),
    [
        (b"LocalHost:18080", "localhost"),
        (b"evil.example.", "evil.example"),
        (b"evil.example.:80", "evil.example"),
        (b"[::1]:8080", "::1"),
        (b"[fe80::1%25eth0]", "fe80::1%25eth0"),
        (b"::1", ":"),  # no form that a browser sends
        (b" a.b ", "a.b"),
        (b"a.b:", "a.b"),
        (b"a.b:x", "a.b:x"),
        (b"", ""),
    ],
)
def test_the_name_in_a_host(host: bytes, name: str) -> None:
    assert host_name(host) == name


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST:8080", "localhost.", "app.localhost:3000"),
        *(
            "127.0.0.1",
            "127.0.0.1:18080",
            "10.244.1.7:8080",
            "192.0.2.7",
            "[::1]",
            "[::1]:8080",
            "[fe80::1%25eth0]",
        ),
        # Containers and Kubernetes ask so.
        *("pdserve:18080", "gpu-box", "host.docker.internal:18080", "pdserve.default.svc"),
        *("pdserve.default.svc.cluster.local:80", "gpu-box.local"),
        *("", ":8080"),
    ],
)
def test_addresses_and_names_that_nobody_can_register(host: str) -> None:
    check(allowed_hosts(PLAIN, keyed=False), host.encode())


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:18080", "EVIL.example", "evil.example.", "127.0.0.1.nip.io"),
        *("localhost.evil.example", "evil.example#localhost", "a@evil.example", "evil.example:x"),
        *("notlocalhost.example", "1.2.3", "[evil.example]", "127.0.0.1,evil.example"),
        "evil.example/v2/health/live?",
        *("x" * 64 + ".example", "a." * 5000 + "example", "evil.xn--p1ai", "\xe9vil.example"),
    ],
)  # fmt: skip
def test_a_name_of_somebody_else(host: str) -> None:
    metrics = Metrics()
    status, content = ask(client(metrics), "/v2", host)
    assert (status, content["error"]["code"]) == (421, "unknown_host")
    assert "--allowed-host" in content["error"]["message"]
    assert len(content["error"]["message"]) < 800
    assert requests(metrics) == {("/v2", "421"): 1}


def test_what_is_said_can_be_typed() -> None:
    message = ask(client(), "/v2", "Shop.Example:80")[1]["error"]["message"]
    assert "'shop.example'" in message
    assert message.endswith("start it with --allowed-host shop.example.")
    message = ask(client(), "/v2", "a b.example")[1]["error"]["message"]
    assert message.endswith("start it with --allowed-host NAME.")


@pytest.mark.parametrize(
    "path", ["/v1/classification", "/metrics", "/docs", "/openapi.json", "/", "/imagenet/prediction"]
)
def test_no_route_answers_to_it(path: str) -> None:
    http = client()
    for method in ("GET", "POST", "DELETE", "OPTIONS", "HEAD"):
        assert ask(http, path, "evil.example", method)[0] == 421


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready"])
def test_health_answers_to_every_name_as_a_probe_may_have_one(path: str) -> None:
    http = client()
    assert ask(http, path, "pdserve.service.consul:18080")[0] == 200
    assert ask(http, path, "pdserve.service.consul", "HEAD")[0] == 200
    assert ask(http, path, "pdserve.service.consul", "POST")[0] == 421


def test_none_and_two() -> None:
    hosts = allowed_hosts(PLAIN, keyed=False)
    check(hosts)  # HTTP/1.0
    with pytest.raises(HostHeaderError, match="more than one Host"):
        check(hosts, b"localhost", b"evil.example")
    with pytest.raises(HostHeaderError):
        check(hosts, b"localhost", b"localhost")


def test_names_that_are_allowed() -> None:
    http = client(allowed_hosts=("Shop.Example", "*.lab.example", "b\u00fccher.example"))
    for host in (
        "shop.example",
        "SHOP.example:443",
        "a.lab.example",
        "a.b.lab.example",
        "xn--bcher-kva.example",
    ):
        assert ask(http, "/v2", host)[0] == 200, host
    for host in ("www.shop.example", "lab.example", "evil.example", "evillab.example"):
        assert ask(http, "/v2", host)[0] == 421, host
    assert ask(client(allowed_hosts=("*",)), "/v2", "evil.example")[0] == 200


def test_the_name_that_it_listens_on_and_the_machines() -> None:
    hosts = allowed_hosts(settings(host="GPU1.corp.example"), keyed=False)
    assert hosts.admits(b"gpu1.corp.example:18080")
    assert hosts.admits(socket.gethostname().encode())
    assert not hosts.admits(b"gpu2.corp.example")


def test_the_machines_name_with_its_domains(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    resolv = tmp_path / "resolv.conf"
    resolv.write_text(
        "# search old.example\nnameserver 192.0.2.1\n\nsearch corp.example Lab.example.\n", "utf-8"
    )
    monkeypatch.setattr("pdserve.services.http.hosts.Path", lambda _: resolv)
    monkeypatch.setattr("socket.gethostname", lambda: "GPU1")
    hosts = allowed_hosts(PLAIN, keyed=False)
    assert hosts.admits(b"gpu1.corp.example")
    assert hosts.admits(b"gpu1.lab.example:80")
    assert not hosts.admits(b"gpu1.old.example")
    assert not hosts.admits(b"gpu2.corp.example")


def test_with_a_key_every_name_will_do_unless_some_are_given() -> None:
    http = client(keyed=True, api_key=SecretStr(KEY))
    assert ask(http, "/v2", "api.example.com", X_API_Key=KEY)[0] == 200
    assert ask(http, "/v2", "api.example.com")[0] == 401
    http = client(keyed=True, api_key=SecretStr(KEY), allowed_hosts=("api.example.com",))
    assert ask(http, "/v2", "api.example.com", X_API_Key=KEY)[0] == 200
    assert ask(http, "/v2", "evil.example", X_API_Key=KEY)[0] == 421


@pytest.mark.parametrize(
    "name",
    [
        "http://shop.example",
        "shop.example:80",
        "a b",
        "",
        "*.",
        "a..b",
        "x" * 254,
        "*a.example",
        "-a.example",
    ],
)
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(SettingsError, match=r"--allowed-host: .* is no host name"):
        allowed_hosts(settings(allowed_hosts=(name,)), keyed=False)


def test_callers_cannot_make_it_remember_much() -> None:
    hosts = Hosts(["shop.example"])
    for i in range(1000):
        hosts.admits(b"h%d.example" % i)
    assert hosts.admits.cache_info().currsize <= 256
